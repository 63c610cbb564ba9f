__version__ = "0.1.0"

import warnings
warnings.filterwarnings('ignore', r'`torch\.jit\.script` is deprecated', FutureWarning) # fastai's, when it is imported: nobody here can do anything about it

__version__ = "0.1.0"

import warnings
warnings.filterwarnings('ignore', r'`torch\.jit\.script` is deprecated', FutureWarning) # of fastai's import

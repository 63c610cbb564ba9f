"Everything, for notebooks and scripts: `from cifar_fastai.all import *`"
from fastai.vision.all import *
from .data import *
from .augment import *
from .loaders import *
from .models import *
from .optim import *
from .schedule import *
from .precision import *
from .recipe import *
from .gradcam import *
from .interpret import *
from .checkpoint import *
from .run import *
from .predict import Predictor
from .export import *

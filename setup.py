"Package metadata, read from settings.ini; the version from cifar_fastai/__init__.py"
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

root = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read_string((root/'settings.ini').read_text(encoding='utf-8'))
cfg = cfg['DEFAULT']
version = re.search(r'^__version__ = "(.+)"', (root/'cifar_fastai/__init__.py').read_text(encoding='utf-8'), re.M)[1]

extras = {k: cfg[f'{k}_requirements'].split() for k in ('export','distributed','app','bench','timm','hub','dev')}

setup(
    version=version,
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points=dict(console_scripts=(cfg['console_scripts']+' '+cfg['dev_scripts']).split(),
                      nbdev=['cifar_fastai=cifar_fastai._modidx:d']),
)

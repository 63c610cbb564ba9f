"What `nbdev_test` calls before it starts: `test_setup` in pyproject.toml"
import multiprocessing,os,sys
from functools import partial
from pathlib import Path
from nbdev import test

def _record_bf16(fn, file):
    "Append the name of the notebook `fn` to `file` when it calls `cpu_has_bf16`; `.ci/run` tests it with both answers"
    from cifar_fastai import core
    has_bf16 = core.cpu_has_bf16
    def recorded():
        with open(file, 'a') as f: f.write(f'{Path(fn).stem}\n')
        return has_bf16()
    core.cpu_has_bf16 = recorded # before another module imports it

def _alone(method, f, fn, **kwargs):
    multiprocessing.set_start_method(method, force=True) # how a notebook's own children start, as without a fork server
    if file:=os.environ.get('CIFAR_FASTAI_BF16_CALLERS'): _record_bf16(fn, file)
    return f(fn, **kwargs)

def own_processes(cells):
    "Run each notebook in its own process, with one thread: patches of `Learner` then do not affect the next notebook"
    if sys.version_info<(3,11): return # `max_tasks_per_child` is newer
    multiprocessing.set_forkserver_preload(['cifar_fastai', 'fastai.vision.all', 'albumentations']) # imported once
    method,parallel = multiprocessing.get_start_method(),test.parallel
    def alone(f, items, n_workers, **kwargs):
        if n_workers: os.environ.setdefault('OMP_NUM_THREADS', '1') # notebooks would wait for each other
        return parallel(partial(_alone, method, f), items, n_workers=n_workers, max_tasks_per_child=1, **kwargs)
    test.parallel = alone

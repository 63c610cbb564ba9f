"What `nbdev_test` calls before it starts: `test_setup` in pyproject.toml"
import multiprocessing,os,sys
from functools import partial
from nbdev import test

def _with_method(method, f, *args, **kwargs):
    multiprocessing.set_start_method(method, force=True) # how a notebook's own children start, as without a fork server
    return f(*args, **kwargs)

def own_processes(cells):
    "A process of its own, and one thread, for each notebook: one that patches `Learner` would change what the next one tests"
    if sys.version_info<(3,11): return # `max_tasks_per_child` is newer
    multiprocessing.set_forkserver_preload(['cifar_fastai', 'fastai.vision.all', 'albumentations']) # imported once, not by each of them
    method,parallel = multiprocessing.get_start_method(),test.parallel
    def alone(f, items, n_workers, **kwargs):
        if n_workers: os.environ.setdefault('OMP_NUM_THREADS', '1') # notebooks beside each other would wait for each other's threads
        return parallel(partial(_with_method, method, f), items, n_workers=n_workers, max_tasks_per_child=1, **kwargs)
    test.parallel = alone

"""Measure everything on a GPU that is rented by the minute.

    python tools/measure.py --minutes 9 --out DIR                          # the whole table, in its order
    python tools/measure.py --minutes 9 --out DIR --only resnet18:0,1 davidnet:0 speedrun
    python tools/measure.py --data imagenette128 --minutes 9 --out DIR     # the rows of another data set
    python tools/measure.py --quick --minutes 3 --out DIR                  # a rehearsal: tiny networks, digits

Each training is a process of its own; several share the device. Timed jobs compile beside them, then have the device
to themselves, in the order of the table, while the trainings are paused. Each result is written as soon as it is
measured, and all are packed before the time is up. Started again with the same DIR, it resumes unfinished trainings
and measures what is missing. Without --only, it leaves out the seeds that results/ already has for this device.
DIR/pack has the files to download: results.tar.gz (results, summary, logs), and the weights of the lowest finished
seed of each name, for `load_model`: `cat weights-*.tar | tar x`. To continue on another machine, unpack results.tar.gz
into its DIR.
"""
import time
started = time.monotonic()
import argparse, sys
from pathlib import Path

def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=9., help='until all is written and packed (default 9)')
    p.add_argument('--out', type=Path, required=True, help='folder of all that is measured')
    p.add_argument('--data', help='default cifar10; digits with --quick',
                   choices=['cifar10','digits','fashion_mnist','imagenette128','imagewoof128','cifar100'])
    p.add_argument('--jobs', type=int, help='trainings at a time; default 3 on CUDA, else 1')
    p.add_argument('--only', nargs='+', metavar='NAME[:SEEDS]', help='in this order: resnet18:0 davidnet:0,1 speedrun')
    p.add_argument('--checkpoints', action=argparse.BooleanOptionalAction, default=True,
                   help='write a checkpoint after each epoch, and resume from it (default: yes)')
    p.add_argument('--commit', default='', help='of the library, where git does not know')
    p.add_argument('--pack', type=Path, help='folder of the files to download; default DIR/pack')
    p.add_argument('--pack-mb', type=float, default=100.,
                   help='the most megabytes of weights to pack (default 100)')
    p.add_argument('--quick', action='store_true', help='rehearse: tiny networks on digits')
    p.add_argument('--one', nargs=3, help=argparse.SUPPRESS) # name, seeds and the process that starts it
    return p.parse_args()

if __name__=='__main__': args = parse_args() # before the imports below, which take seconds

repository = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(repository)) # the library of this tree
from cifar_fastai.all import *
from cifar_fastai.bench import *
import contextlib, gzip, io, json, os, re, shutil, signal, subprocess, tarfile, threading
from dataclasses import dataclass, field, replace

part_bytes = 15_000_000 # of an archive of weights

@dataclass
class Row:
    name: str # Of the row in the results
    recipe: str # Name in `recipes`
    changes: dict = field(default_factory=dict) # For `Recipe.but`
    seeds: tuple = (0,)
    compiled: bool = False # By `Recipe.compile`, on CUDA
    weight: float = 1. # Share of one of the --jobs places
    kind: str = 'training' # 'repeats', 'airbench' and 'speed' are timed: nothing else runs on the device
    process: subprocess.Popen = None # Process that measures it
    sharing: int = 1 # Largest number of jobs on the device, itself included; above 1, its time means nothing
    @property
    def key(self): return f'{self.name}-s{self.seeds[0]}'
    @property
    def alone(self): return self.kind!='training'
    def recipe_of(self, seed):
        compile = dict(compile=True) if self.compiled and torch.cuda.is_available() else {}
        return recipes[self.recipe].but(seed=seed, **compile, **self.changes)

def table(quick, data):
    "Return the rows to measure on a data set, in the order in which they are started"
    fill, many = recipes['davidnet'].policy.but(fill='normalized_mean'), tuple(range(25))
    bf16, fp16 = dict(precision='bf16'), dict(precision='fp16')
    if quick:
        tiny = dict(epochs=2, bs=250, model_args=dict(widths=[8,16,16], depth=1))
        return [
            Row('tiny', 'speedrun', dict(tiny, precision='bf16'), (0,1), compiled=True),
            Row('diverges', 'speedrun', dict(tiny, opt='sgd', opt_args={}, schedule=Linear(1e30))),
            Row('tiny_held_out', 'speedrun', dict(tiny, policy=fill, valid=.1), weight=.5),
            Row('tiny_repeats', 'speedrun', tiny, (0,1), kind='repeats'),
            Row('speed_tiny', 'speedrun', tiny, kind='speed'),
        ]
    five, twenty = dict(seeds=(0,1,2,3,4)), dict(epochs=20)
    others = dict( # not measured yet
        fashion_mnist=[
            Row('fashion_mnist', 'fashion_mnist', **five),
            Row('fashion_mnist_20', 'fashion_mnist', twenty, **five),
            Row('fashion_mnist_50', 'fashion_mnist', dict(epochs=50), **five),
        ],
        imagenette128=[Row('imagenette', 'imagenette', **five), Row('imagenette_20', 'imagenette', twenty, **five)],
        imagewoof128=[Row('imagewoof', 'imagewoof', **five), Row('imagewoof_20', 'imagewoof', twenty, **five)],
        cifar100=[
            Row('cifar100_resnet18', 'cifar100_resnet18', compiled=True, **five),
            Row('cifar100_speedrun', 'cifar100_speedrun', kind='repeats', **five), # `accuracy` is of a single view
        ])
    if data in others: return others[data]
    return [
        Row('resnet18', 'resnet18', bf16, (0,1,2), compiled=True),
        Row('layernorm_resnet18', 'layernorm_resnet18', bf16, (0,1), compiled=True),
        Row('davidnet', 'davidnet', fp16, (0,1,2)),
        Row('davidnet_published_fill', 'davidnet', dict(fp16, policy=fill), (0,1,2)),
        *[Row(o, o, seeds=(0,1,2)) for o in ('resnet18_modern','layernorm_resnet18_modern')],
        *[Row(o, o, seeds=(0,1,2,3,4), weight=.5) for o in ('attention_modern','attention')],
        Row('davidnet_held_out', 'davidnet', dict(fp16, valid=.1), (0,1,2)),
        Row('speedrun_gpu_held_out', 'speedrun_gpu', dict(valid=.1), (0,1,2)),
        Row('speedrun_gpu', 'speedrun_gpu', seeds=many, compiled=True, kind='repeats'),
        Row('airbench', 'speedrun_gpu', seeds=many, kind='airbench'), # a baseline, with settings of its own
        Row('speedrun_gpu_11', 'speedrun_gpu', dict(epochs=11), many, compiled=True, kind='repeats'), # for 94 %
        *[Row(f'speed_{o}', o, bf16, kind='speed')
          for o in ('resnet18','layernorm_resnet18','davidnet','attention','speedrun_gpu')],
        Row('speedrun_eager', 'speedrun_gpu', seeds=many, kind='repeats'),
        Row('speedrun96', 'speedrun96', bf16, (0,1,2), compiled=True, kind='repeats'),
        Row('speedrun', 'speedrun', seeds=many, kind='repeats'),
    ]

def write(file, data):
    "Write a file atomically"
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as temporary: temporary.write_bytes(data if isinstance(data, bytes) else data.encode())

def done_file(out, name, seed, suffix='.json'): return out/'done'/f'{name}-s{seed}{suffix}'

def on_signals(handler):
    for o in (signal.SIGINT, signal.SIGTERM): signal.signal(o, handler)

def child(a):
    "Measure one row of the table, for some of its seeds"
    on_signals(signal.default_int_handler) # a shell may have them ignored
    threading.Thread(target=end_with, args=(int(a.one[2]),), daemon=True).start()
    row = next(o for o in table(a.quick, a.data) if o.name==a.one[0])
    measures = dict(training=train, repeats=repeat, airbench=airbench, speed=speed)
    measures[row.kind](replace(row, seeds=parse_seeds(a.one[1])), a)

def end_with(parent):
    "Interrupt this process when its parent is gone"
    while os.getppid()==parent: time.sleep(1)
    os.kill(os.getpid(), signal.SIGINT)

def save_line(a, row, recipe, name, seed, **line):
    "Write a measurement with its conditions. It is the last file that a job writes"
    device = default_device()
    about = dict(data=a.data, device=device_name(device), precision=recipe.precision_on(device),
                 versions=package_versions(), commit=a.commit or git_commit(), date=time.strftime('%Y-%m-%d'),
                 recipe=recipe.to_dict())
    line = {k: v.item() if hasattr(v, 'item') else v for k,v in line.items()} # numpy's numbers
    write(done_file(a.out, name, seed), json.dumps(dict(name=name, seed=seed, kind=row.kind, **line, **about)))

def train(row, a):
    "Train one seed into a run folder"
    seed, kept = row.seeds[0], {}
    def before(recipe, learn, run):
        learn.remove_cb(ProgressCallback) # a line for each epoch in the log
        kept['learn'] = learn

    earlier = [o for o in find_runs(a.out/'runs') if re.fullmatch(re.escape(row.key)+r'(-\d+)?', o.path.name)]
    stopped = [o for o in earlier if o.checkpoints() and o.state in ('interrupted','killed')]
    if stopped and a.checkpoints:
        run = stopped[-1]
        resume(run, before=before)
    else:
        for o in earlier: shutil.rmtree(o.path)
        run, = train_runs(row.recipe_of(seed), a.path, root=a.out/'runs', name=row.key,
                          checkpoints=a.checkpoints, before=before)
    if run.state!='done': sys.exit(run.info['reason'])
    on_signals(signal.SIG_IGN) # what is left takes seconds
    save_training(row, a, run, kept['learn'])

def save_training(row, a, run, learn):
    "Write the weights, the epochs and the line of a training"
    seed, history, recipe = row.seeds[0], run.history(), learn.recipe
    last, best = history.iloc[-1], history.loc[history.valid_accuracy.idxmax()]
    accuracies = dict(final_accuracy=float(last.valid_accuracy), best_accuracy=float(best.valid_accuracy))
    accuracies['tta_accuracy'] = accuracy_of(learn, tta=True)
    if recipe.valid!='test':
        norm = model_input(learn.dls)
        test = recipe.but(valid='test').dls(a.path, stats=(tuple(norm['mean']), tuple(norm['std']))).valid
        accuracies.update(test_accuracy=accuracy_of(learn, test), test_tta_accuracy=accuracy_of(learn, test, tta=True))
    save_model(learn, a.out/'weights'/row.name/f's{seed}', name=row.name, half=True, results=accuracies)
    write(done_file(a.out, row.name, seed, '.csv'), history.assign(name=row.name, seed=seed).to_csv(index=False))
    losses = {k: last[k] for k in ('train_accuracy','train_loss','valid_loss')}
    save_line(a, row, recipe, row.name, seed, **accuracies, **losses, best_epoch=int(best.epoch), epochs=len(history),
              seconds=history.seconds.sum(), first_epoch_seconds=history.seconds[0], compiled=bool(recipe.compile))

def turn_file(a, row, event): return a.out/'turns'/f'{row.key}.{event}'

def wait_for_turn(row, a):
    "Report that everything is compiled, and wait until the device is free"
    write(turn_file(a, row, 'ready'), '')
    while not turn_file(a, row, 'go').exists(): time.sleep(.02)

def repeat(row, a):
    "Time the training of several seeds"
    recipe = row.recipe_of(row.seeds[0])
    time_training(recipe.but(epochs=1), a.path) # compiles for all image sizes
    wait_for_turn(row, a)
    curves = repeats(recipe, a.path, n=len(row.seeds), report=partial(save_timed, row, a, recipe))[1]
    write(done_file(a.out, row.name, row.seeds[0], '-curves.csv'), curves.to_csv(index=False))

def save_timed(row, a, recipe, result):
    print(result, flush=True)
    save_line(a, row, recipe, row.name, **result)

def airbench(row, a):
    "Time airbench"
    run, recipe = airbench_training(a.path), row.recipe_of(row.seeds[0])
    wait_for_turn(row, a)
    for seed in row.seeds: save_timed(row, a, recipe, dict(run(seed)[0], learner='airbench'))

def speed(row, a):
    "Measure throughput, seconds per epoch and MFU of a recipe's bare loop, of its learner, and of the learner compiled"
    recipe, device, cuda = row.recipe_of(row.seeds[0]), default_device(), torch.cuda.is_available()
    made = speed_baselines(recipe, a.path, ['bare_pytorch'])
    if cuda: made['compiled'] = speed_baselines(recipe.but(compile=True), a.path, [])['cifar_fastai']
    learners = {name: partial(noop, make()) for name, make in made.items()} # made once, and compiled in the next line
    compare_speed(learners, rounds=1, steps=2, warmup=5, noisy=math.inf)
    wait_for_turn(row, a)
    speeds = compare_speed(learners, **(dict(rounds=5, steps=60, warmup=15) if cuda else dict(rounds=2, steps=4)))
    dls = recipe.dls(a.path)
    flops = training_flops(create_network(recipe.model, dls.c, **recipe.model_args), model_input(dls)['size'])
    peak, values = matmul_peak(device, recipe.precision_on(device)), {}
    for name, rate in speeds['median'].items():
        values.update({f'{name}_images_per_second': rate, f'{name}_seconds_per_epoch': len(dls.train_ds)/rate,
                       f'{name}_mfu': rate*flops/peak})
    save_line(a, row, recipe, row.name, row.seeds[0], **values, spread=speeds.spread.max())

def parse_seeds(text): return tuple(map(int, text.split(',')))

def plan(a, rows):
    "Return all rows of the table, or those of --only with their seeds"
    by_name = {o.name: o for o in rows}
    chosen = [o.partition(':') for o in a.only or by_name]
    picked = [(look_up('name of --only', name, by_name), seeds) for name,_,seeds in chosen]
    res = [replace(row, seeds=parse_seeds(seeds)) if seeds else row for row,seeds in picked]
    for row in res:
        if row.kind=='repeats' and row.seeds!=tuple(range(row.seeds[0], row.seeds[-1]+1)):
            raise SystemExit(f'--only {row.name}: the seeds of timed trainings are consecutive, as in 0,1,2')
    if not a.only: res = [replace(row, seeds=row.seeds[n_measured(row, a.data):]) for row in res]
    return [row for row in res if row.seeds]

complete = dict( # rows of results/ by kind
    training="tta=='plain' and epochs==planned",
    repeats="quantity=='accuracy' and learner=='cifar_fastai'",
    airbench="quantity=='accuracy' and learner=='airbench'",
    speed="quantity=='images/s' and learner=='cifar_fastai'")

def n_measured(row, data):
    "Return the number of complete measurements of a row that results/ has for this device"
    file = 'trainings' if row.kind=='training' else 'bench'
    name = row.name if row.kind in ('training','repeats') else row.recipe
    df = pd.read_csv(repository/'results'/f'{file}.csv').query(complete[row.kind])
    return int(df.n[(df.recipe==name)&(df.data==data)&(df.device==device_name(default_device()))].sum())

def missing_jobs(planned, out):
    "Return a row for each missing training; the seeds of a timed row are one job"
    res = []
    for row in planned:
        missing = tuple(s for s in row.seeds if not done_file(out, row.name, s).exists())
        if not row.alone: res += [replace(row, seeds=(s,)) for s in missing]
        elif missing: res.append(replace(row, seeds=missing)) # `repeats` takes consecutive seeds
    return res

def start(job, a):
    seeds = ','.join(map(str, job.seeds))
    args = [sys.executable, __file__, *sys.argv[1:], '--one', job.name, seeds, str(os.getpid())]
    env = dict(os.environ, PYTHONUNBUFFERED='1', MPLBACKEND='agg', NO_ALBUMENTATIONS_UPDATE='1')
    threads = str(max(1, min(2, os.cpu_count()//a.jobs)))
    if not job.alone: env.update(OMP_NUM_THREADS=threads, TORCHINDUCTOR_COMPILE_THREADS=threads)
    with open(a.out/'logs'/f'{job.key}.log', 'ab') as log:
        job.process = subprocess.Popen(args, env=env, start_new_session=True, stdout=log, stderr=log)
    print(f'{time.monotonic()-started:6.1f} s  started {job.key}', flush=True)

def fits(job, running, n_jobs):
    "Return whether a training may start beside the running ones"
    return not running or sum(o.weight for o in [job, *running])<=n_jobs

def signal_all(jobs, number):
    "Send a signal to jobs and to their child processes"
    for o in jobs:
        with contextlib.suppress(ProcessLookupError): os.killpg(o.process.pid, number)

class Turns:
    "Let timed jobs prepare side by side, then run one at a time, in their order, while all others are paused"
    def __init__(self, jobs, a):
        shutil.rmtree(a.out/'turns', ignore_errors=True)
        self.a, self.waiting, self.current = a, jobs, None
        self.deadline = started+20*a.minutes # for preparations: a third of the time
        for o in jobs[:os.cpu_count()]: start(o, a)
    @property
    def jobs(self): return [self.current, *self.waiting] if self.current else self.waiting
    @property
    def running(self): return [o for o in self.jobs if o.process]
    def is_ready(self, job): return turn_file(self.a, job, 'ready').exists()
    def take(self, others):
        "Give the device to the next job that is ready. Late jobs finish preparing when no other is ready"
        late = [o for o in self.waiting if o.process and not self.is_ready(o)]
        if self.current or not self.waiting or (late and time.monotonic()<self.deadline): return
        job = self.current = first([*filter(self.is_ready, self.waiting), *self.waiting])
        self.waiting.remove(job)
        signal_all([*others, *self.running], signal.SIGSTOP)
        if job.process is None: start(job, self.a)
        write(turn_file(self.a, job, 'go'), '')
        signal_all([job], signal.SIGCONT)
    def remove(self, job):
        if job is self.current: self.current = None
        else: self.waiting.remove(job)

def ended(job, a):
    "Record how a job ended"
    done, error = done_file(a.out, job.name, job.seeds[-1]), a.out/'errors'/f'{job.key}.txt'
    print(f'{time.monotonic()-started:6.1f} s  {"done" if done.exists() else "FAILED"} {job.key}', flush=True)
    if done.exists():
        error.unlink(missing_ok=True)
        write(done, json.dumps(dict(json.loads(done.read_text()), sharing=job.sharing)))
    else:
        log = (a.out/'logs'/f'{job.key}.log').read_text(errors='replace').split()
        write(error, f'exit code {job.process.returncode}: ... {" ".join(log[-60:])}')

def stop(running):
    "Interrupt jobs, and after eight seconds kill them and their child processes"
    signal_all(running, signal.SIGCONT)
    for o in running: o.process.send_signal(signal.SIGINT)
    until = time.monotonic()+8
    while any(o.process.poll() is None for o in running) and time.monotonic()<until: time.sleep(.1)
    signal_all(running, signal.SIGKILL)
    for o in running: o.process.wait()

def measure(a):
    "Run missing measurements until the time is up. Return the number of those that are still missing"
    told, trainings, n_done, end = [], [], -1, started+60*a.minutes-20
    on_signals(lambda number, frame: told.append(number))
    for o in ('logs','results','done','errors','runs'): (a.out/o).mkdir(parents=True, exist_ok=True)
    rows = table(a.quick, a.data)
    planned = plan(a, rows)
    jobs = missing_jobs(planned, a.out)
    load_images(find_images(a.path)) # makes the pixel cache, once
    queue, turns = [o for o in jobs if not o.alone], Turns([o for o in jobs if o.alone], a)
    try:
        while (queue or trainings or turns.jobs) and not told and time.monotonic()<end:
            turns.take(trainings)
            while queue and not turns.current and fits(queue[0], trainings, a.jobs):
                start(queue[0], a)
                trainings.append(queue.pop(0))
            for o in trainings: o.sharing = max(o.sharing, len(trainings)+len(turns.running))
            time.sleep(.1)
            now = [o for o in [*trainings, *turns.running] if o.process.poll() is not None]
            for o in now:
                ended(o, a)
                if o in trainings: trainings.remove(o)
                else: turns.remove(o)
            if now and not turns.jobs: signal_all(trainings, signal.SIGCONT)
            n = len(list((a.out/'done').glob('*.json')))
            if now or n!=n_done: collect(a, rows, planned)
            n_done = n
    finally:
        running = [*trainings, *turns.running]
        stop(running)
    for o in running:
        if done_file(a.out, o.name, o.seeds[-1]).exists(): ended(o, a) # in the last seconds
    missing = collect(a, rows, planned)
    pack_weights(a, rows)
    print((a.out/'results/summary.md').read_text(), flush=True)
    return missing

def collect(a, rows, planned):
    "Write all results. Return the number of those that are missing"
    order = {o.name: i for i,o in enumerate(rows)}
    lines = [json.loads(o.read_text()) for o in (a.out/'done').glob('*.json')]
    lines.sort(key=lambda o: (order.get(o['name'], len(order)), o['seed']))
    trainings = [o for o in lines if o['kind']=='training']
    for file, part in dict(trainings=trainings, timed=[o for o in lines if o not in trainings]).items():
        write(a.out/'results'/f'{file}.jsonl', ''.join(json.dumps(o)+'\n' for o in part))
    if trainings:
        epochs = pd.concat([pd.read_csv(done_file(a.out, o['name'], o['seed'], '.csv')) for o in trainings])
        write(a.out/'results/history.csv.gz', gzip.compress(epochs.set_index(['name','seed']).to_csv().encode()))
    for o in (a.out/'done').glob('*-curves.csv'): write(a.out/'results'/o.name, o.read_bytes())
    lowest = {o['name']: o['seed'] for o in reversed(trainings)}
    for o in trainings:
        if o['seed']!=lowest[o['name']]: shutil.rmtree(a.out/'weights'/o['name']/f"s{o['seed']}", ignore_errors=True)
    text, missing = summary(a.out, lines, planned)
    write(a.out/'results/summary.md', text)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
        for o in ('done','results','logs','errors'): tar.add(a.out/o, o)
    write(a.pack/'results.tar.gz', buffer.getvalue())
    return missing

def summary(out, lines, planned):
    "Return the results as Markdown, and the number of those that are missing"
    text = ['| name | quantity | n | mean | sd | lowest | highest |', '|---|---|---|---|---|---|---|']
    for name in dict.fromkeys(o['name'] for o in lines):
        found = pd.DataFrame([o for o in lines if o['name']==name]).filter(regex='accuracy|second|mfu')
        for k, (n, *values) in found.agg(['count','mean','std','min','max']).items():
            form = '.2%' if 'accuracy' in k else ',.4f'
            cells = ['' if pd.isna(o) else format(o, form) for o in values]
            text.append(f'| {name} | {k} | {n:.0f} | {" | ".join(cells)} |')
    missing = [f'{row.name}-s{s}' for row in planned for s in row.seeds if not done_file(out, row.name, s).exists()]
    errors = [f'{o.stem}: {o.read_text()}' for o in sorted((out/'errors').glob('*.txt'))]
    for heading, items in dict(Missing=missing, Errors=errors).items():
        text += ['', f'## {heading}', '', *[f'- {o}' for o in items or ['none']]]
    return '\n'.join(text)+'\n', len(missing)

def pack_weights(a, rows):
    "Write an archive of the weights in parts, without models that would make it larger than --pack-mb"
    for o in a.pack.glob('weights-*.tar'): o.unlink()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        for folder in [o for row in rows for o in sorted((a.out/'weights'/row.name).glob('s*'))]:
            size = sum(o.stat().st_size for o in folder.iterdir())
            if buffer.tell()+size<=1e6*a.pack_mb: tar.add(folder, folder.relative_to(a.out))
            else: print(f'not packed, over --pack-mb: {folder}')
    data = buffer.getvalue()
    for i in range(0, len(data), part_bytes): write(a.pack/f'weights-{i//part_bytes+1:02}.tar', data[i:i+part_bytes])

def main(a):
    a.out, a.data = a.out.resolve(), a.data or ('digits' if a.quick else 'cifar10')
    a.pack = (a.pack or a.out/'pack').resolve()
    a.path = data_sets[a.data]()
    a.jobs = a.jobs or (3 if torch.cuda.is_available() else 1)
    if a.one: child(a)
    else: sys.exit(measure(a)>0)

if __name__=='__main__': main(args)

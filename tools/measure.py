"""Measure everything on a GPU that is rented by the minute.

    python tools/measure.py --minutes 9 --out DIR                          # the whole table, in its order
    python tools/measure.py --minutes 9 --out DIR --only resnet18:0-2 davidnet:0 speedrun
    python tools/measure.py --quick --minutes 3 --out DIR                  # a rehearsal: tiny networks, digits

Each training is a process of its own; several share the device. What is done is written out at once, and it stops in
time. Started again with the same DIR, it does what is missing. DIR/pack is what to bring home: results.tar.gz (tables,
summary, logs) and the weights of the lowest finished seed of each name, for `load_model`: `cat weights-*.tar | tar x`.
"""
import argparse, contextlib, gzip, io, json, math, os, re, shutil, signal, statistics, subprocess, sys, tarfile, threading, time
from dataclasses import dataclass, field
from pathlib import Path

started = time.monotonic()
sys.path.insert(0, str(Path(__file__).resolve().parent.parent)) # the library of this tree
import fastai, pandas as pd, torch, cifar_fastai
from cifar_fastai.all import Compile, Linear, ProgressCallback, default_device, device_name, find_images, find_runs, get_cifar10, get_digits, git_commit, load_images, model_input, recipes, resume, save_model, train_runs
from cifar_fastai.bench import accuracy_of, airbench_training, learner_overhead, repeats

part_bytes = 15_000_000 # of an archive of weights

@dataclass
class Row:
    name: str # Of the row in the results
    recipe: str # Name in `recipes`
    changes: dict = field(default_factory=dict) # For `Recipe.but`
    seeds: tuple = (0,)
    compiled: bool = False # By `Compile(mode='reduce-overhead')`, on CUDA
    weight: float = 1. # Share of one of the --jobs places
    kind: str = 'training' # 'repeats' and 'speed' are timed: nothing else runs on the device

def table(quick):
    "What there is to measure, in the order in which it is started"
    fill, bf16 = recipes['davidnet'].policy.but(published_fill=True), dict(half='bf16')
    if quick:
        tiny = dict(epochs=2, bs=250, model_args=dict(widths=[8,16,16], depth=1))
        return [
            Row('tiny', 'speedrun', dict(tiny, half='bf16'), (0,1), compiled=True),
            Row('diverges', 'speedrun', dict(tiny, opt='sgd', opt_args={}, schedule=Linear(1e30))),
            Row('tiny_held_out', 'speedrun', dict(tiny, policy=fill, valid=.1), weight=.5),
            Row('tiny_repeats', 'speedrun', tiny, (0,1), kind='repeats'),
            Row('speed_tiny', 'speedrun', tiny, kind='speed'),
        ]
    return [
        Row('resnet18', 'resnet18', bf16, (0,1,2), compiled=True),
        Row('layernorm_resnet18', 'layernorm_resnet18', bf16, (0,1), compiled=True),
        Row('davidnet', 'davidnet', seeds=(0,1,2)),
        Row('davidnet_published_fill', 'davidnet', dict(policy=fill), (0,1,2)),
        Row('resnet18_modern', 'resnet18_modern', seeds=(0,1,2)),
        Row('layernorm_resnet18_modern', 'layernorm_resnet18_modern', seeds=(0,1,2)),
        Row('attention_modern', 'attention_modern', seeds=(0,1,2,3,4), weight=.5),
        Row('attention', 'attention', seeds=(0,1,2,3,4), weight=.5),
        Row('davidnet_held_out', 'davidnet', dict(valid=.1), (0,1)),
        Row('speedrun', 'speedrun', seeds=tuple(range(25)), kind='repeats'), # airbench beside it
        Row('speedrun96', 'speedrun96', seeds=(0,1,2), kind='repeats'),
        *[Row(f'speed_{o}', o, kind='speed') for o in ('resnet18','layernorm_resnet18','davidnet','attention')],
    ]

def write(file, data):
    "Write a file that is either whole or not there"
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    side = file.with_name(f'.{file.name}.{os.getpid()}')
    with open(side, 'wb') as f:
        f.write(data if isinstance(data, bytes) else data.encode())
        f.flush()
        os.fsync(f.fileno())
    os.replace(side, file)

def done_file(out, name, seed, suffix='.json'): return out/'done'/f'{name}-s{seed}{suffix}'

# ---- A process that measures one row ----

def child(a):
    "Measure one row of the table, for some of its seeds"
    for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.default_int_handler) # a shell may have them ignored
    threading.Thread(target=end_with, args=(int(a.one[2]),), daemon=True).start()
    row = next(o for o in table(a.quick) if o.name==a.one[0])
    dict(training=train, repeats=repeat, speed=speed)[row.kind](row, parse_seeds(a.one[1]), a)

def end_with(parent):
    "Interrupt this process when the one that started it is gone"
    while os.getppid()==parent: time.sleep(1)
    os.kill(os.getpid(), signal.SIGINT)

def save_line(a, row, name, seed, **line):
    "Write what was measured, with what it depends on: the last file of each measurement"
    versions = dict(python=sys.version.split()[0], torch=torch.__version__, fastai=fastai.__version__, cifar_fastai=cifar_fastai.__version__)
    about = dict(data=a.data, device=device_name(default_device()), versions=versions, commit=a.commit or git_commit(), date=time.strftime('%Y-%m-%d'))
    line = {k: v.item() if hasattr(v, 'item') else v for k,v in line.items()} # numpy's numbers
    write(done_file(a.out, name, seed), json.dumps(dict(name=name, seed=seed, kind=row.kind, **line, **about)))

def train(row, seeds, a):
    "Train one seed into a run folder"
    seed, = seeds
    name, kept = f'{row.name}-s{seed}', {}
    compiled = row.compiled and torch.cuda.is_available()
    def callbacks(): return [Compile(mode='reduce-overhead', dynamic=False)] if compiled else []
    def before(recipe, learn, run):
        learn.remove_cb(ProgressCallback) # a line for each epoch in the log
        kept['learn'] = learn

    earlier = [o for o in find_runs(a.out/'runs') if re.fullmatch(re.escape(name)+r'(-\d+)?', o.path.name)]
    stopped = [o for o in earlier if o.checkpoints() and o.state in ('interrupted','killed')]
    if stopped and a.checkpoints:
        run = stopped[-1]
        resume(run, cbs=callbacks(), before=before)
    else:
        for o in earlier: shutil.rmtree(o.path)
        recipe = recipes[row.recipe].but(seed=seed, **row.changes)
        run, = train_runs(recipe, a.path, root=a.out/'runs', name=name, cbs=callbacks, checkpoints=a.checkpoints, before=before)
    if run.state!='done': sys.exit(run.info['reason'])
    for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN) # what is left takes seconds
    save_training(row, seed, a, run, kept['learn'], compiled)

def save_training(row, seed, a, run, learn, compiled):
    "Write the weights, the epochs and the line of a training"
    history, info, recipe = run.history(), run.info, learn.recipe
    last, best = history.iloc[-1], history.loc[history.valid_accuracy.idxmax()]
    accuracies = dict(final_accuracy=float(last.valid_accuracy), best_accuracy=float(best.valid_accuracy), tta_accuracy=accuracy_of(learn, tta=True))
    if recipe.valid!='test':
        norm = model_input(learn.dls)
        test = recipe.but(valid='test').dls(a.path, stats=(tuple(norm['mean']), tuple(norm['std']))).valid
        accuracies.update(test_accuracy=accuracy_of(learn, test), test_tta_accuracy=accuracy_of(learn, test, tta=True))
    save_model(learn, a.out/'weights'/row.name/f's{seed}', name=row.name, half=True, results=accuracies)
    write(done_file(a.out, row.name, seed, '.csv'), history.assign(name=row.name, seed=seed).to_csv(index=False))
    save_line(a, row, row.name, seed, **accuracies, best_epoch=int(best.epoch), train_accuracy=last.train_accuracy, train_loss=last.train_loss,
              valid_loss=last.valid_loss, epochs=len(history), seconds=history.seconds.sum(), first_epoch_seconds=history.seconds[0],
              precision=info['precision'], compiled=compiled, resumed=len(info.get('resumed', [])), recipe=info['recipe'])

def repeat(row, seeds, a):
    "Train seeds against the clock; the speed run beside airbench, if that is there"
    recipe, others = recipes[row.recipe].but(seed=seeds[0], **row.changes), {}
    if row.name=='speedrun':
        try: others['airbench'] = airbench_training(a.path)
        except ValueError as e: print(e)
    def report(result):
        print(result, flush=True)
        learner, precision = result['learner'], recipe.precision(default_device())
        save_line(a, row, row.name if learner=='cifar_fastai' else f'{row.name}_{learner}', precision=precision, recipe=recipe.to_dict(), **result)
    curves = repeats(recipe, a.path, n=len(seeds), others=others, report=report)[1]
    write(a.out/'results'/f'{row.name}-curves-from-s{seeds[0]}.csv', curves.to_csv(index=False))

def speed(row, seeds, a):
    "Images per second and seconds per epoch of a recipe's learner and of its bare loop"
    recipe, cuda = recipes[row.recipe].but(**row.changes), default_device().type=='cuda'
    n = len(recipe.dls(a.path).train_ds)
    o = learner_overhead(recipe, a.path, rounds=5 if cuda else 2, steps=60 if cuda else 4, warmup=15 if cuda else 2).iloc[0]
    save_line(a, row, row.name, seeds[0], precision=recipe.precision(default_device()), learner_images_per_second=o.cifar_fastai, learner_seconds_per_epoch=n/o.cifar_fastai,
              bare_loop_images_per_second=o.bare_pytorch, bare_loop_seconds_per_epoch=n/o.bare_pytorch, ratio=o.ratio, spread=o.spread, recipe=recipe.to_dict())

# ---- The process that starts the others ----

@dataclass
class Job:
    row: Row
    seeds: tuple
    process: subprocess.Popen = None
    sharing: int = 1 # The most trainings that ran at a time while this one did
    @property
    def key(self): return f'{self.row.name}-s{self.seeds[0]}'
    @property
    def alone(self): return self.row.kind!='training'

def parse_seeds(text):
    "(0, 3, 4, 5) of '0,3-5'"
    ends = [part.split('-') for part in text.split(',')]
    return tuple(seed for o in ends for seed in range(int(o[0]), int(o[-1])+1))

def plan(a, rows):
    "Rows with seeds: all of the table, or those of --only"
    by_name = {o.name: o for o in rows}
    chosen = [o.split(':') for o in a.only or by_name]
    for o in chosen:
        if o[0] not in by_name: sys.exit(f'--only {o[0]}: unknown name. There are {", ".join(by_name)}')
    return [(by_name[o[0]], parse_seeds(o[1]) if len(o)>1 else by_name[o[0]].seeds) for o in chosen]

def missing_jobs(planned, out):
    "A job for each training that is missing; the seeds of a row that is timed are one job"
    res = []
    for row, seeds in planned:
        missing = tuple(s for s in seeds if not done_file(out, row.name, s).exists())
        if row.kind=='training': res += [Job(row, (s,)) for s in missing]
        elif missing: res.append(Job(row, missing))
    return res

def start(job, a):
    args = [*sys.argv[1:], '--one', job.row.name, ','.join(map(str, job.seeds)), str(os.getpid())]
    env = dict(os.environ, PYTHONUNBUFFERED='1', MPLBACKEND='agg', NO_ALBUMENTATIONS_UPDATE='1')
    if not job.alone: env.update(OMP_NUM_THREADS='2', TORCHINDUCTOR_COMPILE_THREADS='4')
    with open(a.out/'logs'/f'{job.key}.log', 'ab') as log:
        job.process = subprocess.Popen([sys.executable, __file__, *args], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, start_new_session=True)
    print(f'{time.monotonic()-started:6.1f} s  started {job.key}', flush=True)

def fits(job, running, n_jobs):
    "Is there room for it beside what runs?"
    if job.alone or any(o.alone for o in running): return not running
    return not running or sum(o.row.weight for o in [job, *running])<=n_jobs

def ended(job, a):
    "Note how a job ended"
    done, error = done_file(a.out, job.row.name, job.seeds[-1]), a.out/'errors'/f'{job.key}.txt'
    print(f'{time.monotonic()-started:6.1f} s  {"done" if done.exists() else "FAILED"} {job.key}', flush=True)
    if done.exists():
        error.unlink(missing_ok=True)
        write(done, json.dumps(dict(json.loads(done.read_text()), sharing=job.sharing)))
    else:
        log = (a.out/'logs'/f'{job.key}.log').read_text(errors='replace').split()
        write(error, f'exit code {job.process.returncode}: ... {" ".join(log[-60:])}')

def stop(running):
    "Interrupt what runs, give it eight seconds, then end it and what it has started"
    for o in running: o.process.send_signal(signal.SIGINT)
    until = time.monotonic()+8
    while any(o.process.poll() is None for o in running) and time.monotonic()<until: time.sleep(.1)
    for o in running:
        with contextlib.suppress(ProcessLookupError): os.killpg(o.process.pid, signal.SIGKILL)
        o.process.wait()

def measure(a):
    "Run what is missing until the time is up; the number of measurements that are still missing"
    told, running, n_done, end = [], [], -1, started+60*a.minutes-20
    for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, lambda number, frame: told.append(number))
    for o in ('logs','results','done','errors','runs'): (a.out/o).mkdir(parents=True, exist_ok=True)
    rows = table(a.quick)
    planned = plan(a, rows)
    queue = missing_jobs(planned, a.out)
    load_images(find_images(a.path)) # makes the pixel cache, once
    while (queue or running) and not told and time.monotonic()<end:
        while queue and fits(queue[0], running, a.jobs):
            start(queue[0], a)
            running.append(queue.pop(0))
        for o in running: o.sharing = max(o.sharing, len(running))
        time.sleep(.2)
        now = [o for o in running if o.process.poll() is not None]
        for o in now: ended(o, a)
        running = [o for o in running if o not in now]
        n = len(list((a.out/'done').glob('*.json')))
        if now or n!=n_done: collect(a, rows, planned)
        n_done = n
    stop(running)
    for o in running:
        if done_file(a.out, o.row.name, o.seeds[-1]).exists(): ended(o, a) # in the last seconds
    missing = collect(a, rows, planned)
    pack_weights(a, rows)
    print((a.out/'results/summary.md').read_text(), flush=True)
    return missing

def collect(a, rows, planned):
    "Write all results; the number of those that are missing"
    order = {o.name: i for i,o in enumerate(rows)}
    lines = [json.loads(o.read_text()) for o in (a.out/'done').glob('*.json')]
    lines.sort(key=lambda o: (order.get(o['name'].replace('_airbench', ''), len(order)), o['name'], o['seed']))
    trainings = [o for o in lines if o['kind']=='training']
    for file, part in dict(trainings=trainings, timed=[o for o in lines if o not in trainings]).items():
        write(a.out/'results'/f'{file}.jsonl', ''.join(json.dumps(o)+'\n' for o in part))
    if trainings:
        epochs = pd.concat([pd.read_csv(done_file(a.out, o['name'], o['seed'], '.csv')) for o in trainings])
        epochs = epochs[['name','seed',*epochs.columns.drop(['name','seed'])]]
        write(a.out/'results/history.csv.gz', gzip.compress(epochs.to_csv(index=False).encode()))
    for name in {o['name'] for o in trainings}:
        for seed in sorted(o['seed'] for o in trainings if o['name']==name)[1:]: shutil.rmtree(a.out/'weights'/name/f's{seed}', ignore_errors=True)
    text, missing = summary(a.out, lines, planned)
    write(a.out/'results/summary.md', text)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
        for o in ('results','logs','errors'): tar.add(a.out/o, o)
    write(a.pack/'results.tar.gz', buffer.getvalue())
    return missing

quantities = dict(final_accuracy='.2%', best_accuracy='.2%', tta_accuracy='.2%', test_accuracy='.2%', accuracy='.2%', accuracy_tta='.2%', seconds='.3f', images_per_second=',.0f',
                  learner_images_per_second=',.0f', bare_loop_images_per_second=',.0f', ratio='.3f', learner_seconds_per_epoch='.3f', bare_loop_seconds_per_epoch='.3f')

def summary(out, lines, planned):
    "The results as Markdown, and the number of those that are missing"
    text = ['| name | quantity | n | mean | sd | lowest | highest |', '|---|---|---|---|---|---|---|']
    for name in dict.fromkeys(o['name'] for o in lines):
        for k, form in quantities.items():
            values = [o[k] for o in lines if o['name']==name and isinstance(o.get(k), float) and math.isfinite(o[k])]
            if not values: continue
            sd = format(statistics.stdev(values), form) if len(values)>1 else ''
            text.append(f'| {name} | {k} | {len(values)} | {statistics.mean(values):{form}} | {sd} | {min(values):{form}} | {max(values):{form}} |')
    missing = [f'{row.name}-s{s}' for row, seeds in planned for s in seeds if not done_file(out, row.name, s).exists()]
    errors = [f'{o.stem}: {o.read_text()}' for o in sorted((out/'errors').glob('*.txt'))]
    for heading, items in dict(Missing=missing, Errors=errors).items(): text += ['', f'## {heading}', '', *[f'- {o}' for o in items or ['none']]]
    return '\n'.join(text)+'\n', len(missing)

def pack_weights(a, rows):
    "Cut an archive of the weights into parts; models that would take it over --pack-mb are left out"
    for o in a.pack.glob('weights-*.tar'): o.unlink()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        for folder in [o for row in rows for o in sorted((a.out/'weights'/row.name).glob('s*')) if done_file(a.out, row.name, o.name[1:]).exists()]:
            if buffer.tell()+sum(o.stat().st_size for o in folder.iterdir())>1e6*a.pack_mb: print(f'not packed, over --pack-mb: {folder}')
            else: tar.add(folder, folder.relative_to(a.out))
    data = buffer.getvalue()
    for i in range(0, len(data), part_bytes): write(a.pack/f'weights-{i//part_bytes+1:02}.tar', data[i:i+part_bytes])

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=9., help='until all is written and packed (default 9)')
    p.add_argument('--out', type=Path, required=True, help='folder of all that is measured')
    p.add_argument('--data', choices=['cifar10','digits'], help='default cifar10; digits with --quick')
    p.add_argument('--jobs', type=int, help='trainings at a time; default 6 on CUDA, else 1')
    p.add_argument('--only', nargs='+', metavar='NAME[:SEEDS]', help='what to measure, in this order: resnet18:0 davidnet:0,1 speedrun:0-24')
    p.add_argument('--checkpoints', action='store_true', help='write checkpoints, and go on from them')
    p.add_argument('--commit', default='', help='of the library, where git does not know')
    p.add_argument('--pack', type=Path, help='folder of what to bring home; default DIR/pack')
    p.add_argument('--pack-mb', type=float, default=45., help='the most megabytes of weights to pack (default 45)')
    p.add_argument('--quick', action='store_true', help='rehearse: tiny networks on digits')
    p.add_argument('--one', nargs=3, help=argparse.SUPPRESS) # name, seeds and the process that starts it
    a = p.parse_args()
    a.out, a.data = a.out.resolve(), a.data or ('digits' if a.quick else 'cifar10')
    a.pack = (a.pack or a.out/'pack').resolve()
    a.path = get_cifar10() if a.data=='cifar10' else get_digits()
    a.jobs = a.jobs or (6 if torch.cuda.is_available() else 1)
    if a.one: child(a)
    else: sys.exit(measure(a)>0)

if __name__=='__main__': main()

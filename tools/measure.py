"""Measure everything on a GPU that is rented by the minute.

    python tools/measure.py --minutes 9 --out DIR                          # the whole table, in its order
    python tools/measure.py --minutes 9 --out DIR --only resnet18:0-2 davidnet:0 speedrun
    python tools/measure.py --quick --minutes 3 --out DIR                  # a rehearsal: tiny networks, digits

Each training is a process of its own; several share the device. What is done is written out at once, and it stops in
time. Started again with the same DIR, it does what is missing.

    DIR/results/  trainings.jsonl, timed.jsonl, history.csv.gz, summary.md
    DIR/weights/  NAME/sSEED: the lowest finished seed of each name in fp16, for `load_model`
    DIR/runs/, DIR/logs/, DIR/done/, DIR/errors/
    DIR/pack/     what to bring home: results.tar.gz (with the logs), weights-01.tar, ... of at most 15 MB;
                  `cat weights-*.tar | tar x` unpacks them
"""
import argparse, contextlib, gzip, io, json, os, re, shutil, signal, statistics, subprocess, sys, tarfile, threading, time
from dataclasses import dataclass, field
from pathlib import Path

started = time.monotonic()
root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root)) # the library of this tree
part_bytes = 15_000_000 # of an archive of weights

@dataclass
class Row:
    name: str # Of the row in the results
    recipe: str # Name in `recipes`
    changes: dict = field(default_factory=dict) # For `Recipe.but`
    seeds: tuple = (0,)
    compiled: bool = False # On CUDA, in bf16 by `Compile(mode='reduce-overhead')`
    weight: float = 1. # Share of one of the --jobs places
    kind: str = 'training' # 'repeats' and 'speed' are timed: nothing else runs on the device

def table(quick):
    "What there is to measure, in the order in which it is started"
    from cifar_fastai.all import Linear, OneCycle, recipes
    if quick: return quick_table(recipes, Linear, OneCycle)
    fast = dict(compiled=True, changes=dict(half='bf16'))
    fill = recipes['davidnet'].policy.but(published_fill=True)
    published = ('resnet18', 'layernorm_resnet18', 'davidnet', 'attention')
    return [
        Row('resnet18', 'resnet18', seeds=(0,1,2), **fast),
        Row('layernorm_resnet18', 'layernorm_resnet18', seeds=(0,1), **fast),
        Row('davidnet', 'davidnet', seeds=(0,1,2)),
        Row('davidnet_published_fill', 'davidnet', dict(policy=fill), (0,1,2)),
        Row('resnet18_modern', 'resnet18_modern', seeds=(0,1,2)),
        Row('layernorm_resnet18_modern', 'layernorm_resnet18_modern', seeds=(0,1,2)),
        Row('attention_modern', 'attention_modern', seeds=(0,1,2,3,4), weight=.5),
        Row('attention', 'attention', seeds=(0,1,2,3,4), weight=.5),
        Row('davidnet_held_out', 'davidnet', dict(valid=.1), (0,1)),
        Row('speedrun', 'speedrun', seeds=tuple(range(25)), kind='repeats'),
        Row('speedrun96', 'speedrun96', seeds=(0,1,2), kind='repeats'),
        *[Row(f'speed_{o}', o, kind='speed') for o in published],
    ]

def quick_table(recipes, Linear, OneCycle):
    "Tiny networks, and one that fails"
    small = dict(epochs=2, bs=250, schedule=OneCycle(.01))
    fill = recipes['attention'].policy.but(published_fill=True)
    speednet = dict(widths=[8,16,16], depth=1)
    return [
        Row('tiny', 'attention', small, (0,1), compiled=True),
        Row('lost', 'attention', dict(small, opt='sgd', schedule=Linear(1e30))),
        Row('tiny_published_fill', 'attention', dict(small, policy=fill), weight=.5),
        Row('tiny_held_out', 'attention', dict(small, valid=.1)),
        Row('tiny_speedrun', 'speedrun', dict(epochs=1, bs=250, model_args=speednet), (0,1), kind='repeats'),
        Row('speed_tiny', 'attention', dict(bs=64), kind='speed'),
    ]

def key_of(name, seed): return f'{name}-s{seed}'

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

def finish(out, name, seed, **line): write(out/'done'/f'{key_of(name, seed)}.json', json.dumps(dict(name=name, seed=seed, **line), default=str))

# ---- one process: a training, or what is timed ----

def child(a):
    "Measure one row of the table, for some of its seeds"
    signal.signal(signal.SIGINT, signal.default_int_handler) # a shell's background processes would ignore it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    name, seeds = a.one[0], parse_seeds(a.one[1])
    row = next(o for o in table(a.quick) if o.name==name)
    dict(training=train, repeats=repeat, speed=speed)[row.kind](row, seeds, a)

def end_with(parent):
    "Stop this process when the one that started it is gone"
    while os.getppid()==parent: time.sleep(1)
    os.kill(os.getpid(), signal.SIGINT)

def data_path(a):
    from cifar_fastai.all import get_cifar10, get_digits
    return get_cifar10() if a.data=='cifar10' else get_digits()

def conditions(a):
    "What a measurement depends on"
    import fastai, torch, cifar_fastai
    from cifar_fastai.all import default_device, device_name, git_commit
    versions = dict(python=sys.version.split()[0], torch=torch.__version__, fastai=fastai.__version__, cifar_fastai=cifar_fastai.__version__)
    return dict(data=a.data, device=device_name(default_device()), versions=versions, commit=a.commit or git_commit(), date=time.strftime('%Y-%m-%d'))

def train(row, seeds, a):
    import torch
    from cifar_fastai.all import Compile, ProgressCallback, find_runs, recipes, resume, train_runs
    seed, = seeds
    key, path, kept = key_of(row.name, seed), data_path(a), {}
    compiled = row.compiled and torch.cuda.is_available()
    recipe = recipes[row.recipe].but(seed=seed, **row.changes)

    def before(recipe, learn, run):
        learn.remove_cb(ProgressCallback) # a line for each epoch in the log
        kept.update(learn=learn)
    def callbacks(): return [Compile(mode='reduce-overhead')] if compiled else []

    earlier = [o for o in find_runs(a.out/'runs') if re.fullmatch(re.escape(key)+r'(-\d+)?', o.path.name)]
    whole = [o for o in earlier if o.checkpoints() and o.state in ('interrupted','killed')]
    if whole and a.checkpoints:
        run = whole[-1]
        resume(run, cbs=callbacks(), before=before)
    else:
        for o in earlier: shutil.rmtree(o.path)
        run, = train_runs(recipe, path, root=a.out/'runs', name=key, cbs=callbacks, checkpoints=a.checkpoints, before=before)
    if run.state!='done': sys.exit(run.info['reason'])
    for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN) # what is left takes seconds
    finish_training(row, seed, a, run, kept['learn'], compiled, path)

def finish_training(row, seed, a, run, learn, compiled, path):
    "Write the weights, the history and, at last, the line of a training"
    from cifar_fastai.all import get_model, model_input, save_model
    from cifar_fastai.bench import accuracy_of
    history, info, recipe = run.history(), run.info, learn.recipe
    last, best = history.iloc[-1], history.loc[history.valid_accuracy.idxmax()]
    accuracies = dict(final_accuracy=last.valid_accuracy, best_accuracy=best.valid_accuracy, tta_accuracy=accuracy_of(learn, tta=True))
    if recipe.valid!='test':
        input = model_input(learn.dls)
        test = recipe.but(valid='test').dls(path, stats=(tuple(input['mean']), tuple(input['std']))).valid
        accuracies.update(test_accuracy=accuracy_of(learn, test), test_tta_accuracy=accuracy_of(learn, test, tta=True))
    accuracies = {k: float(v) for k,v in accuracies.items()}
    save_model(learn, a.out/'weights'/row.name/f's{seed}', name=row.name, half=True, results=accuracies)
    write(a.out/'done'/f'{key_of(row.name, seed)}.csv', history.assign(name=row.name, seed=seed).to_csv(index=False))
    finish(a.out, row.name, seed, kind=row.kind, **accuracies, best_epoch=int(best.epoch), train_accuracy=float(last.train_accuracy), train_loss=float(last.train_loss),
           valid_loss=float(last.valid_loss), epochs=len(history), seconds=round(float(history.seconds.sum()), 2), first_epoch_seconds=round(float(history.seconds[0]), 2),
           precision=info['precision'], compiled=compiled, resumed=len(info.get('resumed', [])), **conditions(a), recipe=info['recipe'])

def repeat(row, seeds, a):
    from cifar_fastai.all import recipes
    from cifar_fastai.bench import airbench_training, default_device, repeats
    path, about = data_path(a), conditions(a)
    recipe = recipes[row.recipe].but(seed=seeds[0], **row.changes)
    others = {}
    if row.name=='speedrun':
        try: others['airbench'] = airbench_training(path)
        except ValueError as e: print(f'without airbench: {e}')
    def report(result):
        print(result, flush=True)
        name = row.name if result['learner']=='cifar_fastai' else f"{row.name}_{result['learner']}"
        finish(a.out, name, kind=row.kind, precision=recipe.precision(default_device()), **about, **{k: v.item() if hasattr(v, 'item') else v for k,v in result.items()})
    rows, curves = repeats(recipe, path, n=len(seeds), others=others, report=report)
    write(a.out/'results'/f'{row.name}-curves-from-s{seeds[0]}.csv', curves.to_csv(index=False))

def speed(row, seeds, a):
    import torch
    from cifar_fastai.all import recipes
    from cifar_fastai.bench import default_device, learner_overhead
    path, recipe = data_path(a), recipes[row.recipe].but(**row.changes)
    n = len(recipe.dls(path).train_ds)
    rounds, steps, warmup = (5, 60, 15) if torch.cuda.is_available() else (2, 4, 2)
    rates = learner_overhead(recipe, path, rounds=rounds, steps=steps, warmup=warmup).iloc[0]
    finish(a.out, row.name, seeds[0], kind=row.kind, precision=recipe.precision(default_device()), learner_images_per_second=rates.cifar_fastai, bare_loop_images_per_second=rates.bare_pytorch,
           ratio=rates.ratio, spread=rates.spread, learner_seconds_per_epoch=n/rates.cifar_fastai, bare_loop_seconds_per_epoch=n/rates.bare_pytorch, **conditions(a))

# ---- the process that starts the others ----

@dataclass
class Job:
    row: Row
    seeds: tuple
    process: subprocess.Popen = None
    sharing: int = 1 # The most trainings that ran at a time while this one did
    @property
    def key(self): return key_of(self.row.name, self.seeds[0])
    @property
    def alone(self): return self.row.kind!='training'

def parse_seeds(text):
    "(0, 3, 4, 5) of '0,3-5'"
    res = []
    for part in text.split(','):
        first, _, last = part.partition('-')
        res += range(int(first), int(last or first)+1)
    return tuple(res)

def plan(a, rows):
    "Rows with seeds: all of the table, or those of --only"
    by_name = {o.name: o for o in rows}
    if not a.only: return [(o, o.seeds) for o in rows]
    res = []
    for text in a.only:
        name, _, seeds = text.partition(':')
        if name not in by_name: sys.exit(f'--only {text}: unknown name. There are {", ".join(by_name)}')
        res.append((by_name[name], parse_seeds(seeds) if seeds else by_name[name].seeds))
    return res

def jobs_of(planned, out):
    "A job for each training that is missing; the seeds of a row that is timed are one job"
    res = []
    for row, seeds in planned:
        missing = tuple(s for s in seeds if not (out/'done'/f'{key_of(row.name, s)}.json').exists())
        if row.kind=='training': res += [Job(row, (s,)) for s in missing]
        elif missing: res.append(Job(row, missing))
    return res

def start(job, a):
    args = ['--one', job.row.name, ','.join(map(str, job.seeds)), '--out', str(a.out), '--data', a.data, '--commit', a.commit]
    args += ['--quick'] if a.quick else []
    args += ['--checkpoints'] if a.checkpoints else []
    env = dict(os.environ, PYTHONUNBUFFERED='1', MPLBACKEND='agg', NO_ALBUMENTATIONS_UPDATE='1')
    if not job.alone: env.update(OMP_NUM_THREADS='2', TORCHINDUCTOR_COMPILE_THREADS='2')
    with open(a.out/'logs'/f'{job.key}.log', 'ab') as log:
        job.process = subprocess.Popen([sys.executable, __file__, *args], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, start_new_session=True)
    print(f'{time.monotonic()-started:6.1f} s  started {job.key}', flush=True)

def fits(job, running, n_jobs):
    "Is there room for it beside what runs?"
    if not running: return True
    if job.alone or any(o.alone for o in running): return False
    return sum(o.row.weight for o in running)+job.row.weight<=n_jobs

def ended(job, a):
    "Note how a job ended that was not told to"
    code, done, error = job.process.returncode, a.out/'done'/f'{job.key}.json', a.out/'errors'/f'{job.key}.txt'
    print(f'{time.monotonic()-started:6.1f} s  {"done" if code==0 else "FAILED"} {job.key}', flush=True)
    if code==0: error.unlink(missing_ok=True)
    else:
        log = (a.out/'logs'/f'{job.key}.log').read_text(errors='replace').split('\n')
        write(error, f'exit code {code}: {next((o.strip() for o in reversed(log) if o.strip()), "")[:500]}')
    if not job.alone and done.exists(): write(done, json.dumps(dict(json.loads(done.read_text()), sharing=job.sharing)))

def stop(running):
    "Interrupt what runs, give it eight seconds, then end it and what it has started"
    for o in running:
        with contextlib.suppress(ProcessLookupError): o.process.send_signal(signal.SIGINT)
    until = time.monotonic()+8
    while any(o.process.poll() is None for o in running) and time.monotonic()<until: time.sleep(.1)
    for o in running:
        with contextlib.suppress(ProcessLookupError): os.killpg(o.process.pid, signal.SIGKILL)
        o.process.wait()

def measure(a):
    rows = table(a.quick)
    planned = plan(a, rows)
    for o in ('logs','results','done','weights','runs','errors'): (a.out/o).mkdir(parents=True, exist_ok=True)
    queue, running, told = jobs_of(planned, a.out), [], []
    for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, lambda number, frame: told.append(number))
    end, n_done = started+60*a.minutes-20, -1
    from cifar_fastai.all import load_images, find_images
    load_images(find_images(data_path(a))) # makes the pixel cache, once
    while (queue or running) and not told and time.monotonic()<end:
        while queue and fits(queue[0], running, a.jobs):
            job = queue.pop(0)
            start(job, a)
            running.append(job)
        for o in running: o.sharing = max(o.sharing, len(running))
        time.sleep(.2)
        for o in [o for o in running if o.process.poll() is not None]:
            running.remove(o)
            ended(o, a)
            n_done = -1
        now = len(list((a.out/'done').glob('*.json')))
        if now!=n_done: collect(a, rows, planned)
        n_done = now
    stop(running)
    for o in running:
        done = a.out/'done'/f'{o.key}.json'
        if done.exists() and not o.alone: ended(o, a)
    missing = collect(a, rows, planned)
    pack_weights(a, rows)
    print((a.out/'results/summary.md').read_text())
    return missing

def results(out):
    "The lines of what is done"
    return [json.loads(o.read_text()) for o in (out/'done').glob('*.json')]

def collect(a, rows, planned):
    "Write all results; the number of those that are missing"
    out, order = a.out, [o.name for o in rows]
    def place(line): return (order.index(line['name']) if line['name'] in order else len(order), line['name'], line['seed'])
    lines = sorted(results(out), key=place)
    for file, kinds in {'trainings.jsonl': ('training',), 'timed.jsonl': ('repeats','speed')}.items():
        write(out/'results'/file, ''.join(json.dumps(o)+'\n' for o in lines if o['kind'] in kinds))
    write_history(out, lines)
    for name in {o['name'] for o in lines if o['kind']=='training'}:
        seeds = sorted(o['seed'] for o in lines if o['name']==name)
        for seed in seeds[1:]: shutil.rmtree(out/'weights'/name/f's{seed}', ignore_errors=True)
    text, missing = summary(out, lines, planned)
    write(out/'results/summary.md', text)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
        for o in ('results','logs','errors'): tar.add(out/o, o)
    write(a.pack/'results.tar.gz', buffer.getvalue())
    return missing

def write_history(out, lines):
    "The epochs of all trainings in one table"
    import pandas as pd
    frames = [pd.read_csv(out/'done'/f"{key_of(o['name'], o['seed'])}.csv") for o in lines if o['kind']=='training']
    if frames:
        frame = pd.concat(frames)
        first = ['name','seed','epoch']
        write(out/'results/history.csv.gz', gzip.compress(frame[first+[o for o in frame if o not in first]].to_csv(index=False).encode()))

def spread(values, form):
    "Mean and standard deviation as text"
    if not values: return '', ''
    return format(statistics.mean(values), form), format(statistics.stdev(values), form) if len(values)>1 else ''

def summary(out, lines, planned):
    "The results as Markdown, and the number of those that are missing"
    wanted = {row.name: () for row, _ in planned}
    for row, seeds in planned: wanted[row.name] += seeds
    done = {}
    for o in lines: done.setdefault(o['name'], []).append(o)
    quantities = dict(final_accuracy='.2%', best_accuracy='.2%', tta_accuracy='.2%', test_accuracy='.2%', accuracy='.2%', accuracy_tta='.2%', seconds='.3f', images_per_second=',.0f',
                      learner_images_per_second=',.0f', bare_loop_images_per_second=',.0f', ratio='.3f', learner_seconds_per_epoch='.3f', bare_loop_seconds_per_epoch='.3f')
    text = ['| name | quantity | n | mean | sd | lowest | highest |', '|---|---|---|---|---|---|---|']
    for name, group in done.items():
        for k, form in quantities.items():
            values = [o[k] for o in group if isinstance(o.get(k), float) and o[k]==o[k]]
            if not values: continue
            mean, sd = spread(values, form)
            text.append(f'| {name} | {k} | {len(values)} | {mean} | {sd} | {min(values):{form}} | {max(values):{form}} |')
    missing = {name: [s for s in seeds if s not in [o['seed'] for o in done.get(name, [])]] for name, seeds in wanted.items()}
    missing = {name: seeds for name, seeds in missing.items() if seeds}
    text += ['', '## Missing', *[f'- {name}: seeds {", ".join(map(str, seeds))}' for name, seeds in missing.items()]]
    text += ['', '## Errors', *[f'- {o.stem}: {o.read_text()}' for o in sorted((out/'errors').glob('*.txt'))]]
    return '\n'.join(text)+'\n', sum(map(len, missing.values()))

def pack_weights(a, rows):
    "Cut an archive of the weights into parts; those that come after --pack-mb are left out"
    for o in a.pack.glob('weights-*.tar'): o.unlink()
    folders = [o for row in rows for o in sorted((a.out/'weights'/row.name).glob('s*')) if (a.out/'done'/f'{key_of(row.name, o.name[1:])}.json').exists()]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        for o in folders:
            if buffer.tell()+sum(f.stat().st_size for f in o.iterdir())>1e6*a.pack_mb: print(f'not packed, since it is over --pack-mb: {o}')
            else: tar.add(o, str(o.relative_to(a.out)))
    data = buffer.getvalue()
    for i in range(0, len(data) if folders else 0, part_bytes): write(a.pack/f'weights-{i//part_bytes+1:02}.tar', data[i:i+part_bytes])

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
    p.add_argument('--pack-mb', type=float, default=46., help='the most megabytes of weights to pack (default 46)')
    p.add_argument('--quick', action='store_true', help='rehearse: tiny networks on digits')
    p.add_argument('--one', nargs=2, metavar=('NAME','SEEDS'), help=argparse.SUPPRESS)
    a = p.parse_args()
    a.out, a.data = a.out.resolve(), a.data or ('digits' if a.quick else 'cifar10')
    a.pack = (a.pack or a.out/'pack').resolve()
    if a.one: return child(a)
    if a.jobs is None:
        import torch
        a.jobs = 6 if torch.cuda.is_available() else 1
    sys.exit(measure(a)>0)

if __name__=='__main__': main()

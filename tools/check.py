"""Check what all notebooks and modules have in common

    python tools/check.py              # everything; exits with 1 if something is wrong
    python tools/check.py nbs/X.ipynb  # some notebooks only"""
import ast,json,re,sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
colab = 'https://colab.research.google.com/github/cifar-fastai/cifar_fastai/blob/main/nbs/{}'
max_columns,max_cell,max_asserts,max_module,max_bytes = 120,15,2,500,1_000_000
no_figure = {'00_core.ipynb','30_hub.ipynb','36_evaluation.ipynb','index.ipynb','protocol.ipynb'}
words = [ # the field has terms for these; they must not come back
    'anew','shall','that is none','is no number','no numbers','goes? by','went astray','go(?:es)? astray','says? so',
    'saying so','is whole','there is none','at once and for all','by itself','what cannot be','peers','chance',
    'train part','what shall','dice','by name of','not as it must be','another one of']
words = re.compile(rf"\b(?:{'|'.join(words)})\b", re.I)

def too_long(text):
    text = re.sub(r'^__all__ = \[[^\]]*\]', '', text, flags=re.M) # nbdev writes it
    return any(len(o)>max_columns for o in text.splitlines())
def read(fn): return json.loads(fn.read_text(encoding='utf-8'))
def source(c): return c['source'] if isinstance(c['source'], str) else ''.join(c['source'])
def directives(c): return set(re.findall(r'^#\|\s*(\w+)', source(c), re.M))
def exported(c): return c['cell_type']=='code' and 'export' in directives(c)
def shown(c): return c['cell_type']=='code' and not directives(c)&{'export','hide','default_exp'}
def code_lines(c): return [o for o in source(c).splitlines() if o.strip() and not o.startswith('#|')]
def n_asserts(c):
    return len(re.findall(r'\bassert\b|\btest_(?:eq|ne|close|is|fail|warns|stdout)\(|\bExceptionExpected\(', source(c)))
def has_figure(nb):
    data = [o.get('data', {}) for c in nb['cells'] for o in c.get('outputs', [])]
    return any('image/' in k for o in data for k in o)

def wrong_cells(nb):
    "Yield what is wrong with single cells"
    for c in nb['cells']:
        text,lines = source(c),code_lines(c)
        first_line = ' '.join(lines[0].split())[:40] if lines else ''
        cell = f'cell {c["id"]} ({first_line})'
        if c['cell_type']=='code' and '/content' not in text and too_long(text):
            yield f'{cell}: a line of over {max_columns} columns'
        if shown(c) and len(lines)>max_cell:
            yield f'{cell}: {len(lines)} lines, at most {max_cell} in a cell that is shown'
        if shown(c) and n_asserts(c)>max_asserts:
            yield f'{cell}: {n_asserts(c)} assertions, at most {max_asserts} in a cell that is shown'
        for word in sorted({o.lower() for o in words.findall(text)}): yield f'{cell}: {word!r}: use the standard term'

def wrong_imports(fn, nb):
    "Imports of private names, and of modules that do not come before"
    for c in nb['cells']:
        if not exported(c): continue
        for mod,names in re.findall(r'^\s*from cifar_fastai\.(\w+) import (.+)', source(c), re.M):
            if private := re.findall(r'\b_\w+', names): yield f'it imports the private name {private[0]} from {mod}'
        for mod in re.findall(r'^\s*(?:from|import) cifar_fastai\.(\w+)', source(c), re.M): # in functions too
            other = next(fn.parent.glob(f'[0-9][0-9]_{mod}.ipynb'), None)
            if other is None or other.name>=fn.name: yield f'it imports {mod}, which does not come before it'

def wrong(fn):
    "Yield what is wrong with the notebook `fn`"
    nb,rel = read(fn),fn.relative_to(root/'nbs').as_posix()
    sources = [source(c) for c in nb['cells']]
    markdown = [source(c) for c in nb['cells'] if c['cell_type']=='markdown']
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    paths = [str(Path.home())+'/','/root/','/home/','site-packages/']
    first = sources[0]
    if not ('#| hide' in first and 'pip install' in first and '/content' in first):
        yield 'the first cell does not install the package on Colab'
    if not any(colab.format(rel) in o for o in sources): yield 'no Colab badge that opens this notebook'
    if fn.stat().st_size>max_bytes: yield f'{fn.stat().st_size/1e6:.1f} MB, over {max_bytes/1e6:.0f} MB'
    if any(o.get('output_type')=='error' for o in outputs): yield 'a cell has an error as its output'
    if any('{{' in o for o in markdown): yield 'a placeholder {{...}} in the text'
    if any(o in json.dumps(outputs) for o in paths): yield 'an output has a path of the machine that it ran on'
    if any(re.search(r'pip install [^\n]*(?<!/)\bcifar_fastai\b', o) for o in sources):
        yield 'pip install cifar_fastai: the package is on no registry'
    if rel not in no_figure and not has_figure(nb): yield 'no figure'
    if re.match(r'\d\d_', fn.name): yield from wrong_imports(fn, nb)
    yield from wrong_cells(nb)

def wrong_sidebar(fns):
    "Notebooks that nbs/sidebar.yml leaves out, and pages of it that do not exist"
    listed = re.findall(r'[\w/]+\.(?:ipynb|qmd)', (root/'nbs/sidebar.yml').read_text(encoding='utf-8'))
    for o in fns:
        if o.relative_to(root/'nbs').as_posix() not in listed: yield f'{o.relative_to(root)}: not in nbs/sidebar.yml'
    for o in listed:
        if not (root/'nbs'/o).exists(): yield f'nbs/sidebar.yml: {o} does not exist'

def wrong_numbers(fns):
    numbers = [o.name[:2] for o in fns if re.match(r'\d\d_', o.name)]
    for o in sorted({o for o in numbers if numbers.count(o)>1}): yield f'nbs: two notebooks have the number {o}'

def module_lines():
    "Number of lines of each module"
    modules = [o for o in (root/'cifar_fastai').glob('*.py') if o.name!='_modidx.py']
    return {o.name: len(o.read_text(encoding='utf-8').splitlines()) for o in modules}

def tested_symbols(fns):
    "Return the fraction of exported functions and classes that a cell with an assertion uses, and those that none does"
    cells = [(fn,c) for fn in fns for c in read(fn)['cells'] if c['cell_type']=='code']
    bodies = [ast.parse(source(c)).body for fn,c in cells if exported(c) and re.match(r'\d\d_', fn.name)]
    definitions = [o for body in bodies for o in body if isinstance(o, (ast.FunctionDef,ast.ClassDef))]
    names = sorted({o.name for o in definitions if o.name[0]!='_'})
    asserted = [source(c) for _,c in cells if not exported(c) and n_asserts(c)]
    without = [o for o in names if not any(re.search(rf'\b{o}\b', t) for t in asserted)]
    n = len(names)-len(without)
    percent = f'{100*n/len(names):.0f} %'
    return f"exported symbols with a test: {n} of {len(names)} ({percent}); without: {', '.join(without) or 'none'}"

if __name__=='__main__':
    every = sorted((root/'nbs').rglob('*.ipynb'))
    every = [o for o in every if not any(p.startswith(('.','_')) for p in o.relative_to(root).parts)]
    some = [Path(o).resolve() for o in sys.argv[1:]]
    found = [f'{fn.relative_to(root)}: {o}' for fn in some or every for o in wrong(fn)]
    if not some:
        sizes = module_lines()
        found += [*wrong_sidebar(every), *wrong_numbers(every)]
        found += [f'{k}: {n} lines, at most {max_module} in a module' for k,n in sizes.items() if n>max_module]
        scripts = [*(root/'cifar_fastai').glob('*.py'), *(root/'tools').glob('*.py'), root/'setup.py']
        found += [f'{o.relative_to(root)}: a line of over {max_columns} columns' for o in scripts
                  if o.name!='_modidx.py' and too_long(o.read_text(encoding='utf-8'))]
        print(tested_symbols(every))
        print(f'modules: {sum(sizes.values()):,} lines')
    print('\n'.join(found) or 'notebooks: all checks passed')
    sys.exit(bool(found))

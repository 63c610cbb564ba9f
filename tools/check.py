"Check what the notebooks of this project have in common: `python tools/check.py` lists what is amiss and exits with 1"
import ast,json,re,sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
colab = 'https://colab.research.google.com/github/cifar-fastai/cifar_fastai/blob/main/nbs/{}'

def read(fn): return json.loads(fn.read_text(encoding='utf-8'))
def source(c): return c['source'] if isinstance(c['source'], str) else ''.join(c['source'])
def exported(c): return c['cell_type']=='code' and bool(re.search(r'^#\|\s*export\b', source(c), re.M))

def complaints(fn):
    "What is amiss in the notebook `fn`"
    nb,rel = read(fn),fn.relative_to(root/'nbs').as_posix()
    first = source(nb['cells'][0])
    if not ('#| hide' in first and 'pip install' in first and '/content' in first): yield 'the first cell does not install the package on Colab, hidden'
    if not any(colab.format(rel) in source(c) for c in nb['cells']): yield 'no Colab badge that opens this notebook'
    if fn.stat().st_size>2_000_000: yield f'{fn.stat().st_size/1e6:.1f} MB, over 2 MB'
    if any(o.get('output_type')=='error' for c in nb['cells'] for o in c.get('outputs', [])): yield 'a cell holds an error as its output'
    if any(c['cell_type']=='markdown' and '{{' in source(c) for c in nb['cells']): yield 'a placeholder {{...}} was left in the text'
    if any(p in json.dumps(c.get('outputs', [])) for c in nb['cells'] for p in (str(Path.home())+'/','/root/','/home/')): yield 'an output shows a path of the machine that it ran on'
    if any(re.search(r'pip install [^\n]*(?<!/)\bcifar_fastai\b', source(c)) for c in nb['cells']): yield 'pip install cifar_fastai: the package is on no registry'
    for c in nb['cells'] if re.match(r'\d\d_', fn.name) else []:
        for mod in re.findall(r'^\s*(?:from|import) cifar_fastai\.(\w+)', source(c), re.M) if exported(c) else []: # those inside functions too
            other = next(fn.parent.glob(f'[0-9][0-9]_{mod}.ipynb'), None)
            if other is None or other.name>=fn.name: yield f'it imports {mod}, which is not before it'

def off_sidebar(fns):
    "Notebooks that nbs/sidebar.yml leaves out, and pages of it that are not there"
    listed = re.findall(r'[\w/]+\.(?:ipynb|qmd)', (root/'nbs/sidebar.yml').read_text(encoding='utf-8'))
    for o in fns:
        if o.relative_to(root/'nbs').as_posix() not in listed: yield f'{o.relative_to(root)}: it is not in nbs/sidebar.yml'
    for o in listed:
        if not (root/'nbs'/o).exists(): yield f'nbs/sidebar.yml: {o} is not there'

def lessons(fns):
    "The share of exported functions, classes and patched methods that a cell with an assertion uses, and those that none does"
    cells = [(fn,c) for fn in fns for c in read(fn)['cells'] if c['cell_type']=='code']
    names = {o.name for fn,c in cells if exported(c) and re.match(r'\d\d_', fn.name) for o in ast.parse(source(c)).body if isinstance(o, (ast.FunctionDef,ast.ClassDef))}
    names = sorted(o for o in names if o[0]!='_')
    asserted = [source(c) for _,c in cells if not exported(c) and re.search(r'\bassert\b|\btest_\w+\(', source(c))]
    without = [o for o in names if not any(re.search(rf'\b{o}\b', t) for t in asserted)]
    n = len(names)-len(without)
    return f"exported symbols with an asserted lesson: {n} of {len(names)} ({100*n/len(names):.0f} %); without: {', '.join(without) or 'none'}"

if __name__=='__main__':
    fns = [o for o in sorted((root/'nbs').rglob('*.ipynb')) if not any(p.startswith(('.','_')) for p in o.relative_to(root).parts)]
    amiss = [f'{fn.relative_to(root)}: {c}' for fn in fns for c in complaints(fn)] + list(off_sidebar(fns))
    print(lessons(fns))
    print('\n'.join(amiss) or 'notebooks: as they should be')
    sys.exit(bool(amiss))

"Check what the notebooks of this project have in common: `python tools/check.py` lists what is amiss and exits with 1"
import json,re,sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
colab = 'https://colab.research.google.com/github/cifar-fastai/cifar_fastai/blob/main/nbs/{}'

def complaints(fn):
    "What is amiss in the notebook `fn`"
    nb,rel = json.loads(fn.read_text(encoding='utf-8')),fn.relative_to(root/'nbs').as_posix()
    source = lambda c: c['source'] if isinstance(c['source'], str) else ''.join(c['source'])
    first = source(nb['cells'][0])
    if not ('#| hide' in first and 'pip install' in first and '/content' in first): yield 'the first cell does not install the package on Colab, hidden'
    if not any(colab.format(rel) in source(c) for c in nb['cells']): yield 'no Colab badge that opens this notebook'
    if fn.stat().st_size>2_000_000: yield f'{fn.stat().st_size/1e6:.1f} MB, over 2 MB'
    if any(o.get('output_type')=='error' for c in nb['cells'] for o in c.get('outputs', [])): yield 'a cell holds an error as its output'
    if any(c['cell_type']=='markdown' and '{{' in source(c) for c in nb['cells']): yield 'a placeholder {{...}} was left in the text'
    if any(p in json.dumps(c.get('outputs', [])) for c in nb['cells'] for p in (str(Path.home())+'/','/root/','/home/')): yield 'an output shows a path of the machine that it ran on'
    floor = re.match(r'(\d\d)_', fn.name)
    for c in nb['cells'] if floor else []:
        if '#| export' not in source(c): continue
        for mod in re.findall(r'^from cifar_fastai\.(\w+) import', source(c), re.M):
            other = next(fn.parent.glob(f'[0-9][0-9]_{mod}.ipynb'), None)
            if other is None or other.name>=fn.name: yield f'it imports {mod}, which does not have a lower number'

if __name__=='__main__':
    amiss = [f'{fn.relative_to(root)}: {c}' for fn in sorted((root/'nbs').rglob('*.ipynb')) if not any(p.startswith(('.','_')) for p in fn.relative_to(root).parts) for c in complaints(fn)]
    print('\n'.join(amiss) or 'notebooks: as they should be')
    sys.exit(bool(amiss))

"Generate README.md from nbs/index.ipynb without Quarto: `python tools/readme.py`; `--check` only compares them"
import re,sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent

def readme():
    "Return the text of README.md"
    nb = nbformat.read(root/'nbs/index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if not re.match(r'#\|\s*hide\s*$', c.source, re.M)]
    nb.metadata['language_info'] = dict(name='python')
    for c in nb.cells:
        if c.cell_type!='code': continue
        c.outputs = [o for o in c.outputs if o.output_type=='execute_result'] # not the progress of a training
        c.metadata['transient'] = dict(remove_source='#| echo: false' in c.source)
        c.source = re.sub(r'^#\|.*\n', '', c.source, flags=re.M)
    text,resources = MarkdownExporter().from_notebook_node(nb)
    if resources.get('outputs'):
        raise SystemExit('nbs/index.ipynb: a cell draws a figure. Save it in nbs/images and show it in a Markdown cell')
    text = re.sub(r'(\]\(|<img src=")(?!https?:|#)', r'\1nbs/', text) # links are relative to the notebook
    return re.sub(r'\n{3,}', '\n\n', text).strip()+'\n'

if __name__=='__main__':
    file,text = root/'README.md',readme()
    if '--check' not in sys.argv: file.write_text(text, encoding='utf-8')
    elif not file.exists() or file.read_text(encoding='utf-8')!=text:
        raise SystemExit('README.md is out of date: run python tools/readme.py')

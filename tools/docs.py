"Build the documentation site in pure Python, without Quarto, into _proc/_docs: `python tools/docs.py`. A broken link is an error"
import os,re,shutil,subprocess,sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

root = Path(__file__).resolve().parent.parent

def plain_names(site):
    "Take the numbers off the pages' names, as nbdev's links to them expect: `02_data.ipynb` becomes `data.ipynb`"
    for f in [*site.rglob('*.ipynb'), site/'sidebar.yml']:
        text = re.sub(r'(?<!nbs/)\b\d\d_(\w+\.ipynb)', r'\1', f.read_text(encoding='utf-8')) # nbs/ is in the links to Colab
        f.unlink()
        f.with_name(re.sub(r'^\d\d_', '', f.name)).write_text(text, encoding='utf-8')

def own_links(pages, url):
    "Make links to this site's public address relative, so that a preview stays local, and lead each to the heading that is spelled as the link: `GradCAM` and `gradcam` have one anchor, but for a number. Returns those that lead nowhere"
    texts,broken = {o: o.read_text(encoding='utf-8') for o in sorted(pages.rglob('*.html'))},[]
    headings = {o: {name: anchor for anchor,name in re.findall(r'<h\d id="([^"]+)"[^>]*>([\w.]+)</h\d>', t)} for o,t in texts.items()}
    for page,text in texts.items():
        def mend(m):
            start,to,anchor,end,name = m.groups(default='')
            target = pages/(to or 'index.html')
            there = lambda a: not a or f'id="{a}"' in texts.get(target, '')
            anchor = headings.get(target, {}).get(name, anchor)
            if not there(anchor): anchor = anchor.rpartition('.')[0] or anchor # a method is documented with its class
            if not (target.exists() and there(anchor)): broken.append(f'{page.name}: broken link {to}#{anchor}')
            return start + '../'*(len(page.relative_to(pages).parts)-1) + (to or 'index.html') + (anchor and '#'+anchor) + end
        page.write_text(re.sub(rf'(<a [^>]*?href="){re.escape(url)}/([^"#]*)(?:#([^"]*))?("[^>]*>(?:<code>([\w.]+)(?:\(\))?</code>)?)', mend, text), encoding='utf-8')
    return broken

def main():
    os.chdir(root)
    refresh_quarto_yml()
    site = Path(proc_nbs(force=True))
    plain_names(site)
    found,done = (subprocess.run(['smalldocs',verb,str(site)], capture_output=True, text=True) for verb in ('check','render'))
    if found.returncode>1 or done.returncode: sys.exit('\n'.join([found.stdout,found.stderr,done.stdout,done.stderr]))
    broken = [o for o in (found.stdout+found.stderr).splitlines() if 'broken link' in o] + own_links(site/'_docs', get_config().doc_url.rstrip('/'))
    for o in (site/'_docs').rglob('*.llms.md'): shutil.copy(o, o.with_name(o.name.replace('.llms.md', '.html.md'))) # the name in the modules' docstrings
    print('\n'.join(broken) or f"{len(list((site/'_docs').rglob('*.html')))} pages in {site/'_docs'}, no broken link")
    sys.exit(bool(broken))

if __name__=='__main__': main()

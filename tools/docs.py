"Build the documentation site in pure Python, without Quarto, into _proc/_docs: `python tools/docs.py`. A broken link is an error"
import os,re,subprocess,sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.quarto import nbdev_sidebar,refresh_quarto_yml
from nbdev.serve import proc_nbs

root = Path(__file__).resolve().parent.parent

def plain_names(site):
    "Take the numbers off the pages' names, as nbdev's links to them expect: `00_data.ipynb` becomes `data.ipynb`"
    for f in [*site.rglob('*.ipynb'), site/'sidebar.yml']:
        text = re.sub(r'(?<!nbs/)\b\d\d_(\w+\.ipynb)', r'\1', f.read_text(encoding='utf-8')) # nbs/ is in the links to Colab
        f.unlink()
        f.with_name(re.sub(r'^\d\d_', '', f.name)).write_text(text, encoding='utf-8')

def broken_api_links(pages, url):
    "Links to this site under its public address, which a check of relative links leaves out, that lead nowhere"
    for page in sorted(pages.rglob('*.html')):
        for to,_,anchor in (o.partition('#') for o in re.findall(rf'href="{re.escape(url)}/([^"]*\.html[^"]*)"', page.read_text(encoding='utf-8'))):
            target = pages/to
            if not target.exists() or (anchor and f'id="{anchor}"' not in target.read_text(encoding='utf-8')): yield f'{page.name}: broken link {to}#{anchor}'

def main():
    os.chdir(root)
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__(file_re=r'\.ipynb$')
    site = Path(proc_nbs(force=True))
    plain_names(site)
    found,done = (subprocess.run(['smalldocs',verb,str(site)], capture_output=True, text=True) for verb in ('check','render'))
    if found.returncode>1 or done.returncode: sys.exit('\n'.join([found.stdout,found.stderr,done.stdout,done.stderr]))
    broken = [o for o in (found.stdout+found.stderr).splitlines() if 'broken link' in o] + list(broken_api_links(site/'_docs', get_config().doc_url.rstrip('/')))
    print('\n'.join(broken) or f"{len(list((site/'_docs').rglob('*.html')))} pages in {site/'_docs'}, no broken link")
    sys.exit(bool(broken))

if __name__=='__main__': main()

"Build the documentation site in pure Python, without Quarto, into _proc/_docs: `python tools/docs.py`. A broken link is an error"
import subprocess,sys
from pathlib import Path
from nbdev.quarto import nbdev_sidebar,refresh_quarto_yml
from nbdev.serve import proc_nbs

refresh_quarto_yml()
nbdev_sidebar.__wrapped__(file_re=r'\.ipynb$')
site = Path(proc_nbs(force=True))
found = subprocess.run(['smalldocs','check',str(site)], capture_output=True, text=True)
broken = [o for o in (found.stdout+found.stderr).splitlines() if 'broken link' in o]
print('\n'.join(broken) or 'no broken link')
done = subprocess.run(['smalldocs','render',str(site)], capture_output=True, text=True)
print((done.stdout or done.stderr).strip().splitlines()[0])
sys.exit(bool(broken) or done.returncode)

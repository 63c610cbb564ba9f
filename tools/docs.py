"Build the documentation site into _proc/_docs, without Quarto: `python tools/docs.py`. A broken link is an error"
import json,os,re,shutil,subprocess,sys,tarfile,tempfile
from pathlib import Path
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

root = Path(__file__).resolve().parent.parent
runtime = 'onnxruntime-web@1.30.0' # npm package that runs the network of the try-it page in the browser
runtime_files = ['ort.wasm.bundle.min.mjs','ort-wasm-simd-threaded.wasm']

def plain_names(site):
    "Remove the numbers from the names of pages, as nbdev's links expect: `02_data.ipynb` becomes `data.ipynb`"
    for f in [*site.rglob('*.ipynb'), site/'sidebar.yml']:
        text = f.read_text(encoding='utf-8')
        text = re.sub(r'(?<!nbs/)\b\d\d_(\w+\.ipynb)', r'\1', text) # links to Colab contain nbs/
        f.unlink()
        f.with_name(re.sub(r'^\d\d_', '', f.name)).write_text(text, encoding='utf-8')

def own_links(pages, url):
    """Make links to this site relative, and point each to the heading with the name in the link; return broken links

    The anchors of `GradCAM` and `gradcam` differ only in a number, so the name decides."""
    texts,broken = {o: o.read_text(encoding='utf-8') for o in sorted(pages.rglob('*.html'))},[]
    heading = r'<h\d id="([^"]+)"[^>]*>([\w.]+)</h\d>'
    headings = {o: {name: anchor for anchor,name in re.findall(heading, t)} for o,t in texts.items()}
    link = rf'(<a [^>]*?href="){re.escape(url)}/([^"#]*)(?:#([^"]*))?("[^>]*>(?:<code>([\w.]+)(?:\(\))?</code>)?)'
    for page,text in texts.items():
        def mend(m):
            start,to,anchor,end,name = m.groups(default='')
            target = pages/(to or 'index.html')
            there = lambda a: not a or f'id="{a}"' in texts.get(target, '')
            anchor = headings.get(target, {}).get(name, anchor)
            if not there(anchor): anchor = anchor.rpartition('.')[0] or anchor # a method is documented with its class
            if not (target.exists() and there(anchor)): broken.append(f'{page.name}: broken link {to}#{anchor}')
            up = '../'*(len(page.relative_to(pages).parts)-1)
            return start + up + (to or 'index.html') + (anchor and '#'+anchor) + end
        page.write_text(re.sub(link, mend, text), encoding='utf-8')
    return broken

def own_fonts(pages):
    "Remove the web fonts that the themes load from elsewhere; their font stacks end in fonts of the system"
    for o in (pages/'site_libs').rglob('*.css'):
        text = o.read_text(encoding='utf-8')
        o.write_text(re.sub(r'@import url\(["\']?https?:[^)]*\);?', '', text), encoding='utf-8')

def keyboard(pages):
    "Make the groups of the sidebar reachable by Tab, once each, and announce them as buttons"
    group = r'(<a class="(sidebar-item-\w+)[^>]*data-bs-target="(#[^"]+)") role="navigation"'
    def mend(m):
        link,kind,target = m.groups()
        focus = ' tabindex="-1"' if kind=='sidebar-item-toggle' else ''
        return f'{link} href="{target}" role="button"{focus}'
    for o in pages.rglob('*.html'): o.write_text(re.sub(group, mend, o.read_text(encoding='utf-8')), encoding='utf-8')

def fetch_runtime(folder):
    "Fetch onnxruntime-web for the try-it page by npm. Return whether this succeeded"
    if not shutil.which('npm'): return False
    with tempfile.TemporaryDirectory() as tmp:
        packed = subprocess.run([shutil.which('npm'),'pack',runtime], cwd=tmp, capture_output=True, text=True)
        if packed.returncode: return False
        with tarfile.open(next(Path(tmp).glob('*.tgz'))) as tar:
            for o in runtime_files: (folder/o).write_bytes(tar.extractfile(f'package/dist/{o}').read())
    return True

def photo_crops(n=512):
    "Cut squares out of scikit-learn's two photographs, which set the ranges of int8 where no data set is at hand"
    import numpy as np
    from sklearn.datasets import load_sample_images
    photos,rng,res = load_sample_images().images,np.random.default_rng(0),[]
    for i in range(n):
        photo = photos[i%2]
        h,w,_ = photo.shape
        side = rng.integers(32, h+1)
        y,x = rng.integers(h-side+1),rng.integers(w-side+1)
        res.append(photo[y:y+side,x:x+side])
    return res

def write_network(folder, name='speednet-94'):
    "Write a released model for the try-it page: in int8, and as JSON what onnxruntime-web does not read from the file"
    import numpy as np
    from cifar_fastai.export import load_model,quantise_onnx,to_onnx
    from cifar_fastai.heatmap import inferno
    from cifar_fastai.predict import Predictor
    with tempfile.TemporaryDirectory() as tmp:
        fp32 = to_onnx(load_model(name), Path(tmp)/'fp32.onnx', cam=True)
        predictor = Predictor(quantise_onnx(fp32, folder/'model.onnx', photo_crops()))
    info = dict(name=name, classes=predictor.classes, size=predictor.size, threshold=predictor.rejection['threshold'],
                inferno=inferno(np.linspace(0, 1, 256)).round().astype(int).tolist())
    (folder/'model.json').write_text(json.dumps(info))

def try_it(pages):
    "Add script, samples, network and its runtime to the try-it page. Without npm, the page says what is missing"
    folder = pages/'try_it'
    shutil.copytree(root/'nbs/try_it', folder, dirs_exist_ok=True)
    for o in (root/'cifar_fastai/samples').glob('[a-z]*.png'): shutil.copy(o, folder) # not the digits
    if fetch_runtime(folder): write_network(folder)
    else: print(f'the try-it page has no network: npm is missing, or could not fetch {runtime}')

def main():
    os.chdir(root)
    refresh_quarto_yml()
    site = Path(proc_nbs(force=True))
    plain_names(site)
    def run(verb): return subprocess.run(['smalldocs',verb,str(site)], capture_output=True, text=True)
    checked,rendered,pages = run('check'),run('render'),site/'_docs'
    printed = checked.stdout+checked.stderr
    if checked.returncode>1 or rendered.returncode: sys.exit('\n'.join([printed,rendered.stdout,rendered.stderr]))
    broken = [o for o in printed.splitlines() if 'broken link' in o]
    broken += own_links(pages, get_config().doc_url.rstrip('/'))
    shutil.copytree('nbs/images', pages/'images', dirs_exist_ok=True)
    try_it(pages)
    own_fonts(pages)
    keyboard(pages)
    for o in pages.rglob('*.llms.md'): # the docstrings of the modules link to .html.md
        shutil.copy(o, o.with_name(o.name.replace('.llms.md', '.html.md')))
    print('\n'.join(broken) or f"{len(list(pages.rglob('*.html')))} pages in {pages}, no broken link")
    sys.exit(bool(broken))

if __name__=='__main__': main()

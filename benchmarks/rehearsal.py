"""A study of pretrained networks, rehearsed without the network: Keras downloads random weights
from a server of this script, under its own file names and in its own layout.

    python benchmarks/rehearsal.py --data SOURCE --out DIR [--study report] [--profile smoke] ...

The command that runs is README's, in processes of its own; further options (...) are its. Two
things differ: the server's address, and that a file's checksum is not asked, since the weights are
others. So it shows whether each recipe goes from its data to the page and each file is downloaded
once, and ends with an error where not; scores say nothing. DIR is a new folder. Prints Markdown.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from sides import heading

from bloodcell_nb.runs.studies import read_study
from bloodcell_nb.runs.weight_files import _names

# on the path of every process: Keras' downloads come from {address}, whatever their checksum
HOOK = """
import importlib.util, sys
from urllib.request import urlretrieve

class Hook:
    def find_spec(self, name, path, target=None):
        if name != "keras.src.utils.file_utils":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def changed(module):
            run(module)
            module.validate_file = lambda *given, **more: True
            module.urlretrieve = lambda url, *rest: urlretrieve(
                "{address}/" + url.rpartition("/")[2], *rest)

        spec.loader.exec_module = changed
        return spec

sys.meta_path.insert(0, Hook())
"""


def write_weights(backbones, folder):
    "Random weights of each network without its top, as Keras' own server has them."
    import keras
    from h5py import File
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    for backbone in backbones:
        network = getattr(keras.applications, backbone)(weights=None, include_top=False)
        with File(folder / _names(backbone, 1)[-1], "w") as file:
            save_weights_to_hdf5_group(file, network)
        keras.backend.clear_session()


class Handler(SimpleHTTPRequestHandler):
    "Serves a folder, and counts what is asked for."
    asked = Counter()

    def do_GET(self):
        self.asked[self.path.lstrip("/")] += 1
        super().do_GET()

    def log_message(self, *given):
        pass


def main(arguments, more):
    if Path(arguments.out).exists():
        sys.exit(f"--out {arguments.out} is there already; name a new folder")
    recipes = read_study(arguments.study)[1]
    backbones = sorted({recipe.backbone for recipe in recipes
                        if getattr(recipe, "weights", "") == "imagenet"
                        and "Lite" not in recipe.backbone})
    with tempfile.TemporaryDirectory() as place:
        files, hook, home = (Path(place) / name for name in ("files", "hook", "home"))
        for folder in (files, hook, home):
            folder.mkdir()
        write_weights(backbones, files)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=files))
        Thread(target=server.serve_forever, daemon=True).start()
        (hook / "sitecustomize.py").write_text(
            HOOK.replace("{address}", f"http://127.0.0.1:{server.server_port}"))
        start = time.monotonic()
        code = subprocess.run(
            [Path(sys.executable).parent / "bloodcell", "run", "--study", arguments.study,
             "--profile", arguments.profile, "--data", arguments.data, "--out", arguments.out,
             *more], check=False,
            env=os.environ | {"KERAS_HOME": str(home), "PYTHONPATH": os.pathsep.join(
                [str(hook), *filter(None, [os.environ.get("PYTHONPATH")])])}).returncode
        seconds = time.monotonic() - start
        print(heading(f"{Path(arguments.study).stem}, rehearsed", arguments.profile,
                      "random weights"))
        print("| recipe | state | seconds |\n|---|---|---|")
        for recipe in recipes:
            path = Path(arguments.out) / recipe.recipe / "status.json"
            status = json.loads(path.read_text()) if path.exists() else {}
            print(f"| {recipe.recipe} | {status.get('state', 'none')} | "
                  f"{status.get('seconds', 0):.0f} |")
        page = (Path(arguments.out) / "index.html").exists()
        sizes = {path.name: path.stat().st_size / 2**20 for path in sorted(files.iterdir())}
        print(f"\n{seconds:.0f} s in all; exit status {code}; {'a' if page else 'no'} page. Files: "
              + ", ".join(f"{size:.0f} MiB {name} asked for {Handler.asked[name]}x"
                          for name, size in sizes.items()) + ".")
        once = Handler.asked == Counter({name: 1 for name in sizes})
    return code or int(not (page and once))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="report")
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    sys.exit(main(*parser.parse_known_args()))

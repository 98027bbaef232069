"""Takes the dependencies and the command from settings.ini, so that they are written once.

A built package holds the project's recipes and networks too; an editable one reads the clone's.
"""
import json
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# what the commands read beside the package; of the records, what the chapters quote
PROJECT = ("recipes/*.yaml", "spaces/*.yaml", "studies/*.yaml", "nbs/*.ipynb",
           "nbs/exercises/*.ipynb", "nbs/reference/**/*.ipynb", "models/*/*",
           *(f"reports/{data}/*/{name}.json"
             for data in ("bccd", "cellavision", "course", "pbc96", "published", "search_cnn",
                          "travel", "trials", "worth")
             for name in ("metrics", "status")))


class BuildWithProject(build_py):
    "Copies the project's files into the package, notebooks without their outputs."

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "bloodcell_nb" / "_project"
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            for path in map(Path, project_files()):
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                if path.suffix == ".ipynb":
                    (target / path).write_text(without_outputs(path), encoding="utf-8")
                else:
                    shutil.copyfile(path, target / path)

    def get_source_files(self):  # of which an sdist is made
        return [*super().get_source_files(), "settings.ini", *project_files()]


def project_files():
    return sorted(path.as_posix() for pattern in PROJECT for path in Path().glob(pattern)
                  if ".part" not in path.suffixes)  # what a killed command left half-written


def without_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return json.dumps(notebook, ensure_ascii=False)


config = ConfigParser()
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
setup(
    version=settings["version"],
    install_requires=settings["requirements"].split(),
    extras_require={name.replace("_", "-"): settings[f"{name}_requirements"].split()
                    for name in ("dev", "jax", "cuda", "jax_cuda", "onnx")},
    entry_points={"console_scripts": [settings["console_scripts"]],
                  "nbdev": [f"{settings['lib_name']}={settings['lib_path']}._modidx:d"]},
    cmdclass={"build_py": BuildWithProject},
)

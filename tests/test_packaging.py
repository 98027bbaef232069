"Dependencies, notebooks and recipes agree with each other."
import ast
import functools
import itertools
import json
import os
import re
import runpy
import shutil
import statistics
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib.metadata import distributions, metadata, packages_distributions
from modulefinder import ModuleFinder
from pathlib import Path

import check_notebooks
import papermill
import pytest
import yaml

import bloodcell_nb
from bloodcell_nb import _modidx
from bloodcell_nb.augment.policies import OPERATIONS, Policy
from bloodcell_nb.networks.custom_cnn import custom_cnn
from bloodcell_nb.networks.pretrained import set_trainable, transfer_model
from bloodcell_nb.page.comparisons import results_table
from bloodcell_nb.runs import keys
from bloodcell_nb.runs.finished import read_runs
from bloodcell_nb.runs.keys import _modules, code_cells, code_fingerprint
from bloodcell_nb.runs.machine import environment
from bloodcell_nb.runs.recipes import check_recipe, read_recipe, recipe_of, recipes
from bloodcell_nb.runs.schemas import SCHEMAS

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "bloodcell_nb").rglob("*.py"))
REFERENCE = sorted((ROOT / "nbs" / "reference").rglob("*.ipynb"))
NOTEBOOKS = [ROOT / "nbs" / f"{name}.ipynb" for name in SCHEMAS]  # what papermill runs


def settings():
    config = ConfigParser()
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def pins(lines):
    "Name, as package indexes compare it, and version."
    return {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower(): line.split("==")[1]
            for line in lines}


def test_one_source_of_dependencies():
    direct = pins((settings()["requirements"] + settings()["dev_requirements"]).split())
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    listed = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    assert pins(line for line in listed if "==" in line) == direct
    assert "-e ." in listed and "python=3.11" in conda
    locked = pins((ROOT / "requirements.lock").read_text().split())
    wanted = direct | pins(settings()["onnx_requirements"].split())  # CI exports to ONNX too
    assert {name: locked.get(name) for name in wanted} == wanted
    assert not {"jax", "jaxlib"} & {*locked}, "each process that imports TensorFlow would import it"


def test_the_cuda_builds_are_those_of_the_same_versions(under_jax):
    "What a GPU needs beside the locked libraries, each by the extra that its own package names."
    places = [*under_jax["PYTHONPATH"].split(os.pathsep), *sys.path]
    ours, known = settings(), metadata("bloodcell_nb").get_all("Provides-Extra")
    pinned = pins((ours["requirements"] + ours["jax_requirements"]).split())
    for extra, name, needed in (("cuda", "tensorflow", "and-cuda"), ("jax-cuda", "jax", "cuda12")):
        given = ours[f"{extra.replace('-', '_')}_requirements"].split()
        assert given == [f"{name}[{needed}]=={pinned[name]}"] and extra in known
        found = next(iter(distributions(name=name, path=places)))
        assert needed in found.metadata.get_all("Provides-Extra")
        assert f".[{extra}]" in (ROOT / "environment.yml").read_text()


def test_lock_holds_versions_only():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line), line


def test_a_module_says_in_a_sentence_what_it_is_for():
    "nbdev takes the first line of the notebook's quote."
    for path in MODULES:
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert path.name.startswith("_") or said.endswith("."), path


def test_the_package_holds_all_its_files():
    "What is committed below bloodcell_nb/ is a module or package data."
    files = subprocess.run(["git", "ls-files", "bloodcell_nb"], cwd=ROOT, capture_output=True,
                           text=True, check=True).stdout.split()
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    patterns = ["*.py", *setup["setuptools"]["package-data"]["*"]]
    held = {path.relative_to(ROOT).as_posix() for pattern in patterns
            for path in (ROOT / "bloodcell_nb").rglob(pattern)}
    assert "bloodcell_nb/weights/NOTICE" in files and set(files) <= held


def test_nothing_of_this_machine_is_committed():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.split("\0")
    # this clone's place, and any environment's
    mine = [str(ROOT), str(Path.home()) + "/", "/" + "site-packages/", "/tmp/" + "ipykernel"]
    for name in filter(None, files):
        path = ROOT / name
        if path.suffix in {".png", ".npz", ".keras", ".onnx"} or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        assert not [place for place in mine if place in text], name


def test_no_picture_of_real_cells_is_committed():
    files = subprocess.run(["git", "ls-files", "reports"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.split("\n")
    assert not [name for name in files if "/cells/" in name or name.endswith("cells.html")]
    for name in files:
        if name.endswith("notebook.ipynb"):
            outputs = [output for cell in json.loads((ROOT / name).read_text())["cells"]
                       for output in cell.get("outputs", [])]
            assert (not [output for output in outputs if output.get("metadata", {}).get("cells")
                         and "image/png" in output["data"]]), name


@functools.lru_cache
def code_of(notebook):
    "Code of a chapter's cells: before the parameters, the parameters, after them."
    cells = json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    place, = [k for k, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", [])]
    code = ["".join(cell["source"]) for cell in cells]
    return code[:place], code[place], code[place + 1 :]


def parameters_of(notebook):
    "What the parameters cell of a chapter says as it stands."
    names = {}
    exec(code_of(notebook)[1], names)
    return {name: value for name, value in names.items() if not name.startswith("_")}


@pytest.mark.parametrize("notebook", [path.stem for path in NOTEBOOKS])
def test_one_short_parameters_cell(notebook, caplog):
    code = code_of(notebook)[1]
    lines = [line for line in code.splitlines() if not line.startswith("# ")]
    assert len(lines) <= 10 and "#|" not in code
    for line in lines:
        assert re.fullmatch(r"\w+: \w+ = .+  # .+", line), line
    assert papermill.inspect_notebook(str(ROOT / "nbs" / f"{notebook}.ipynb"))
    assert not caplog.records, "papermill cannot read a line of the parameters cell"


@pytest.mark.parametrize("notebook", SCHEMAS)
def test_a_chapter_as_it_stands_is_its_recipe(notebook):
    "Its parameters cell names one and changes nothing of it, so that each value has one place."
    here = parameters_of(notebook)
    assert set(here) <= set(SCHEMAS[notebook].model_fields)
    if notebook != "09_evaluation":  # which is no recipe: bloodcell evaluate makes its values
        assert recipe_of(here, notebook) == read_recipe(recipes()[here["recipe"]])
        assert here["recipe"].startswith("course_")


INSIDE = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp,
          ast.GeneratorExp)  # what binds its names for itself


def names_bound(node):
    "Names that a cell binds in its notebook: assigned, imported, defined, counted over."
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        elif isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            yield child.name
        elif isinstance(child, ast.alias):
            yield child.asname or child.name.partition(".")[0]
        if not isinstance(child, INSIDE):
            yield from names_bound(child)


@pytest.mark.parametrize("notebook", SCHEMAS)
def test_no_chapter_reuses_a_parameters_name(notebook):
    "Else its parameters could not be read a second time."
    before, _, after = code_of(notebook)
    bound = {name for code in (*before, *after) for name in names_bound(ast.parse(code))}
    assert not bound & set(SCHEMAS[notebook].model_fields)


def names_read(node, local=frozenset()):
    "Names of the notebook that a cell reads, within its functions too."
    if isinstance(node, INSIDE):
        local = local | {child.id for child in ast.walk(node) if isinstance(child, ast.Name)
                         and isinstance(child.ctx, ast.Store)}
        local |= {child.arg for child in ast.walk(node) if isinstance(child, ast.arg)}
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in local:
        yield node.id
    for child in ast.iter_child_nodes(node):
        yield from names_read(child, local)


@pytest.mark.parametrize("notebook", SCHEMAS)
def test_a_chapter_reads_its_settings(notebook):
    "Not the parameters cell, where what the recipe says is None."
    read = {name for code in code_of(notebook)[2] if "#| export" not in code
            for name in names_read(ast.parse(code))}
    assert not read & set(parameters_of(notebook))


def test_a_baseline_is_a_step_too():
    """What a recipe is compared with exists, has words of its own, and is not compared with it in
    turn.
    """
    found = {name: read_recipe(path) for name, path in recipes().items()}
    for recipe in found.values():
        seen = [recipe.recipe]
        while recipe.baseline:
            assert found[recipe.baseline].step and recipe.step and recipe.baseline not in seen, seen
            recipe = found[recipe.baseline]
            seen.append(recipe.recipe)


def test_a_chapter_says_how_to_install_the_package(tmp_path, capsys):
    "Its first cell: silent here; where the package is missing, lines with settings.ini's values."
    chapters = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
    first = {next("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]
                  if cell["cell_type"] == "code") for path in chapters}
    assert len(chapters) == 9 and len(first) == 1
    code = first.pop()
    exec(code, {})
    assert capsys.readouterr() == ("", "")
    (tmp_path / "bloodcell_nb").mkdir()  # as a clone beside the notebook, which is no package
    # -E, -s and -S: no packages but Python's own
    said = subprocess.run([sys.executable, "-E", "-s", "-S", "-c", code], capture_output=True,
                          text=True, cwd=tmp_path).stderr
    lines = [line for line in said.splitlines() if line.startswith(("!", "%"))]
    git_url = _modidx.d["settings"]["git_url"]
    # a folder of the package's name would be taken for the package, where one does not stand in it
    assert lines[0] == f"!git clone --depth 1 --branch {settings()['branch']} {git_url} course"
    assert lines[1] == "%cd course"
    wanted = pins(settings()["requirements"].split())
    assert "ModuleNotFoundError: No module named 'bloodcell_nb'" in said
    assert pins(re.findall(r"\S+==\S+", lines[2])).items() <= wanted.items() and "==" in lines[2]


@pytest.mark.parametrize("chosen", [None, "0"])
def test_a_chapter_asks_for_onednn_before_tensorflow_is_imported(chosen):
    "Later it would not be heard, and papermill alone would compute otherwise than the command."
    cells = json.loads((ROOT / "nbs" / "03_custom_cnn.ipynb").read_text())["cells"]
    first = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    code = first + "\nimport os, sys\nprint(os.environ['TF_ENABLE_ONEDNN_OPTS'], *sys.modules)"
    name = "TF_ENABLE_ONEDNN_OPTS"
    environment = {key: value for key, value in os.environ.items() if key != name}
    asked, *loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=environment | ({name: chosen} if chosen else {})).stdout.split()
    assert asked == (chosen or "1") and not {"keras", "tensorflow"} & set(loaded)


@pytest.mark.parametrize("name", recipes())
def test_papermill_reads_a_recipe_as_the_command_does(name):
    "By its file's lines, and by its name."
    recipe, written = read_recipe(recipes()[name]), yaml.safe_load(recipes()[name].read_text())
    here = parameters_of(recipe.notebook)
    assert recipe_of(here | written, recipe.notebook) == recipe
    assert recipe_of(here | {"recipe": name}, recipe.notebook) == recipe


@functools.lru_cache
def built(backbone, alpha):
    """A network of this backbone without weights.

    Recipes that share one differ in what the tests below do with it.
    """
    return transfer_model(check_recipe({"notebook": "04_efficientnet", "recipe": "built",
                                        "backbone": backbone, "alpha": alpha, "weights": "none",
                                        "phases": [{"trainable": "head", "epochs": 1,
                                                    "learning_rate": 1e-3}]}), (96, 96))


@pytest.mark.parametrize("name", recipes())
def test_recipe(name):
    "Its schema, its network and what moves in each phase, its policy."
    recipe = read_recipe(recipes()[name])
    assert recipe.out == "" and recipe.seed == 0, "a recipe names no place and no seed"
    assert recipe.source == "synthetic" or name.startswith("course_"), "nor anybody's data"
    if recipe.notebook == "03_custom_cnn":
        model = custom_cnn((96, 96), 8, recipe.filters, recipe.dropout, recipe.dense_units,
                           recipe.head_dropout, recipe.batch_norm, recipe.l2)
        assert model.output_shape == (None, 8)
    if recipe.notebook in ("04_efficientnet", "05_convnext"):
        model = built(recipe.backbone, recipe.alpha)
        moving = [len(set_trainable(model, phase.trainable, recipe.train_batch_norm))
                  for phase in recipe.phases]
        assert (moving == sorted(moving)
                and (moving[0] == 0) == (recipe.phases[0].trainable == "head"))
        assert all((phase.trainable == "head") == (count == 0) for phase,
                   count in zip(recipe.phases, moving, strict=True))
    if getattr(recipe, "augmentation", None):
        policy = Policy(recipe.augmentation, library=recipe.augmentation_library)
        names = [entry if isinstance(entry, str) else next(iter(entry))
                 for entry in recipe.augmentation]
        native = recipe.augmentation_library == "native"  # whose geometric neighbours are one
        turns = [name for name, one in OPERATIONS.items() if one.family == "geometric"]
        fused = sum(a in turns and b in (*turns, "RandomApply")
                    for a, b in itertools.pairwise(names))
        assert len(policy.changes) + len(policy.mixers) == len(names) - native * fused


def imported(notebook, folder):
    """Modules of the project in `folder` that a notebook's code imports, as Python's own module
    finder sees it; none by way of the page, which shows other runs.
    """
    script = folder / f"{notebook}.py"
    finder = ModuleFinder([str(folder)], excludes=["bloodcell_nb.page"])
    cells = json.loads((folder / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    script.write_text("\n".join("".join(cell["source"]) for cell in cells
                                if cell["cell_type"] == "code"), encoding="utf-8")
    finder.run_script(str(script))
    files = {Path(module.__file__) for module in finder.modules.values()
             if module.__name__.startswith("bloodcell_nb")}
    return {path.relative_to(folder / "bloodcell_nb").as_posix() for path in files
            if path.parent == folder / "bloodcell_nb" or path.name != "__init__.py"}


def test_the_run_key_knows_all_code_that_a_run_uses(tmp_path, monkeypatch):
    """A statement more in a module changes the keys of exactly those notebooks that compute with
    it, directly or not; a comment, another docstring, or another page changes none.
    """
    shutil.copytree(ROOT / "bloodcell_nb", tmp_path / "bloodcell_nb",
                    ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "nbs").mkdir()
    for name in SCHEMAS:
        cells = json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        (tmp_path / "nbs" / f"{name}.ipynb").write_text(
            json.dumps({"cells": [cell | {"outputs": []} for cell in cells]}), encoding="utf-8")
    monkeypatch.setattr(bloodcell_nb, "__file__", str(tmp_path / "bloodcell_nb" / "__init__.py"))
    before = {name: code_fingerprint(name) for name in SCHEMAS}
    used = {name: imported(name, tmp_path) for name in SCHEMAS}
    modules = [path for path in sorted((tmp_path / "bloodcell_nb").rglob("*.py"))
               if path.name != "__init__.py" or path.parent.name == "bloodcell_nb"]
    codes = {path: path.read_text(encoding="utf-8") for path in modules}
    for path, code in codes.items():
        path.write_text(re.sub('""".+', '"""Other words."""', code, count=1) + "\n# a comment",
                        encoding="utf-8", newline="\r\n")
    assert {name: code_fingerprint(name) for name in SCHEMAS} == before
    for name in SCHEMAS:
        files = {Path(bloodcell_nb.__file__)}
        for source in code_cells((tmp_path / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8")):
            _modules(source, files)
        assert {path.relative_to(tmp_path / "bloodcell_nb").as_posix()
                for path in files} == used[name], name
    for path, code in codes.items():
        here = path.relative_to(tmp_path / "bloodcell_nb").as_posix()
        path.write_text(code + "\nnew = 1\n", encoding="utf-8")
        one_of_each = {here in used[name]: name for name in SCHEMAS}  # that uses it, that does not
        for uses, name in one_of_each.items():
            assert (code_fingerprint(name) != before[name]) == uses, (here, name)
        path.write_text(code, encoding="utf-8")
    assert not [one for found in used.values() for one in found if one.startswith("page/")]
    assert (used["03_custom_cnn"] >= {
        "__init__.py", "data/cells.py", "data/corruptions.py", "data/synthetic.py",
        "data/analysis.py", "training/fit.py", "augment/policies.py"})
    assert (used["05_convnext"] >= {"augment/policies.py", "data/cells.py", "runs/run.py",
                                    "training/phases.py", "networks/pretrained.py"})
    assert not {"cli.py", "runs/engine.py"} & used["03_custom_cnn"]


def test_the_record_names_every_library():
    "Every library that a module imports has its version in the record."
    names = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            names |= {name.partition(".")[0] for name in found}
    owners = packages_distributions()
    wanted = {owners[name][0].lower().replace("_", "-") for name in names - {"bloodcell_nb"}
              if name in owners}
    assert "numpy" in wanted and wanted - set(environment()["libraries"]) == set()


def module_imports():
    "Modules of the project that each module imports, at its top or in a function."
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES
             if not path.stem.startswith("_")}
    found = {}
    for name, path in names.items():
        code = path.read_text(encoding="utf-8")
        imports = keys._imports(code, name.rpartition(".")[0])
        found[name] = {other for other in names if other != name and any(
            f"{one}.".startswith(f"{other}.") for one in imports)}
    return found


def test_modules_import_in_one_direction():
    "Imports go in no circle; cells stand at the bottom."
    left = module_imports()
    assert len(left) > 40 and left["bloodcell_nb.data.cells"] == set()
    assert left["bloodcell_nb.data.synthetic"] == {"bloodcell_nb.data.cells"}
    while left:
        ground = [name for name, imported in left.items() if not imported & left.keys()]
        assert ground, f"a circle among {sorted(left)}"
        left = {name: imported for name, imported in left.items() if name not in ground}


# a package imports only what stands left of it: the site lists them in this order too
PACKAGES = (*runpy.run_path(str(ROOT / "docs" / "conf.py"))["PACKAGES"], "commands", "cli")


def test_packages_import_what_stands_left_of_them():
    arrows = {(name.split(".")[1], other.split(".")[1])
              for name, imported in module_imports().items() for other in imported}
    assert {name for arrow in arrows for name in arrow} == {*PACKAGES}
    assert [arrow for arrow in arrows if PACKAGES.index(arrow[0]) < PACKAGES.index(arrow[1])] == []


def test_a_notebook_lies_where_its_module_does():
    "nbs/reference/<package>/<module>.ipynb; chapters may export to any package."
    for path in sorted((ROOT / "nbs" / "reference").rglob("*.ipynb")):
        text = json.dumps(json.loads(path.read_text(encoding="utf-8"))["cells"])
        (module,) = re.findall(r"#\| default_exp ([\w.]+)", text)
        assert path.relative_to(ROOT / "nbs" / "reference").with_suffix("").parts == tuple(
            module.split("."))


def test_no_module_is_long():
    for path in MODULES:
        length = len(path.read_text(encoding="utf-8").splitlines())
        assert length <= 500 or path.name == "_modidx.py", (path.name, length)


def cells_of(path):
    "Sources of a notebook's cells of code."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [source for cell in cells if cell["cell_type"] == "code"
            and (source := "".join(cell["source"])).strip()]


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in REFERENCE])
def test_the_reference_shows_each_function(path):
    "Short cells, and each public function or class in one that a reader sees."
    sources = cells_of(path)
    lines = [sum(bool(line.strip()) for line in source.splitlines()) for source in sources]
    assert statistics.median(lines) <= 10, lines
    exported = [source for source in sources if source.startswith("#| export")]
    seen = "\n".join(source for source in sources if not source.startswith("#|"))
    for node in (node for source in exported for node in ast.parse(source).body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            patched = "patch" in map(ast.unparse, node.decorator_list)
            assert patched or re.search(rf"\b{node.name}\b", seen), node.name


def test_exported_cells_are_short():
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and source.startswith("#| export"):
                assert source.count("\n") < 60, (path.name, source[:60])


def test_the_tree_check_finds_what_is_wrong():
    def notebook(source, *outputs):
        return {"cells": [{"cell_type": "code", "source": source, "outputs": [*outputs],
                            "metadata": {}}]}

    said = {"text": "custom_cnn  03_custom_cnn\nsmall: 19 runs\n"}
    for source in ("print(1)", "run.figure(fig, 'x');",
                   "def f():\n    pass\n\n\nshow_table([], [])"):
        assert check_notebooks.missing_outputs(notebook(source))
        assert not check_notebooks.missing_outputs(notebook(source, said))
    assert check_notebooks.open_hidden(notebook("#| hide\nx = 1"))
    for silent in ("def f():\n    print(1)", "#| hide\nprint(1)", "x = 1", "%time print(1)"):
        assert not check_notebooks.missing_outputs(notebook(silent))
    assert check_notebooks.long_lines(notebook("x = 1  # " + "y" * 92))
    assert not check_notebooks.long_lines(notebook("x = 1  # " + "y" * 91))
    for place in ("PosixPath('figures/heat.png')", "/tmp/bloodcell_x/heat.png",
                  str(ROOT / "nbs"), r"C:\Users\me\AppData\Local\Temp\heat.png"):
        for output in ({"data": {"text/plain": [place]}}, {"text": ["a\n", place]}):
            assert check_notebooks.local_paths(notebook("", output)), output
    drawn = {"data": {"image/png": "QUFB/tmp/9k=", "text/plain": ["<Figure>"]}}
    assert not check_notebooks.local_paths(notebook("'/tmp/x'", drawn, said))
    assert check_notebooks.stale_lists(notebook("", said), ["custom_cnn", "small", "new"]) == [
        "its output does not list new"]
    for late in ("import keras", "import numpy, keras.ops", "try:\n    from keras import x\n"
                 "except ImportError:\n    pass"):
        assert check_notebooks.late_package(notebook(late + "\nimport bloodcell_nb"))
    for early in ("def f():\n    import keras", "'import keras'", "import keras_hub"):
        assert not check_notebooks.late_package(notebook(early))
    assert not check_notebooks.late_package(notebook("from bloodcell_nb import x\nimport keras"))


def test_import_is_light():
    """Whoever imports the package or its data waits for no library that draws, learns or runs
    notebooks.
    """
    heavy = {"keras", "tensorflow", "jax", "torch", "sklearn", "scipy", "imblearn", "imagehash",
             "PIL", "matplotlib", "papermill", "IPython"}
    heavy |= {"lark"}  # jsonschema 4.25 and later build a grammar of it, for seconds
    for module, allowed in (("bloodcell_nb", set()), ("bloodcell_nb.data.cells", {"PIL"}),
                            ("nbformat", set())):
        code = f"import sys, {module}; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                check=True).stdout.split()
        assert module in loaded and heavy & set(loaded) <= allowed, heavy & set(loaded)


def judged(chapter):
    "Lines of a chapter that test what it read from records of other runs."
    others, found = set(), []
    for cell in json.loads(chapter.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            parts = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
            names = ({part.id for part in parts if isinstance(part.ctx, ast.Load)}
                     - {part.id for part in parts if isinstance(part.ctx, ast.Store)})
            if isinstance(node, ast.Assign | ast.NamedExpr):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                given = {part.id for target in targets for part in ast.walk(target)
                         if isinstance(part, ast.Name)}
                read = names & {"read_runs", "runs_on_real_cells", *others}
                others = others | given if read else others - given
            tests = (isinstance(node, ast.Assert) or isinstance(node, ast.Call)
                     and getattr(node.func, "id", "") in ("test_eq", "test_close", "test_fail"))
            if tests and names & others:
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("chapter", sorted((ROOT / "nbs").glob("0[1-79]_*.ipynb")),
                         ids=lambda path: path.stem)
def test_no_run_fails_for_the_sake_of_another_runs_record(chapter):
    "Whoever trains for hours may have other records in reports/ than those that are committed."
    assert judged(chapter) == []


def test_readme_shows_the_records():
    "Its table holds lines of the records alone, at most ten, the best on the stand-in among them."
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    table = results_table(ROOT / "reports" / "pbc96").splitlines()
    start = readme.index(table[0])
    shown = [line for line in readme[start + 2 : start + 13] if line.startswith("| ")]
    assert 3 <= len(shown) <= 10 and set(shown) <= set(table)
    runs = [run for run in read_runs(ROOT / "reports" / "pbc96")
            if "stand_in" in run.metrics.get("results", {})]
    best = max(runs, key=lambda run: run.metrics["results"]["stand_in"]["accuracy"])
    assert any(line.startswith(f"| {best.name} |") for line in shown)

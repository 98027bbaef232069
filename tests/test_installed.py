"The package as `pip install` brings it, away from its repository, on a machine whose locale is C."
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import bloodcell_nb
from bloodcell_nb.data.synthetic import draw_cells
from bloodcell_nb.inference.published import find_model
from bloodcell_nb.runs.keys import code_fingerprint
from bloodcell_nb.runs.recipes import project_root, recipes, working_root

ROOT = Path(__file__).resolve().parent.parent


def tracked(*places):
    "Files of the repository below these places, as they lie here."
    names = subprocess.run(["git", "ls-files", "-z", *places], cwd=ROOT, capture_output=True,
                           encoding="utf-8", check=True).stdout.split("\0")
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "What `python -m build` makes of the repository: a wheel, from the source archive."
    source = tmp_path_factory.mktemp("build") / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir",
                    source.parent / "dist", source], check=True, capture_output=True)
    assert len(list((source.parent / "dist").glob("*.tar.gz"))) == 1
    return next((source.parent / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    "Runs a program in an empty folder with the installed package, which no clone is near."
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--disable-pip-version-check", "--target", place / "site", wheel], check=True)
    (place / "work").mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LC_")}
    environment |= {"PYTHONPATH": str(place / "site"), "PYTHONDONTWRITEBYTECODE": "1",
                    "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(*arguments):
        done = subprocess.run([*map(str, arguments)], cwd=place / "work", env=environment,
                              capture_output=True, encoding="ascii")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.place = place
    return run


def test_a_wheel_holds_what_the_commands_read(wheel):
    "The package whole; every recipe, study, network, notebook and record; no notebook's output."
    with zipfile.ZipFile(wheel) as archive:
        assert set(tracked("bloodcell_nb")) <= set(archive.namelist())
        held = {name.partition("/_project/")[2]: name for name in archive.namelist()
                if "/_project/" in name}
        records = [name for name in tracked("reports") if name.endswith(("metrics.json",
                                                                        "status.json"))]
        assert sorted(held) == sorted([
            *tracked("recipes", "spaces", "studies", "models"), *records, *(
                name for name in tracked("nbs") if name.endswith(".ipynb"))])
        notebooks = [json.loads(archive.read(held[name])) for name in held
                     if name.endswith(".ipynb")]
    assert not [cell for book in notebooks for cell in book["cells"] if cell.get("outputs")]
    assert wheel.stat().st_size < 100e6  # the index's limit of a file


def test_an_installed_package_works_without_a_clone(run):
    script, site = run.place / "site" / "bin" / "bloodcell", run.place / "site"
    before = sorted(path for path in site.rglob("*"))
    Image.fromarray(draw_cells(8).images[0]).save(run.place / "work" / "cell.png")
    listed = run(sys.executable, script, "recipes")
    assert [line.split()[0] for line in listed.splitlines()][:len(recipes())] == [*recipes()]
    source, own = "synthetic:n=120", "reports/synthetic/custom_cnn"
    best = find_model().name
    run(sys.executable, script, "run", "custom_cnn", "--data", source, "--profile", "smoke",
        "--set", "filters=[4, 4]", "--set", "dense_units=8")
    record = json.loads((run.place / "work" / own / "metrics.json").read_text(encoding="utf-8"))
    assert record["code"] == code_fingerprint("03_custom_cnn")
    assert (run.place / "work" / "reports" / "synthetic" / "index.html").is_file()
    lines = run(sys.executable, "-c", f"""
import bloodcell_nb
from bloodcell_nb.cli import main
print(bloodcell_nb.__file__)
print([main(words.split()) for words in (
    "predict cell.png", "publish {own} --data {source}", "predict cell.png --model custom_cnn",
    "predict cell.png --model models/custom_cnn", "submission models/custom_cnn",
    "card {best}")])
""").splitlines()
    assert lines[0] == str(site / "bloodcell_nb" / "__init__.py")
    assert lines[1].startswith("cell.png: ") and lines[2] == "published: models/custom_cnn"
    assert lines[3].startswith("cell.png: ") and lines[4:] == ["wrote submission.zip",
                                                              "[0, 0, 2, 0, 0, 2]"]
    assert sorted(site.rglob("*")) == before


def test_new_networks_go_to_the_clone_or_to_the_working_folder(tmp_path, monkeypatch):
    assert project_root() == ROOT == working_root()
    package = tmp_path / "bloodcell_nb"
    (package / "_project").mkdir(parents=True)
    monkeypatch.setattr(bloodcell_nb, "__file__", str(package / "__init__.py"))
    assert project_root() == package / "_project" and working_root() == Path()

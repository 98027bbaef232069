"What lies in the working folder never replaces a keyword."
import json
import zipfile

import numpy as np
import papermill
import pytest
from PIL import Image

from bloodcell_nb.cli import main
from bloodcell_nb.runs import engine
from bloodcell_nb.runs.keys import run_key
from bloodcell_nb.runs.recipes import check_recipe

TRANSFER = {"notebook": "04_efficientnet", "recipe": "one", "backbone": "EfficientNetB0",
            "weights": "imagenet",
            "phases": [{"trainable": "head", "epochs": 1, "learning_rate": 1e-3}]}


@pytest.fixture
def crowded(tmp_path, monkeypatch):
    "A working folder with a folder or file of each keyword's name."
    monkeypatch.chdir(tmp_path)
    for name in ("synthetic", "medmnist"):
        (tmp_path / name / "basophil").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "basophil" / "1.png")
    for name in ("imagenet", "none"):
        (tmp_path / name).write_text("no weights")
    return tmp_path


def given(monkeypatch, recipe, out):
    "The parameters that the notebook of a recipe would get."
    found = []
    monkeypatch.setattr(papermill, "execute_notebook", lambda *arguments,
                        **_: found.append(arguments[2]))
    assert engine.execute(recipe, out)["state"] == "failed"  # nothing was run
    return found[0]


def test_keywords_reach_the_notebook(crowded, monkeypatch):
    recipe = check_recipe(TRANSFER | {"source": "synthetic"})
    parameters = given(monkeypatch, recipe, crowded / "out")
    assert (parameters["source"], parameters["weights"]) == ("synthetic", "imagenet")
    assert (json.loads((crowded / "out" / "one.partial" / "status.json").read_text())[
        "key"] == run_key(recipe))
    parameters = given(monkeypatch, recipe.model_copy(
        update={"source": "./synthetic", "weights": "./imagenet"}), crowded / "out")
    assert (parameters["source"],
            parameters["weights"]) == (str(crowded / "synthetic"), str(crowded / "imagenet"))


def test_run_key_of_a_keyword(crowded, monkeypatch):
    recipe = check_recipe(TRANSFER)
    key = run_key(recipe)
    assert key != run_key(recipe.model_copy(update={"weights": "./imagenet"}))
    (crowded / "imagenet").write_text("others")
    assert key == run_key(recipe)


def test_a_foreign_file_writes_nothing_outside(tmp_path, capsys):
    """The command itself: an npz whose ids climb out of the destination, and a zip that would
    fill the memory.
    """
    labels = np.arange(16) % 8
    np.savez(tmp_path / "foreign.npz", images=np.zeros((16, 8, 8, 3), np.uint8), labels=labels,
             ids=["../../../x", *map(str, range(15))])
    assert main(["convert", str(tmp_path / "foreign.npz"), str(tmp_path / "a" / "b" / "tree")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("basophil/1.png", bytes(100 * 2**20))
    assert main(["convert", str(tmp_path / "bomb.zip"), str(tmp_path / "a" / "tree")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb.zip", "foreign.npz"]

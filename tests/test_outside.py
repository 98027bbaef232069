"What lies in the working folder never replaces a keyword."
import io
import json
import zipfile
from contextlib import suppress

import numpy as np
import papermill
import pytest
from PIL import Image

from bloodcell_nb.cli import main
from bloodcell_nb.data.cells import DataError, fold_indices, split_indices
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


def test_a_long_name_makes_no_long_line(tmp_path, capsys, monkeypatch):
    "Of what is left out, of a class, of a file that cannot be."
    monkeypatch.chdir(tmp_path)
    long, stream = 5000 * "x", io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    with zipfile.ZipFile("a.zip", "w") as archive:
        for name in ("b/1.png", f"{long}/1.png", f"b/{long}.txt"):
            archive.writestr(name, stream.getvalue() if name.endswith("png") else b"")
    assert main(["inspect", "a.zip"]) == 0
    assert main(["run", "efficientnet_lite0_heavy", "--data", "synthetic:n=32", "--out", "out",
                 "--set", f"weights=a\x1b[31m{long}"]) == 2
    said = capsys.readouterr()
    assert "left out" in said.err and "File name too long" in said.err
    lines = [line.removeprefix("bloodcell: ") for line in (said.err + said.out).split("\n")]
    assert max(map(len, lines)) <= 1000 and "\x1b" not in said.err


def test_odd_arrays_are_refused_in_a_line(tmp_path, capsys):
    "Labels in half precision are read; ids of several fields are none."
    images, labels = np.zeros((16, 8, 8, 3), np.uint8), np.arange(16) % 8
    np.savez(tmp_path / "half.npz", images=images, labels=labels.astype(np.float16))
    assert main(["inspect", str(tmp_path / "half.npz")]) == 0
    assert "overflow" not in capsys.readouterr().err
    for key in ("ids", "parts"):
        np.savez(tmp_path / "fields.npz", images=images, labels=labels,
                 **{key: np.zeros(16, [("a", "u1"), ("b", "f8")])})
        assert main(["inspect", str(tmp_path / "fields.npz")]) == 2
        err = capsys.readouterr().err
        assert f"{key} has type" in err and err.count("\n") == 1


def test_too_few_images_for_a_split_are_refused_in_a_line():
    "However few, and however they are drawn: an error of ours, or two sides that hold some."
    for n in range(12):
        for groups in (None, np.arange(n) // 2):
            for stratify in (False, True):
                for share in (0.01, 0.5, 0.99):
                    with suppress(DataError):
                        sides = split_indices(np.arange(n) % 2, share, groups, stratify)
                        assert all(map(len, sides)) and sum(map(len, sides)) == n
                for folds in (2, 5):
                    with suppress(DataError):
                        made = fold_indices(np.arange(n) % 2, folds, groups, stratify)
                        assert sum(len(val) for _, val in made) == n
    with pytest.raises(DataError, match="1 images .* leaves none on the first side"):
        split_indices([0], 0.5, stratify=False)
    with pytest.raises(DataError, match="3 images .* 5-fold cross-validation needs 5"):
        fold_indices([0, 1, 0], 5, stratify=False)

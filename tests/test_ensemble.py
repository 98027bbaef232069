"Ensembles, and the commands predict and submission, as a user meets them."
import json
import re
import shutil
import zipfile

import nbformat
import numpy as np
import pytest
import yaml
from PIL import Image
from test_command import SOURCE, bloodcell, one_line_error, recipe

from bloodcell_nb.cli import main
from bloodcell_nb.data.cells import DataError
from bloodcell_nb.data.corruptions import CORRUPTIONS
from bloodcell_nb.data.synthetic import draw_cells
from bloodcell_nb.evaluation.ensemble import read_predictions
from bloodcell_nb.inference.classifier import load_classifier
from bloodcell_nb.inference.published import find_model
from bloodcell_nb.inference.submission import try_submission, write_submission

NO_TRAINING = {"filters": None, "dense_units": None, "batch_size": None, "epochs": None}
# a step without a graph takes longer with Adam, which `one` has, than all else in it
LARGE = NO_TRAINING | {"batch_size": 16, "optimizer": "sgd"}
MEMBERS = ["one", "one/snapshot_1", "one/snapshot_2"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study that runs each chapter that trains or reads runs: a CNN and its snapshots, their
    ensemble and its test under shift, networks in two phases and in one, and one that fails; and
    what the command said.
    """
    folder = tmp_path_factory.mktemp("runs")
    recipe(folder, "one", epochs=2, schedule="cosine_restarts", snapshots=True)
    recipe(folder, "together", notebook="06_ensemble", weighting="weighted", views=2,
           members=MEMBERS, **NO_TRAINING)
    recipe(folder, "bad", notebook="06_ensemble", members=["nobody"], **NO_TRAINING)
    recipe(folder, "shifted", notebook="07_robustness", models=["one", "together"], severities=1,
           **NO_TRAINING)
    recipe(folder, "efficientnet", notebook="04_efficientnet", backbone="EfficientNetLite0",
           phases=[{"trainable": "head", "epochs": 1, "learning_rate": 2e-3},
                   {"trainable": "last 40", "epochs": 1, "learning_rate": 3e-4}], **LARGE)
    recipe(folder, "convnext", notebook="05_convnext", backbone="ConvNeXtAtto", weights="none",
           phases=[{"trainable": "all", "epochs": 1, "learning_rate": 2e-3}], **LARGE)
    (folder / "study.yaml").write_text(yaml.safe_dump({
        "runs": {str(folder / f"{name}.yaml"): [0] for name in (
            "bad", "shifted", "together", "one", "efficientnet", "convnext")}, "jobs": 2,
        "set": {"epochs": 3}}))
    (folder / "out" / "nobody").mkdir(parents=True)  # a run that holds nothing
    command = ("run", "--study", folder / "study.yaml", "--data", SOURCE, "--profile", "smoke",
               "--out", folder / "out")
    done = bloodcell(*command, "--budget", "1000")
    assert done.returncode == 1, done.stdout + done.stderr
    Image.fromarray(draw_cells(16).images[0]).save(folder / "cell.png")
    return folder, done.stdout, command


@pytest.fixture
def runs(study):
    return study[0]


def results(runs, name):
    return json.loads((runs / "out" / name / "metrics.json").read_text())["results"]


def test_a_study(study, capsys):
    """Two runs at a time, others that go on after a notebook that fails, an ensemble that waits
    for its members; done, it is skipped. A run that cannot begin leaves what failed before.
    """
    folder, said, command = study
    lines = [line.split(":")[0] for line in said.splitlines() if ": done" in line]
    assert lines.index("one") < lines.index("together") < lines.index("shifted")
    assert re.search("6 runs: (1 failed, 5 done|5 done, 1 failed);", said)  # as they ended
    assert re.search("bad: failed: .*nobody holds no predictions.* \\(see bad.partial\\)", said)
    assert "Did not finish" in (folder / "out" / "index.html").read_text()
    record = json.loads((folder / "out" / "one" / "metrics.json").read_text())
    assert (record["recipe"]["seed"], record["results"]["training"]["epochs"]) == (0, 3)
    assert not (folder / "out" / ".shared.partial").exists()
    (folder / "out" / "nobody").rmdir()
    assert main(list(map(str, command))) == 1
    said = capsys.readouterr().out
    assert re.search("6 runs: (1 failed, 5 skipped|5 skipped, 1 failed);", said)
    assert "bad: failed: no run" in said and (folder / "out/bad.partial/notebook.ipynb").exists()


@pytest.mark.parametrize("name", ["one", "efficientnet", "convnext", "together", "shifted"])
def test_a_chapter_runs_to_its_end(runs, name):
    "Every cell, with its figures, at the size of the study."
    cells = nbformat.read(runs / "out" / name / "notebook.ipynb", 4).cells
    code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)
    assert sum("image/png" in output.get("data", {}) for cell in code
               for output in cell.outputs) >= 3


def test_ensemble_and_its_shift(runs):
    together = results(runs, "together")
    assert together["members"] == MEMBERS and abs(sum(together["weights"]) - 1) < 1e-6
    assert {"test", "corrupted", "stand_in", "gain", "methods"} <= set(together)
    settings = json.loads((runs / "out" / "together" / "ensemble.json").read_text())
    assert settings["members"] == MEMBERS, "no path of this machine"
    shifted = results(runs, "shifted")["models"]
    assert set(shifted) == {"one", "together"}
    assert (np.shape(list(shifted["one"]["corruption_errors"].values()))
            == (len(CORRUPTIONS), 1))
    assert shifted["together"]["stand_in"]["accuracy"] == together["stand_in"]["accuracy"]
    page = (runs / "out" / "index.html").read_text()
    assert "together" in page and "shifted" in page


def test_predict(runs, capsys):
    import keras

    from bloodcell_nb.data.cells import CLASS_NAMES

    image, out = np.asarray(Image.open(runs / "cell.png"))[None], runs / "out"
    settings = json.loads((out / "together" / "ensemble.json").read_text())
    models = [keras.saving.load_model(out / name / "model.keras", compile=False)
              for name in settings["members"]]
    alone = models[0].predict(image, verbose=0)[0]
    views = np.concatenate([image, image[:, :, ::-1]])  # the ensemble was made with two
    assert settings["views"] == 2
    members = [model.predict(views, verbose=0).mean(axis=0) for model in models]
    mean = np.average(members, axis=0, weights=settings["weights"]) ** (1 / settings["temperature"])
    for place, expected in (("one", alone), ("together", mean / mean.sum()),
                            ("one/model.keras", alone)):
        assert main(["predict", "--model", str(out / place), str(runs / "cell.png"), "--grad-cam",
                     str(runs / "cam")]) == 0
        said = capsys.readouterr().out
        name, probability = said.splitlines()[0].partition("cell.png: ")[2].split("  ")[
            0].rsplit(" ", 1)
        assert (name == CLASS_NAMES[expected.argmax()]
                and abs(float(probability) - expected.max()) < 0.001), (place, said, expected)
        assert Image.open(runs / "cam" / "cell_grad_cam.png").size == (576, 288)


def test_bad_input_costs_one_line(runs, capsys):
    out, cell = runs / "out", runs / "cell.png"
    (runs / "text.png").write_text("no image")
    (runs / "cut.keras").write_bytes((out / "one" / "model.keras").read_bytes()[:2000])
    one_line_error(capsys, ["predict", "--model", out / "one", runs / "text.png"],
                   "text.png cannot be read as an image")
    one_line_error(capsys, ["predict", "--model", runs / "cut.keras", cell], "cut.keras",
                   "not a Keras model that can be loaded safely")
    one_line_error(capsys, ["predict", "--model", out / "none", cell], "no network",
                   "a .keras file, or the folder of a finished run")
    one_line_error(capsys, ["submission", out / "one", "--out", runs / "cell.png"],
                   "ends in .zip")
    one_line_error(capsys, ["submission", out / "one", out / "together", "--out", runs / "a.zip"],
                   "together is an ensemble already")
    shutil.copytree(out / "one", runs / "weightless",
                    ignore=shutil.ignore_patterns("model.keras"))
    one_line_error(capsys, ["submission", runs / "weightless", "--out", runs / "a.zip"],
                   "weightless holds no model.keras")
    assert not (runs / "a.zip").exists()
    (runs / "outside").mkdir()
    (runs / "outside"
     / "ensemble.json").write_text(json.dumps({"members": ["../../one"], "weights": [1.0]}))
    one_line_error(capsys, ["predict", "--model", runs / "outside", cell],
                   "outside/ensemble.json, members: '..' cannot name a file or folder")
    one_line_error(capsys, ["run", runs / "one.yaml", runs / "together.yaml", "--out", out, "--set",
                            "recipe=both"], "two runs would lie in the folder both")
    with pytest.raises(DataError, match="nobody holds no predictions_val.npz"):
        read_predictions([out / "one", out / "nobody"], "val")


def test_submission(runs, tmp_path, capsys):
    "What the zip holds, and what its code imports; chapter 06 has tried such a one."
    out = tmp_path / "submission.zip"
    assert main(["submission", str(runs / "out" / "together"), "--out", str(out)]) == 0
    one_line_error(capsys, ["submission", runs / "out" / "together", "--out", out], "exists")
    with zipfile.ZipFile(out) as archive:
        assert (sorted(archive.namelist()) == ["ensemble.json", "model.py", "model_1.keras",
                                               "model_2.keras", "model_3.keras"])
        code = archive.read("model.py").decode()
    imports = re.findall(r"^(?:import|from) (\w+)", code, re.M)
    assert set(imports) == {"json", "os", "zipfile", "keras", "numpy"}


def test_efficientnet_and_convnext_are_handed_in_together(tmp_path):
    "The report's last step: in a clean process the zip needs no code of this project for either."
    place = find_model("ensemble_lite0_atto")
    images = draw_cells(24).images[:22]  # a batch and a part of one
    out = write_submission([place], tmp_path / "submission.zip")
    expected = load_classifier([place]).predict(images).argmax(axis=1)
    assert np.array_equal(try_submission(out, images)[0], expected)

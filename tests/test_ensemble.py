"Ensembles, and the commands predict and submission, as a user meets them."
import json
import re
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from test_command import SOURCE, bloodcell, one_line_error, recipe

from bloodcell_nb.synthetic import draw_cells


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Two finished runs, their ensemble, its test under shift, and an image."
    folder = tmp_path_factory.mktemp("runs")
    first, second = recipe(folder, "first", epochs=2), recipe(folder, "second", epochs=3, filters=[
        8], seed=1, schedule="cosine_restarts", snapshots=True)
    together = recipe(folder, "together", notebook="06_ensemble", members=["first", "second"],
                      weighting="weighted", views=2,
                      filters=None, dense_units=None, batch_size=None, epochs=None)
    shifted = recipe(folder, "shifted", notebook="07_robustness", models=["first", "together"],
                     filters=None, dense_units=None, batch_size=None, epochs=None)
    done = bloodcell("run", first, second, together, shifted, "--data", SOURCE, "--profile", "full",
                     "--jobs", "2", "--out", folder / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    Image.fromarray(draw_cells(16).images[0]).save(folder / "cell.png")
    return folder


def results(runs, name):
    return json.loads((runs / "out" / name / "metrics.json").read_text())["results"]


def test_ensemble_and_its_shift(runs):
    together = results(runs, "together")
    assert together["members"] == ["first", "second"] and abs(sum(together["weights"]) - 1) < 1e-6
    assert {"test", "corrupted", "stand_in", "gain", "methods"} <= set(together)
    assert (json.loads((runs / "out" / "together" / "ensemble.json").read_text())["members"] == [
        "first", "second"]), "no path of this machine"
    shifted = results(runs, "shifted")["models"]
    assert (set(shifted) == {"first", "together"}
            and np.shape(list(shifted["first"]["corruption_errors"].values())) == (11, 5))
    assert shifted["together"]["stand_in"]["accuracy"] == together["stand_in"]["accuracy"]
    page = (runs / "out" / "index.html").read_text()
    assert "together" in page and "shifted" in page


def test_snapshots_and_seeds_answer_together(runs, capsys):
    out = runs / "out"
    one = runs / "first.yaml"
    seed = bloodcell("run", one, "--data", SOURCE, "--profile", "full", "--out", out, "--set",
                     "seed=3", "--set", "recipe=first_seed_3")
    assert "first_seed_3: done" in seed.stdout, seed.stdout + seed.stderr
    one_line_error(capsys, ["run", one, runs / "second.yaml", "--out", out, "--set", "recipe=both"],
                   "two runs would lie in the folder both")
    members = ["second/snapshot_1", "second/snapshot_2", "first", "first_seed_3"]
    cycles = recipe(runs, "cycles", notebook="06_ensemble", members=members, weighting="greedy",
                    filters=None, dense_units=None, batch_size=None, epochs=None)
    done = bloodcell("run", cycles, "--data", SOURCE, "--profile", "full", "--out", out)
    assert "cycles: done" in done.stdout, done.stdout + done.stderr
    assert results(runs, "cycles")["members"] == members


def test_predict(runs):
    import keras

    from bloodcell_nb.data import CLASS_NAMES

    image = np.asarray(Image.open(runs / "cell.png"))[None]
    first, second = (keras.saving.load_model(runs / "out" / name / "model.keras", compile=False)
                     for name in ("first", "second"))
    alone = first.predict(image, verbose=0)[0]
    settings = json.loads((runs / "out" / "together" / "ensemble.json").read_text())
    views = np.concatenate([image, image[:, :, ::-1]])  # the ensemble was made with two
    assert settings["views"] == 2
    members = [model.predict(views, verbose=0).mean(axis=0) for model in (first, second)]
    both = np.average(members, axis=0, weights=settings["weights"]) ** (1 / settings["temperature"])
    for place, expected in (("first", alone), ("together", both / both.sum()),
                            ("first/model.keras", alone)):
        done = bloodcell("predict", "--model", runs / "out" / place, runs / "cell.png",
                         "--grad-cam", runs / "cam")
        assert done.returncode == 0, done.stderr
        name, probability = done.stdout.splitlines()[0].partition("cell.png: ")[2].split("  ")[
            0].rsplit(" ", 1)
        assert (name == CLASS_NAMES[expected.argmax()] and abs(
            float(probability) - expected.max()) < 0.001), (place, done.stdout, expected)
        assert Image.open(runs / "cam" / "cell_grad_cam.png").size == (576, 288)


def test_bad_input_costs_one_line(runs, capsys):
    out, cell = runs / "out", runs / "cell.png"
    (runs / "text.png").write_text("no image")
    (runs / "cut.keras").write_bytes((out / "first" / "model.keras").read_bytes()[:2000])
    one_line_error(capsys, ["predict", "--model", out / "first", runs / "text.png"],
                   "text.png cannot be read as an image")
    one_line_error(capsys, ["predict", "--model", runs / "cut.keras", cell], "cut.keras",
                   "not a Keras model that can be loaded safely")
    one_line_error(capsys, ["predict", "--model", out / "none", cell], "no network",
                   "a .keras file, or the folder of a finished run")
    one_line_error(capsys, ["submission", out / "first", "--out", runs / "cell.png"],
                   "ends in .zip")
    one_line_error(capsys, ["submission", out / "first", out / "together", "--out", runs / "a.zip"],
                   "together is an ensemble already")
    shutil.copytree(out / "first", runs / "weightless",
                    ignore=shutil.ignore_patterns("model.keras"))
    one_line_error(capsys, ["submission", runs / "weightless", "--out", runs / "a.zip"],
                   "weightless holds no model.keras")
    assert not (runs / "a.zip").exists()
    (runs / "outside").mkdir()
    (runs / "outside"
     / "ensemble.json").write_text(json.dumps({"members": ["../../first"], "weights": [1.0]}))
    one_line_error(capsys, ["predict", "--model", runs / "outside", cell],
                   "outside/ensemble.json, members: '..' cannot name a file or folder")
    missing = bloodcell("run", recipe(runs, "missing", notebook="06_ensemble", members=[
        "first", "nobody"], filters=None, dense_units=None, batch_size=None,
                                      epochs=None), "--data", SOURCE, "--profile", "full", "--out",
                        out)
    assert missing.returncode == 1 and "nobody holds no predictions_val.npz" in missing.stdout


def test_submission_in_a_clean_process(runs, tmp_path, capsys):
    out = tmp_path / "submission.zip"
    done = bloodcell("submission", runs / "out" / "together", "--out", out)
    assert done.returncode == 0, done.stderr
    one_line_error(capsys, ["submission", runs / "out" / "together", "--out", out], "exists")
    with zipfile.ZipFile(out) as archive:
        assert (sorted(archive.namelist()) == ["ensemble.json", "model.py", "model_1.keras",
                                               "model_2.keras"])
        archive.extractall(tmp_path / "empty")
    imports = re.findall(r"^(?:import|from) (\w+)", (tmp_path / "empty" / "model.py").read_text(),
                         re.M)
    assert set(imports) == {"json", "os", "zipfile", "keras", "numpy"}
    from bloodcell_nb.classifier import load_classifier, try_submission
    from bloodcell_nb.sources import load

    images = load(SOURCE).images[:70]  # four batches and a part of one
    expected = load_classifier([runs / "out" / "together"]).predict(images).argmax(axis=1)
    assert np.array_equal(try_submission(out, images)[0], expected)


def test_efficientnet_and_convnext_are_handed_in_together(tmp_path):
    "The report's last step in small: the zip needs no code of this project for either network."
    from bloodcell_nb.classifier import load_classifier, try_submission, write_submission
    from bloodcell_nb.recipes import find_recipe, read_recipe
    from bloodcell_nb.transfer import transfer_model

    together = read_recipe(find_recipe("ensemble_lite0_atto"))
    for name in together.members:
        network = transfer_model(read_recipe(find_recipe(name)), (96, 96))
        (tmp_path / name).mkdir()
        network.save(tmp_path / name / "model.keras")
    settings = {"members": together.members, "weights": [0.5, 0.5], "views": 2}
    (tmp_path / "together").mkdir()
    (tmp_path / "together" / "ensemble.json").write_text(json.dumps(settings))
    images = draw_cells(16).images
    out = write_submission([tmp_path / "together"], tmp_path / "submission.zip")
    expected = load_classifier([tmp_path / "together"]).predict(images).argmax(axis=1)
    assert np.array_equal(try_submission(out, images)[0], expected)

"The published networks, and the commands that ask them, as a user meets them."
import csv
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_command import bloodcell, one_line_error

from bloodcell_nb import cli
from bloodcell_nb.cli import main
from bloodcell_nb.data.arrays import write_npz
from bloodcell_nb.data.cells import CLASS_NAMES, DataWarning
from bloodcell_nb.data.scale import magnified
from bloodcell_nb.data.sources import load
from bloodcell_nb.data.synthetic import draw_cells
from bloodcell_nb.evaluation.ensemble import read_predictions
from bloodcell_nb.evaluation.trust import set_coverage
from bloodcell_nb.inference.classifier import load_classifier
from bloodcell_nb.inference.export import Exported
from bloodcell_nb.inference.external import evaluation_cells
from bloodcell_nb.inference.predict import answer
from bloodcell_nb.inference.published import find_model, network_sums, published
from bloodcell_nb.inference.settings import read_ensemble
from bloodcell_nb.networks.custom_cnn import custom_cnn
from bloodcell_nb.runs.recipes import check_recipe, project_root

BEST = "ensemble_lite0_atto"  # best on the cells of its own laboratory
SINGLE = "efficientnet_lite0_heavy"  # one of its members
TAUGHT = "efficientnet_lite0_taught_128"  # by it
CAT = project_root() / "nbs" / "images" / "cat.png"


pytestmark = pytest.mark.usefixtures("published_once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Eight drawn cells as files, networks of three and eight classes, one cut off, and a text."
    place = tmp_path_factory.mktemp("models")
    cells = draw_cells(8)
    (place / "cells").mkdir()
    for name, image in zip(cells.class_names, cells.images, strict=True):
        Image.fromarray(image).save(place / "cells" / f"{name.replace(' ', '_')}.png")
    for classes, name in ((3, "three"), (8, "eight")):
        custom_cnn((96, 96), classes, filters=(4,), dense_units=8).save(place / f"{name}.keras")
    whole = (find_model(BEST).parent / "convnext_atto_heavy" / "model.keras").read_bytes()
    (place / "cut.keras").write_bytes(whole[:10_000])
    (place / "notes.txt").write_text("no image")
    (place / "empty").mkdir()
    return place


def printed(capsys, *arguments):
    "What a command prints, in this process."
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0, arguments
    return capsys.readouterr().out


def test_the_default_answers_alike_with_and_without_keras(real_cells):
    "Answers, their certainty and the kinds, drawn cells and real ones."
    from bloodcell_nb.inference.light import LightNetwork

    images = np.concatenate([draw_cells(64).images, real_cells.part("test").images[::12]])
    keras_own = load_classifier([find_model()])
    light = replace(keras_own, light=True)
    assert all(isinstance(one, LightNetwork) for one in light.answering)
    one, other = light.see(images), keras_own.see(images)
    assert (one.kinds == other.kinds).all()
    for a, b in ((one.probabilities, other.probabilities), (one.even, other.even)):
        assert np.abs(a - b).max() < 1e-3 and (a.argmax(axis=1) == b.argmax(axis=1)).all()


def test_the_default_answers_without_keras(folder):
    "As text, in eight views, and by shares and scale: nothing imports it, nor what draws."
    code = ("import sys; from bloodcell_nb.cli import main; code = main(sys.argv[1:]);"
            "heavy = {'keras', 'tensorflow', 'matplotlib', 'IPython', 'sklearn'} & {*sys.modules};"
            "assert not heavy, heavy; sys.exit(code)")
    for more in ([], ["--tta"], ["--scale", "auto", "--label-shift", "--set", "0.9"]):
        done = subprocess.run([sys.executable, "-c", code, "predict", folder / "cells", CAT, *more],
                              capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.count("\n") == 9, done.stderr
        assert "unlike the training cells" in done.stdout.splitlines()[-1]


def test_a_network_that_is_replaced_is_not_answered_for_by_its_file(tmp_path, folder):
    "One that lies beside another network is passed over, and that is said."
    place = tmp_path / "network"
    shutil.copytree(find_model(), place)
    shutil.copy(folder / "eight.keras", place / "model.keras")
    with pytest.warns(DataWarning, match="model.predict.onnx was not made of the model.keras"):
        found = replace(load_classifier([place / "model.keras"]), light=True).predict(
            draw_cells(8).images)
    assert np.allclose(found, load_classifier([folder / "eight.keras"]).predict(
        draw_cells(8).images), atol=1e-5)


def test_predict_needs_no_training(folder, capsys):
    "Eight drawn cells and a cat, no network named: as text. One named: as JSON and as CSV."
    text = bloodcell("predict", folder / "cells", CAT)
    assert text.returncode == 0 and not text.stderr, text.stderr
    lines = text.stdout.splitlines()
    assert len(lines) == 9 and [line.partition(": ")[0].rpartition("/")[2] for line in lines[:8]] \
        == sorted(f"{name.replace(' ', '_')}.png" for name in CLASS_NAMES)
    assert lines[8].endswith("unlike the training cells")
    named = "--model", SINGLE
    answers = json.loads(printed(capsys, "predict", folder / "cells" / "*.png", "--json", *named))
    rows = list(csv.DictReader(printed(capsys, "predict", folder / "cells", "--csv",
                                       *named).splitlines()))
    assert [one["label"] for one in answers] == [row["label"] for row in rows]
    assert all(abs(sum(one["probabilities"].values()) - 1) < 1e-6 for one in answers)
    eight = json.loads(printed(capsys, "predict", folder / "cells", "--tta", "--json", *named))
    images = np.stack([np.asarray(Image.open(one["file"])) for one in eight])
    expected = replace(load_classifier([find_model(SINGLE)]), views=8).predict(images)
    assert np.allclose([[*one["probabilities"].values()] for one in eight], expected, atol=1e-5)
    assert eight != answers
    two = json.loads(printed(capsys, "predict", folder / "cells", "--json", *named, "--among",
                             "monocyte,Lymphocytes", "--label-shift"))
    assert {one["label"] for one in two} <= {"lymphocyte", "monocyte"}
    assert not any(one["sure"] for one, own in zip(two, answers, strict=True)
                   if one["label"] != own["label"]), "sure of what it said by itself"
    assert all(one["probabilities"]["platelet"] == 0 for one in two)


def test_another_microscope_at_the_training_scale(microscope, capsys):
    """The development microscope's cells are small in their images. At the scale that their nuclei
    tell, and told that they are white cells, the default network is right on more of them.
    """
    cells, classifier = load(microscope, 96, every_class=False), load_classifier([find_model()])
    scaled = magnified(cells.images, classifier.scale_of(cells.images))
    names, truth = np.array(classifier.class_names), np.array(cells.class_names)[cells.labels]
    right = {way: (names[classifier.predict(images).argmax(axis=1)] == truth).mean()
             for way, images in (("as it is", cells.images), ("scaled", scaled))}
    white = "basophil,eosinophil,lymphocyte,monocyte,neutrophil"
    found = json.loads(printed(capsys, "predict", microscope, "--json", "--scale", "auto",
                               "--among", white))
    right["told"] = np.mean([one["label"] == Path(one["file"]).parent.name for one in found])
    assert right["told"] > right["scaled"] + 0.1 > right["as it is"] + 0.15, right


def test_sets_of_classes(folder, capsys):
    """A set holds the answer and, of the classes that can occur, all that it holds without such
    news; a surer one holds more.
    """
    asked = ("predict", folder / "cells", "--json", "--model", SINGLE)
    plain, sure, surer, two = (json.loads(printed(capsys, *asked, *more)) for more in (
        (), ("--set", "0.9"), ("--set", "0.99"),
        ("--set", "0.99", "--among", "monocyte,lymphocyte")))
    classifier = load_classifier([find_model(SINGLE)])
    given = np.array([[*one["probabilities"].values()] for one in plain])
    for found, level in ((sure, "0.9"), (surer, "0.99")):
        assert [{*one["set"]} for one in found] == [
            {classifier.class_names[k] for k in np.flatnonzero(one)}
            for one in classifier.sets(given, level)]
    for k, one in enumerate(plain):
        assert "set" not in one and sure[k]["set"][0] == one["label"] == surer[k]["set"][0]
        assert {*sure[k]["set"]} <= {*surer[k]["set"]}
        assert two[k]["set"][0] == two[k]["label"]
        assert {*two[k]["set"]} == {*surer[k]["set"]} & {"monocyte", "lymphocyte"} | {
            two[k]["label"]}
    assert len({len(one["set"]) for one in surer}) > 1
    text = printed(capsys, *asked[:2], *asked[3:], "--set", "0.99").splitlines()
    assert all(f"; set: {', '.join(one['set'])}" in line
               for one, line in zip(surer, text, strict=True))


@pytest.mark.parametrize("name", [SINGLE, "convnext_atto_heavy", BEST, TAUGHT])
def test_confidence_fits_at_home(name):
    "As recorded: of test cells as they are and, by the distance of each, as stand-in."
    folder = project_root() / "reports" / "published" / f"evaluate_{name}"
    record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["results"]
    assert record["by_distance"] == read_ensemble(find_model(name)).by_distance
    assert record["test"]["ece"] < 0.012 and record["stand_in"]["ece"] < 0.04


@pytest.mark.parametrize("name", [SINGLE, "convnext_atto_heavy", BEST, TAUGHT])
def test_sets_keep_their_promise_at_home(name):
    "As recorded, on test cells as stand-in, in each class; with few classes on cells as they are."
    folder, thresholds = find_model(name), read_ensemble(find_model(name)).set_above
    record = project_root() / "reports" / "published" / f"evaluate_{name}"
    assert json.loads((record / "metrics.json").read_text())["recipe"]["networks"] == network_sums(
        load_classifier([folder]))
    for part, size in (("test", 2), ("stand_in", 4)):
        saved = read_predictions([record], part)
        for level, one in set_coverage(saved.labels, saved.probabilities[0], thresholds).items():
            assert one["promise"] != "does not hold" and one["covered"] > float(level) - 0.01
            assert one["size"] < size or level == "0.99"
            assert one["lowest"] > float(level) - 0.05


def test_at_home_the_scale_stays(real_cells):
    "Batches of validation cells of the network's own laboratory are at the training's scale."
    classifier, val = load_classifier([find_model(SINGLE)]), real_cells.part("val")
    drawn = np.random.default_rng(0).permutation(len(val))[:128].reshape(2, 64)
    assert [classifier.scale_of(val.images[some]) for some in drawn] == [1.0] * 2


def test_what_is_familiar_on_real_cells(real_cells):
    "Cells are, at most 3 % are not; a cat, an empty field and a smear from afar are not."
    classifier = load_classifier([find_model()])
    test = real_cells.part("test")
    cells = test[np.random.default_rng(0).permutation(len(test))[:240]]
    found = answer(classifier, cells.images, cells.ids)
    assert np.mean([one.familiar for one in found]) > 0.96
    right = np.array([one.label == CLASS_NAMES[k] for one, k in zip(found, cells.labels,
                                                                    strict=True)])
    sure = np.array([one.sure for one in found])
    assert right.mean() > 0.95 and sure.mean() > 0.9 and right[sure].mean() > 0.97
    smear = cells.images.reshape(15, 4, 4, 96, 96, 3).transpose(0, 1, 3, 2, 4, 5)
    afar = np.stack([np.asarray(Image.fromarray(one.reshape(384, 384, 3)).resize((96, 96), 2))
                     for one in smear])
    assert np.mean([one.familiar for one in answer(classifier, afar, range(15))]) < 0.4
    cat = np.asarray(Image.open(CAT).convert("RGB"))
    field = np.full((96, 96, 3), (236, 220, 205), np.uint8)
    assert not any(one.familiar for one in answer(classifier, np.stack([cat, field]), range(2)))


def test_evaluate_the_courses_file(tmp_path, capsys):
    "A source without splits, with injected copies, three classes of other names."
    cells = draw_cells(64, duplicates=4, spoiled=8)
    kept = cells[cells.labels < 3]
    names = ("BAS", "EOS", "ERB")
    write_npz(tmp_path / "slide.npz", images=kept.images, labels=kept.labels,
              class_names=np.array(names))
    mapping = "BAS=basophil,EOS=eosinophil,ERB=erythroblast"
    command = ["evaluate", SINGLE, "--data", tmp_path / "slide.npz", "--classes", mapping,
               "--no-shift", "--out", tmp_path / "out"]
    assert "done in" in printed(capsys, *command)
    record = json.loads((tmp_path / "out" / f"evaluate_{SINGLE}" / "metrics.json").read_text())
    assert str(tmp_path) not in json.dumps(record) and record["recipe"]["model"] == SINGLE
    test = record["results"]["test"]
    recipe = check_recipe({"notebook": "09_evaluation", "recipe": "x", "classes": dict(
        pair.split("=") for pair in mapping.split(",")), "source": str(tmp_path / "slide.npz"),
        "model": SINGLE})
    classifier = load_classifier([find_model(SINGLE)])
    used = evaluation_cells(recipe, classifier).cells
    assert test["n"] == len(used) < len(kept) and set(used.labels) == {0, 1, 2}
    assert sorted(record["results"]["average_precision"]) == ["basophil", "eosinophil",
                                                              "erythroblast"]
    answers = classifier.predict(used.images)
    assert test["accuracy"] == (answers.argmax(axis=1) == used.labels).mean()
    assert (tmp_path / "out" / "index.html").is_file()
    assert "skipped" in printed(capsys, *command)  # the same networks, cells and code


def test_evaluations_of_other_views_lie_beside_each_other(tmp_path, monkeypatch, capsys):
    "The card asks for that of one view: one of eight takes no place of it."
    custom_cnn((96, 96), filters=(4,), dense_units=8).save(tmp_path / "Tiny-1.keras")
    names = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "run_all", lambda chosen, *_: (
        names.extend((recipe.recipe, recipe.views) for recipe in chosen), [[], []])[1])
    command = ["evaluate", "Tiny-1.keras", "--data", "synthetic:n=40"]
    for more in ([], ["--tta"]):
        printed(capsys, *command, "--out", "out", *more)
    assert names == [("evaluate_tiny_1", 1), ("evaluate_tiny_1_8_views", 8)]
    (tmp_path / "reports").write_text("a file of this name")
    one_line_error(capsys, command, "reports", "synthetic: Not a directory; name a folder")


def test_an_evaluation_at_the_training_scale(tmp_path, monkeypatch, capsys):
    "What the command is told is in its recipe."
    chosen = []
    monkeypatch.setattr(cli, "run_all", lambda recipes, *_: (chosen.extend(recipes), [[], []])[1])
    printed(capsys, "evaluate", SINGLE, "--data", "synthetic:n=40", "--scale", "auto",
            "--label-shift", "--among", ",".join(CLASS_NAMES), "--out", tmp_path / "out")
    assert [(one.scale, one.label_shift, tuple(one.among)) for one in chosen] == [
        ("auto", True, CLASS_NAMES)]


def test_what_is_said_of_the_data_is_not_kept_back(monkeypatch, capfd):
    "Beside what libraries log, which is."
    def export(*_):
        warnings.warn("x.zip: 3 images are left out", DataWarning, stacklevel=2)
        os.write(2, b"a library's log\n")

    monkeypatch.setattr("bloodcell_nb.inference.export.export_file", export)
    assert main(["export", "any", "--to", "onnx"]) == 0
    assert capfd.readouterr().err == "bloodcell: x.zip: 3 images are left out\n"


def test_a_copy_answers_by_the_network_that_it_holds(tmp_path):
    "Whatever its name, and whatever has taken the place of the one that it was copied from."
    backup, images = shutil.copytree(find_model(SINGLE), tmp_path / "backup"), draw_cells(8).images
    wanted = load_classifier([find_model(SINGLE)]).predict(images)
    np.testing.assert_array_equal(load_classifier([backup]).predict(images), wanted)
    other = shutil.copytree(find_model("convnext_atto_heavy"), tmp_path / SINGLE)
    assert (other / "model.keras").exists()
    np.testing.assert_array_equal(load_classifier([backup]).predict(images), wanted)


def test_an_export_says_what_stays_behind(monkeypatch, tmp_path, capsys):
    "Views and each image's own temperature, which a file does not have."
    monkeypatch.chdir(tmp_path)
    network = load_classifier([find_model(SINGLE)])
    for views, distance in ((8, ()), (1, (2.0, 0.5))):
        monkeypatch.setattr("bloodcell_nb.inference.export.load_classifier", lambda *_, v=views,
                            d=distance: replace(network, views=v, by_distance=d))
        monkeypatch.setattr("bloodcell_nb.inference.export.export_network", lambda *_: Exported(
            Path("x.tflite"), 1.0, 1.0, 0.0, 0.5, 0.5, 2.0, 2.0))
        said = printed(capsys, "export", SINGLE, "--to", "litert")
        assert ("one view of each image; bloodcell predict takes the mean of 8" in said) == (
            views == 8)
        assert ("gives each its own" in said) == bool(distance)


def test_published_networks_are_handed_in(tmp_path, capsys):
    "The ensemble and its best single network as Codabench zips, from what is published alone."
    for name in (BEST, SINGLE):
        assert "wrote" in printed(capsys, "submission", name, "--tta", "--out",
                                  tmp_path / f"{name}.zip")
        with zipfile.ZipFile(tmp_path / f"{name}.zip") as archive:
            settings = json.loads(archive.read("ensemble.json"))
        assert len(settings["files"]) == (2 if name == BEST else 1) and settings["views"] == 8


EIGHT = "{folder}/eight.keras"
PREDICT = ["predict", "--model", EIGHT]


@pytest.mark.parametrize("command, words", [
    ([*PREDICT, "none.png"], ["no file none.png"]),
    ([*PREDICT, "{folder}/notes.txt"], ["notes.txt cannot be read as an image"]),
    ([*PREDICT, "{folder}/empty"], ["empty: no image inside; expected files that end in .png"]),
    ([*PREDICT, "{folder}/*.gif"], ["no file has such a name"]),
    (["predict", "{folder}/cells", "--model", "resnet"], ["no network resnet", BEST]),
    (["predict", "{folder}/cells", "--model", "{folder}/cut.keras"], ["cut.keras: not a Keras"]),
    (["predict", "{folder}/cells", "--model", "{folder}/three.keras"],
     ["three.keras gives 3 classes; expected 8"]),
    ([*PREDICT, "{folder}/cells", "--grad-cam", "{folder}/notes.txt"], ["not a folder"]),
    ([*PREDICT, "{folder}/cells", "--grad-cam", "{folder}/notes.txt/x"],
     ["name a folder that can be written"]),
    (["evaluate", EIGHT, "--data", "{folder}/none"], ["no such file or folder"]),
    (["evaluate", EIGHT, "--data", "{folder}/empty"], ["no images"]),
    (["evaluate", EIGHT, "--data", "synthetic:n=40", "--classes", "NEU=neutrophil"],
     ["no class NEU"]),
    (["evaluate", EIGHT, "--data", "synthetic:n=40", "--classes", "NEU"], ["expected NAME=CLASS"]),
    (["evaluate", EIGHT, "--data", "synthetic:n=40", "--classes", "basophil=baso"],
     ["class basophil is none of the network's (mapped to baso)"]),
    (["evaluate", "{folder}/three.keras", "--data", "synthetic:n=40"], ["gives 3 classes"]),
    (["evaluate", EIGHT, "--data", "synthetic:n=40", "--out", "{folder}/notes.txt"],
     ["not a folder"]),
    (["evaluate", EIGHT, "--data", "synthetic:n=40", "--out", "{folder}/notes.txt/x"],
     ["notes.txt/x"]),
    ([*PREDICT, "{folder}/cells", "--among", "blast,monocyte"], ["--among: no class 'blast'"]),
    ([*PREDICT, "{folder}/cells", "--label-shift"], ["eight.keras comes without the shares"]),
    ([*PREDICT, "{folder}/cells", "--scale", "auto"], ["eight.keras comes without the size of"]),
    (["evaluate", EIGHT, "--data", "synthetic:n=40", "--among", "basophil,platelet"],
     ["--among: synthetic", "of class eosinophil, which is not named"]),
    (["evaluate", EIGHT, "--data", "synthetic:n=40", "--label-shift"], ["without the shares"]),
    (["evaluate", EIGHT, "--data", "synthetic:n=40", "--scale", "auto"],
     ["comes without the size"]),
    (["publish", "{folder}/empty", "--data", "synthetic"], ["one finished training or ensemble"]),
    (["card", "resnet"], ["no network resnet"]),
    (["export", EIGHT, "--to", "litert", "--out", "{folder}/x.onnx"], ["ends in .tflite"]),
    (["export", EIGHT, "--to", "onnx", "--int8", "--out", "{folder}/x.onnx"], ["leave --int8 out"]),
    (["export", EIGHT, "--to", "litert", "--out", "{folder}/no/x.tflite"], ["make it first"]),
    (["demo", "--port", "70000"], ["a port is 0 to 65535"]),
])
def test_bad_input_costs_one_line(folder, capsys, command, words):
    before = sorted(folder.rglob("*"))
    one_line_error(capsys, [part.format(folder=folder) for part in command], *words)
    assert sorted(folder.rglob("*")) == before


def test_every_published_network_has_a_card():
    assert BEST in published() and len(published()) >= 3
    for place in published().values():
        assert (place / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: ")

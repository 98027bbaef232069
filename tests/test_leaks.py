"""No cell is tested on that a network has learnt from, however it was turned or saved; what is
published is neither lost nor praised without reason.
"""
import io
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bloodcell_nb.analysis import nearest_distances, perceptual_hashes
from bloodcell_nb.answers import answer
from bloodcell_nb.classifier import load_classifier
from bloodcell_nb.cli import inspect
from bloodcell_nb.custom_cnn import custom_cnn
from bloodcell_nb.data import DataError
from bloodcell_nb.ensemble import dihedral
from bloodcell_nb.evaluation import evaluation_cells, trust
from bloodcell_nb.metrics import score
from bloodcell_nb.models import find_model, model_card, network_sums, publish
from bloodcell_nb.recipes import check_recipe
from bloodcell_nb.records import Run, write_json
from bloodcell_nb.sources import write_npz
from bloodcell_nb.splits import prepare
from bloodcell_nb.synthetic import draw_cells
from bloodcell_nb.training import evaluate


def saved_again(image, form, quality):
    "An image as it is after lossy compression."
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def brighter(image, factor):
    return np.clip(np.round(image * factor), 0, 255).astype(np.uint8)


COPIES = {
    "the eight symmetries": [lambda image, view=view: dihedral(image[None], view)[0]
                             for view in range(1, 8)],
    "a quarter turn, JPEG": [lambda image: saved_again(np.rot90(image), "JPEG", 75)],
    "mirrored, WebP": [lambda image: saved_again(image[:, ::-1], "WEBP", 60)],
    "turned by half, brighter": [lambda image: brighter(image[::-1, ::-1], 1.03)],
    "upside down, darker, JPEG": [lambda image: saved_again(brighter(image[::-1], 0.95), "JPEG",
                                                            85)]}


@pytest.mark.parametrize("copies", COPIES)
def test_an_enlarged_set_has_no_twins_across_its_splits(tmp_path, capsys, copies):
    cells = draw_cells(120)
    images = np.concatenate([cells.images, *(np.stack(list(map(change, cells.images)))
                                             for change in COPIES[copies])])
    times = len(images) // len(cells)
    # where each came from, in the place of a name
    write_npz(tmp_path / "enlarged.npz", images=images, labels=np.tile(cells.labels, times),
              class_names=np.array(cells.class_names))
    splits = prepare(check_recipe({"notebook": "03_custom_cnn", "recipe": "x", "epochs": 1,
                                   "val_share": 0.2, "source": str(tmp_path / "enlarged.npz")}))
    origin = {image.tobytes(): k % len(cells) for k, image in enumerate(images)}
    train, val, test = ([origin[image.tobytes()] for image in part.images]
                        for part in (splits.train, splits.val, splits.test))
    kept = [*train, *val, *test]
    assert len(kept) == len(set(kept)) == len(cells), "each cell once, and none is lost"
    inspect(str(tmp_path / "enlarged.npz"))
    assert (f"duplicates: {len(cells)} groups, {len(images)} images; with turned or mirrored "
            f"copies: {len(cells)}\n" in capsys.readouterr().out)


def test_real_cells_have_no_more_groups_when_turned(pbc96):
    "Of 2,422 test cells none is a copy of another; the nearest are far beyond the threshold."
    from bloodcell_nb.sources import load

    hashes = perceptual_hashes(load(pbc96).part("test").images)
    assert nearest_distances(hashes).min() > 32


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A run of a tiny network that has learnt nothing, on 160 drawn cells without splits."
    place = tmp_path_factory.mktemp("leaks")
    cells = draw_cells(160)
    source = write_npz(place / "cells.npz", images=cells.images, labels=cells.labels,
                       class_names=np.array(cells.class_names))
    recipe = check_recipe({"notebook": "03_custom_cnn", "recipe": "tiny", "epochs": 1,
                           "source": str(source), "out": str(place / "reports" / "tiny")})
    splits, run = prepare(recipe), Run(recipe)
    network = custom_cnn((96, 96), 8, filters=(4,), dense_units=8)
    network.save(run.folder / "model.keras")
    training = {"parameters": network.count_params(), "best_epoch": 0, "epochs": 0,
                "images_per_second": 0.0}
    results, _ = evaluate(SimpleNamespace(final=network, snapshots=[], record=lambda: training),
                          splits, run)
    run.finish(results)
    write_json(run.folder / "status.json", {"state": "done", "recipe": "tiny", "profile": "full"})
    return SimpleNamespace(run=run.folder, source=source, splits=splits, cells=cells)


def asked(network, source):
    "What an evaluation of a network on a source would score."
    recipe = check_recipe({"notebook": "09_evaluation", "recipe": "x", "model": str(network),
                           "source": str(source)})
    return evaluation_cells(recipe, load_classifier([network]))


def test_a_run_is_evaluated_on_its_own_test_split(trained):
    unseen = asked(trained.run, trained.source)
    assert unseen.own_split and unseen.cells.ids.tolist() == trained.splits.test.ids.tolist()
    assert unseen.left_out == len(trained.splits.train) + len(trained.splits.val)
    assert f"test split of {len(trained.splits.test)} cells" in str(unseen)


def test_known_cells_are_left_out_of_other_data(trained, tmp_path):
    "The same cells in another file, turned and saved as JPEG, and 24 others; and a bare network."
    others = draw_cells(24, seed=7)
    images = np.concatenate([np.stack([saved_again(np.rot90(image), "JPEG", 60)
                                       for image in trained.cells.images]), others.images])
    source = write_npz(tmp_path / "slide.npz", images=images,
                       labels=np.concatenate([trained.cells.labels, others.labels]),
                       class_names=np.array(others.class_names))
    unseen = asked(trained.run, source)
    known = len(trained.splits.train) + len(trained.splits.val)
    assert (unseen.left_out, len(unseen.cells), unseen.own_split) == (known, 184 - known, False)
    assert f"{known} of 184 cells are left out" in str(unseen)
    bare = shutil.copy(trained.run / "model.keras", tmp_path / "bare.keras")
    shutil.copy(trained.run / "hashes.npz", tmp_path / "hashes.npz")  # of another network
    unseen = asked(bare, source)
    assert unseen.left_out is None and len(unseen.cells) == 184 and "cannot be told" in str(unseen)
    learnt = write_npz(tmp_path / "learnt.npz", images=trained.splits.train.images,
                       labels=trained.splits.train.labels,
                       class_names=np.array(others.class_names))
    with pytest.raises(DataError, match="trained or chosen on all"):
        asked(trained.run, learnt)


@pytest.fixture(scope="module")
def network(trained, tmp_path_factory):
    "The run, published."
    models = tmp_path_factory.mktemp("published") / "models"
    return publish(trained.run, str(trained.source), models)


def test_publish_keeps_what_is_there(trained, network, tmp_path):
    known = len(trained.splits.train) + len(trained.splits.val)
    with np.load(network / "features.npz") as file:
        assert len(file["hashes"]) == known
    assert asked(network, trained.source).left_out == known
    models, place = tmp_path / "models", tmp_path / "models" / "tiny"
    shutil.copytree(network, place)
    (place / "README.md").write_text("mine")
    with pytest.raises(DataError, match="exists; --replace"):
        publish(trained.run, str(trained.source), models)
    assert (place / "README.md").read_text() == "mine"
    publish(trained.run, str(trained.source), models, instead=True)
    assert sorted(path.name for path in models.rglob("*")) == [
        "ensemble.json", "features.npz", "model.keras", "tiny"]
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot be published there"):
        publish(trained.run, str(trained.source), tmp_path / "file")


def test_publish_leaves_nothing_half_written(trained, network, monkeypatch):
    before = {path: path.read_bytes() for path in network.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bloodcell_nb.models._write_features", full)
    with pytest.raises(DataError, match="No space left on device"):
        publish(trained.run, str(trained.source), network.parent, instead=True)
    assert {path: path.read_bytes() for path in network.iterdir()} == before
    assert [path.name for path in network.parent.iterdir()] == ["tiny"]


def test_a_card_of_a_custom_cnn(trained, network, tmp_path):
    classifier, reports = load_classifier([network]), tmp_path / "reports"
    shutil.copytree(trained.run, reports / "tiny")
    recipe = check_recipe({"notebook": "09_evaluation", "recipe": "evaluate_tiny",
                           "source": str(trained.source), "model": str(network),
                           "networks": network_sums(classifier),
                           "out": str(reports / "evaluate_tiny")})
    unseen, run = evaluation_cells(recipe, classifier), Run(recipe)
    cells = unseen.cells
    answers = classifier.predict(cells.images)
    found = trust(cells.labels, answers, classifier.sure_above, np.ones(len(cells), bool))
    run.predictions(cells, answers)
    run.finish({"test": score(cells.labels, answers, cells.class_names, resamples=10),
                "trust": {"test": found}, "left_out_training_cells": unseen.left_out})
    write_json(run.folder / "status.json", {"state": "done", "recipe": "evaluate_tiny"})
    card = model_card(str(network), reports)
    assert "small CNN of chapter 03 from random weights" in card and "license: mit" in card
    assert f"Of `cells` {unseen.left_out} cells are left out" in card and "PBC" not in card
    # an untrained network: no probability gives 99 % right answers
    assert classifier.sure_above > 1 and found["right_where_sure"] is None
    assert "It is never *sure*" in card and "| 0.0 % | none |" in card
    assert not any(one.sure for one in answer(classifier, cells.images, cells.ids))


def test_the_default_is_chosen_by_scores_under_shift(tmp_path, monkeypatch):
    for name, scores in (("a", None), ("b", (0.99, 0.9, 0.6)), ("c", (0.95, 0.8, 0.75))):
        (tmp_path / "models" / name).mkdir(parents=True)
        values = scores and dict(zip(("clean", "corrupted", "stand_in"), scores, strict=True))
        write_json(tmp_path / "models" / name / "ensemble.json",
                   {"members": [name]} | ({"validation": values} if values else {}))
    monkeypatch.setattr("bloodcell_nb.models.project_root", lambda: tmp_path)
    assert find_model().name == "c" and find_model("b").name == "b"
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(DataError, match="expected one of none"):
        find_model()

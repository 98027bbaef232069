"""No cell is tested on that a network has learnt from, however it was turned or saved; what is
published is neither lost nor praised without reason.
"""
import io
import json
import shutil
import zipfile
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import COMMITTED
from PIL import Image

from bloodcell_nb.cli import inspect
from bloodcell_nb.data.analysis import MAX_DISTANCE, nearest_distances, perceptual_hashes
from bloodcell_nb.data.arrays import write_npz
from bloodcell_nb.data.cells import DataError, DataWarning
from bloodcell_nb.data.files import write_json
from bloodcell_nb.data.negatives import no_cells
from bloodcell_nb.data.sources import fingerprint, save
from bloodcell_nb.data.synthetic import draw_cells, spoil
from bloodcell_nb.evaluation.ensemble import dihedral, read_predictions
from bloodcell_nb.evaluation.metrics import score
from bloodcell_nb.evaluation.trust import trust
from bloodcell_nb.inference.card import model_card, write_card
from bloodcell_nb.inference.classifier import load_classifier
from bloodcell_nb.inference.external import evaluation_cells
from bloodcell_nb.inference.predict import answer
from bloodcell_nb.inference.publish import publish
from bloodcell_nb.inference.published import find_model, network_sums
from bloodcell_nb.inference.settings import read_ensemble
from bloodcell_nb.inference.submission import write_submission
from bloodcell_nb.networks.custom_cnn import custom_cnn
from bloodcell_nb.runs import splits
from bloodcell_nb.runs.recipes import check_recipe
from bloodcell_nb.runs.run import Run
from bloodcell_nb.runs.splits import prepare, recorded_recipe
from bloodcell_nb.training.fit import evaluate


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


@pytest.mark.parametrize("split", ["source", "stratified", "random"])
def test_what_only_a_fixed_validation_split_may_hold_is_not_trained_on(tmp_path, split):
    "Copies of test cells, and of a spoiled image: whoever draws that split anew drops them."
    cells = draw_cells(160)
    cells, spoiled = cells[np.argsort(cells.labels, kind="stable")], spoil(cells.images[0])
    parts = np.tile(["train", "val", "test", "train"], 40)
    again = np.flatnonzero(parts == "test")[::2]
    source = write_npz(
        tmp_path / "cells.npz", class_names=np.array(cells.class_names),
        images=np.concatenate([cells.images, np.rot90(cells.images[again], axes=(1, 2)),
                               np.repeat(spoiled[None], 10, axis=0)]),
        labels=np.concatenate([cells.labels, cells.labels[again], np.arange(10) % 8]),
        parts=np.concatenate([parts, np.full(len(again) + 10, "val")]))
    found = prepare(check_recipe({"notebook": "03_custom_cnn", "recipe": "x", "epochs": 1,
                                  "validation_split": split, "val_share": 0.4,
                                  "source": str(source)}))
    known = perceptual_hashes(np.concatenate([found.test.images, spoiled[None]]), turned=False)
    distances = nearest_distances(perceptual_hashes(found.train.images), known[:, 0])
    assert len(found.test) == 40 and distances.min() > MAX_DISTANCE
    assert len(found.train) + len(found.val) == 120 + 30 * (split == "source")


def test_real_cells_have_no_more_groups_when_turned(real_cells):
    "Of 2,422 test cells none is a copy of another; the nearest are far beyond the threshold."

    hashes = perceptual_hashes(real_cells.part("test").images)
    assert nearest_distances(hashes).min() > 32


def written(place, cells):
    "Cells as an npz file."
    return write_npz(place, images=cells.images, labels=cells.labels,
                     class_names=np.array(cells.class_names))


def run_of(source, folder, seed=0, **distance):
    "A run of a tiny network that has learnt nothing, named as its folder, and its splits."
    recipe = check_recipe({"notebook": "03_custom_cnn", "recipe": folder.name, "epochs": 1,
                           "seed": seed, "source": str(source), "out": str(folder)})
    splits, run = prepare(recipe, **distance), Run(recipe)
    keras.utils.set_random_seed(seed)
    network = custom_cnn((96, 96), len(splits.train.class_names), filters=(4,), dense_units=8)
    network.save(run.folder / "model.keras")
    training = {"parameters": network.count_params(), "best_epoch": 0, "epochs": 0,
                "images_per_second": 0.0}
    results, _ = evaluate(SimpleNamespace(final=network, snapshots=[], record=lambda: training),
                          splits, run)
    run.finish(results)
    write_json(run.folder / "status.json", {"state": "done", "recipe": folder.name,
                                            "profile": "full"})
    return run.folder, splits


@pytest.fixture(scope="module", autouse=True)
def quick():
    "Runs are scored without shift, with few resamples; networks tell cells from few images."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bloodcell_nb.inference.publish.no_cells", partial(no_cells, per_kind=2))
        patch.setattr("bloodcell_nb.inference.publish._DRAWN_CELLS", 16)
        patch.setattr("bloodcell_nb.training.fit.distorted", lambda test: {})
        patch.setattr("bloodcell_nb.training.fit.score", partial(score, resamples=10))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A run on 160 drawn cells without splits."
    place = tmp_path_factory.mktemp("leaks")
    cells = draw_cells(160)
    source = written(place / "cells.npz", cells)
    folder, splits = run_of(source, place / "reports" / "tiny")
    return SimpleNamespace(run=folder, source=source, splits=splits, cells=cells)


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


def test_cells_that_are_not_scored_are_told(trained, tmp_path):
    "Copies, and those that two classes claim."
    cells = draw_cells(24, seed=7)
    index = np.r_[:24, 0:4, 8]  # four in two classes, one twice
    labels = np.r_[cells.labels, (cells.labels[:4] + 1) % 8, cells.labels[8]]
    source = written(tmp_path / "slide.npz", SimpleNamespace(
        images=cells.images[index], labels=labels, class_names=cells.class_names))
    unseen = asked(trained.run, source)
    assert len(unseen.cells) == 20
    assert "not scored: 8 conflicting labels, 1 duplicate; " in str(unseen)


def test_known_cells_are_left_out_of_other_data(trained, tmp_path):
    "The same cells in another file, turned and saved as JPEG, and 24 others; and a bare network."
    others = draw_cells(24, seed=7)
    images = np.concatenate([np.stack([saved_again(np.rot90(image), "JPEG", 60)
                                       for image in trained.cells.images]), others.images])
    source = written(tmp_path / "slide.npz", SimpleNamespace(
        images=images, labels=np.concatenate([trained.cells.labels, others.labels]),
        class_names=others.class_names))
    unseen = asked(trained.run, source)
    known = len(trained.splits.train) + len(trained.splits.val)
    assert (unseen.left_out, len(unseen.cells), unseen.own_split) == (known, 184 - known, False)
    assert f"{known} of 184 cells are left out" in str(unseen)
    bare = shutil.copy(trained.run / "model.keras", tmp_path / "bare.keras")
    shutil.copy(trained.run / "hashes.npz", tmp_path / "hashes.npz")  # of another network
    unseen = asked(bare, source)
    assert unseen.left_out is None and len(unseen.cells) == 184 and "cannot be told" in str(unseen)
    learnt = written(tmp_path / "learnt.npz", trained.splits.train)
    with pytest.raises(DataError, match="trained or chosen on all"):
        asked(trained.run, learnt)


def test_of_a_source_with_a_test_split_that_alone_is_hashed(trained, tmp_path, monkeypatch):
    cells = draw_cells(80, seed=11)
    parts = np.repeat(["train", "test"], [50, 30])
    source = write_npz(tmp_path / "parted.npz", images=cells.images, labels=cells.labels,
                       parts=parts, class_names=np.array(cells.class_names))
    hashed = []
    monkeypatch.setattr("bloodcell_nb.inference.external.perceptual_hashes",
                        lambda images, *sizes: (hashed.append(len(images)),
                                                perceptual_hashes(images, *sizes))[1])
    unseen = asked(trained.run, source)
    assert (hashed, len(unseen.cells), unseen.left_out) == ([30], 30, 0)
    assert str(unseen).startswith("of the source's 80 cells only the test split is scored; the "
                                  "network was trained or chosen on none of the 30 cells")
    assert "cut otherwise from the same originals are not recognised" in str(unseen)
    monkeypatch.setenv("BLOODCELL_SHARED", str(tmp_path))  # as for the command and its run
    assert len(asked(trained.run, source).cells) == len(asked(trained.run, source).cells) == 30
    assert hashed == [30, 30]


def test_a_network_of_no_squares_is_not_evaluated(trained, tmp_path):
    custom_cnn((96, 128), 8, filters=(4,), dense_units=8).save(tmp_path / "wide.keras")
    with pytest.raises(DataError, match="wide.keras takes images of 128x96; labelled cells are"):
        asked(tmp_path / "wide.keras", trained.source)


@pytest.fixture(scope="module")
def network(trained, tmp_path_factory):
    "The run, published."
    models = tmp_path_factory.mktemp("published") / "models"
    return publish(trained.run, str(trained.source), models)


def test_publish_keeps_what_is_there(trained, network, tmp_path, capsys):
    known = len(trained.splits.train) + len(trained.splits.val)
    with np.load(network / "features.npz") as file:
        assert len(file["hashes"]) == known
    assert asked(network, trained.source).left_out == known
    models, place = tmp_path / "models", tmp_path / "models" / "tiny"
    shutil.copytree(network, place)
    (place / "README.md").write_text("mine")
    with pytest.raises(DataError, match="exists; --replace"):
        publish(trained.run, str(trained.source), models)
    with pytest.raises(DataError, match="README.md was changed by hand, and stays"):
        publish(trained.run, str(trained.source), models, instead=True)
    assert (place / "README.md").read_text() == "mine"
    (place / "README.md").unlink()
    (place / "model.predict.onnx").touch()
    publish(trained.run, str(trained.source), models, instead=True)
    assert "model.predict.onnx was of the network before, and is gone" in capsys.readouterr().out
    assert sorted(path.name for path in models.rglob("*")) == [
        "ensemble.json", "features.npz", "model.keras", "tiny"]
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot be published there"):
        publish(trained.run, str(trained.source), tmp_path / "file")


def test_publish_leaves_nothing_half_written(trained, network, monkeypatch):
    before = {path: path.read_bytes() for path in network.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bloodcell_nb.inference.publish._write_features", full)
    with pytest.raises(DataError, match="No space left on device"):
        publish(trained.run, str(trained.source), network.parent, instead=True)
    assert {path: path.read_bytes() for path in network.iterdir()} == before
    assert [path.name for path in network.parent.iterdir()] == ["tiny"]


def test_publish_takes_nothing_from_another_process(trained, network, tmp_path, monkeypatch):
    "One that published the same name while this one was computing."
    def meanwhile(work, *_):
        shutil.copytree(network, tmp_path / "models" / "tiny")
        (work / "ensemble.json").write_text("mine")

    monkeypatch.setattr("bloodcell_nb.inference.publish._fill", meanwhile)
    with pytest.raises(DataError, match="published it meanwhile; --replace"):
        publish(trained.run, str(trained.source), tmp_path / "models")
    assert (tmp_path / "models" / "tiny" / "ensemble.json").read_text() != "mine"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny"]


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_todays_code_follows_every_committed_record(folder):
    "Else `publish` would refuse the run, and `evaluate` score other cells than its test split."
    paths = sorted(folder.glob("*/metrics.json"))
    assert paths
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["recipe"].pop("max_distance", None)  # `recorded_splits` follows any
        recipe = recorded_recipe(record, "synthetic:n=32", path.parent.name)
        assert recipe.recipe == record["recipe"]["recipe"]


def test_an_older_run_is_published_and_evaluated_on_its_own_splits(tmp_path):
    "Its record says which distance makes a copy; without that, its splits are not found again."
    cells, rng = draw_cells(160), np.random.default_rng(0)
    noisy = np.clip(cells.images + rng.normal(0, 12, cells.images.shape), 0, 255).astype(np.uint8)
    source = written(tmp_path / "noisy.npz", SimpleNamespace(
        images=np.concatenate([cells.images, noisy]), labels=np.tile(cells.labels, 2),
        class_names=cells.class_names))
    run, splits = run_of(source, tmp_path / "runs" / "older", max_distance=8)
    assert not asked(run, source).own_split
    with pytest.raises(DataError, match="older: its test split cannot be drawn again from"):
        publish(run, str(source), tmp_path / "models")
    record = json.loads((run / "metrics.json").read_text())
    record["recipe"]["max_distance"] = 8
    write_json(run / "metrics.json", record)
    unseen = asked(run, source)
    assert unseen.own_split and unseen.cells.ids.tolist() == splits.test.ids.tolist()
    folder = publish(run, str(source), tmp_path / "models")
    with np.load(folder / "features.npz") as file, np.load(run / "hashes.npz") as seen:
        assert np.array_equal(file["hashes"], seen["hashes"])


def ensemble_of(members, folder, source):
    "A run of an ensemble of runs beside it."
    recipe = check_recipe({"notebook": "06_ensemble", "recipe": folder.name, "members": members,
                           "source": str(source), "out": str(folder)})
    run, one = Run(recipe), read_predictions([folder.parent / members[0]])
    cells = SimpleNamespace(labels=one.labels, ids=one.ids, class_names=one.class_names,
                            images=np.empty((0, 96, 96, 3)))
    run.predictions(cells, one.mean)
    scores = score(one.labels, one.mean, one.class_names, resamples=10)
    gain = {"best_member": members[0], "difference": 0.0, "interval_95": [0.0, 0.0],
            "only_first": 0, "only_second": 0, "mcnemar_p": 1.0}
    run.finish({"test": scores, "members": members, "weights": [1 / len(members)] * len(members),
                "views": 1, "temperature": 1.0, "gain": {"test": gain}})
    write_json(folder / "status.json", {"state": "done", "recipe": folder.name, "profile": "full"})
    return folder


def test_an_ensemble_stays_the_one_that_was_published(tmp_path, monkeypatch, capsys):
    "Of five classes; a member is replaced, then one of another run lies in its place."
    monkeypatch.setattr("bloodcell_nb.inference.published.project_root", lambda: tmp_path)
    cells, models = draw_cells(200), tmp_path / "models"
    source = written(tmp_path / "five.npz", cells[cells.labels > 2])
    first, second = (run_of(source, tmp_path / "runs" / name, seed)[0]
                     for name, seed in (("first", 0), ("second", 1)))
    both = ensemble_of(["first", "second"], tmp_path / "runs" / "both", source)
    with pytest.raises(DataError, match="holds no first, a member of both; publish that first"):
        publish(both, str(source), models)
    for run in (first, second, both):
        assert load_classifier([publish(run, str(source), models)]).class_names == \
            draw_cells(8).class_names[3:]
    assert capsys.readouterr().out.startswith("where no network is named, first answers now")
    with pytest.raises(DataError, match="gives immature granulocyte, lymphocyte"):
        write_submission([models / "both"], tmp_path / "a.zip")
    settings = read_ensemble(models / "both")
    assert (settings.data, len(settings.networks)) == (fingerprint(source), 2) and settings.run
    other = shutil.copytree(first, tmp_path / "others" / "second")
    write_json(other / "status.json", {"state": "done", "recipe": "second", "profile": "full"})
    with pytest.warns(DataWarning, match="both: its member second is another network"):
        publish(other, str(source), models, instead=True)
    with pytest.raises(DataError, match="publish the ensemble again"):
        load_classifier([models / "both"])
    with pytest.raises(DataError, match="second is of another run than the member of both"):
        publish(both, str(source), models, instead=True)
    with pytest.warns(DataWarning, match="passed over: both: its member second"):
        assert find_model().name in ("first", "second")
    (first / "snapshot_1").mkdir()
    shutil.copy(first / "predictions.npz", first / "snapshot_1")
    cycles = ensemble_of(["first/snapshot_1", "second"], tmp_path / "runs" / "cycles", source)
    with pytest.raises(DataError, match="first/snapshot_1 is a snapshot, and snapshots are not"):
        publish(cycles, str(source), models)


def evaluated(network, source, folder):
    "A record of an evaluation of a published network, as it stands alone."
    classifier = load_classifier([network])
    recipe = check_recipe({"notebook": "09_evaluation", "recipe": folder.name,
                           "source": str(source), "model": str(network),
                           "networks": network_sums(classifier), "out": str(folder)})
    unseen, run = evaluation_cells(recipe, classifier), Run(recipe)
    cells = unseen.cells
    answers = classifier.predict(cells.images)
    found = trust(cells.labels, answers, classifier.sure_above, np.ones(len(cells), bool))
    run.predictions(cells, answers)
    run.finish({"test": score(cells.labels, answers, cells.class_names, resamples=10),
                "trust": {"test": found}, "left_out_training_cells": unseen.left_out})
    write_json(folder / "status.json", {"state": "done", "recipe": folder.name})
    return classifier, unseen, found


def test_a_card_of_a_custom_cnn(trained, network, tmp_path):
    reports, cells = tmp_path / "reports", trained.cells
    shutil.copytree(trained.run, reports / "tiny")
    classifier, unseen, found = evaluated(network, trained.source, reports / "evaluate_tiny")
    card = model_card(str(network), reports)
    assert "small CNN of chapter 03 from random weights" in card and "license: mit" in card
    assert f"Of `cells` {unseen.left_out} cells are left out" in card and "PBC" not in card
    # an untrained network: no probability gives 99 % right answers
    assert classifier.sure_above > 1 and found["right_where_sure"] is None
    assert "It is never *sure*" in card and "| 0.0 % | none |" in card
    assert not any(one.sure for one in answer(classifier, cells.images, cells.ids))
    # counts and what was measured; then another run of its name, on other data
    splits = trained.splits
    assert (f"`cells.npz`: {len(splits.train)} cells for training, {len(splits.val)} for every "
            f"choice, {len(splits.test)} for the first score" in card)
    assert "corrupted cells are" not in card and "stand-in takes" not in card
    other = written(tmp_path / "zzz.npz", draw_cells(160, seed=5))
    run_of(other, reports / "zzz" / "tiny", seed=9)
    assert model_card(str(network), reports) == card
    shutil.rmtree(reports / "tiny")
    with pytest.raises(DataError, match="no record of the run that it was published from .key"):
        model_card(str(network), reports)


@pytest.mark.parametrize("name, words", [
    ("features.npz", "tiny/features.npz cannot be used"), ("ensemble.json", "cannot be read")])
def test_a_file_that_is_cut_costs_one_line(network, trained, tmp_path, monkeypatch, name, words):
    "Of the card, of an evaluation; where no network is named, the folder is passed over."
    shutil.copytree(network, tmp_path / "models" / "tiny")
    shutil.copytree(network, tmp_path / "models" / "whole")
    path = tmp_path / "models" / "tiny" / name
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=words):
        model_card(str(path.parent), tmp_path)
    with pytest.raises(DataError, match=words):
        asked(path.parent, trained.source)
    monkeypatch.setattr("bloodcell_nb.inference.published.project_root", lambda: tmp_path)
    if name == "ensemble.json":
        with pytest.warns(DataWarning, match="passed over: tiny/ensemble.json"):
            assert find_model().name == "whole"


def test_what_has_no_card(trained):
    for place in (trained.run, trained.run / "model.keras"):
        with pytest.raises(DataError, match="no published network, which alone has a card"):
            write_card(str(place))


def test_settings_and_features_are_part_of_a_networks_identity(network, tmp_path):
    shutil.copytree(network, tmp_path / "tiny")
    classifier = load_classifier([tmp_path / "tiny"])
    sums = network_sums(classifier)
    assert network_sums(replace(classifier, cell_above=2.0)) != sums
    (tmp_path / "tiny" / "features.npz").write_bytes(b"other")
    assert network_sums(classifier) != sums


def test_the_default_is_chosen_by_scores_under_shift(tmp_path, monkeypatch):
    """Among those of the same data; of an easier set there are fewer, so they have no say. A better
    ensemble answers where it is named, or where there is nothing else.
    """
    for name, scores, data in (("a", None, ""), ("b", (0.99, 0.9, 0.6), ""),
                               ("c", (0.95, 0.8, 0.75), ""), ("easy", (1.0, 1.0, 1.0), "0" * 16),
                               ("mean", (0.99, 0.9, 0.8), "")):
        (tmp_path / "models" / name).mkdir(parents=True)
        zipfile.ZipFile(tmp_path / "models" / name / "model.keras", "w").close()
        values = scores and dict(zip(("clean", "corrupted", "stand_in"), scores, strict=True))
        write_json(tmp_path / "models" / name / "ensemble.json",
                   {"members": ["b", "c"] if name == "mean" else [name], "validation": values,
                    "data": data})
    monkeypatch.setattr("bloodcell_nb.inference.published.project_root", lambda: tmp_path)
    assert find_model().name == "c" and find_model("b").name == "b"
    assert find_model("mean").name == "mean"
    (tmp_path / "here" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.warns(DataWarning, match=r"b: the published network is taken; \./b is the folder"):
        assert find_model("b") == tmp_path / "models" / "b"
    assert find_model("./b").samefile(tmp_path / "here" / "b")
    for name in ("a", "b", "c", "easy"):  # b and c stay, as members
        (tmp_path / "models" / name / "ensemble.json").unlink()
    assert find_model().name == "mean"
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(DataError, match="expected one of none"):
        find_model()


def test_cells_that_change_as_they_are_read(tmp_path, monkeypatch):
    "What several runs share holds no cells of another source than it says."
    source = tmp_path / "cells.npz"
    save(draw_cells(200), source)
    save(draw_cells(200, seed=7), tmp_path / "other.npz")
    held, other = source.read_bytes(), (tmp_path / "other.npz").read_bytes()
    settings = check_recipe({"notebook": "01_analysis", "recipe": "one", "source": str(source)})
    alone, read = splits.prepare(settings), splits.load

    def changed_now(name, **options):
        source.write_bytes(other)
        return read(name, **options)

    monkeypatch.setenv("BLOODCELL_SHARED", str(tmp_path / "shared"))
    with monkeypatch.context() as now:
        now.setattr(splits, "load", changed_now)
        with suppress(DataError):
            splits.prepare(settings)
    source.write_bytes(held)  # put back while commands that share it go on
    np.testing.assert_array_equal(splits.prepare(settings).train.images, alone.train.images)

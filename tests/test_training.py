"Which weights a training keeps, over its phases and where a loss becomes no number."
import inspect
from pathlib import Path

import keras
import numpy as np
import pytest

from bloodcell_nb.data import arrays, files
from bloodcell_nb.data import cells as cells_module
from bloodcell_nb.data.cells import Cells, DataError, StoredImages
from bloodcell_nb.data.synthetic import draw_cells
from bloodcell_nb.runs import splits as splits_module
from bloodcell_nb.runs.recipes import check_recipe
from bloodcell_nb.runs.run import Run
from bloodcell_nb.runs.splits import prepare
from bloodcell_nb.training import phases as module
from bloodcell_nb.training.fit import Batches, Fit, NotFinite, fit
from bloodcell_nb.training.image_sizes import policies_of
from bloodcell_nb.training.optimizers import cycle_ends
from bloodcell_nb.training.phases import fit_phases
from bloodcell_nb.training.step import augmented

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
CELLS = Cells(IMAGES, np.arange(64) % 8)


def little(l2=0.0):
    "A network of one layer for images of 8x8."
    keras.utils.set_random_seed(0)
    return keras.Sequential([
        keras.Input((8, 8, 3), dtype="uint8"), keras.layers.Rescaling(1 / 255),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(8, "softmax", kernel_regularizer=keras.regularizers.L2(l2))])


def phases(count, **values):
    "A recipe of so many phases of two epochs."
    return check_recipe({"notebook": "04_efficientnet", "recipe": "one", "backbone": "ResNet50",
                         "weights": "none", "augmentation": ["RandomFlip"], "phases": [
                             {"trainable": "all", "epochs": 2, "learning_rate": 1e-3}] * count}
                        | values)


@pytest.fixture
def played(monkeypatch):
    "Let `fit_phases` train a network of one number, whose epochs end as a test says."
    network, given = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]), []

    def play(recipe, *epochs):  # of each phase: values of its epochs, or the error that it raises
        left = iter(epochs)

        def fake(model, train, val, recipe, run, name, callbacks, first_epoch):
            given.append((float(model.get_weights()[0].item()), first_epoch))
            if isinstance(values := next(left), Exception):
                raise values
            finite = [value for value in values if np.isfinite(value)]
            best = int((np.argmin if recipe.monitor == "val_loss" else np.argmax)(finite))
            model.set_weights([np.full((1, 1), finite[best]), np.zeros(1)])
            history = {key: finite for key in ("loss", recipe.monitor)}
            return Fit(model, history, (("", history),), best + 1, False, {"training": 1.0}, 1.0,
                       not_finite="loss is nan in epoch 2" if len(finite) < len(values) else "")

        monkeypatch.setattr(module, "fit", fake)
        monkeypatch.setattr(module, "set_trainable", lambda *_: None)
        given.clear()
        network.set_weights([np.zeros((1, 1)), np.zeros(1)])
        fitted, fits = fit_phases(network, None, None, recipe, None)
        return fitted, fits, network.get_weights()[0].item(), list(given)

    return play


@pytest.mark.parametrize("monitor, epochs, kept, best", [
    ("val_accuracy", ([0.5, 0.25], [0.125, 0.75], [0.5, 0.25]), 0.75, 4),
    ("val_accuracy", ([0.25, 0.75], [0.125, 0.5], [0.75, 0.5]), 0.75, 2),  # of equals the first
    ("val_loss", ([0.5, 0.25], [0.125, 0.75], [0.5, 0.25]), 0.125, 3),
    ("val_macro_f1", ([0.5], [0.125], [0.625, 0.25]), 0.625, 3)])
def test_the_best_epoch_of_all_phases_is_kept(played, monitor, epochs, kept, best):
    "Its weights, its number; each phase starts from the best epoch of the one before."
    fitted, fits, weight, given = played(phases(3, monitor=monitor), *epochs)
    assert (weight, fitted.best_epoch) == (kept, best)
    assert fitted.history[monitor] == [value for phase in epochs for value in phase]
    assert fitted.history[monitor][fitted.best_epoch - 1] == kept
    starts = [0] + [phase[one.best_epoch - 1] for phase, one in zip(epochs, fits, strict=True)]
    assert [weight for weight, _ in given] == starts[:3]


def test_phases_end_where_a_loss_is_no_number(played, capsys):
    "The best finite epoch of all is kept, and no phase follows."
    recipe = phases(3, monitor="val_accuracy")
    fitted, fits, weight, given = played(recipe, [0.75, 0.5], [0.25, np.nan], [0.875])
    assert (weight, fitted.best_epoch, len(fits), len(given)) == (0.75, 1, 2, 2)
    assert fitted.stopped_early and fitted.record()["not_finite"] == "loss is nan in epoch 2"
    error = NotFinite("phase 2 (all): loss is nan in epoch 1")
    fitted, fits, weight, _ = played(recipe, [0.5, 0.75], error, [0.875])
    assert (weight, len(fits), fitted.not_finite) == (0.75, 1, str(error))
    assert str(error) in capsys.readouterr().out
    with pytest.raises(DataError, match="loss is nan in epoch 1"):
        played(recipe, error)


def test_each_phase_has_draws_and_batches_of_its_own(played):
    "No epoch of a later phase has an order, and no phase a policy, that another had."
    recipe = phases(3, image_sizes=[32, 64])
    first = [epoch for _, epoch in played(recipe, [0.5], [0.5], [0.5])[3]]
    assert "first_epoch" in inspect.signature(module.fit_head).parameters
    batches, orders = Batches(CELLS), []
    for start in first:
        for epoch in (0, 1):
            batches.start_epoch(start + epoch)
            orders.append(tuple(batches.order))
    assert len(set(orders)) == 6
    seeds = [policy.seed for start in first for policy in policies_of(recipe, start)]
    assert len(set(seeds)) == 6
    assert seeds == [policy.seed for start in first for policy in policies_of(recipe, start)]


def test_what_chooses_an_epoch_is_cross_entropy_alone():
    "Whatever is minimised: label smoothing, L2 and class weights are no part of val_loss."
    network = little(0.01)
    trained = augmented(network, class_weight={k: k + 1.0 for k in range(8)})
    trained.compile("adam", keras.losses.CategoricalCrossentropy(label_smoothing=0.2),
                    run_eagerly=True)
    targets = np.eye(8)[CELLS.labels]
    scored = trained.evaluate({"images": IMAGES, "labels": targets}, targets, verbose=0)
    found = network.predict(IMAGES, verbose=0)
    plain = -np.log(found[np.arange(len(CELLS)), CELLS.labels]).mean()
    np.testing.assert_allclose(scored, plain, rtol=1e-5)
    loss = trained.train_on_batch({"images": IMAGES, "labels": targets}, targets)
    assert loss > plain + 0.5


class NaNAt(keras.callbacks.Callback):
    "Put NaN into a network's weights as an epoch begins."

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.model.network.set_weights(
                [np.full(w.shape, np.nan) for w in self.model.network.get_weights()])


def test_a_training_stops_at_nan_and_keeps_the_best_finite_epoch(tmp_path, capsys):
    """In one line that names epoch and learning rate; called again, it says the same and trains
    no more; without a finite epoch it fails in one line.
    """
    recipe = check_recipe({"notebook": "03_custom_cnn", "recipe": "one", "epochs": 5, "eager": True,
                           "learning_rate": 0.01, "out": str(tmp_path), "monitor": "val_accuracy",
                           "source": "synthetic:n=64"})
    run, line = Run(recipe), "cut: loss is nan in epoch 3, learning rate 0.01; training stops"
    fits = [fit(little(), CELLS, CELLS, recipe, run, "cut", [NaNAt(2)]) for _ in range(2)]
    whole = fit(little(), CELLS, CELLS, recipe.model_copy(update={"epochs": 2}), run, "whole")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all(text.startswith(line) for text in said), said
    for one in fits:
        assert one.history == whole.history and one.best_epoch == whole.best_epoch
        assert one.record()["not_finite"] == "loss is nan in epoch 3, learning rate 0.01"
        for a, b in zip(one.model.get_weights(), whole.model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(DataError, match="at once: loss is nan in epoch 1, learning rate") as error:
        fit(little(), CELLS, CELLS, recipe, run, "at once", [NaNAt(0)])
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
    assert not list(Path(tmp_path / "state" / "at once").glob("*"))


def test_a_snapshot_of_nan_is_not_kept(tmp_path):
    recipe = check_recipe({"notebook": "03_custom_cnn", "recipe": "one", "epochs": 14,
                           "schedule": "cosine_restarts", "snapshots": True, "eager": True,
                           "patience": 14,
                           "out": str(tmp_path), "source": "synthetic:n=64"})
    first, second, *_ = cycle_ends(14)
    fitted = fit(little(), CELLS, CELLS, recipe, Run(recipe), "cut", [NaNAt(second - 1)])
    assert len(fitted.snapshots) == 1 and fitted.history["loss"][first:]


class Cut(keras.callbacks.Callback):
    "End a training as Ctrl-C would, as its epoch of this number begins."
    begun = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.begun += 1
        if self.begun == 4:
            raise KeyboardInterrupt


def test_phases_go_on_bit_for_bit(tmp_path, monkeypatch):
    """Cut in the second phase and called again, with draws, dropout and averaged weights; no two
    epochs of both phases have one order.
    """
    def network():
        keras.utils.set_random_seed(0)
        backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3),
                                     keras.layers.GlobalAveragePooling2D()], name="backbone")
        inputs = keras.Input((8, 8, 3), dtype="uint8")
        x = keras.layers.Dropout(0.5)(backbone(keras.layers.Rescaling(1 / 255)(inputs)))
        return keras.Model(inputs, keras.layers.Dense(8, "softmax")(x))

    recipe = phases(2, ema=0.5, eager=True, out=str(tmp_path), source="synthetic:n=64")
    run, orders, shuffle = Run(recipe), [], Batches.start_epoch

    def spy(batches, epoch):
        shuffle(batches, epoch)
        orders.append(tuple(batches.order))

    monkeypatch.setattr(Batches, "start_epoch", spy)
    whole, _ = fit_phases(network(), CELLS, CELLS, recipe, run, "whole")
    assert len(set(orders)) == 4  # of four epochs; each phase looks at the first once more
    with pytest.raises(KeyboardInterrupt):
        fit_phases(network(), CELLS, CELLS, recipe, run, "cut", [Cut()])
    again, _ = fit_phases(network(), CELLS, CELLS, recipe, run, "cut")
    assert (again.history, again.best_epoch) == (whole.history, whole.best_epoch)
    for a, b in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_seed_is_another_training(tmp_path):
    recipe = check_recipe({"notebook": "03_custom_cnn", "recipe": "one", "epochs": 1, "eager": True,
                           "out": str(tmp_path), "source": "synthetic:n=64"})
    run = Run(recipe)
    first, same, second = (
        fit(little(), CELLS, CELLS, recipe.model_copy(update={"seed": seed}), run, name).history
        for name, seed in (("first", 0), ("same", 0), ("second", 1)))
    assert first == same != second


def test_a_cut_state_costs_one_epoch_at_most(tmp_path, capsys):
    "It goes on from the state before, says so in one line, and ends as if nothing had been cut."
    recipe = check_recipe({"notebook": "03_custom_cnn", "recipe": "one", "epochs": 2, "eager": True,
                           "out": str(tmp_path), "source": "synthetic:n=64"})
    run = Run(recipe)
    wanted = fit(little(), CELLS, CELLS, recipe, run)
    folder = tmp_path / "state" / "training"
    assert sorted(path.name for path in folder.iterdir()) == ["state_1.npz", "state_2.npz"]
    newest = (folder / "state_2.npz").read_bytes()
    (folder / "state_2.npz").write_bytes(newest[:len(newest) // 2])
    again = fit(little(), CELLS, CELLS, recipe, run)
    assert again.history == wanted.history
    assert capsys.readouterr().out == ("training: state_2.npz cannot be read (BadZipFile); "
                                       "training goes on after epoch 1, from state_1.npz\n")
    for name in ("state_1.npz", "state_2.npz"):
        (folder / name).write_bytes(newest[:9])
    assert fit(little(), CELLS, CELLS, recipe, run).history == wanted.history
    assert capsys.readouterr().out.strip().endswith("training begins anew")


def test_a_full_disk_leaves_the_older_state(tmp_path, monkeypatch):
    "What was not written whole never takes a state's name."
    recipe = check_recipe({"notebook": "03_custom_cnn", "recipe": "one", "epochs": 1, "eager": True,
                           "out": str(tmp_path), "source": "synthetic:n=64"})
    fit(little(), CELLS, CELLS, recipe, run := Run(recipe))
    folder = tmp_path / "state" / "training"

    def full(*_):
        raise OSError(28, "No space left on device")

    longer = recipe.model_copy(update={"epochs": 2})
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        fit(little(), CELLS, CELLS, longer, run)
    assert "write_state" in [entry.name for entry in raised.traceback]
    assert [path.name for path in folder.iterdir()] == ["state_1.npz"]


@pytest.mark.parametrize("shared", [False, True])
def test_cells_that_stay_on_disk_train_as_others_do(tmp_path, monkeypatch, shared):
    "The same splits, the same weights; memory has no room for the training split."
    drawn = draw_cells(200, duplicates=4)
    source = arrays.write_stored(tmp_path / "cells.npz", np.array_split(drawn.images, 3),
                                 drawn.images.shape, labels=drawn.labels)
    monkeypatch.setattr(splits_module, "_BLOCK", 16)
    found = {}
    for name, share, room in (("held", 8, 2**30), ("stored", 2**40, 100 * 96 * 96 * 3)):
        monkeypatch.setattr(arrays, "_SHARE", share)
        monkeypatch.setattr(cells_module, "MAX_ARRAY_BYTES", room)
        if shared:
            monkeypatch.setenv("BLOODCELL_SHARED", str(tmp_path / f"{name}_shared"))
        recipe = check_recipe({"notebook": "03_custom_cnn", "recipe": name, "source": str(source),
                               "out": str(tmp_path / name), "epochs": 2, "test_share": 0.1,
                               "augmentation": ["RandomFlip", "CutMix"], "balance": "oversample",
                               "on_device": name == "stored"})  # asked for, and not possible
        splits = prepare(recipe)
        assert isinstance(splits.balanced.images, StoredImages) == (name == "stored")
        model = keras.Sequential([keras.Input((96, 96, 3), dtype="uint8"),
                                  keras.layers.Rescaling(1 / 255),
                                  keras.layers.GlobalAveragePooling2D(),
                                  keras.layers.Dense(8, "softmax", kernel_initializer="zeros")])
        fit(model, splits.balanced, splits.val, recipe, Run(recipe))
        found[name] = [splits.test.images, splits.val.ids, splits.seen,
                       *model.get_weights()]
        if name == "stored":
            with pytest.raises(DataError, match="images: unpacks to"):
                np.asarray(splits.train.images)
        monkeypatch.setattr(cells_module, "MAX_ARRAY_BYTES", 2**30)
        found[name].append(np.asarray(splits.train.images))
    for held, stored in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(held, stored)


@pytest.mark.parametrize("epochs, early", [(2, False), (3, True)])
def test_patience_that_ends_with_the_last_epoch_stops_nothing_early(tmp_path, epochs, early):
    recipe = check_recipe({"notebook": "03_custom_cnn", "recipe": "one", "epochs": epochs,
                           "eager": True, "patience": 1, "learning_rate": 1e-12,
                           "monitor": "val_accuracy", "out": str(tmp_path),
                           "source": "synthetic:n=64"})
    fitted = fit(little(), CELLS, CELLS, recipe, Run(recipe))
    assert (len(fitted.history["loss"]), fitted.stopped_early) == (2, early)

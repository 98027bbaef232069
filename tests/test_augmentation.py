"What augmentation and optimizers do to numbers: limits, other backends, settings of the command."
import os
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
import yaml
from imblearn.over_sampling import SMOTE

from bloodcell_nb.augment.policies import POLICIES, check_policy, weakened, with_noise
from bloodcell_nb.augment.registry import OPERATIONS, Range
from bloodcell_nb.data import analysis
from bloodcell_nb.data.analysis import balance_classes
from bloodcell_nb.data.cells import Cells
from bloodcell_nb.data.corruptions import CORRUPTIONS, STAND_IN, corrupt, distort
from bloodcell_nb.data.synthetic import draw_cells
from bloodcell_nb.runs.plan import with_settings
from bloodcell_nb.runs.recipes import read_recipe, recipes
from bloodcell_nb.runs.schemas import WEIGHT_DECAY


@pytest.mark.parametrize("name", [*CORRUPTIONS, *STAND_IN])
def test_a_distortion_at_both_ends_of_its_range(name):
    "Of a cell and of black, white and plain images: bytes, the same again, and no warning."
    plain = [np.full((96, 96, 3), level, np.uint8) for level in (0, 255, 77)]
    images = np.stack([draw_cells(8).images[0], *plain])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for end in (0, 1):
            first, again = (corrupt(images, name, 1 + 4 * end) if name in CORRUPTIONS else np.stack(
                [distort(image, [name], np.random.default_rng(3), end) for image in images])
                for _ in range(2))
            assert first.dtype == np.uint8 and first.shape == images.shape
            np.testing.assert_array_equal(first, again)


def test_a_named_policy_is_recorded_as_its_operations():
    recipe = recipes()["custom_cnn_heavy"]
    assert yaml.safe_load(recipe.read_text(encoding="utf-8"))["augmentation"] == "heavy"
    assert read_recipe(recipe).model_dump()["augmentation"] == POLICIES["heavy"]


def test_a_whole_number_is_weakened_as_its_float_is():
    numbers = {(name, key): one.allowed[key].most for name, one in OPERATIONS.items()
               for key, default in one.defaults.items()
               if isinstance(default, float) and isinstance(one.allowed[key], Range)}
    assert ("GaussianNoise", "stddev") in numbers
    for (name, key), most in numbers.items():
        whole, same = (weakened(check_policy([{name: {key: kind(most)}}]), 0.5)
                       for kind in (int, float))
        assert whole == same
    inner = {"RandomApply": {"k": 1, "of": [{"GaussianNoise": {"stddev": 20}}]}}
    assert weakened(check_policy([inner]), 0.5)[0][1]["of"][0][1] == {"stddev": 10}


def plain_cells(counts):
    "Cells of noise, so many of each class."
    images = np.random.default_rng(0).integers(0, 256, (sum(counts), 16, 16, 3), np.uint8)
    return Cells(images, np.repeat(np.arange(len(counts)), counts), tuple("abcdefgh"[:len(counts)]))


def peak(make):
    "The most bytes that something takes while it is made, and what it gives."
    make()  # imports
    tracemalloc.start()
    try:
        made = make()
        return tracemalloc.get_traced_memory()[1], made
    finally:
        tracemalloc.stop()


def test_noise_takes_little_memory_and_is_drawn_as_if_at_once():
    cells = plain_cells([2000])
    noise = np.random.default_rng(3).normal(0, 12.5, cells.images.shape).astype(np.float32)
    most, noisy = peak(lambda: with_noise(cells, 12.5, 3))
    np.testing.assert_array_equal(noisy.images, np.clip(np.round(cells.images + noise), 0, 255))
    assert most < 4 * cells.images.nbytes


@pytest.mark.parametrize("counts", [[3, 300], [4] * 7 + [200], [90, 220, 110, 200, 90, 100, 230]])
def test_balancing_says_how_much_memory_it_takes(monkeypatch, counts):
    "And SMOTE's images are as those of one call for all classes."
    cells, asked = plain_cells(counts), []
    monkeypatch.setattr(analysis, "check_memory", lambda needed, where: asked.append(needed))
    for method in ("oversample", "smote"):
        most, balanced = peak(lambda method=method: balance_classes(cells, method))
        assert most - 2**20 < asked[-1] < 3 * most
    flat, labels = SMOTE(random_state=0, k_neighbors=min(5, min(counts) - 1)).fit_resample(
        cells.images.reshape(len(cells), -1).astype(np.float32), cells.labels)
    np.testing.assert_array_equal(balanced.labels, labels)
    np.testing.assert_array_equal(balanced.images.reshape(len(flat), -1), np.round(flat))


def test_a_decay_follows_the_optimizer_unless_it_is_named():
    chosen = [read_recipe(recipes()[name]) for name in ("custom_cnn", "efficientnet_lite0_heavy")]

    def decays(*settings):
        return [recipe.weight_decay for recipe in with_settings(chosen, settings)]

    assert decays() == [0, WEIGHT_DECAY]
    assert decays("optimizer=adamw") == [WEIGHT_DECAY] * 2
    assert decays("optimizer=lion") == [0, 0]
    assert decays("weight_decay=0.2", "optimizer=adamw") == [0.2, 0.2]


OTHER_BACKEND = """
import keras, numpy as np
from bloodcell_nb.augment.policies import OPERATIONS, Policy
from bloodcell_nb.training.step import augmented
from bloodcell_nb.data.synthetic import draw_cells

cells = draw_cells(8)
images, labels = cells.images.astype("float32"), np.eye(8, dtype="float32")
for name in ("MixUp", "CutMix", "RandomZoom", "Solarization", "GridMask", "Overlay"):
    for limit in (0, 1):
        given = {key: limit * allowed.most for key, allowed in OPERATIONS[name].allowed.items()
                 if isinstance(OPERATIONS[name].defaults[key], float)}
        found, mixed = map(np.asarray, Policy([{name: given}], 1)(images, labels))
        assert np.isfinite(found).all() and 0 <= found.min() and found.max() <= 255, (name, limit)
        np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=1e-5)
        if OPERATIONS[name].family == "mixing" and not limit:
            np.testing.assert_allclose(found, images, atol=1e-3)
            np.testing.assert_array_equal(mixed, labels)
turn = [{"RandomRotation": {"factor": 0.001}}]
network = keras.Sequential([keras.Input((96, 96, 3), dtype="uint8"), keras.layers.Rescaling(1.0)])
shown = augmented(network, Policy(turn), batch_size=8)(
    {"images": cells.images, "labels": labels}, training=True)["probabilities"]
assert abs(np.asarray(shown).mean() - images.mean()) < 0.05
"""


def test_operations_under_jax(under_jax):
    "Limits, mixing with alpha 0 and rounding, as reference/augment/policies has it for TensorFlow."
    done = subprocess.run([sys.executable, "-c", OTHER_BACKEND], capture_output=True, text=True,
                          env=os.environ | under_jax)
    assert done.returncode == 0, done.stderr[-2000:]

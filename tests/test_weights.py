"Pretrained weights: the same network whichever way they come."
import ast
import io
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
from filelock import FileLock, Timeout
from keras.src.applications.convnext import ConvNeXt
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group
from keras.src.utils import file_utils

import bloodcell_nb
from bloodcell_nb.data.cells import DataError
from bloodcell_nb.networks import pretrained as transfer
from bloodcell_nb.networks.convnext import CONVNEXTS
from bloodcell_nb.networks.efficientnet import load_arrays, weights_file
from bloodcell_nb.networks.pretrained import load_backbone
from bloodcell_nb.networks.speed import precision
from bloodcell_nb.runs.keys import run_key
from bloodcell_nb.runs.plan import with_settings
from bloodcell_nb.runs.recipes import check_recipe
from bloodcell_nb.runs.run import Run
from bloodcell_nb.runs.weight_files import keras_models, one_download
from bloodcell_nb.training.fit import Fit

SIDE = (32, 32)
RNG = np.random.default_rng(0)
# a bright image and a dark one
PIXELS = RNG.integers([[[[0]]], [[[0]]]], [[[[256]]], [[[64]]]], (2, *SIDE, 3)).astype("float32")


def features(network):
    return np.asarray(network(PIXELS, training=False))


def drawn(network):
    "A network whose weights are all drawn, statistics too, and which tells images apart."
    rng = np.random.default_rng(0)  # whatever was drawn before
    network.set_weights([rng.uniform(0.5, 1.5, w.shape) if w.ndim < 2
                         else rng.normal(0, w.std() + 0.01, w.shape)
                         for w in network.get_weights()])
    one, other = features(network)
    assert np.abs(one - other).max() > 5e-4 * np.abs(one).max()
    return network


def keras_file(network, folder, name):
    "Write a network's weights as keras.applications keeps its downloads."
    with h5py.File(folder / name, "w") as file:
        save_weights_to_hdf5_group(file, network)
    return folder / name


def serve(monkeypatch, folder):
    "Let Keras find its downloads in a folder."
    monkeypatch.setattr(file_utils, "get_file", lambda name, *_, **__: str(folder / name))


@pytest.fixture(scope="module")
def b0(tmp_path_factory):
    "A folder that holds drawn weights of EfficientNetB0 under Keras' own name."
    folder = tmp_path_factory.mktemp("keras")
    plain = keras.applications.EfficientNetB0(include_top=False, weights=None,
                                              input_shape=(*SIDE, 3), pooling="avg")
    keras_file(drawn(plain), folder, "efficientnetb0_notop.h5")
    return folder


def test_a_file_of_weights_makes_the_network_that_imagenet_makes(b0, monkeypatch):
    """EfficientNet-B: by Keras' download, the same file, and the folder that holds it; what is
    saved from either goes into the other; random weights have the same layers.
    """
    serve(monkeypatch, b0)
    known = load_backbone("EfficientNetB0", SIDE, "imagenet")
    wanted = features(known)
    for place in (b0 / "efficientnetb0_notop.h5", b0):
        np.testing.assert_array_equal(features(load_backbone("EfficientNetB0", SIDE, str(place))),
                                      wanted)
    known.save_weights(b0 / "saved.weights.h5")
    again = load_backbone("EfficientNetB0", SIDE, str(b0 / "saved.weights.h5"))
    np.testing.assert_array_equal(features(again), wanted)
    fresh = load_backbone("EfficientNetB0", SIDE, "none")
    assert [type(layer) for layer in fresh.layers] == [type(layer) for layer in known.layers]
    mean = next(layer for layer in fresh.layers if isinstance(layer, keras.layers.Normalization))
    np.testing.assert_allclose(np.ravel(mean.mean), [0.485, 0.456, 0.406], rtol=1e-6)
    for network in (again, fresh):  # its layers belong to one graph, which can be cut
        outputs = [layer.output for layer in network.layers]
        np.testing.assert_array_equal(keras.Model(network.input, outputs)(PIXELS)[-1],
                                      features(network))


def test_the_float32_copy_of_a_network_is_the_network():
    "What was trained in bfloat16 is saved in float32, its input's normalization too."
    with precision(SimpleNamespace(mixed_precision=True)):
        norm = keras.layers.Normalization()
        backbone = keras.Sequential([keras.Input((*SIDE, 3)), norm,
                                     keras.layers.GlobalAveragePooling2D()])
        mixed = keras.Sequential([keras.Input((*SIDE, 3)), backbone])
    norm.set_weights([np.array([100, 120, 140]), np.array([4, 9, 16]), np.array(0)])
    norm.finalize_state()
    final = Fit(mixed, {}, (), 1, False, {}, 0.0).final
    np.testing.assert_allclose(features(final), (PIXELS.mean(axis=(1, 2)) - [100, 120, 140])
                               / [2, 3, 4], rtol=1e-4, atol=1e-4)


def test_convnext_takes_keras_own_file(tmp_path, monkeypatch):
    "And one that our own network wrote; a file of another network is refused in one line."
    depths, widths = (1, 1, 2, 1), (8, 16, 24, 32)
    monkeypatch.setitem(CONVNEXTS, "ConvNeXtTiny", (depths, widths))
    monkeypatch.setattr(keras.applications, "ConvNeXtTiny", partial(
        ConvNeXt, depths, widths, name="convnext_tiny", weights_name="convnext_tiny"))
    theirs = drawn(keras.applications.ConvNeXtTiny(include_top=False, weights=None,
                                                   input_shape=(*SIDE, 3), pooling="avg"))
    wanted = features(theirs)
    file = keras_file(theirs, tmp_path, "convnext_tiny_notop.h5")
    theirs.save_weights(tmp_path / "keras.weights.h5")
    for place in (file, tmp_path, tmp_path / "keras.weights.h5"):
        network = load_backbone("ConvNeXtTiny", SIDE, str(place), drop_path=0.2)
        np.testing.assert_allclose(features(network), wanted, atol=2e-6)
    network.save_weights(tmp_path / "ConvNeXtTiny.weights.h5")  # found before Keras' in the folder
    ours = load_backbone("ConvNeXtTiny", SIDE, str(tmp_path))
    np.testing.assert_array_equal(features(ours), features(network))
    little = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    other = keras_file(little, tmp_path, "x.h5")
    for name in ("ConvNeXtTiny", "ConvNeXtAtto"):
        with pytest.raises(DataError, match=f"weights x.h5 do not fit for {name}") as error:
            load_backbone(name, SIDE, str(other))
        assert "\n" not in str(error.value) and len(str(error.value)) < 350


def recipe(**values):
    return check_recipe({"notebook": "04_efficientnet", "recipe": "one", "source": "synthetic:n=64",
                         "backbone": "ResNet50", "phases": [
                             {"trainable": "head", "epochs": 1, "learning_rate": 1e-3}]} | values)


def test_the_key_of_a_run_knows_which_file_of_a_folder_it_begins_with(tmp_path):
    name = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    (tmp_path / name).write_text("one")
    run = Run(recipe(weights=str(tmp_path)))
    (tmp_path / "EfficientNetB0.weights.h5").write_text("of another backbone")
    assert run_key(run.recipe) == run.key == run_key(recipe(weights=str(tmp_path / name)))
    (tmp_path / name).write_text("two")
    assert run_key(run.recipe) != run.key
    assert run.finish({})["recipe"]["weights"] == name
    with pytest.raises(DataError, match="has no file of Xception; expected Xception.weights.h5 or "
                                        "xception_weights_tf_dim_ordering_tf_kernels_notop.h5"):
        run_key(recipe(weights=str(tmp_path), backbone="Xception"))


def test_a_folder_stands_in_the_place_of_imagenet_alone(tmp_path):
    "So one setting serves a whole study, and what begins at random still does."
    both = [recipe(), recipe(recipe="two", weights="none")]
    assert [one.weights for one in with_settings(both, [f"weights={tmp_path}"])] == [
        str(tmp_path), "none"]
    with pytest.raises(DataError, match="expected KEY=VALUE"):
        with_settings(both[1:], [f"weights={tmp_path}"])


def test_one_run_at_a_time_downloads(tmp_path, monkeypatch):
    "While Keras may write its file, nobody else of this machine reads it."
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    built = []

    def build(**_):
        with pytest.raises(Timeout), FileLock(keras_models() / ".bloodcell_download.lock",
                                              timeout=0):
            pass
        built.append(threading.current_thread().name)
        return keras.Sequential([keras.Input((2,))])

    monkeypatch.setattr(keras.applications, "ResNet50", build)
    threads = [threading.Thread(target=load_backbone, args=["ResNet50", SIDE]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(built)) == 3 and keras_models() == tmp_path / "models"
    with one_download():  # and it is free again
        assert transfer.one_download is one_download


def test_only_a_training_keeps_freed_memory():
    "Whoever loads a network to predict gives back what a batch needed."
    callers = set()
    for path in Path(bloodcell_nb.__file__).parent.rglob("*.py"):
        calls = (node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, ast.Call))
        if any(getattr(called, "id", "") == "keep_freed_memory" for called in calls):
            callers.add(path.name)
    assert callers == {"fit.py"}


def test_a_file_of_arrays_is_taken_whole_or_refused(tmp_path):
    "Lite0's, cut, damaged, of other kinds: a line says why, and no weight is set. Lite2's goes in."
    network, lite2 = (load_backbone(f"EfficientNetLite{k}", (96, 96), weights)
                      for k, weights in ((0, "imagenet"), (2, "none")))
    content = weights_file("EfficientNetLite0", "imagenet").read_bytes()
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    keys, before, single = list(arrays), network.get_weights(), io.BytesIO()
    np.save(single, np.zeros(3))
    for given, words, into in (
        (content[:3_000_000], "given.npz cannot be read (BadZipFile", network),
        (content[:4_000_000] + b"x" + content[4_000_001:], "cannot be read (BadZip", network),
        (b"no weights at all", "given.npz cannot be read", network),
        (b"", "given.npz cannot be read", network),
        (single.getvalue(), "given.npz cannot be read", network),
        ({"a": np.array([{}])}, "given.npz cannot be read", network),
        (arrays, "245 arrays; expected the 320 of efficientnetlite2", lite2),
        ({keys[1]: arrays[keys[1]], keys[0]: arrays[keys[0]]} | arrays,
         "001_stem_bn_gamma is float32 (32,); expected finite floats (3, 3", network),
        (arrays | {keys[0]: np.full_like(arrays[keys[0]], np.nan)},
         "given.npz: 000_stem_kernel is float16 (3, 3, 3, 32); expected finite", network),
        (arrays | {keys[0]: np.ones((3, 3, 3, 32), int)}, "int64 (3, 3, 3, 32)", network),
    ):
        path = tmp_path / "given.npz"
        path.write_bytes(given) if isinstance(given, bytes) else np.savez(path, **given)
        with pytest.raises(DataError) as refused:
            load_arrays(into, path)
        line = str(refused.value)
        assert words in line and "\n" not in line and len(line) < 350, line
    assert all(map(np.array_equal, before, network.get_weights()))
    np.savez(tmp_path / "lite2.npz", *lite2.get_weights())
    filled = load_backbone("EfficientNetLite2", (96, 96), str(tmp_path / "lite2.npz"))
    assert all(map(np.array_equal, filled.get_weights(), lite2.get_weights()))
    with pytest.raises(DataError, match="no file"):
        load_backbone("EfficientNetLite0", (96, 96), "/no/such.npz")

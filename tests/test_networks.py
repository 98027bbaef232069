"Networks from elsewhere, looked at once when they are loaded; and ours, read elsewhere."
import io
import json
import os
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from test_command import one_line_error

from bloodcell_nb.data.cells import DataError
from bloodcell_nb.data.negatives import DRAWN_GRAIN, grain, no_cells
from bloodcell_nb.data.sources import load
from bloodcell_nb.data.synthetic import draw_cells
from bloodcell_nb.inference.classifier import load_classifier
from bloodcell_nb.inference.published import find_model
from bloodcell_nb.inference.submission import write_submission
from bloodcell_nb.networks.custom_cnn import custom_cnn
from bloodcell_nb.networks.explain import (
    MAX_NETWORK_BYTES,
    copy_network,
    embed,
    load_model,
    save_network,
    split_model,
)
from bloodcell_nb.networks.pretrained import preprocess, set_trainable, transfer_model
from bloodcell_nb.runs.recipes import project_root, read_recipe, recipes

OLDER = project_root() / ".venv" / "older"  # a folder for each version: `make test` fills it


def network(shape=(96, 96, 3), classes=8, activation="softmax", dtype="uint8"):
    image = keras.Input(shape, dtype=dtype)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, strides=4)(layers.Rescaling(1 / 255)(
        image)))
    return keras.Model(image, layers.Dense(classes, activation)(x))


def spoiled(value):
    model = network()
    model.layers[-1].bias.assign(np.full(8, value))
    return model


FOREIGN = {
    "logits": (lambda: network(activation=None), ["no probabilities", "end it with a softmax"]),
    "several_labels": (lambda: network(activation="sigmoid"), ["no probabilities"]),
    "not_a_number": (lambda: spoiled(np.nan), ["not finite"]),
    "grey": (lambda: network((96, 96, 1)), ["(96, 96, 1)", "expected three channels"]),
    "any_size": (lambda: network((None, None, 3)), ["any size", "keras.Input((96, 96, 3))"]),
    "one_class": (lambda: network(classes=1), ["gives 1 classes; expected 8"]),
    "two_inputs": (lambda: keras.Model([one := keras.Input((8,)), two := keras.Input((8,))],
                                       layers.Dense(8, "softmax")(layers.Add()([one, two]))),
                   ["expected a classifier of images"])}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_network_costs_one_line(tmp_path, capsys, name):
    build, words = FOREIGN[name]
    keras.utils.set_random_seed(0)
    build().save(tmp_path / f"{name}.keras")
    cat = project_root() / "nbs" / "images" / "cat.png"
    one_line_error(capsys, ["predict", cat, "--model", tmp_path / f"{name}.keras"], name, *words)
    one_line_error(capsys, ["submission", tmp_path / f"{name}.keras", "--out",
                            tmp_path / "a.zip"], *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.keras"]


def test_float_networks_and_half_precision_are_answered(tmp_path):
    for dtype, last in (("float32", "float32"), ("int32", "float32"), ("uint8", "float16"),
                        ("uint8", "bfloat16")):
        model = network(dtype=dtype)
        model = keras.Model(model.inputs, layers.Activation("linear", dtype=last)(model.output))
        model.save(tmp_path / "model.keras")
        assert load_model(tmp_path).output_shape == (None, 8)


def rewritten(path, config=None, weights=None):
    "A saved network with another configuration or other weights, deflated."
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    if config:
        entries["config.json"] = config(entries["config.json"].decode()).encode()
    if weights:
        entries["model.weights.h5"] = weights
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def hollow(shape):
    "An HDF5 file of a data set that says that it is large, and holds nothing."
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_dataset("layers/dense/vars/0", shape, "float32", chunks=(1, 1024))
    return stream.getvalue()


def test_a_network_that_unpacks_to_too_much_is_not_loaded(tmp_path, monkeypatch):
    "Deflated, chunks that HDF5 never stored, and a configuration that asks for more."
    path = tmp_path / "model.keras"
    loaded = []
    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: loaded.append(1))
    network().save(path)
    rewritten(path, weights=hollow((2**20, 2**14)))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"unpacks to 64.00 GiB; expected at most 2 GiB"):
        load_model(path)
    for old, new, words in (
            ('"units": 8', '"units": 2000000000', "is 2000000000 wide"),
            ('"kernel_size": [3, 3]', '"kernel_size": [3, 9000000]', "is 9000000 wide"),
            ('"input_shape": [null, 4]', '"input_shape": [null, 90000000]',
             "is built for 90000000 numbers")):
        custom_cnn((32, 32), filters=(4,), dense_units=8).save(path)
        rewritten(path, config=lambda text, old=old, new=new: text.replace(old, new, 1))
        with pytest.raises(DataError, match=f"a layer {words}; the weights are of other layers"):
            load_model(path)
    network().save(path)
    rewritten(path, weights=bytes(100 * 2**20))
    monkeypatch.setattr("bloodcell_nb.networks.explain.MAX_NETWORK_BYTES", 90 * 2**20)
    with pytest.raises(DataError, match="unpacks to 0.10 GiB"):
        load_model(path)
    assert MAX_NETWORK_BYTES == 2 * 2**30 and path.stat().st_size < 2**20 and not loaded


GOOD = {"members": ["first", "second"], "weights": [0.5, 1.5], "temperature": 0.8, "views": 8,
        "class_names": list("abcdefgh"), "sure_above": 0.7, "familiar_above": 0.8,
        "cell_above": 0.3, "validation": {"clean": 0.97, "corrupted": 0.9, "stand_in": 0.7}}


@pytest.mark.parametrize("key, value, words", [
    ("temperature", 0, "temperature is 0"), ("temperature", float("nan"), "temperature is nan"),
    ("temperature", -1, "greater than 0"), ("temperature", "1", "valid number"),
    ("members", [], "at least 1 item"), ("members", ["first", "first"], "each once"),
    ("members", "first", "valid list"), ("members", [["first"], "x"], "valid string"),
    ("weights", [1.5, -0.5], "greater than or equal to 0"), ("weights", [1], "one a member"),
    ("weights", [0, 0], "expected one above 0"), ("weights", [1, float("inf")], "weights.1 is inf"),
    ("views", 3, "1, 2, 4 or 8"), ("class_names", ["a"] * 8, "each once"),
    ("class_names", [1, 2], "valid string"), ("sure_above", float("nan"), "sure_above is nan"),
    ("familiar_above", float("inf"), "familiar_above is inf"), ("cell_above", "x", "valid number"),
    ("validation", {"clean": 0.9}, "validation.corrupted is missing"),
    ("networks", ["a"], "one a member"), ("by_distance", [1.0], "at least 2 items"),
    ("by_distance", [1, 0], "greater than or equal to 0.001"),
    ("by_distance", [float("inf"), 1], "is inf"),
    ("surely", 1, "unknown key surely"),
    (None, [], "valid dict"), (None, "no JSON", "cannot be read")])
def test_ensemble_json_is_checked(tmp_path, key, value, words):
    settings = GOOD | {key: value} if key else value
    text = value if value == "no JSON" else json.dumps(settings)
    (tmp_path / "ensemble.json").write_text(text, encoding="utf-8")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.keras").touch()
    with pytest.raises(DataError, match=r"ensemble\.json: ") as refused:
        load_classifier([tmp_path], tmp_path)
    assert words in str(refused.value) and len(str(refused.value)) < 400, str(refused.value)
    (tmp_path / "ensemble.json").write_text(json.dumps(GOOD))
    found = load_classifier([tmp_path], tmp_path)
    assert found.weights == (0.25, 0.75) and found.views == 8 and found.cell_above == 0.3


_READ = """
import sys
import keras
import numpy as np
given = np.load(sys.argv[1])
for name in given.files:
    if name != "images":
        network = keras.saving.load_model(f"{name}.keras", compile=False, safe_mode=True)
        answers = np.asarray(network(given["images"], training=False))  # no graph for eight images
        print(keras.__version__, name, float(np.abs(answers - given[name]).max()))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "Networks as they are published, trained and handed in, and what they answer."
    place = tmp_path_factory.mktemp("saved")
    write_submission([find_model()], place / "submission.zip")
    with zipfile.ZipFile(place / "submission.zip") as archive:
        archive.extractall(place)
    keras.utils.set_random_seed(0)
    save_network(custom_cnn((96, 96), filters=(8, 16), dense_units=16), place / "cnn.keras")
    x = image = keras.Input((96, 96, 3), dtype="uint8")  # operations beside layers
    x = layers.Conv2D(4, 3, 4)(layers.Resizing(48, 48)(preprocess(x, "caffe")))
    x = layers.BatchNormalization()(layers.SeparableConv2D(8, 3)(x))
    x = layers.Dense(8, "softmax")(layers.GlobalAveragePooling2D()(x))
    save_network(keras.Model(image, x), place / "operations.keras")
    images = draw_cells(8).images
    answers = {path.stem: np.asarray(load_model(path)(images, training=False))
               for path in place.glob("*.keras")}
    np.savez(place / "given.npz", images=images, **answers)
    return place


@pytest.mark.parametrize("version", ["3.6.0", "3.10.0", "3.13.2", "3.14.0"])
def test_older_keras_reads_what_travels(saved, version):
    if not (OLDER / version / "keras").is_dir():
        pytest.skip(f"Keras {version}: make {OLDER.relative_to(project_root())}/.installed")
    done = subprocess.run([sys.executable, "-c", _READ, saved / "given.npz"], cwd=saved, text=True,
                          capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(OLDER / version)})
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(version)]
    with np.load(saved / "given.npz") as given:
        assert {line[1] for line in lines} == {*given.files} - {"images"}
    assert all(float(line[2]) < 1e-5 for line in lines), lines


def test_a_network_of_a_coming_keras_names_both_versions(tmp_path):
    network().save(tmp_path / "model.keras")
    rewritten(tmp_path / "model.keras", config=lambda text: text.replace(
        '"padding": "valid"', '"padding": "valid", "shape_of_things": 1'))
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        saved = json.loads(archive.read("metadata.json"))["keras_version"]
    with pytest.raises(DataError, match=f"saved by Keras {saved}, read by {keras.__version__} "):
        load_model(tmp_path)


def test_a_copy_is_the_same_each_time(tmp_path):
    "Byte by byte: a network is known by its hash."
    network().save(tmp_path / "model.keras")
    copies = [tmp_path / f"{k}.keras" for k in range(3)]
    copy_network(tmp_path / "model.keras", copies[0])
    copy_network(tmp_path / "model.keras", copies[1])
    copy_network(copies[0], copies[2])
    assert len({path.read_bytes() for path in copies}) == 1


def test_familiar_knows_what_is_no_cell(real_cells):
    """Masks, drawings, text, tissue and drawn cells, made from other cells than those that were
    fitted to, are told from validation cells.
    """
    val = real_cells.part("val")
    val = val[np.random.default_rng(0).permutation(len(val))[:160]]
    published = load_classifier([find_model("efficientnet_lite0_heavy")])
    assert (published.kinds(val.images) != "cell").mean() <= 0.02
    made = no_cells(val.images, 12, seed=1)
    unlike = {kind: (published.kinds(images) == "other").mean() for kind, images in made.items()}
    assert min(unlike[kind] for kind in ("mask", "discs", "text", "strokes", "empty field", "noise",
                                         "pattern", "red cells", "tissue", "photograph")) > 0.85
    assert np.mean(list(unlike.values())) > 0.9, unlike
    assert (published.kinds(draw_cells(48, seed=5).images) == "synthetic").mean() >= 0.95


def test_cells_of_another_microscope_are_not_called_synthetic(microscope):
    "Whatever the network says: the development microscope's cells have no drawn cell's grain."
    elsewhere = load(microscope, 96, every_class=False).images
    assert (grain(elsewhere) < DRAWN_GRAIN).mean() <= 0.03
    assert (grain(draw_cells(96, seed=9).images) < DRAWN_GRAIN).mean() >= 0.95


def test_the_reports_cnn():
    "Its layers, weights and rates, with and without batch normalisation."
    report, normed = custom_cnn(), custom_cnn(batch_norm=True, l2=0.002)
    assert [type(layer).__name__ for layer in report.layers] == [
        "InputLayer", "Rescaling", *["Conv2D", "Activation", "MaxPooling2D", "Dropout"] * 4,
        "GlobalAveragePooling2D", "Dense", "Dropout", "Dense"]
    convolutions = sum(9 * a * b + b for a, b in ((3, 32), (32, 64), (64, 128), (128, 256)))
    assert report.count_params() == convolutions + (256 * 256 + 256) + (256 * 8 + 8)
    assert [layer.rate for layer in report.layers
            if isinstance(layer, layers.Dropout)] == [0.25] * 4 + [0.5]
    assert {type(layer.kernel_initializer).__name__ for layer in report.layers
            if isinstance(layer, layers.Conv2D)} == {"HeUniform"}
    assert [type(layer).__name__ for layer in normed.layers
            if isinstance(layer, layers.BatchNormalization | layers.Dropout)] == [
                "BatchNormalization"] * 4 + ["Dropout"] * 2
    assert {round(float(layer.kernel_regularizer.l2), 6) for layer in normed.layers
            if getattr(layer, "kernel_regularizer", None)} == {0.002}
    assert custom_cnn((28, 28), 3).output_shape == (None, 3)


def test_lite0_with_a_head(tmp_path):
    """Its features are its backbone's, Grad-CAM's halves and a copy on disk give its answers, its
    layers are found by their names, and its batch normalisation learns nothing.
    """
    recipe = read_recipe(recipes()["efficientnet_lite0_head"])
    network = transfer_model(recipe.model_copy(update={"weights": "imagenet"}), (96, 96), 8)
    inner, to_numpy = network.get_layer("backbone"), keras.ops.convert_to_numpy
    noise = np.random.default_rng(1).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    answers = to_numpy(network(noise))
    assert np.allclose(embed(network, noise), to_numpy(inner(noise.astype("float32"))), rtol=0,
                       atol=1e-5)
    for least in (1, 6):  # over shortcuts too
        to_maps, head = split_model(network, least)
        assert to_maps.output_shape[1:3] == (max(least, 3),) * 2
        assert np.allclose(keras.ops.softmax(head(to_maps([noise]))), answers, rtol=0, atol=1e-5)
    network.save(tmp_path / "model.keras")  # of Keras' own layers alone
    assert np.allclose(load_model(tmp_path)(noise), answers, rtol=0, atol=1e-6)

    assert set_trainable(network, "layers block7, top_conv") == [
        "block7a_expand_conv", "block7a_dwconv", "block7a_project_conv", "top_conv"]
    assert set_trainable(network, "last 2") == ["top_conv"]  # its batch normalisation stays
    assert set_trainable(network, "head") == []
    assert len(set_trainable(network, "all", True)) == 2 * 49
    every = set_trainable(network, "all")
    # stem, top, and the convolutions of the 16 blocks, of which one has two
    assert len(every) == 49 and not any(name.endswith("_bn") for name in every)

    statistics = inner.get_layer("block4a_bn").get_weights()
    network.compile("adam", "categorical_crossentropy", jit_compile=False, run_eagerly=True)
    network.train_on_batch(noise, np.eye(8)[:4])
    assert all(map(np.array_equal, inner.get_layer("block4a_bn").get_weights(), statistics))

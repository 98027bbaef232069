"What a user has stays, and nothing that he asks for is passed over: files, names, empty values."
import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import yaml
from PIL import Image
from test_command import one_line_error, recipe
from test_report import MADE, RECORDS

from bloodcell_nb.augment import policies, registry
from bloodcell_nb.augment.policies import Policy
from bloodcell_nb.cli import main
from bloodcell_nb.data.cells import DataError
from bloodcell_nb.data.files import creating, replacing
from bloodcell_nb.data.sources import load, save
from bloodcell_nb.data.synthetic import draw_cells
from bloodcell_nb.evaluation.search import _mend_journal
from bloodcell_nb.inference.card import write_card
from bloodcell_nb.inference.external import class_mapping
from bloodcell_nb.inference.predict import evidence_files
from bloodcell_nb.inference.publish import _put, publish
from bloodcell_nb.inference.submission import write_submission
from bloodcell_nb.runs import notebook_html
from bloodcell_nb.runs.recipes import RecipeError, check_recipe, read_recipe
from bloodcell_nb.runs.run import Run
from bloodcell_nb.runs.run_folders import find_run
from bloodcell_nb.runs.tensorboard import check_events_folder
from bloodcell_nb.training.fit import fit

GOOD, NETWORKS = MADE.name, Path(__file__).resolve().parent.parent / "models"


@pytest.fixture
def tree(tmp_path):
    "Class folders of drawn cells."
    assert main(["convert", "synthetic:n=32", str(tmp_path / "cells")]) == 0
    return tmp_path / "cells"


def test_a_new_file_takes_no_name_that_something_has(tmp_path, capsys):
    (tmp_path / "link.npz").symlink_to(tmp_path / "nowhere")
    one_line_error(capsys, ["convert", "synthetic:n=32", tmp_path / "link.npz"], "exists already")
    assert os.path.islink(tmp_path / "link.npz")
    one_line_error(capsys, ["convert", "synthetic:n=32", tmp_path / "cells.zip"], "ends in .npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.npz"]


def test_nothing_is_written_among_the_cells(tree, tmp_path, capsys):
    before = sorted(tree.rglob("*"))
    for place in (tree / "copy", tree / "new" / "deep.npz"):
        one_line_error(capsys, ["convert", tree, place], "would become its cells")
    run = ["run", "custom_cnn", "--data", tree, "--out", tmp_path / "out", "--tensorboard"]
    for place in (tree, tree / "events", tmp_path / "out", tmp_path / "out" / "custom_cnn" / "a"):
        one_line_error(capsys, [*run, place], "--tensorboard", "name another folder")
    assert not (tmp_path / "out").exists()
    image = next(tree.rglob("*.png"))
    one_line_error(capsys, ["predict", image.parent, "--grad-cam", image.parent],
                   "in a folder that is read")
    assert sorted(tree.rglob("*")) == before


@pytest.mark.parametrize("place", [
    "small", "small.partial/a", "small.partial", "earlier", "earlier/small-0", ".shared.partial/a",
    ".locks.partial", "other.partial", "other/a"])
def test_event_files_lie_in_no_place_of_a_run(tmp_path, place):
    "Finished, unfinished or set aside, of this command or another, nor in what runs share."
    small = read_recipe(recipe(tmp_path, "small"))
    (tmp_path / "out" / "other").mkdir(parents=True)
    (tmp_path / "out" / "other" / "status.json").write_text(json.dumps(
        {"recipe": "other", "state": "done", "key": "1"}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=f"--tensorboard .*{place} .*name another folder"):
        check_events_folder(str(tmp_path / "out" / place), tmp_path / "out", [small])
    assert sorted(tmp_path.rglob("*")) == before
    assert check_events_folder(str(tmp_path / "out" / "events"), tmp_path / "out", [small])


class Name(str):
    "A text that counts how often it is compared."
    compared = 0

    def __eq__(self, other):
        Name.compared += 1
        return str(self) == str(other)

    __hash__ = str.__hash__


def test_many_drawings_are_named_in_one_go(tmp_path):
    "Each name is looked at once, not beside each other."
    names = [Name(f"cell_{k}") for k in range(300)]
    files = evidence_files([SimpleNamespace(stem=name) for name in names], tmp_path,
                           [""] * len(names))
    assert [path.name for path in files] == [f"cell_{k}_grad_cam.png" for k in range(300)]
    assert Name.compared < 3 * len(names)
    with pytest.raises(DataError, match="two images are named cell_7, and so would be their"):
        evidence_files([tmp_path / f"{name}.png" for name in [*names, "cell_7"]], tmp_path,
                       [""] * 301)


@pytest.fixture
def disk(monkeypatch):
    "What is put on the disk, and what gets or loses a name, in order."
    told = []

    def naming(name, source, target):
        told.append(("named", str(target)))
        name(source, target)

    monkeypatch.setattr(os, "fsync", lambda number: told.append(
        ("on disk", os.fstat(number).st_ino)))
    for kind in ("link", "rename", "replace"):
        monkeypatch.setattr(os, kind, partial(naming, getattr(os, kind)))
    return told


def number(path):
    return os.stat(path).st_ino


@pytest.mark.skipif(os.name != "posix", reason="elsewhere folders are not flushed")
@pytest.mark.parametrize("name", ["new.npz", "new"])
def test_what_is_created_lies_on_the_disk_before_it_has_its_name(tmp_path, disk, name):
    "File by file; then the folder that has the name."
    cells, path = draw_cells(16), tmp_path / name
    save(cells, path)
    (named,) = [k for k, (kind, _) in enumerate(disk) if kind != "on disk"]
    assert disk[named][1] == str(path)
    before = {what for _, what in disk[:named]}
    assert before == {number(one) for one in (path, *path.rglob("*"))}
    assert disk[named + 1:] == [("on disk", number(tmp_path))]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere folders are not flushed")
def test_a_network_lies_on_the_disk_before_another_is_dropped(tmp_path, disk):
    models = tmp_path / "models"
    work, folder, before = models / ".new" / "one", models / "one", models / ".new" / "before"
    for place in (work, folder):
        place.mkdir(parents=True)
        for name in ("model.keras", "features.npz", "ensemble.json"):
            (place / name).write_text(place.name)
    new = {number(one) for one in (work, *work.iterdir())}
    _put(work, folder, before, True)
    names = [k for k, (kind, _) in enumerate(disk) if kind != "on disk"]
    assert [disk[k][1] for k in names] == [str(before), str(folder)]
    assert {what for _, what in disk[:names[0]]} == new
    assert ("on disk", number(models)) in disk[names[1]:] and before.exists()


def test_a_drawing_takes_the_place_of_a_drawing_alone(tmp_path, capsys):
    image, drawing = tmp_path / "cell.png", tmp_path / "cell_grad_cam.png"
    Image.fromarray(draw_cells(16).images[0]).save(image)
    drawing.write_text("mine")
    predict = ["predict", str(image), "--grad-cam", str(tmp_path), "--model",
               "convnext_atto_heavy"]
    one_line_error(capsys, predict, "cell_grad_cam.png: exists already")
    assert drawing.read_text() == "mine"
    drawing.unlink()
    assert [main(predict), main(predict)] == [0, 0]
    held = drawing.read_bytes()
    Image.fromarray(draw_cells(16).images[1]).save(image)  # another of that name
    one_line_error(capsys, predict, "cell_grad_cam.png: exists already, and is no drawing of this")
    assert drawing.read_bytes() == held


def with_status(folder, **values):
    status = json.loads((folder / "status.json").read_text()) | values
    (folder / "status.json").write_text(json.dumps(status))


def test_publish_replaces_networks_alone(tmp_path):
    "Neither a folder that a record leads to, nor one with anything beside a network."
    models, run = tmp_path / "models", tmp_path / GOOD
    shutil.copytree(RECORDS / GOOD, run)
    shutil.copy(NETWORKS / GOOD / "model.keras", run)
    (models / GOOD).mkdir(parents=True)
    (models / GOOD / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="thesis.txt, no part of one; move it away"):
        publish(run, "synthetic:n=32", models, instead=True)
    with pytest.raises(DataError, match="expected the folder of one finished training"):
        publish(tmp_path, "synthetic:n=32", models)  # of the folder above
    with_status(run, recipe="../benchmarks")
    with pytest.raises(DataError, match="'../benchmarks' cannot name a file or folder"):
        publish(run, "synthetic:n=32", models, instead=True)
    assert (models / GOOD / "thesis.txt").read_text() == "mine"


def test_a_card_that_was_changed_stays(tmp_path, monkeypatch, capsys):
    one_line_error(capsys, ["card", ""], "model is empty")
    folder = tmp_path / GOOD
    shutil.copytree(NETWORKS / GOOD, folder)
    write_card(folder)
    card = folder / "README.md"
    card.write_text(card.read_text() + "Mine.\n")
    with pytest.raises(DataError, match="was changed by hand, and stays"):
        write_card(folder)
    assert card.read_text().endswith("Mine.\n")


def test_a_run_removes_nothing(tmp_path):
    "Not notes in the folder of a run that failed, nor what lies where papermill is to write."
    work = tmp_path / "cnn.partial"
    work.mkdir()
    (work / "status.json").write_text(json.dumps({"recipe": "cnn", "state": "failed", "key": "a"}))
    (work / "notes.md").write_text("mine")
    said = []
    assert not find_run(tmp_path / "cnn", "b", said.append)
    assert "set aside" in said[0]
    assert (tmp_path / "earlier" / "cnn-a.partial" / "notes.md").read_text() == "mine"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model.keras").write_text("mine")
    settings = check_recipe({"notebook": "01_analysis", "recipe": "a", "source": "synthetic:n=32",
                             "out": str(tmp_path / "own")})
    with pytest.raises(RecipeError, match="holds files of no run"):
        Run(settings)
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["model.keras"]


def test_a_table_that_another_wrote_stays(tmp_path, capsys):
    shutil.copytree(RECORDS.parent / "course" / "analysis", tmp_path / "analysis")
    (tmp_path / "results.csv").write_text("run\nmonday 5 km\n")
    one_line_error(capsys, ["page", tmp_path], "results.csv: bloodcell did not write it")
    (tmp_path / "results.csv").unlink()
    (tmp_path / "index.html").symlink_to("none")
    one_line_error(capsys, ["page", tmp_path], "index.html: bloodcell did not write it")
    (tmp_path / "index.html").unlink()
    assert main(["page", str(tmp_path)]) == 0
    assert (tmp_path / "results.csv").read_text() == "run\n"
    assert main(["page", str(tmp_path)]) == 0, "its own is replaced"


def test_a_page_that_another_wrote_stays(tmp_path):
    shutil.copy(RECORDS / GOOD / "notebook.ipynb", tmp_path)
    (tmp_path / "notebook.html").write_text("my own page")
    with pytest.raises(DataError, match="was not written by bloodcell"):
        notebook_html.render(tmp_path / "notebook.ipynb")
    assert (tmp_path / "notebook.html").read_text() == "my own page"


def test_what_is_empty_is_no_default(tmp_path, capsys):
    "As of a shell's variable that is not set."
    out = tmp_path / "out"
    for arguments in (["run", "analysis", "--data", "", "--out", out], ["predict", ""],
                      ["page", ""], ["submission", ""], ["run", "analysis", "--out", ""],
                      ["predict", "cell.png", "--grad-cam", ""]):
        one_line_error(capsys, arguments, "is empty; ", "give it a value")
    for arguments, words in ((["page", "a", "--notebooks", "x"], "invalid choice: 'x'"),
                             (["run", "analysis", "--data", ""], "--data is empty; leave it out"),
                             (["convert", "", "x"], "source is empty; give it a value")):
        one_line_error(capsys, arguments, words)
    assert not out.exists()


def test_what_is_given_twice_is_not_half_dropped(tmp_path, capsys):
    one_line_error(capsys, ["inspect", "synthetic:n=160,n=20"], "n is given twice")
    with pytest.raises(DataError, match="'a' is given twice"):
        class_mapping("a=basophil,a=platelet")
    assert list(class_mapping("b=platelet,a=basophil")) == ["a", "b"]  # one order: one run
    one_line_error(capsys, ["submission", "convnext_atto_heavy", "convnext_atto_heavy", "--out",
                            tmp_path / "a.zip"], "a network is named twice")
    path = recipe(tmp_path, "pair", notebook="06_ensemble", members=["cnn", "cnn"], filters=None,
                  dense_units=None, batch_size=None, epochs=None)
    one_line_error(capsys, ["run", path], "members holds cnn twice")


def test_an_npz_names_each_image_once(tmp_path, capsys):
    images, labels = np.zeros((16, 8, 8, 3), np.uint8), np.arange(16) % 8
    ids = np.array([f"{i}" for i in range(16)])
    ids[9] = ids[1]
    np.savez(tmp_path / "twice.npz", images=images, labels=labels, ids=ids)
    one_line_error(capsys, ["inspect", tmp_path / "twice.npz"], "ids holds '1' twice in a class")
    ids[9] = ids[2]  # of another class
    np.savez(tmp_path / "once.npz", images=images, labels=labels, ids=ids)
    assert len(load(tmp_path / "once.npz")) == 16


def test_a_full_disk_names_the_file_in_the_way(tmp_path):
    for write in (replacing, creating):
        for names in (lambda work: [], lambda work: [str(work)]):  # by which it is written
            with pytest.raises(OSError, match="No space left on device: .*/out.zip'"):
                with write(tmp_path / "out.zip") as work:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *names(work))
        assert list(tmp_path.iterdir()) == []


def test_an_operation_gives_images_as_it_got_them(monkeypatch):
    monkeypatch.setattr(registry, "OPERATIONS", registry.OPERATIONS.copy())
    monkeypatch.setattr(policies, "OPERATIONS", registry.OPERATIONS)
    images, labels = np.zeros((4, 8, 8, 3), np.float32), np.eye(4)
    for wrong in (lambda images, draw: images[:, :4], lambda images, draw: images[0],
                  lambda images, draw: keras.ops.cast(images, "uint8")):
        registry.OPERATIONS["Wrong"] = registry.Operation(wrong, "photometric", {}, {})
        with pytest.raises(DataError, match=r"Wrong gives .* expected .* shape \(4, 8, 8, 3\)"):
            Policy(["Wrong"])(images, labels)


def test_an_operation_that_gives_no_numbers_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "OPERATIONS", registry.OPERATIONS.copy())
    monkeypatch.setattr(policies, "OPERATIONS", registry.OPERATIONS)
    of = ["Wrong", {"RandomApply": {"k": 1, "of": ["RandomFlip"]}}]
    settings = check_recipe({
        "notebook": "03_custom_cnn", "recipe": "a", "source": "synthetic:n=32", "epochs": 1,
        "filters": [8], "out": str(tmp_path), "augmentation": "simple"})
    cells = load(settings.source)
    network = keras.Sequential([keras.Input((96, 96, 3), dtype="uint8"), keras.layers.Flatten(),
                                keras.layers.Dense(8, activation="softmax")])
    for policy, family, function, said in (
            (["RandomFlip", {"RandomApply": {"k": 1, "of": of}}], "photometric",
             lambda images, draw: images / 0 * 0, "operation Wrong gives NaN"),
            (["Wrong"], "photometric", lambda images, draw: images + np.inf, "NaN or infinite"),
            (["Wrong"], "mixing", lambda images, labels, draw: (images, 2 * labels - 1),
             "gives labels from -1 to 1; expected shares"),
            (["Wrong"], "mixing", lambda images, labels, draw: (images, labels[:, :3]), "mixes"),
            (["Wrong"], "mixing", lambda images, labels, draw: images, "operation Wrong mixes")):
        registry.OPERATIONS["Wrong"] = registry.Operation(function, family, {}, {})
        recipe = settings.model_copy(update={"augmentation": policy})
        with pytest.raises(DataError, match=said):
            fit(network, cells, cells, recipe, Run(settings))


def test_a_number_is_a_number(tmp_path, capsys):
    out = ["--data", "synthetic:n=32", "--out", tmp_path / "out"]
    for setting in ("seed=true", "epochs=true", "filters=[true]"):
        one_line_error(capsys, ["run", "custom_cnn", "--set", setting, *out],
                       "expected no true or false there")
    one_line_error(capsys, ["run", "custom_cnn", "--set", "seed=1:30", *out], "seed")
    for setting in ("batch_size=1000000", "class_weights=[0,0,0,0,0,0,0,0]"):
        one_line_error(capsys, ["run", "custom_cnn", "--set", setting, *out],
                       setting.partition("=")[0])
    for minutes in ("inf", "0", "nan"):
        one_line_error(capsys, ["run", "custom_cnn", "--timeout", minutes, *out], "--timeout")
    one_line_error(capsys, ["run", "analysis", "--set", "recipe=figures", *out],
                   "the folder of the page's figures")
    one_line_error(capsys, ["convert", "synthetic:n=32", tmp_path / "a.npz", "--seed", "7"],
                   "with --course")
    np.savez(tmp_path / "complex.npz", images=np.zeros((16, 8, 8, 3), np.uint8),
             labels=np.arange(16) % 8 + 0j)
    one_line_error(capsys, ["inspect", tmp_path / "complex.npz"], "expected whole numbers")


def test_a_submission_takes_the_homeworks_images(tmp_path):
    image = keras.Input((32, 48, 3), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    keras.Model(image, keras.layers.Dense(8, "softmax")(x)).save(tmp_path / "model.keras")
    with pytest.raises(DataError, match="takes images of 48x32; those of the homework have 96x96"):
        write_submission([tmp_path / "model.keras"], tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize("study", [
    {"runs": {"custom_cnn": []}}, {"runs": {"custom_cnn": [0]}, "set": {"epochs": "2024-01-01"}},
], ids=["no seed", "a date"])
def test_a_study_is_refused_in_a_line(study, tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study).replace("'2024-01-01'", "2024-01-01"))
    one_line_error(capsys, ["run", "--study", path, "--data", "synthetic:n=32", "--out",
                            tmp_path / "out"])
    assert not (tmp_path / "out").exists()


def test_a_journal_loses_nothing_but_a_cut_end(tmp_path):
    "Of another's file, and of one with a bad line amid good ones, everything stays."
    path, entry = tmp_path / "search.journal", '{"op_code": 0}\n'
    for text, said in (('{"day": 1}\nday 2: 400 cells\nday 3\n', "is no journal"),
                       (entry * 8 + "<<<<<<< HEAD\n" + entry * 9, "line 9 is none"),
                       (entry + '{"op_c\n' + entry, "line 2 is none")):
        path.write_text(text)
        with pytest.raises(RecipeError, match=said) as error:
            _mend_journal(path)
        assert path.read_text() == text and "\n" not in str(error.value)
    path.write_text(entry * 3 + '{"op_c')
    _mend_journal(path)
    assert path.read_text() == entry * 3


def test_an_npz_of_any_ending_keeps_its_name(tmp_path):
    cells = draw_cells(8)
    save(cells, tmp_path / "cells.NPZ")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.NPZ"]
    np.testing.assert_array_equal(load(tmp_path / "cells.NPZ").images, cells.images)

"What a run may touch, when it counts as finished, and what it does with what lies there already."
import errno
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import papermill
import pytest
from PIL import Image

import bloodcell_nb
from bloodcell_nb import cli
from bloodcell_nb.cli import main
from bloodcell_nb.data.cells import DataError
from bloodcell_nb.data.sources import data_name
from bloodcell_nb.runs import cluster, engine, keys, run_folders
from bloodcell_nb.runs.finished import model_file, read_runs
from bloodcell_nb.runs.keys import code_fingerprint
from bloodcell_nb.runs.recipes import check_recipe
from bloodcell_nb.runs.run import Run, save_figure
from bloodcell_nb.runs.run_folders import missing_file, status_of

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "synthetic:n=200"
RECORD = json.loads((ROOT / "reports" / "pbc96" / "custom_cnn" / "metrics.json").read_text(
    encoding="utf-8"))
RECORD.pop("key")  # it was another run


def write_run(parameters, work):
    "What a finished training leaves, as papermill and the notebook would write it."
    results = RECORD["results"] | {"training": RECORD["results"]["training"] | {"snapshots": 2}}
    record = RECORD | {"recipe": RECORD["recipe"] | {"recipe": parameters["recipe"],
                                                     "seed": parameters["seed"]},
                       "results": results}
    (work / "metrics.json").write_text(json.dumps(record))
    (work / "notebook.ipynb").write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4,
                                                     "nbformat_minor": 5}))
    for place in (work, work / "snapshot_1", work / "snapshot_2"):
        place.mkdir(exist_ok=True)
        for name in ("predictions", "predictions_val", "predictions_corrupted",
                     "predictions_stand_in", "hashes"):
            np.savez(place / f"{name}.npz", seed=parameters["seed"])
        with zipfile.ZipFile(place / "model.keras", "w") as file:
            file.writestr("config.json", str(parameters["seed"]))


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Each training that is begun, by its parameters; how it ends is in `trained.ends`, in their
    order: an exception to raise, or None. The command trains in this process.
    """
    class Trained(list):
        ends = []

    found = Trained()

    def execute_notebook(path, out, parameters, cwd, **_):
        found.append(parameters)
        state = cwd / "state" / "training" / "state.json"
        if parameters["epochs"] > 1:  # one of a single epoch is stopped before it ends
            state.parent.mkdir(parents=True, exist_ok=True)
            state.write_text("{}")
        if found.ends and (error := found.ends.pop(0)):
            raise error
        write_run(parameters, cwd)

    def run_all(chosen, root, profile, *_):
        states = [engine.execute(recipe, root, profile)["state"] for recipe in chosen]
        return states, []

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(papermill, "execute_notebook", execute_notebook)
    monkeypatch.setattr(cli, "run_all", run_all)
    monkeypatch.setattr(cli, "_write_page", lambda root: None)
    return found


def run(*more, name="custom_cnn", out="out"):
    return main(["run", name, "--data", SOURCE, "--out", out, *map(str, more)])


def tree(folder):
    "Every file and what it holds."
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file()}


@pytest.mark.parametrize("place", ["analysis/notes.txt", "analysis.partial/notes.txt", "analysis",
                                   "index.html", "results.csv"])
def test_what_is_not_ours_is_not_touched(trained, tmp_path, capsys, place):
    "For any of the recipes, before the first of them starts."
    path = tmp_path / "out" / place
    path.parent.mkdir(parents=True)
    path.write_text("a thesis")
    before = tree(tmp_path)
    assert main(["run", "custom_cnn", "analysis", "--data", SOURCE, "--out", "out"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(Path("out", place.partition("/")[0])) in err, err
    assert tree(tmp_path) == before and not trained


@pytest.mark.parametrize("other", [["--data", "synthetic:n=300"], ["--set", "seed=1"],
                                   ["--profile", "smoke"], ["--set", "epochs=3"], "code"],
                         ids=["data", "seed", "profile", "setting", "code"])
def test_a_finished_run_survives_every_other(trained, tmp_path, capsys, monkeypatch, other):
    assert run() == 0
    first = tree(tmp_path / "out" / "custom_cnn")
    key = status_of(tmp_path / "out" / "custom_cnn")["key"]
    capsys.readouterr()
    with monkeypatch.context() as changed:
        if other == "code":
            changed.setattr(keys, "code_fingerprint", lambda notebook: "of another commit")
        assert run(*[] if other == "code" else other) == 0
    assert len(trained) == 2
    assert tree(tmp_path / "out" / "earlier" / f"custom_cnn-{key[:8]}") == first
    said = [line for line in capsys.readouterr().err.splitlines() if "set aside" in line]
    assert len(said) == 1 and f"earlier/custom_cnn-{key[:8]}" in said[0], said
    assert run() == 0 and len(trained) == 2, "taken back, not trained again"
    assert tree(tmp_path / "out" / "custom_cnn") == first
    assert "taken back: earlier/custom_cnn-" in capsys.readouterr().err
    assert [found.folder.name for found in read_runs(tmp_path / "out")] == ["custom_cnn"]


def test_an_interrupted_run_survives_every_other(trained, tmp_path, capsys):
    "Its state is set aside while another of its name trains, and it goes on from there."
    trained.ends = [KeyboardInterrupt()]
    assert run("--profile", "full") == 130
    work = tmp_path / "out" / "custom_cnn.partial"
    key = status_of(work)["key"]
    assert run("--profile", "smoke", "--set", "epochs=2") == 0
    aside = tmp_path / "out" / "earlier" / f"custom_cnn-{key[:8]}.partial"
    assert (aside / "state" / "training" / "state.json").exists() and not work.exists()
    trained.ends = [ValueError("stopped once more")]
    run("--profile", "full")
    assert (work / "state").exists() and status_of(work)["key"] == key and not aside.exists()
    assert run("--profile", "full") == 0 and not work.exists()
    assert status_of(tmp_path / "out" / "custom_cnn")["key"] == key
    assert not (tmp_path / "out" / "custom_cnn" / "state").exists()


def test_what_failed_at_once_leaves_nothing_aside(trained, tmp_path):
    trained.ends = [ValueError("no cells")]
    run("--profile", "full", "--set", "epochs=1")
    assert run("--profile", "smoke") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".locks.partial",
                                                                         "custom_cnn"]


@pytest.mark.parametrize("name", ["model.keras", "metrics.json", "predictions_val.npz",
                                  "hashes.npz", "snapshot_2/model.keras", "snapshot_1/hashes.npz"])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")],
                         ids=["missing", "emptied"])
def test_done_means_all_of_it_is_there(trained, tmp_path, capsys, name, spoil):
    "What is not whole is made again, and set aside only when the new one is there."
    assert run() == 0 and run() == 0 and len(trained) == 1
    folder = tmp_path / "out" / "custom_cnn"
    spoil(folder / name)
    spoiled = tree(folder)
    assert missing_file(folder) == name
    trained.ends = [ValueError("stopped")]
    run()
    assert tree(folder) == spoiled, "it stays where it is until the new one is whole"
    assert run() == 0 and missing_file(folder) == ""
    key = status_of(folder)["key"]
    assert tree(tmp_path / "out" / "earlier" / f"custom_cnn-{key[:8]}") == spoiled
    assert run() == 0 and len(trained) == 3


def test_a_lost_snapshot_is_missed_whole(trained, tmp_path):
    assert run() == 0
    shutil.rmtree(tmp_path / "out" / "custom_cnn" / "snapshot_2")
    assert missing_file(tmp_path / "out" / "custom_cnn").startswith("snapshot_2/")


def test_a_clone_says_where_a_network_comes_from(tmp_path):
    reports = ROOT / "reports" / "pbc96"
    for name, words in (("custom_cnn", "bloodcell run makes it again"),
                        ("analysis", "its run trained none")):
        shutil.copytree(reports / name, tmp_path / name, ignore=lambda *_: ["model.keras"])
        with pytest.raises(DataError, match=words):
            model_file(tmp_path / name)


def test_a_run_whose_record_is_not_whole_is_not_done(trained, tmp_path, monkeypatch):
    complete = write_run
    monkeypatch.setitem(globals(), "write_run", lambda parameters, work: (
        complete(parameters, work), (work / "model.keras").unlink()))
    run()
    status = status_of(tmp_path / "out" / "custom_cnn.partial")
    assert status["state"] == "failed" and "wrote no model.keras" in status["error"]


def test_what_a_user_sets_wins(trained, capsys):
    run("--set", "epochs=20")
    assert trained[0]["epochs"] == 20 and "lowers" not in capsys.readouterr().out
    run()
    assert trained[1]["epochs"] == 7
    assert ("custom_cnn: profile quick lowers epochs 60 -> 7; --profile full runs it whole\n"
            in capsys.readouterr().out)


@pytest.mark.parametrize("source, out, words", [
    ("cells", "cells/reports", "would become its cells"), ("cells", "cells", "would become"),
    ("out/custom_cnn/cells", "out", "lies in a run's folder"),
    ("out/earlier/x", "out", "lies in a run's folder"),
    ("cells", "file/below", "Not a directory"), ("cells", "file", "not a folder")])
def test_places_that_cannot_be(trained, tmp_path, capsys, source, out, words):
    from bloodcell_nb.data.sources import save
    from bloodcell_nb.data.synthetic import draw_cells

    save(draw_cells(64), tmp_path / source)
    (tmp_path / "file").write_text("")
    before = tree(tmp_path)
    assert main(["run", "custom_cnn", "--data", source, "--out", out]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err
    assert tree(tmp_path) == before and not trained


@pytest.mark.parametrize("place", ["custom_cnn", "custom_cnn.partial"])
def test_a_link_is_no_place_for_a_run(trained, tmp_path, capsys, place):
    "Renamed, it would lead elsewhere, or nowhere."
    assert run() == 0
    shutil.move(tmp_path / "out" / "custom_cnn", tmp_path / "big")
    (tmp_path / "out" / place).symlink_to("../big")
    before = tree(tmp_path)
    capsys.readouterr()
    assert run() == 2
    err = capsys.readouterr().err
    assert f"{place} is a link" in err and err.count("\n") == 1
    assert tree(tmp_path) == before and len(trained) == 1


@pytest.mark.parametrize("name", ["earlier", "figures"])
def test_a_file_in_the_place_of_a_folder_costs_a_line_at_once(trained, tmp_path, capsys, name):
    "Not a training and then a line."
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("of somebody")
    assert run() == 2 and trained == []
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{name} is no folder, and " in said
    assert tree(tmp_path / "out") == {Path(name): b"of somebody"}


def test_another_command_renames_a_run_in_the_middle_of_a_look(trained, tmp_path, monkeypatch):
    assert run() == 0
    read, looks = run_folders.status_of, []

    def status_of(folder):
        looks.append(folder)
        return {} if len(looks) == 1 else read(folder)

    monkeypatch.setattr(run_folders, "status_of", status_of)
    run_folders.check_run_folders(tmp_path / "out", "custom_cnn", SOURCE)
    assert len(looks) == 2


def test_a_status_that_is_cut_off_is_named(tmp_path):
    work = tmp_path / "custom_cnn.partial"
    work.mkdir()
    (work / "status.json").write_text('{"state": "do')
    with pytest.raises(DataError, match=r"its status\.json is cut off, or none"):
        run_folders.check_run_folders(tmp_path, "custom_cnn", SOURCE)


def test_a_folder_that_cannot_be_written(trained, monkeypatch, tmp_path, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert run() == 2
    assert "out: No space left on device; name a folder" in capsys.readouterr().err
    assert not trained


def test_a_disk_that_is_full_in_the_middle(trained, tmp_path, monkeypatch, capsys):
    "One line; what was there stays, nothing is half written, and the next command goes on."
    assert run() == 0
    before = tree(tmp_path / "out" / "custom_cnn")
    replace, left = os.replace, [1]  # the first status is written, nothing after it

    def full(*names):
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device", str(names[0]))
        left.pop()
        replace(*names)

    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", full)
        run("--set", "seed=1")
    work = tmp_path / "out" / "custom_cnn.partial"
    assert tree(tmp_path / "out" / "custom_cnn") == before
    assert status_of(work)["state"] == "running" and not list(work.rglob("*.part*"))
    with monkeypatch.context() as disk:
        disk.setattr(cli, "run_all", full)
        capsys.readouterr()
        assert run("--set", "seed=1") == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert run("--set", "seed=1") == 0 and not work.exists()


def test_a_run_says_which_key_it_was(trained, tmp_path, monkeypatch):
    "The data or the code changed after the command had looked: the status names what ran."
    complete = write_run

    def write(parameters, work):
        complete(parameters, work)
        record = json.loads((work / "metrics.json").read_text()) | {"key": "0123456789abcdef"}
        (work / "metrics.json").write_text(json.dumps(record))

    monkeypatch.setitem(globals(), "write_run", write)
    assert run() == 0
    assert status_of(tmp_path / "out" / "custom_cnn")["key"] == "0123456789abcdef"


def test_newlines_do_not_change_the_code(tmp_path, monkeypatch):
    "A clone of core.autocrlf=true has the fingerprint of any other."
    before = code_fingerprint("03_custom_cnn")
    shutil.copytree(ROOT / "bloodcell_nb", tmp_path / "bloodcell_nb")
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns("images"))
    for path in [*tmp_path.rglob("*.py"), *tmp_path.rglob("*.ipynb")]:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr(bloodcell_nb, "__file__", str(tmp_path / "bloodcell_nb" / "__init__.py"))
    assert code_fingerprint("03_custom_cnn") == before


def test_a_clone_has_the_same_bytes_everywhere():
    "Whatever core.autocrlf says: text has LF, images and arrays stay."
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.splitlines()
    said = subprocess.run(["git", "check-attr", "text", "eol", "--stdin"], cwd=ROOT, text=True,
                          input="\n".join(names), capture_output=True, check=True).stdout
    binary = (".png", ".npz", ".keras", ".zip")
    for line in said.splitlines():
        name, attribute, value = line.rsplit(": ", 2)
        if name.endswith(binary):
            assert attribute == "eol" or value == "unset", line
        else:
            assert value == {"eol": "lf", "text": "auto"}[attribute], line


@pytest.mark.parametrize("settings, words", [
    (["seed=1", "seed=2"], "--set seed is given twice"),
    (["class_weights=&a [1, *a]"], "alias *a, which is not read"),
    (["seed={a: 1, a: 2}"], "key a a second time"),
    (["seed=" + "9" * 5000], "not valid YAML"), (["seed=2001-99-99"], "not valid YAML"),
    (["seed=" + "x" * 10**5], "seed is 'xxx"), (["x" * 10**5 + "=1"], "--set xxx")])
def test_odd_settings_cost_a_short_line(trained, capsys, settings, words):
    assert run(*[word for setting in settings for word in ("--set", setting)]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and len(err) < 500, err[:600]


@pytest.mark.parametrize("arguments", [["recipes"], ["inspect", SOURCE], ["run", "analysis"]])
def test_a_backend_that_is_not_installed(trained, monkeypatch, capsys, arguments):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.setattr("bloodcell_nb.runs.keys.find_spec", lambda name: None)
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", "bloodcell: KERAS_BACKEND is torch, which is not installed; "
                                       "pip install torch, or set another\n")


def test_what_a_backend_cannot_run_is_refused_before_anything_starts(trained, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr("bloodcell_nb.runs.keys.find_spec", lambda name: True)
    assert main(["run", "worth_simple", "--set", "augmentation_library=keras_cv", "--data",
                 SOURCE]) == 2
    assert capsys.readouterr().err.startswith(
        "bloodcell: worth_simple: augmentation_library is keras_cv, which needs TensorFlow, and")
    assert not trained


@pytest.mark.parametrize("names", [["one"], ["one", "two"]], ids=["alone", "as copies"])
def test_a_source_that_goes_away(tmp_path, capfd, names):
    "Each run says so in a line, and points to no folder that is not there."
    chosen = [check_recipe({"notebook": "01_analysis", "recipe": name,
                            "source": str(tmp_path / "gone.npz")}) for name in names]
    assert cluster.run_all(chosen, tmp_path / "out", "smoke") == (["failed"] * len(names), [])
    said = capfd.readouterr()
    assert "Traceback" not in said.err, said.err
    assert [line.partition(": no such file")[0] for line in said.out.splitlines()] == [
        f"{name}: failed: {tmp_path / 'gone.npz'}" for name in names], said.out
    assert "(see" not in said.out
    cli._write_page(tmp_path / "out")  # there is none to write
    assert capfd.readouterr().out == ""


def test_the_source_names_the_runs(tmp_path, monkeypatch):
    (tmp_path / "my cells" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my cells" / "sub")
    assert {data_name(text) for text in ("..", "../sub/..")} == {"my_cells"}
    assert data_name(".") == "sub"
    for name, wanted in (("cells_v1.0", "cells_v1_0"), ("cells_v1.5", "cells_v1_5"),
                         ("血液", "血液"), ("клетки", "клетки"), ("größe-2", "größe-2")):
        Path(name).mkdir()
        assert data_name(name) == data_name(f"../sub/{name}/") == wanted
    for name in ("pbc96.zip", "cells.v2.npz"):
        Path(name).touch()
    assert [data_name(text) for text in ("pbc96.zip", "cells.v2.npz", "synthetic:n=5",
                                         "medmnist:64")] == ["pbc96", "cells_v2", "synthetic",
                                                             "medmnist"]


def test_a_recipe_named_like_the_folder_of_earlier_runs(trained, capsys):
    assert run("--set", "recipe=earlier") == 2
    assert "recipe is 'earlier'" in capsys.readouterr().err


def test_a_record_names_its_commit(tmp_path):
    record = Run(check_recipe({"notebook": "01_analysis", "recipe": "one",
                                       "out": str(tmp_path)})).finish({"kept": 1})
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    inside = (ROOT / ".git").exists() and head.returncode == 0
    assert (record["git"]["commit"] if inside else record["git"]) == (
        head.stdout.strip() if inside else None)


def test_no_label_is_cut_off_where_a_figure_is_saved(tmp_path):
    "A figure is laid out for the dots in which it is saved: letters have other widths in others."
    fig, axes = plt.subplots(2, 4, figsize=(8, 5.5), layout="constrained", dpi=80)
    for k, ax in enumerate(axes.flat):
        ax.axis("off")
        ax.imshow(np.zeros((96, 96, 3)))
        if k % 4 == 0:
            ax.text(-0.1, 0.5, "course_cnn_augmented", transform=ax.transAxes, ha="right",
                    fontsize=9)
    save_figure(fig, tmp_path / "figure.png")
    plt.close(fig)
    edge = np.asarray(Image.open(tmp_path / "figure.png").convert("L"))[:, :2]
    assert edge.min() == 255 and fig.dpi == 80

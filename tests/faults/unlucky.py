"""What goes wrong around a run: eight commands at once, a full disk, one that is read-only, a clock
set back, files that are cut, cells that change: pytest -s tests/faults/unlucky.py
"""
import io
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path

import keras
import numpy as np
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from test_cluster import CELL, wait_for  # noqa: E402
from test_command import (  # noqa: E402
    MIXED,
    SOURCE,
    last_state,
    recipe,
    small_project,
)
from twenty_kills import (  # noqa: E402
    MARK,
    SECONDS,
    alive,
    command,
    differences,
    end_all,
    left_over,
    to_its_end,
)

from bloodcell_nb.data.sources import load, save  # noqa: E402
from bloodcell_nb.data.synthetic import draw_cells  # noqa: E402
from bloodcell_nb.networks.custom_cnn import custom_cnn  # noqa: E402
from bloodcell_nb.runs.engine import _ProgressLine  # noqa: E402
from bloodcell_nb.runs.recipes import check_recipe  # noqa: E402
from bloodcell_nb.runs.run import Run  # noqa: E402
from bloodcell_nb.runs.run_folders import is_finished, status_of  # noqa: E402
from bloodcell_nb.training.fit import Batches, fit  # noqa: E402
from bloodcell_nb.training.state import Progress, Times, restore_state  # noqa: E402
from bloodcell_nb.training.step import augmented  # noqa: E402

SETTINGS = {"epochs": 6, "patience": 6, "schedule": "cosine_restarts", "snapshots": True, **MIXED}


def words(path, root, data=SOURCE):
    return "run", path, "--data", data, "--profile", "full", "--out", root


def tree(folder):
    "Every file and what it holds."
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlucky")
    print()
    yield folder
    end_all(folder)


@pytest.fixture(scope="module")
def whole(place):
    "A recipe's file, and its run without interruption."
    path = recipe(place, "one", **SETTINGS)
    start = time.monotonic()
    to_its_end(place, *words(path, place / "whole"))
    print(f"uninterrupted: {time.monotonic() - start:.1f} s", flush=True)
    return path, place / "whole" / "one"


@pytest.fixture(scope="module")
def cut(place, whole):
    "A folder in which that run was killed, all of it, after two states."
    return interrupted(place, whole[0], place / "cut")


def interrupted(mark, path, root, data=SOURCE, **environment):
    "Kill a run, its command and its kernel after two epochs; gives the folder of runs."
    process = command(mark, *words(path, root, data), **environment)
    wait_for(lambda: 2 <= last_state(root / f"{path.stem}.partial"), process, SECONDS)
    for one in (killed := alive(mark)):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(killed)
    process.communicate()
    assert not (root / path.stem).exists(), "it ended too soon to test anything"
    return root


def one_line(said, *expected):
    "What the command says is a line that holds the words."
    lines = [line for line in said.splitlines() if line.startswith("bloodcell: ")]
    assert "Traceback" not in said and len(lines) == 1, said
    assert all(word in lines[0] for word in expected), said
    return lines[0]


@pytest.mark.parametrize("given", ["one each", "all"])
def test_eight_commands_at_once(tmp_path, given):
    """Each run is done once, whichever command does it, and its record is whole: each of four
    real runs by two commands, then four short ones by all eight, in orders of their own.
    """
    names, begun = [f"run_{k}" for k in range(4)], tmp_path / "begun"
    paths = [recipe(tmp_path, name, epochs=2) for name in names]
    program, short = ["bloodcell"], given == "all"
    if short:
        (tmp_path / "go").touch()
        cell = CELL.format(notebook="03_custom_cnn", begun=str(begun), go=str(tmp_path / "go"))
        program = [sys.executable, small_project(tmp_path, {"03_custom_cnn": cell})[1]]
    start = time.monotonic()
    processes = []
    for k in range(8):
        chosen = [*paths[k % 4:], *paths[:k % 4]] if short else [paths[k % 4]]
        processes.append(subprocess.Popen(
            [*map(str, [*program, "run", *chosen, "--data", SOURCE, "--profile", "full",
                        "--out", tmp_path / "out"])], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=os.environ | {MARK: str(tmp_path)}))
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        end_all(tmp_path)
    codes = [process.returncode for process in processes]
    print(f"\neight commands, {given}: codes {codes}, {time.monotonic() - start:.0f} s")
    for code, text in zip(codes, said, strict=True):
        assert "Traceback" not in text, text
        if code:
            one_line(text)
    for name in names:
        states = [text.count(f"{name}: {state}") for text in said for state in ("done", "skipped")]
        assert sum(states[::2]) == 1 and sum(states) == (8 if short else 2), said
        assert is_finished(tmp_path / "out" / name,
                           status_of(tmp_path / "out" / name)["key"]), said
    if short:
        assert sorted(begun.read_text().split()[::2]) == names, "none twice"
    assert not left_over(tmp_path / "out") and (tmp_path / "out" / "index.html").exists()
    assert not (tmp_path / "out" / ".shared.partial").exists()


@pytest.fixture
def disk(tmp_path):
    "A small disk: its folder, and a function that sets its size or other options."
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs",
                               str(folder)], capture_output=True, text=True)

    if sys.platform != "linux" or not shutil.which("mount") or mount("size=64m").returncode:
        pytest.skip("no disk can be mounted here")
    yield folder, lambda *options: mount("remount", *options)
    end_all(tmp_path)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def roomy(place):
    "A recipe's file, its run on a disk with room, and the KiB that it takes."
    path = recipe(place, "other", epochs=1)
    to_its_end(place, *words(path, place / "roomy"))
    size = sum(-(-one.stat().st_size // 4096) * 4 for one in (place / "roomy").rglob("*"))
    return path, place / "roomy" / "other", size


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.8, 0.95])
def test_a_disk_that_fills(tmp_path, whole, roomy, disk, share):
    "Beside a finished run, which stays; with room the same command gives the same record."
    (folder, remount), (_, finished), (path, other, size) = disk, whole, roomy
    shutil.copytree(finished, folder / "out" / "one")
    before = tree(folder / "out" / "one")
    room = int(share * size)
    assert not remount(f"size={shutil.disk_usage(folder).used // 1024 + room}k").returncode
    process = command(tmp_path, *words(path, folder / "out"))
    said = process.communicate(timeout=SECONDS)[0]
    shown = [line for line in said.splitlines() if "space" in line or "full" in line]
    print(f"\n{room} of {size} KiB: code {process.returncode}: " + " | ".join(shown).replace(
        str(tmp_path), ""), flush=True)
    assert process.returncode in (1, 2) and "Traceback" not in said and shown, said
    assert all(str(folder) in line or "(see other.partial)" in line for line in shown), "where"
    assert tree(folder / "out" / "one") == before
    assert not remount("size=64m").returncode
    to_its_end(tmp_path, *words(path, folder / "out"))
    assert not differences(folder / "out" / "other", other)
    assert tree(folder / "out" / "one") == before
    assert not left_over(folder / "out")


def test_a_disk_that_is_read_only(tmp_path, whole, cut, disk):
    "For a new run, one that goes on and the page: a line, and nothing is changed."
    (folder, remount), (path, finished) = disk, whole
    shutil.copytree(cut, folder / "out")
    shutil.copytree(finished, folder / "out" / "finished")
    before = tree(folder)
    assert not remount("ro").returncode
    for given in (words(path, folder / "out"), words(path, folder / "new"),
                  ("page", folder / "out")):
        said = to_its_end(tmp_path, *given, code=2)
        print("\n" + one_line(said, str(folder), "Read-only file system").replace(
            str(tmp_path), ""), flush=True)
        assert said.count("\n") == 1, said
    assert tree(folder) == before
    assert not remount("rw").returncode
    shutil.rmtree(folder / "out" / "finished")
    to_its_end(tmp_path, *words(path, folder / "out"))
    assert not differences(folder / "out" / "one", finished)


CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long back(void) {  /* seconds that the clock was set back by: what a file says */
    char text[32];
    const char *path = getenv("SET_BACK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    long count = read(file, text, sizeof text - 1);
    close(file);
    text[count > 0 ? count : 0] = 0;
    return atol(text);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int error = syscall(SYS_clock_gettime, clock, now);
    if (!error && clock == CLOCK_REALTIME) now->tv_sec -= back();
    return error;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""


@pytest.fixture
def clock(tmp_path):
    "Environment of a process whose clock goes back by as many seconds as a file says; the file."
    (tmp_path / "clock.c").write_text(CLOCK)
    library, file = tmp_path / "clock.so", tmp_path / "back"
    if sys.platform != "linux" or not shutil.which("cc") or subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", library, tmp_path / "clock.c"]).returncode:
        pytest.skip("no C compiler for Linux, which a clock of its own needs")
    environment = {"LD_PRELOAD": str(library), "SET_BACK": str(file)}
    file.write_text("1000000000")
    year = subprocess.run(["date", "+%Y"], capture_output=True, text=True,
                          env=os.environ | environment).stdout
    assert int(year) < time.localtime().tm_year - 30, "its clock is the machine's"
    file.write_text("0")
    yield environment, file
    end_all(tmp_path)


def test_a_clock_that_is_set_back(tmp_path, whole, cut, clock):
    "In the middle of a run, before one goes on, and once it is there: the same record."
    (path, finished), (environment, file) = whole, clock
    process = command(tmp_path, *words(path, tmp_path / "middle"), **environment)
    wait_for(lambda: last_state(tmp_path / "middle" / "one.partial"), process, SECONDS)
    file.write_text(str(800 * 86400))
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0 and "Traceback" not in said, said
    shutil.copytree(cut, tmp_path / "cut")
    to_its_end(tmp_path, *words(path, tmp_path / "cut"), **environment)
    for root in ("middle", "cut"):
        found = differences(tmp_path / root / "one", finished)
        record = json.loads((tmp_path / root / "one" / "metrics.json").read_text())
        print(f"\n800 days, {root}: {found or 'equal'}, {record['seconds']['total']:.1f} s",
              flush=True)
        assert not found and 0 < record["seconds"]["total"] < SECONDS
    assert "one: skipped" in to_its_end(tmp_path, *words(path, tmp_path / "cut"), **environment)
    file.write_text("0")
    assert "one: skipped" in to_its_end(tmp_path, *words(path, tmp_path / "middle"))


def test_a_clock_that_was_never_set(tmp_path, whole, cut, clock):
    "A zip knows no time before 1980: no network can be saved, in a line; then the run goes on."
    (path, finished), (environment, file) = whole, clock
    shutil.copytree(cut, tmp_path / "out")
    file.write_text(str(int(time.time()) - 86400))
    said = to_its_end(tmp_path, *words(path, tmp_path / "out"), code=1, **environment)
    print("\n" + next(line for line in said.splitlines() if "before 1980" in line), flush=True)
    assert not (tmp_path / "out" / "one").exists()
    file.write_text("0")
    to_its_end(tmp_path, *words(path, tmp_path / "out"), **environment)
    assert not differences(tmp_path / "out" / "one", finished)


def lengths(size):
    "From nothing to all but a byte, every 1,000th, or forty of a large file."
    return sorted({0, 1, size - 1, *range(0, size, max(1000, size // 40))})


class Stopped(Exception):
    "A training is stopped here."


class StopAfter(keras.callbacks.Callback):
    "Stop a training after so many epochs, as a kill does."

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.epochs:
            raise Stopped


def test_states_that_are_cut_at_any_length(tmp_path):
    "An older state is taken, or none, and what it gives is what it held."
    cells = draw_cells(64)
    settings = check_recipe({"notebook": "03_custom_cnn", "recipe": "one", "epochs": 6,
                             "source": "synthetic:n=64", "out": str(tmp_path), "patience": 6,
                             "filters": [8, 8], "batch_size": 16})

    def network():
        keras.utils.set_random_seed(0)
        return custom_cnn(cells.images.shape[1:3], 8, (8, 8), dense_units=16)

    run, said = Run(settings), io.StringIO()
    for epochs in (1, 2):  # each time the first epoch leaves a state
        with pytest.raises(Stopped):
            fit(network(), cells, cells, settings, run, callbacks=[StopAfter(epochs)])
    folder = tmp_path / "state" / "training"
    (older, newer) = sorted(folder.glob("state_*.npz"))
    trained = augmented(network())
    batches = Batches(cells, 16)
    trained.compile("adam", "categorical_crossentropy")
    trained.optimizer.build(trained.trainable_variables)

    def restored():
        progress = Progress(run, folder, [], "training", Times(batches), "val_loss")
        progress.set_model(trained)
        with redirect_stdout(said):
            restore_state(progress)
        return progress.epoch, progress.history, [one.copy() for one in progress.best or []]

    def same(one, other):
        return one[:2] == other[:2] and all(map(np.array_equal, one[2], other[2]))

    held = {path: path.read_bytes() for path in (older, newer)}
    last = restored()
    newer.unlink()
    before = restored()
    newer.write_bytes(held[newer])
    assert (last[0], before[0]) == (2, 1) and len(last[2]) == len(before[2])
    cut = lengths(len(held[newer]))
    for length in cut:
        newer.write_bytes(held[newer][:length])
        assert same(restored(), before), length
        older.write_bytes(held[older][:min(length, len(held[older]) - 1)])
        assert restored() == (0, {}, []), length
        older.write_bytes(held[older])
    newer.write_bytes(held[newer])
    assert same(restored(), last)
    lines = said.getvalue().splitlines()
    assert len(lines) == 2 * len(cut) and all("cannot be read" in line for line in lines)
    print(f"\na state of {len(held[newer]):,} bytes, cut at {len(cut)} lengths: the older one; both"
          " cut: none")


def test_other_files_that_are_cut_at_any_length(tmp_path, whole):
    "Of a run that goes on and of a finished one: read without an error, and as not whole."
    finished = tmp_path / "one"
    shutil.copytree(whole[1], finished)
    status, count = status_of(finished), 0
    assert is_finished(finished, status["key"])
    for name in ("status.json", "metrics.json", "notebook.ipynb", "model.keras", "predictions.npz",
                 "hashes.npz", "snapshot_1/model.keras"):
        held = (finished / name).read_bytes()
        for length in lengths(len(held)):
            # the last byte of JSON is a line's end
            (finished / name).write_bytes(held[:length - name.endswith(("json", "ipynb"))
                                               if length == len(held) - 1 else length])
            assert not is_finished(finished, status["key"]), (name, length)
            count += 1
        (finished / name).write_bytes(held)
    text = json.dumps({"text": "training epoch 2/6", "watched": {"0": 1.5}})
    for length in range(len(text)):
        (tmp_path / "progress.json").write_text(text[:length])
        assert _ProgressLine("one", tmp_path, sys.stderr, True)._text() == "starting"
    print(f"\na finished run's files, cut at {count} lengths: each time it is not whole")


def cut_at(path, share=0.5):
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])


def states(work):
    return sorted(work.glob("state/training/state_*.npz"),
                  key=lambda path: int(path.stem.removeprefix("state_")))


def snapshot(work):
    return next(work.glob("state/training/snapshot_1.*"))


def half_written(work):
    for name in ("predictions.npz", "model.keras", "metrics.json"):
        path = work / name
        path.with_name(f"{path.stem}.{'0' * 32}.part{path.suffix}").write_bytes(b"half")
    (work / ".saving.0123").mkdir()
    (work / ".saving.0123" / "saved.keras").write_bytes(b"half")


CUTS = {
    "the newest state": lambda work: cut_at(states(work)[-1]),
    "all states": lambda work: [cut_at(path, 0) for path in states(work)],
    "progress.json": lambda work: cut_at(work / "progress.json"),
    "metrics.json": lambda work: (work / "metrics.json").write_text('{"key": "'),
    "notebook.ipynb": lambda work: (work / "notebook.ipynb").write_text('{"cells": ['),
    "a snapshot": lambda work: cut_at(snapshot(work)),
    "a snapshot, to nothing": lambda work: cut_at(snapshot(work), 0),
    "a snapshot, gone": lambda work: snapshot(work).unlink(),
    "what a kill left half written": half_written,
}


@pytest.mark.parametrize("what", CUTS)
def test_an_interrupted_run_of_which_a_file_is_cut(tmp_path, whole, cut, what):
    "It goes on from an older state or begins again, and gives the same record."
    path, finished = whole
    shutil.copytree(cut, tmp_path / "out")
    (tmp_path / "out" / "one.partial" / "progress.json").touch()
    CUTS[what](tmp_path / "out" / "one.partial")
    to_its_end(tmp_path, *words(path, tmp_path / "out"))
    found = differences(tmp_path / "out" / "one", finished)
    notebook = (tmp_path / "out" / "one" / "notebook.ipynb").read_text()
    how = [line for line in ("training goes on after epoch", "training begins anew")
           if line in notebook]
    print(f"\ncut: {what}: {found or 'equal'}; {how}", flush=True)
    assert not found and not left_over(tmp_path / "out")


@pytest.mark.parametrize("share", [0, 0.5])
def test_an_interrupted_run_whose_status_is_cut(tmp_path, whole, cut, share):
    "It is refused in a line and stays; moved away, the run begins anew."
    path, finished = whole
    shutil.copytree(cut, tmp_path / "out")
    work = tmp_path / "out" / "one.partial"
    cut_at(work / "status.json", share)
    before = tree(work)
    said = one_line(to_its_end(tmp_path, *words(path, tmp_path / "out"), code=2), str(work),
                    "its status.json is cut off", "move it away")
    print("\n" + said.replace(str(tmp_path), ""), flush=True)
    assert tree(work) == before
    os.rename(work, tmp_path / "away")
    to_its_end(tmp_path, *words(path, tmp_path / "out"))
    assert not differences(tmp_path / "out" / "one", finished)


@pytest.fixture(scope="module", params=["cells.npz", "cells"])
def changing(request, tmp_path_factory):
    "A source, a function that changes it or puts it back, a recipe, and the run of each."
    place = tmp_path_factory.mktemp("changing")
    source, path = place / request.param, recipe(place, "one", **SETTINGS)
    save(load(SOURCE), source)
    file = source if source.is_file() else sorted(source.rglob("*.png"))[0]
    first = file.read_bytes()
    if source.is_file():
        save(load("synthetic:n=200,seed=7"), place / "other.npz")
        second = (place / "other.npz").read_bytes()
    else:  # an image of another class
        second = sorted(source.rglob("*.png"))[-1].read_bytes()

    def put(changed):
        (place / "new").write_bytes(second if changed else first)
        os.replace(place / "new", file)

    for changed in (True, False):
        put(changed)
        to_its_end(place, *words(path, place / f"whole_{changed}", source))
    yield source, put, path, {changed: place / f"whole_{changed}" / "one"
                              for changed in (True, False)}
    end_all(place)


def test_cells_that_change_while_a_run_trains(tmp_path, changing):
    "It is refused in the end, in a line; put back, it goes on."
    source, put, path, whole = changing
    put(False)
    process = command(tmp_path, *words(path, tmp_path / "out", source))
    wait_for(lambda: last_state(tmp_path / "out" / "one.partial"), process, SECONDS)
    put(True)
    said = process.communicate(timeout=SECONDS)[0]
    lines = [line for line in said.splitlines() if "changed while the run went on" in line]
    print("\n" + "\n".join(lines).replace(str(source.parent), ""), flush=True)
    assert process.returncode == 1 and len(lines) == 1 and "Traceback" not in said, said
    assert not (tmp_path / "out" / "one").exists()
    assert status_of(tmp_path / "out" / "one.partial")["state"] == "failed"
    put(False)
    to_its_end(tmp_path, *words(path, tmp_path / "out", source))
    assert not differences(tmp_path / "out" / "one", whole[False])


def test_cells_that_change_before_a_run_goes_on(tmp_path, changing):
    "It stays as it is, the other cells get a run of their own; put back, it goes on."
    source, put, path, whole = changing
    put(False)
    root = interrupted(tmp_path, path, tmp_path / "out", source)
    state = last_state(root / "one.partial")
    put(True)
    said = to_its_end(tmp_path, *words(path, root, source))
    assert "of other data, settings or code is set aside: earlier/one-" in said, said
    assert not differences(root / "one", whole[True])
    (aside,) = (root / "earlier").iterdir()
    assert last_state(aside) == state
    put(False)
    said = to_its_end(tmp_path, *words(path, root, source))
    print(f"\n{source.name}: " + "; ".join(line for line in said.splitlines() if "earlier" in line))
    assert f"goes on from earlier/{aside.name}" in said, said
    assert not differences(root / "one", whole[False])
    (other,) = (root / "earlier").iterdir()
    assert is_finished(other, status_of(whole[True])["key"]), "the other run is kept"

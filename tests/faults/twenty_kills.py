"""Twenty kills (SIGKILL) at random moments of trainings, an ensemble and the page; after each, the
same command gives the record of an uninterrupted one: pytest -s tests/faults/twenty_kills.py
"""
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from itertools import count
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from test_cluster import wait_for  # noqa: E402
from test_command import FAST, MIXED, SOURCE, last_state, recipe  # noqa: E402

SECONDS = 400  # that a command may take on a busy machine
MARK = "BLOODCELL_FAULTS"  # environment variable by which processes of a test are known
VARYING = ("seconds", "images_per_second", "peak_memory_mib", "megabytes")  # a zip holds its date


def command(mark, *words, **environment):
    "Start the command; all processes that it starts are known by the mark."
    return subprocess.Popen(["bloodcell", *map(str, words)], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, start_new_session=True,
                            env=os.environ | environment | {MARK: str(mark)})


def to_its_end(mark, *words, code=0, **environment):
    "Give the command, and what it said; it ends as expected."
    process = command(mark, *words, **environment)
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == code and "Traceback" not in said, said
    return said


def alive(mark):
    "Processes that a command of the mark has started, and it."
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if (process.environ().get(MARK) == str(mark)
                    and process.status() != psutil.STATUS_ZOMBIE):
                found.append(process)
    return found


def end_all(mark):
    "Kill what a test has left."
    for process in (left := alive(mark)):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left)


def without(value):
    "A record without times, speed and memory."
    if isinstance(value, dict):
        return {key: without(one) for key, one in value.items() if key not in VARYING}
    return [without(one) for one in value] if isinstance(value, list) else value


def weights(path):
    "Each array of a saved network, by its name."
    found = {}
    with zipfile.ZipFile(path) as file, h5py.File(io.BytesIO(file.read("model.weights.h5"))) as h5:
        h5.visititems(lambda name, one: found.update({name: one[()]})
                      if isinstance(one, h5py.Dataset) else None)
    assert found, path
    return found


def arrays(path):
    "What a file of arrays or a network holds."
    if path.suffix == ".keras":
        return weights(path)
    with np.load(path) as file:
        return dict(file)


def differences(one, other):
    "What two finished runs have otherwise, in words; none where their records are equal."
    records = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    found = [key for key in ("recipe", "data", "key", "code", "results")
             if without(records[0][key]) != without(records[1][key])]
    names = [{str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
             for run in (one, other)]
    found += sorted(names[0] ^ names[1])
    for name in sorted(name for name in names[0] & names[1] if name.endswith((".npz", ".keras"))):
        first, second = arrays(one / name), arrays(other / name)
        if first.keys() != second.keys() or not all(
                np.array_equal(first[key], second[key]) for key in first):
            found.append(name)
    return found


def left_over(root):
    "What a finished study must not leave in its folder."
    return [str(path.relative_to(root)) for path in sorted(root.rglob("*"))
            if ".part" in path.name and path.name != ".locks.partial" or path.name == "state"]


def page_of(root):
    "What a page is made of: its texts, and names and pixels of the figures."
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.parent.name != ".locks.partial" and (
                path.suffix in (".html", ".csv") or path.parent == root / "figures")}


READS = {"together": ["plain", "heavy"], "page": ["plain", "heavy", "mixed", "together"]}


class Kept:
    "Uninterrupted runs, what they took, and how each is made anew in another folder."

    def __init__(self, place):
        self.place, self.seconds, self.equal = place, {}, {}  # by number of the kill
        shared = {"epochs": 16, "patience": 16, "schedule": "cosine"}
        recipe(place, "plain", **shared | {"filters": [8, 8]})
        recipe(place, "heavy", **shared, augmentation="heavy")
        recipe(place, "mixed", **shared, **MIXED)
        recipe(place, "together", **dict.fromkeys(FAST) | {
            "notebook": "06_ensemble", "members": ["plain", "heavy"], "views": 2,
            "weighting": "weighted"})

    def make(self, what):
        "Run it without interruption, and what it reads, each once."
        for name in [*READS.get(what, []), what]:
            if name in self.seconds:
                continue
            if name == "page":
                shutil.copytree(self.place / "whole", self.place / "page")
            self.timed(name, self.place / ("page" if name == "page" else "whole"))

    def words(self, what, root):
        if what == "page":
            return "page", root
        return ("run", self.place / f"{what}.yaml", "--data", SOURCE, "--profile", "full", "--out",
                root)

    def timed(self, what, root):
        start = time.monotonic()
        to_its_end(self.place, *self.words(what, root))
        self.seconds[what] = time.monotonic() - start
        print(f"{what}: {self.seconds[what]:.1f} s uninterrupted", flush=True)

    def folder(self, what, name):
        "A folder that holds what the command reads."
        (root := self.place / name).mkdir()
        for run in READS.get(what, []):
            shutil.copytree(self.place / "whole" / run, root / run,
                            ignore=shutil.ignore_patterns("notebook.html"))
        return root

    def differences(self, what, root):
        if what == "page":
            pages = [page_of(root), page_of(self.place / "page")]
            return [name for name in sorted(pages[0].keys() | pages[1].keys())
                    if pages[0].get(name) != pages[1].get(name)]
        return differences(root / what, self.place / "whole" / what)


def killed(process, whom):
    "Kill the kernel, the run's process, the command, or all three; says whom it found there."
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        named = {"command": [psutil.Process(process.pid)], "run": below[:1], "kernel": [
            one for one in below if any("ipykernel" in word for word in one.cmdline())]}
        named["all"] = [*named["command"], *below]
        chosen = named[whom] or named["all"]
        for one in chosen:
            one.kill()
        return whom if named[whom] else f"all, before there was a {whom}"
    return "nothing: it had just ended"


def where(root, what):
    "The line that a run showed last."
    with suppress(OSError, ValueError, KeyError):
        return json.loads((root / f"{what}.partial" / "progress.json").read_text())["text"]
    return "done" if (root / what / "status.json").exists() else "-"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    print()
    place = tmp_path_factory.mktemp("kept")
    try:
        yield Kept(place)
    finally:
        end_all(place)


PLAN = ["plain"] * 5 + ["heavy"] * 4 + ["mixed"] * 3 + ["together"] * 4 + ["page"] * 4


def one_kill(kept, k, what):
    "Kill the command at a moment drawn by a number; gives the folder, and words of what it did."
    kept.make(what)
    draw = random.Random(k)
    whom = "command" if what == "page" else draw.choice(["kernel", "run", "command", "all"])
    for attempt in count():  # earlier, where it had ended
        root = kept.folder(what, f"kill_{k}_{attempt}")
        moment = draw.uniform(0, kept.seconds[what] / 2**attempt)
        process = command(kept.place, *kept.words(what, root))
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        shown = where(root, what) if what != "page" else "page"
        if process.poll() is None:
            break
    whom, state = killed(process, whom), last_state(root / f"{what}.partial")
    if whom == "kernel":  # the command itself goes on, and says that
        said = process.communicate(timeout=SECONDS)[0]
        assert "Traceback" not in said, said
    return root, process, (f"kill {k:2}: {what:8} {whom} at {moment:4.1f} s of "
                           f"{kept.seconds[what]:.1f}, {shown[:60]!r}; "
                           + (f"resumed from epoch {state}" if state else "no state"))


@pytest.mark.parametrize("k, what", [*enumerate(PLAN, 1)])
def test_a_kill_changes_nothing(kept, k, what):
    "The same command, given at once, gives the same and leaves nothing else."
    root, process, words = one_kill(kept, k, what)
    again = command(kept.place, *kept.words(what, root))
    said = again.communicate(timeout=SECONDS)[0]
    process.communicate(timeout=SECONDS)
    found = (kept.differences(what, root) if again.returncode == 0 and "Traceback" not in said
             else [f"code {again.returncode}", said])
    left = left_over(root)
    kept.equal[k] = not found
    print(f"{words}; {'equal' if not found else f'NOT EQUAL: {found}'}"
          f"{f'; LEFT: {left}' if left else ''}", flush=True)
    assert not found
    assert what == "page" or not left  # which of the page's own files are half written is shown


def test_none_is_alive(kept):
    "Of all kills before: how many ended alike, and no process goes on."
    wait_for(lambda: not alive(kept.place), seconds=SECONDS)
    print(f"{sum(kept.equal.values())} of {len(kept.equal)} equal; no process alive")
    assert all(kept.equal.values())

"""The study `course` on three workers, one of which is killed on the way: its records are those of
the same command on one machine. pytest -s tests/faults/course_on_workers.py
"""
import json
import random
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[k]) for k in (0, 1)]
from test_cluster import Cluster, kill, wait_for  # noqa: E402
from twenty_kills import differences, left_over  # noqa: E402

SECONDS = 5400  # that the study may take on a busy machine
STUDY = ["bloodcell", "run", "--study", "course", "--data",
         "synthetic:n=1000,duplicates=8,spoiled=10"]
RUNS = 8


class Workers(Cluster):
    "The package's own command and workers, without the small project."

    def __init__(self, folder):
        self.folder, self.processes = folder, []

    def worker(self):
        (place := self.folder / f"worker_{len(self.processes)}").mkdir()
        return self.start("dask", "worker", "--scheduler-file", "scheduler.json", "--no-nanny",
                          "--no-dashboard", "--nthreads", 1, "--local-directory", place)


def finished(root):
    "Runs that have their record, by name."
    return {path.parent.name: path.parent for path in root.glob("*/metrics.json")}


def unlike(one, other):
    "Differences, but for the key of a run that reads others: it has their files' sums, and dates."
    reads = "training" not in json.loads((one / "metrics.json").read_text())["results"]
    return [words for words in differences(one, other) if not (reads and words == "key")]


@pytest.fixture
def started(tmp_path):
    made = Workers(tmp_path)
    yield made
    made.end()


def test_a_killed_worker_changes_no_record(started):
    scheduler = started.scheduler()
    workers = [started.worker() for _ in range(3)]
    begun = time.monotonic()
    command = started.start(*STUDY, "--scheduler", "scheduler.json", "--out", "three")
    # in the middle of the study: some runs are done, others on their way
    wait_for(lambda: len(finished(started.folder / "three")) >= 2, command, SECONDS)
    on_their_way = {path.name for path in (started.folder / "three").glob("*_*.partial")}
    killed = random.Random(0).choice([one for one in workers
                                      if psutil.Process(one.pid).children()])
    kill(killed)
    said = command.communicate(timeout=SECONDS)[0]
    assert command.returncode == 0 and "Traceback" not in said, said
    print(f"\nthree workers, one killed beside {sorted(on_their_way)}: "
          f"{time.monotonic() - begun:.0f} s")
    kill(scheduler)
    alone = started.start(*STUDY, "--out", "one")
    said_alone = alone.communicate(timeout=SECONDS)[0]
    assert alone.returncode == 0, said_alone
    three, one = (finished(started.folder / name) for name in ("three", "one"))
    assert len(three) == len(one) == RUNS and three.keys() == one.keys()
    found = {name: unlike(one[name], three[name]) for name in one}
    print(f"{sum(not words for words in found.values())} of {RUNS} records equal")
    assert not any(found.values()), found
    assert not left_over(started.folder / "three")

"""Twelve small runs on three workers, one of which is killed at a random moment, five times, and
the scheduler once: pytest -s tests/faults/study_of_twelve.py
"""
import random
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from test_cluster import SECONDS, cluster, kill, wait_for  # noqa: E402, F401
from test_command import FAST, SOURCE, recipe  # noqa: E402

NAMES = [f"run_{k}" for k in range(10)]


def study(folder):
    "Ten runs and two that read some of them, these first."
    nothing = dict.fromkeys(FAST) | {"notebook": "06_ensemble"}
    return [recipe(folder, "both", members=NAMES[:2], **nothing),
            recipe(folder, "many", members=NAMES[2:8], **nothing),
            *(recipe(folder, name) for name in NAMES)]


@pytest.mark.parametrize("what, seed", [*(("worker", k) for k in range(5)), ("scheduler", 5)])
def test_twelve_of_twelve_and_none_twice(cluster, what, seed):  # noqa: F811
    draw = random.Random(seed)
    paths = study(cluster.folder)
    scheduler = cluster.scheduler()
    workers = [cluster.worker() for _ in range(3)]
    command = cluster.run(*paths, "--data", SOURCE)
    wait_for(cluster.begun)
    time.sleep(draw.uniform(0, 15))
    before = cluster.states()
    kill(draw.choice(workers) if what == "worker" else scheduler)
    said = command.communicate(timeout=SECONDS)[0]
    if what == "scheduler" and command.returncode:
        assert "the scheduler is gone" in said and "Traceback" not in said, said
        cluster.scheduler()
        for _ in range(3):
            cluster.worker()
        said += cluster.run(*paths, "--data", SOURCE).communicate(timeout=SECONDS)[0]
    states, begun = cluster.states(), cluster.begun()
    whole = [name for name, state in states.items() if state == "done"]
    resumed = sum(step > 0 for _, step in begun)
    print(f"\n{what} killed with {len(before)} folders of runs there: {len(whole)} of {len(paths)} "
          f"done, {len(begun)} executions, {resumed} from a saved state")
    assert len(whole) == len(paths) == len(states), said
    ended = [line for line in said.splitlines() if ": done" in line]
    assert len(ended) == len(set(ended)), "none twice"

"Runs on a Dask scheduler's workers: some die, some see no file of the command's, and it goes too."
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from fastcore.basics import noop
from test_command import FAST, SOURCE, recipe, small_project

from bloodcell_nb.data.files import pack
from bloodcell_nb.data.sources import load, save
from bloodcell_nb.runs.cluster import Tasks, _bring, _connected, _with_its_files, _workers
from bloodcell_nb.runs.recipes import RecipeError

SECONDS = 240  # that anything may take on a busy machine
# it goes on from the step that it finds, beyond the first where it may; each execution leaves a
# line that says from which
CELL = """
import json, time
from pathlib import Path
from bloodcell_nb.runs.recipes import recipe_of
from bloodcell_nb.runs.run import Run
run = Run(recipe_of(globals(), {notebook!r}))
state = run.folder / "state" / "step"
step = int(state.read_text()) if state.exists() else 0
with open({begun!r}, "a") as begun:
    begun.write(f"{{run.recipe.recipe}} {{step}}\\n")
for name in getattr(run.recipe, "members", []):
    assert (run.folder.parent / name / "metrics.json").exists(), "a run that it reads is missing"
state.parent.mkdir(exist_ok=True)
for step in range(step + 1, 6):
    while step > 1 and not Path({go!r}).exists():
        time.sleep(0.1)
    state.write_text(str(step))
run.finish({{}})
"""


def wait_for(found, process=None, seconds=SECONDS):
    "Wait until something is there, before a process, if one is named, ends."
    end = time.monotonic() + seconds
    while not (result := found()):
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)
    return result


class Cluster:
    "A scheduler, workers and the command, each a process, in a folder."

    def __init__(self, folder, blind):
        self.folder, self.processes = folder, []
        self._begun, self.go = folder / "begun", folder / "go"
        self.go.touch()
        _, self.small = small_project(folder, {
            name: CELL.format(notebook=name, begun=str(self._begun), go=str(self.go))
            for name in ("03_custom_cnn", "06_ensemble")}, blind)

    def start(self, *command):
        self.processes.append(subprocess.Popen([*map(str, command)], cwd=self.folder, text=True,
                                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return self.processes[-1]

    def scheduler(self):
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        process = self.start("dask", "scheduler", "--host", "127.0.0.1", "--port", 0,
                             "--no-dashboard", "--scheduler-file", file)
        wait_for(file.exists)
        return process

    def worker(self, preload=None):
        (place := self.folder / f"worker_{len(self.processes)}").mkdir()
        return self.start("dask", "worker", "--scheduler-file", "scheduler.json", "--no-nanny",
                          "--no-dashboard", "--nthreads", 1, "--local-directory", place,
                          "--preload", preload or self.small)

    def run(self, *arguments):
        return self.start(sys.executable, self.small, "run", *arguments, "--profile", "full",
                          "--scheduler", "scheduler.json", "--out", "out")

    def begun(self):
        "Names of the runs that began, and from which step."
        lines = self._begun.read_text().splitlines() if self._begun.exists() else []
        return [(name, int(step)) for name, step in map(str.split, lines)]

    def states(self):
        return {path.parent.name: json.loads(path.read_text())["state"]
                for path in (self.folder / "out").glob("*/status.json")}

    def end(self):
        "Kill what still lives, and what that has started."
        below = [one for process in self.processes if process.poll() is None
                 for one in psutil.Process(process.pid).children(recursive=True)]
        for one in [*self.processes, *below]:
            kill(one)
        for process in self.processes:
            process.communicate()


def kill(process):
    "Kill -9 of a process alone: what it started lives, or ends by itself."
    with suppress(psutil.NoSuchProcess):
        psutil.Process(process.pid).kill()


@pytest.fixture
def cluster(tmp_path, request):
    made = Cluster(tmp_path, getattr(request, "param", False))
    yield made
    made.end()


def test_a_worker_that_dies_costs_no_run(cluster):
    """Killed in the middle of a run, which goes on elsewhere from its state; the scheduler too,
    which the command says in a line. Each run is finished once.
    """
    names = [f"run_{k}" for k in range(3)]
    paths = [recipe(cluster.folder, name) for name in names]
    scheduler = cluster.scheduler()
    workers = [cluster.worker(), cluster.worker()]
    cluster.go.unlink()
    command = cluster.run(*paths, "--data", SOURCE)
    wait_for(lambda: len([*(cluster.folder / "out").glob("*.partial/state/step")]) == 2)
    kill(workers[0])
    cluster.go.touch()
    wait_for(lambda: "done" in cluster.states().values())
    kill(scheduler)
    said = command.communicate(timeout=SECONDS)[0]
    assert command.returncode == 2 and "the scheduler is gone; the same command" in said, said
    assert "Traceback" not in said, said
    cluster.scheduler()
    cluster.worker()
    said += cluster.run(*paths, "--data", SOURCE).communicate(timeout=SECONDS)[0]
    assert cluster.states() == dict.fromkeys(names, "done"), said
    assert [name for name, step in cluster.begun() if step], "none went on from its state"
    ended = [line.partition(":")[0] for line in said.splitlines() if ": done" in line]
    assert len(ended) == len(set(ended)), said


def test_what_is_asked_of_a_scheduler_that_dies_ends_in_a_line(cluster):
    "A task's own result too: it ended, and lies where nobody can fetch it any more."
    scheduler = cluster.scheduler()
    cluster.worker()
    with (pytest.raises(RecipeError, match="the scheduler is gone; the same command goes on"),
          _connected(str(cluster.folder / "scheduler.json"), 1) as client):
        task = client.submit(noop, 1)
        wait_for(task.done)
        kill(scheduler)
        scheduler.wait()
        task.result()


@pytest.mark.parametrize("cluster", [True], indirect=True)
def test_workers_that_see_no_file(cluster):
    """The cells and the runs that others read travel to them, each finished folder comes back, and
    of one that fails the notebook does.
    """
    cells = save(load("synthetic:n=64"), cluster.folder / "cells.npz")
    recipe(cluster.folder, "one")
    nothing = dict.fromkeys(FAST) | {"notebook": "06_ensemble"}
    recipe(cluster.folder, "both", members=["one"], **nothing)
    recipe(cluster.folder, "lost", members=["nobody"], **nothing)
    cluster.scheduler()
    cluster.worker()
    names = ["both.yaml", "lost.yaml", "one.yaml"]
    command = cluster.run(*names, "--data", cells)
    said = command.communicate(timeout=SECONDS)[0]
    assert command.returncode == 1 and cluster.states() == {
        "both": "done", "one": "done", "lost.partial": "failed"}, said
    assert "lost: failed: no run " in said and "3 runs: " in said
    place = cluster.folder / "out"
    assert not [path for path in place.glob(".locks.partial/*") if path.is_dir()]
    assert str(cluster.folder / "worker") not in (place / "one" / "notebook.ipynb").read_text()
    begun = len(cluster.begun())
    said = cluster.run(*names, "--data", cells).communicate(timeout=SECONDS)[0]
    assert said.count("skipped") == 2 + 1 and len(cluster.begun()) == begun, said


def test_what_comes_back_and_has_no_place_is_kept(tmp_path):
    "Somebody put a folder where the run belongs: its files stay, and so does what came."
    run, root = tmp_path / "elsewhere" / "one", tmp_path / "out"
    for folder in (run, root / "one"):
        folder.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"recipe": "one", "key": "1", "state": "done"}))
    (root / "one" / "notes.txt").write_text("of somebody")
    status = _bring(root, "one", {"status": {"state": "done"}, "parcel": pack(run)})
    place = Path(status["error"].partition("lies in ")[2])
    assert status["state"] == "failed" and (place / "one" / "status.json").exists(), status
    assert [path.name for path in (root / "one").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("status, there", [({"state": "done"}, True), ({"state": "failed"}, False),
                                           ({}, True)])
def test_a_member_that_failed_is_none(tmp_path, status, there):
    "Of what travels to a reader, what lies at the command's place has no status."
    (tmp_path / "two").mkdir()
    member = {"parcel": pack(tmp_path / "two")} | ({"status": status} if status else {})
    (place := tmp_path / "worker").mkdir()
    _with_its_files({"command": "here", "given": {"recipe": {}}, "files": {},
                     "members": {"two": member, "gone": {}}}, place)
    assert (place / "here" / "two").exists() == there and not (place / "here" / "gone").exists()


def test_a_command_that_is_stopped_stops_its_runs(cluster):
    "Its run keeps its state, and no process of it goes on; a worker of other code is refused."
    path = recipe(cluster.folder, "one")
    cluster.scheduler()
    worker = cluster.worker()
    cluster.go.unlink()
    command = cluster.run(path, "--data", SOURCE)
    work = cluster.folder / "out" / "one.partial"
    wait_for((work / "state" / "step").exists)
    processes = psutil.Process(worker.pid).children(recursive=True)
    command.terminate()
    said = command.communicate(timeout=SECONDS)[0]
    assert command.returncode == 130 and "interrupted; the same command goes on" in said, said
    assert json.loads((work / "status.json").read_text())["state"] == "interrupted"
    assert not psutil.wait_procs(processes, timeout=SECONDS)[1]
    kill(worker)
    other = cluster.folder / "other.py"
    other.write_text(cluster.small.read_text() + "keys._statements = lambda code: ['other']\n")
    cluster.worker(other)
    said = cluster.run(path, "--data", SOURCE).communicate(timeout=SECONDS)[0]
    assert "has other code than this command; give it the same" in said, said
    assert (work / "state" / "step").exists()


def test_a_command_that_is_paused_goes_on(cluster, monkeypatch):
    "Ctrl-Z and fg, or a laptop that sleeps: Dask would take the silent worker for lost."
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "500ms")
    paths = [recipe(cluster.folder, name) for name in ("one", "two")]
    cluster.go.unlink()
    command = cluster.start(sys.executable, cluster.small, "run", *paths, "--data", SOURCE,
                            "--profile", "full", "--jobs", 2, "--out", "out")
    wait_for(lambda: len([*(cluster.folder / "out").glob("*.partial/state/step")]) == 2, command)
    psutil.Process(command.pid).suspend()
    time.sleep(7)  # ten of its heartbeats are five seconds
    psutil.Process(command.pid).resume()
    cluster.go.touch()
    said = command.communicate(timeout=60)[0]
    assert command.returncode == 0 and cluster.states() == {"one": "done", "two": "done"}, said
    assert [step for _, step in cluster.begun()] == [0, 0], "each begins once"


def test_that_nobody_works_is_said_once(cluster, capsys):
    cluster.scheduler()
    with _connected(str(cluster.folder / "scheduler.json"), 1) as client:
        tasks = Tasks(client, {"given": {"root": "out"}})
        for _ in range(2):  # before the first, and after the first has gone
            for _ in range(100):
                tasks.ended()
            worker = cluster.worker()
            wait_for(lambda: tasks.at_once)
            for _ in range(50):
                tasks.ended()
            kill(worker)
            wait_for(lambda: not tasks.at_once)
            assert capsys.readouterr().err.count("no worker at tcp://127.0.0.1") == 1


def test_a_scheduler_that_dask_has_given_up_is_gone():
    "Asked for its workers, when it has been silent for long: the client has nothing to say of it."
    with pytest.raises(RecipeError, match="the scheduler is gone; the same command goes on"):
        _workers(SimpleNamespace(scheduler_info=lambda n_workers: {}))

"The bloodcell command as a user meets it: in a process of its own."
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import yaml
from jupyter_client import LocalPortCache
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.util.tensor_util import make_ndarray

from bloodcell_nb.cli import main
from bloodcell_nb.commands import parser, place
from bloodcell_nb.data.cells import DataError, DataWarning
from bloodcell_nb.data.files import creating
from bloodcell_nb.runs import cluster, engine, keys, processes
from bloodcell_nb.runs.plan import plan_runs
from bloodcell_nb.runs.recipes import read_recipe, recipes
from bloodcell_nb.runs.schemas import CustomCNNRecipe
from bloodcell_nb.runs.studies import studies

ROOT = Path(__file__).resolve().parent.parent
FAST = {"notebook": "03_custom_cnn", "filters": [4, 4], "dense_units": 8, "batch_size": 16,
        "epochs": 4}
SOURCE = "synthetic:n=200"
MIXED = {"mixing": "part", "mixing_share": 0.5, "augmentation": [
    "RandomFlip", {"RandomApply": {"k": 1, "of": ["RandomCutout", "GaussianNoise"]}}, "CutMix"]}


def bloodcell(*arguments, **environment):
    return subprocess.run(["bloodcell", *map(str, arguments)], capture_output=True, text=True,
                          cwd=ROOT, env=os.environ | environment)


def recipe(folder, name, **values):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (
        FAST | {"recipe": name} | values).items() if value is not None}))
    return path


def one_line_error(capsys, arguments, *words):
    "The command, in this process, refuses with one line that holds the words."
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2, arguments
    captured = capsys.readouterr()
    err = captured.err
    assert err.startswith("bloodcell: ") and err.count("\n") == 1 and not captured.out, captured
    assert all(word in err for word in words), err


def test_bad_input_costs_one_line(tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "file"
    file.write_text("")
    phased = {key: None for key in FAST} | {"notebook": "04_efficientnet", "backbone": "mobilenet",
                                            "learning_rate": 1e-3,
                                            "phases": [{"trainable": "head", "epochs": 1,
                                                        "learning_rate": 1e-3}]}
    reader = {key: None for key in FAST} | {"notebook": "06_ensemble", "members": ["../../else"]}
    for arguments, *words in [
        (["inspect", tmp_path / "none.npz"], "no such file"),
        (["inspect", "synthetic:cells=3"], "'cells=3' is not understood"),
        (["inspect", "medmnist:96"], "28, 64, 128, 224"),
        (["convert", SOURCE, tmp_path / "file.npz", "--size", "0"], "size is 0"),
        (["run", "custom_ccn", "--out", out], "no recipe custom_ccn", "custom_cnn"),
        (["run", recipe(tmp_path, "unknown", epoch=3), "--out", out], "unknown.yaml",
         "unknown key epoch; did you mean epochs?"),
        (["run", recipe(tmp_path, "high", dropout=2), "--out", out], "dropout is 2", "less than 1"),
        (["run", recipe(tmp_path, "policy", augmentation="hevy"), "--out", out],
         "policy.yaml: augmentation: no policy hevy; there are simple, ", "heavy"),
        (["run", recipe(tmp_path, "phased", **phased), "--out", out],
         "phased.yaml: learning_rate is 0.001", "set phases"),
        (["run", recipe(tmp_path, "reader", **reader), "--out", out],
         "reader.yaml: members.0 is '../../else'"),
        (["run", "efficientnet_lite0_heavy", "--set", "learning_rate=0.1", "--out", out],
         "learning_rate is 0.1", "set phases"),
        (["run", "analysis", "--set", "recipe=../../else", "--out", out], "recipe is '../../else'"),
        (["run", "analysis", "--set", "seed=[1, {", "--out", out],
         "--set seed=[1, {: not valid YAML; expected a value such as 3"),
        (["run", tmp_path / "none.yaml", "--out", out], "none.yaml: cannot be read"),
        (["run", "analysis", "--data", tmp_path / "none.zip", "--out", out], "no such file"),
        (["run", "analysis", "--data", "medmnist:5", "--out", out], "28, 64, 128, 224"),
        (["run", "analysis", "--data", SOURCE, "--out", file], "not a folder"),
        (["run", "analysis", "--data", SOURCE, "--out", out, "--tensorboard", file],
         f"--tensorboard {file}: File exists; name a folder that can be written"),
        (["page", tmp_path / "none"], "no such folder"),
    ]:
        one_line_error(capsys, arguments, *words)
    assert not out.exists()


def test_a_run_whose_members_are_missing_starts_no_notebook(tmp_path):
    path = recipe(tmp_path, "reader", **dict.fromkeys(FAST) | {"notebook": "06_ensemble",
                                                               "members": ["nobody"]})
    chosen = read_recipe(path).model_copy(update={"source": SOURCE})

    def refused(*words):
        status = engine.execute(chosen, tmp_path / "out")
        assert status["state"] == "failed" and all(word in status["error"] for word in words)

    refused("no run ", "nobody, which reader reads; run nobody first")
    work = tmp_path / "out" / "reader.partial"
    assert [path.name for path in work.iterdir()] == ["status.json"]  # for the page
    for name in ("notebook.ipynb", "kernel.log"):  # an interrupted one stays
        (work / name).write_text("")
    (work / "status.json").write_text(json.dumps({"recipe": "reader", "key": "1",
                                                  "state": "interrupted"}))
    refused("no run ")
    assert (work / "notebook.ipynb").exists() and json.loads(
        (work / "status.json").read_text())["state"] == "interrupted"


def test_a_run_without_a_name_lists_what_it_could_run(tmp_path):
    done = bloodcell("run", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (
        2, "bloodcell: run: name one or more of these recipes, or --study STUDY\n")
    assert ([line.split()[0] for line in done.stdout.splitlines()] == [*recipes(), *studies()]
            and not (tmp_path / "out").exists())


def test_a_closed_pipe_is_no_error(tmp_path):
    process = subprocess.Popen(["bloodcell", "recipes"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # as `head` does once it has its line
    assert process.stderr.read() == "" and process.wait() == 141


@pytest.mark.parametrize(("closed", "code", "said"), [
    (">&-", 2, "bloodcell: standard output is closed; send it to a file, or to /dev/null\n"),
    ("2>&-", 0, ""), ("<&-", 0, ""), (">&- 2>&-", 2, "")])
def test_a_closed_stream_is_no_file(closed, code, said):
    done = subprocess.run(["bash", "-c", f"bloodcell inspect synthetic:n=16 {closed}"], cwd=ROOT,
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, said)
    assert done.stdout.startswith("synthetic:n=16,") == (code == 0)


@pytest.mark.parametrize(("words", "code"), [
    ("--help > /dev/full", 2), ("predict --help | true; exit ${PIPESTATUS[0]}", 141),
    ("foo 2> /dev/full", 2), ("recipes > /dev/full", 2)])
def test_a_stream_that_takes_nothing(words, code):
    "Python's own complaint as it ends is no line of ours."
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", f"bloodcell {words}"], cwd=ROOT, capture_output=True,
                          text=True, env=environment)
    assert done.returncode == code and "Exception" not in done.stderr, done.stderr
    assert done.stderr.count("\n") == ("> /dev/full" in words and "2>" not in words)


def options():
    "The options of every command, by the command's name."
    (commands,) = parser()._subparsers._group_actions
    return {name: one._actions for name, one in commands.choices.items()}


def test_a_place_on_the_command_line_is_read_as_one(tmp_path, monkeypatch, capsys):
    "Of ~ in it the home folder is made, and links in a circle are refused, for every option."
    written = {(name, one.dest) for name, actions in options().items() for one in actions
               if one.type is place}
    assert ("convert", "destination") in written
    for name, actions in options().items():
        for one in actions:
            if re.search(r"\b(DIR|FILE|PATH|RUN|RECIPE|STUDY|SPACE)\b", str(one.metavar)):
                assert (name, one.dest) in written, f"{name} {one.dest}"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place("~/runs") == str(tmp_path / "runs")
    (tmp_path / "loop").symlink_to("loop")
    for words in (["run", "analysis", "--data", SOURCE, "--out"], ["evaluate"], ["page"],
                  ["run", "analysis", "--data", SOURCE, "--tensorboard"], ["convert", SOURCE],
                  ["predict", "a.png", "--grad-cam"], ["predict", "a.png", "--model"]):
        for end in ("loop", "loop/x", "~/loop"):
            one_line_error(capsys, [*words, end if end[0] == "~" else tmp_path / end],
                           "Too many levels of symbolic links; give another path")
    one_line_error(capsys, ["page", "x" * 300], "too long a name; give another path")
    for words in (["convert", SOURCE], ["predict", "a.png", "--grad-cam"], ["page"]):
        one_line_error(capsys, [*words, f"missing/{'x' * 300}"], "too long a name")
        one_line_error(capsys, [*words, tmp_path / "missing/../loop"], "Symlink loop from")
        one_line_error(capsys, [*words, "~nosuchuser/x"], "there is no such user")
    assert not Path("missing").exists()
    monkeypatch.chdir(tmp_path)
    assert main(["convert", SOURCE, "./~/new.npz"]) == 0
    assert (tmp_path / "~" / "new.npz").is_file() and not (tmp_path / "new.npz").exists()
    one_line_error(capsys, ["inspect", "~/none.npz"], "no such file")


def test_a_backend_for_windows_draws_no_file(tmp_path):
    "Nor does one that is none: figures go into files."
    (tmp_path / "runs").mkdir()
    shutil.copytree(ROOT / "reports" / "course" / "analysis", tmp_path / "runs" / "analysis")
    done = bloodcell("page", tmp_path / "runs", "--notebooks", "ipynb", MPLBACKEND="foo")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert (tmp_path / "runs" / "index.html").is_file()


def test_a_name_that_no_record_could_hold_is_refused(tmp_path, capsys):
    odd = tmp_path / "caf\udce9"
    odd.mkdir()
    quick = ["run", "analysis", "--profile", "smoke"]
    words = "its name is not in UTF-8, as records are; rename it"
    one_line_error(capsys, [*quick, "--data", SOURCE, "--out", odd / "out"], words)
    assert main(["convert", SOURCE, str(odd / "cells.npz")]) == 0
    capsys.readouterr()
    one_line_error(capsys, [*quick, "--data", odd / "cells.npz", "--out", tmp_path / "out"], words)
    assert not (tmp_path / "out").exists() and [*odd.iterdir()] == [odd / "cells.npz"]


def test_a_recipes_place_is_said_to_be_passed_over(tmp_path):
    path = recipe(tmp_path, "small", out=str(tmp_path / "mine"))
    with pytest.warns(DataWarning, match="small: its out, .*mine, is for papermill alone; --out"):
        plan_runs([str(path)])


def test_a_killed_convert_leaves_nothing_that_stays(tmp_path):
    "What it left is removed by the next of its name; of one that runs nothing is."
    code = ("import sys\nfrom pathlib import Path\nfrom bloodcell_nb.data.files import creating\n"
            "with creating(Path(sys.argv[1])) as work:\n    work.write_text('half')\n"
            "    print('begun', flush=True)\n    sys.stdin.read()\n")
    target = tmp_path / "cells.npz"
    begun = [subprocess.Popen([sys.executable, "-c", code, target], stdout=subprocess.PIPE,
                              stdin=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    assert [one.stdout.readline() for one in begun] == ["begun\n"] * 2
    assert len([*tmp_path.iterdir()]) == 2
    begun[0].kill()
    begun[0].wait()
    with creating(target) as work:
        work.write_text("whole")
        assert len([*tmp_path.iterdir()]) == 2, "its own, and that of the one that runs"
    begun[1].kill()
    begun[1].wait()
    with pytest.raises(DataError, match="exists already"), creating(target):
        pass
    assert [*tmp_path.iterdir()] == [target] and target.read_text() == "whole"


def test_convert_leaves_nothing_half_written(tmp_path):
    (tmp_path / "cells" / "basophil").mkdir(parents=True)
    (tmp_path / "cells" / "basophil" / "1.png").write_bytes(b"broken")
    done = bloodcell("convert", tmp_path / "cells", tmp_path / "new.npz")
    assert (done.returncode == 2 and done.stderr.count("\n") == 1
            and "basophil/1.png cannot be read" in done.stderr), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells"]


def run(folder, out, *recipes):
    "Start the command on recipes of a folder, in a session of its own."
    return subprocess.Popen(["bloodcell", "run", *map(str, recipes), "--data", SOURCE, "--profile",
                             "full", "--set", "seed=1", "--out", str(out)], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "A run by papermill alone: its folder, that of its recipe, and what papermill said."
    folder = tmp_path_factory.mktemp("alone")
    recipe(folder, "good", epochs=4, patience=4, dropout=0.0, head_dropout=0.2, learning_rate=2e-3,
           schedule="cosine", **MIXED)
    done = subprocess.run(["papermill", str(ROOT / "nbs" / "03_custom_cnn.ipynb"),
                           str(folder / "out.ipynb"), "-f", str(folder / "good.yaml"), "-p",
                           "source", SOURCE, "-p", "out", str(folder / "run"), "-p", "seed", "1",
                           "--no-progress-bar"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run", folder, done.stderr


def test_papermill_reads_a_recipes_file(alone):
    "It names what the chapter's own cell leaves out, of which each counts."
    folder, _, said = alone
    unknown = set(re.findall(r"unknown parameter: (\w+)", said))
    assert "dropout" in unknown and unknown <= set(CustomCNNRecipe.model_fields), said
    record = json.loads((folder / "metrics.json").read_text())["recipe"]
    assert [record[key] for key in ("filters", "seed", "head_dropout")] == [[4, 4], 1, 0.2]


def last_state(work):
    "Epoch of the newest state of an unfinished run; 0 where there is none."
    return max((int(path.stem.removeprefix("state_"))
                for path in work.glob("state/training/state_*[0-9].npz")), default=0)


def assert_same_record(one, other):
    "Two runs of a recipe: the same settings, losses and answers, to the last bit."
    one, other = (json.loads((run / "metrics.json").read_text()) for run in (one, other))
    for record in (one, other):
        for key in ("seconds", "images_per_second"):
            del record["results"]["training"][key]
    assert one["recipe"] == other["recipe"] and one["results"] == other["results"]


def assert_events(events, run):
    "TensorBoard finds a run's epochs, figures and hyperparameters, all in one folder."
    key = json.loads((run / "status.json").read_text())["key"]
    assert [path.name for path in events.iterdir()] == [key]
    found = EventMultiplexer(size_guidance={"tensors": 0})  # keep all
    found.AddRunsFromDirectory(str(events / key))
    found.Reload()
    figures = {path.stem for path in run.glob("*/*.png")}  # in figures/ and cells/
    assert set(found.Runs()["."]["tensors"]) == figures | {"_hparams_/session_start_info"}
    history = json.loads((run / "metrics.json").read_text())["results"]["training"]["history"]
    losses = {event.step: make_ndarray(event.tensor_proto)  # the last of an epoch trained twice
              for event in found.Tensors("training/validation", "epoch_loss")}
    np.testing.assert_allclose([losses[epoch] for epoch in sorted(losses)], history["val_loss"],
                               atol=1e-6)


def processes_of(command, work):
    "Processes of a run: its engine and its kernel write into its log."
    for process in psutil.Process(command.pid).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if str(work / "kernel.log") in [file.path for file in process.open_files()]:
                yield process


def test_killed_runs_go_on(alone, tmp_path):
    """kill -9 in the middle, with a policy of drawn operations and mixed labels.

    The same command then gives what papermill alone gave without interruption and without
    TensorBoard's event files, which know every epoch; given once more, it has nothing to do.
    """
    uninterrupted, folder, _ = alone
    given = "good.yaml", "--tensorboard", tmp_path / "events"
    process, work = run(folder, tmp_path / "cut", *given), tmp_path / "cut" / "good.partial"
    while not last_state(work):
        assert process.poll() is None, "no epoch was trained"
        time.sleep(0.02)
    for one in processes_of(process, work):
        one.suspend()
    killed = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for one in killed:  # kernels have sessions of their own
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(killed)
    process.communicate()
    assert json.loads((work / "status.json").read_text())["state"] == "running"
    assert last_state(work) < 4, "killed too late to test anything"
    assert "good: done" in run(folder, tmp_path / "cut", *given).communicate()[0]
    assert_same_record(uninterrupted, tmp_path / "cut" / "good")
    assert not work.exists() and not (tmp_path / "cut" / "good" / "state").exists()
    assert_events(tmp_path / "events" / "good", tmp_path / "cut" / "good")
    assert "good: skipped" in run(folder, tmp_path / "cut", "good.yaml").communicate()[0]


def one_cell(place, code, name="03_custom_cnn"):
    "A project with a notebook of its parameters and one cell of code; gives its folder."
    root = place / "project"
    (root / "nbs").mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(ROOT / "nbs" / f"{name}.ipynb", 4)
    parameters = next(cell for cell in notebook.cells
                      if "parameters" in cell.metadata.get("tags", []))
    notebook.cells = [parameters, nbformat.v4.new_code_cell(code)]
    nbformat.write(notebook, root / "nbs" / f"{name}.ipynb")
    return root


# notebooks of one cell in the place of the project's, for a command, its runs and Dask's workers
SMALL = """
import sys
from pathlib import Path
from bloodcell_nb.runs import cluster, engine, keys, processes
engine.project_root = keys.project_root = lambda: Path({project!r})
if {blind} and "dask" in sys.argv[0]:
    cluster._sees = lambda paths: False
processes._COMMAND = "import runpy; runpy.run_path({path!r}); " + processes._COMMAND
if __name__ == "__main__":
    from bloodcell_nb.cli import main
    sys.exit(main())
"""


def small_project(place, cells, blind=False):
    "Write notebooks of one cell; gives their project and the file that puts them in place."
    small = place / "small.py"
    for name, code in cells.items():
        project = one_cell(place, f"import runpy\nrunpy.run_path({str(small)!r})\n{code}", name)
    small.write_text(SMALL.format(project=str(project), blind=blind, path=str(small)))
    return project, small


def in_place(monkeypatch, project, small):
    "The same for commands in this process."
    for module in (engine, keys):
        monkeypatch.setattr(module, "project_root", lambda: project)
    monkeypatch.setattr(processes, "_COMMAND", f"import runpy; runpy.run_path({str(small)!r}); "
                                               + processes._COMMAND)


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    "Runs a notebook of one cell; gives status and folder."
    def execute(code, timeout=None):
        root = one_cell(tmp_path, code)
        monkeypatch.setattr(engine, "project_root", lambda: root)
        chosen = read_recipe(recipe(tmp_path, "faulty")).model_copy(update={"source": SOURCE})
        return engine.execute(chosen, tmp_path / "out",
                              timeout=timeout), tmp_path / "out" / "faulty.partial"

    return execute


FINISH = """
from bloodcell_nb.runs.recipes import recipe_of
from bloodcell_nb.runs.run import Run
Run(recipe_of(globals(), "03_custom_cnn")).finish({})
"""
EXECUTE = f"""
import sys
from pathlib import Path
from bloodcell_nb.runs import engine
from bloodcell_nb.runs.recipes import read_recipe
engine.project_root = lambda: Path(sys.argv[1])
recipe = read_recipe(sys.argv[2]).model_copy(update={{"source": "{SOURCE}"}})
print(engine.execute(recipe, Path(sys.argv[3]))["state"])
"""


def test_two_processes_on_one_run(tmp_path):
    "It is there once and whole; the second process waits for the first, and finds it."
    command = [sys.executable, "-c", EXECUTE, one_cell(tmp_path, FINISH),
               recipe(tmp_path, "at_once"), tmp_path / "out"]
    processes = [subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
                 for _ in range(2)]
    assert sorted(process.communicate()[0].split()[-1] for process in processes) == ["done",
                                                                                     "skipped"]
    assert (tmp_path / "out" / "at_once" / "metrics.json").is_file()
    assert not [path for path in (tmp_path / "out").glob("*.partial")
                if path.name != ".locks.partial"], "nothing half written"


@pytest.mark.parametrize("code, timeout, expected", [
    ("raise ValueError('no cells today\\nsecond line')", None, "ValueError: no cells today"),
    ("import os; os._exit(1)", None, "DeadKernelError"),
    ("import time; time.sleep(600)", 3, "CellTimeoutError"),
    ("pass", None, "wrote no metrics.json"),
], ids=["exception", "dead kernel", "timeout", "no record"])
def test_a_failing_run_says_why(faulty, code, timeout, expected):
    status, folder = faulty(code, timeout)
    assert (status["state"] == "failed" and expected in status["error"]
            and "\n" not in status["error"])
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert nbformat.read(folder / "notebook.ipynb", 4).cells
    assert not (folder.parent / "faulty").exists()


WRITES = """
import os, subprocess, sys
from pathlib import Path
from bloodcell_nb.runs import processes

def execute(recipe, options):
    Path({mark!r}).touch()
    {code}
    return {{"state": "done"}}

processes._status_of_execution = execute
"""


@pytest.mark.parametrize("code", [
    "os.write(1, b'x' * 200_000)",
    "left = subprocess.Popen(['sleep', '60']); Path(options['left']).write_text(str(left.pid))"],
    ids=["more than a pipe holds", "a process that it leaves behind"])
def test_what_a_run_writes_or_leaves_holds_nobody_up(tmp_path, monkeypatch, code):
    "As a notebook's compiled code does to file descriptor 1, and one that starts a server."
    mark, left, asked = tmp_path / "mark", tmp_path / "left", []

    def is_wanted():  # long enough, once it writes
        asked.append(mark.exists())
        return sum(asked) < 300

    monkeypatch.setattr(processes, "_COMMAND", WRITES.format(mark=str(mark), code=code)
                        + processes._COMMAND)
    given = {"recipe": {}, "left": str(left)}
    assert processes.run_in_process(dict(os.environ), given, is_wanted) == {"state": "done"}
    if left.exists():
        process = psutil.Process(int(left.read_text()))
        assert process.status() != psutil.STATUS_ZOMBIE, "it was waited for"
        process.kill()


def test_ports_that_others_take(faulty, monkeypatch):
    "A kernel starts where each port that Jupyter finds free is taken before the kernel binds it."
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(LocalPortCache, "find_available_port",
                            lambda *_: taken.getsockname()[1])
        status, _ = faulty(FINISH)
    assert status["state"] == "done", status


def test_a_budget_that_ends_before_the_runs_do(tmp_path, monkeypatch, capsys):
    "It is over, on the engine's clock, as soon as the first run has an epoch to go on from."
    recipe(tmp_path, "member")
    recipe(tmp_path, "together", **{key: None for key in FAST} | {
        "notebook": "06_ensemble", "members": ["member", "member_seed1"]})
    study, work = tmp_path / "pair.yaml", tmp_path / "cut" / "member.partial"
    study.write_text(yaml.safe_dump({"runs": {str(tmp_path / "together.yaml"): [0], str(
        tmp_path / "member.yaml"): [0, 1]}}))
    monkeypatch.setattr(cluster, "is_over", lambda deadline: deadline and last_state(work))
    assert main(["run", "--study", str(study), "--data", SOURCE, "--out",
                 str(tmp_path / "cut"), "--budget", "1000", "--set", "epochs=5000",
                 "--set", "patience=5000", "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert ("member: left, begun" in said and "together: left, not begun" in said
            and "3 left by the budget" in said), said
    assert json.loads((work / "status.json").read_text())["state"] == "interrupted"
    assert last_state(work) >= 1


def test_jax(tmp_path, under_jax):
    "A chapter runs on JAX too, with the three operations that Keras lacks there."
    lacking = {"RandomApply": {"k": 2, "of": ["RandomChannelShift", "ChannelShuffle", "GridMask"]}}
    one = recipe(tmp_path, "one", epochs=1, augmentation=["RandomFlip", lacking])
    done = bloodcell("run", one, "--data", SOURCE, "--profile", "full", "--out", tmp_path,
                     **under_jax)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert record["environment"]["backend"] == "jax"
    assert np.isfinite(record["results"]["training"]["history"]["val_loss"]).all()

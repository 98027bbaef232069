"Each command that README shows is run by CI, a long one in a short form."
import ast
import json
import re
import shlex
import subprocess
import time
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

from bloodcell_nb.cli import main
from bloodcell_nb.commands import parser
from bloodcell_nb.data.image_files import IMAGE_SUFFIXES
from bloodcell_nb.data.sources import fingerprint
from bloodcell_nb.inference.external import class_mapping
from bloodcell_nb.inference.published import find_model
from bloodcell_nb.networks.custom_cnn import custom_cnn
from bloodcell_nb.runs import plan
from bloodcell_nb.runs.recipes import find_recipe, read_recipe
from bloodcell_nb.runs.studies import read_study

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = ("make", "bloodcell", "papermill", "conda", "pip", "python", "nbdev_export", "source",
            "KERAS_BACKEND=jax")
INSTALLED = "test_installed.py::test_an_installed_package_works_without_a_clone"
STUDY, KILLED = "test_ensemble.py::test_a_study", "test_command.py::test_killed_runs_go_on"
BUDGET = "test_command.py::test_a_budget_that_ends_before_the_runs_do"
CUDA = "test_packaging.py::test_the_cuda_builds_are_those_of_the_same_versions"  # no GPU in CI
EVALUATE = "test_models.py::test_evaluate_the_courses_file"
# what runs it: a test, or a line of what CI runs
RUN_BY = {
    "make report": f"test_shown.py::test_make_report_asks_for_what_there_is, {STUDY}",
    "make test": ".ci/run: make test",
    "make lab": "test_shown.py::test_lab_starts",
    "make docs": ".ci/run: make docs",
    "make slides": ".ci/run: make slides",
    "make exercises": "test_exercises.py::test_the_hand_out_holds_every_exercise",
    "make setup": "Makefile: test: setup",
    "make readme": "tests/check_tree.sh: make --no-print-directory readme",
    "make notebooks": "Makefile: nbdev_test",  # the same notebooks; chapters by test-all
    "nbdev_export && nbdev_clean": "tests/check_tree.sh: nbdev_clean",
    "conda env create -f environment.yml":
        "test_packaging.py::test_one_source_of_dependencies",  # there is no conda in CI
    "source .venv/bin/activate": "Makefile: export PATH",
    "pip install .": INSTALLED,
    'pip install -e ".[cuda]"': CUDA,
    'pip install -e ".[jax-cuda]"': CUDA,
    "python -m build": INSTALLED,
    "papermill": "test_command.py::test_papermill_reads_a_recipes_file",
    "bloodcell run": STUDY,
    "bloodcell run --study small --data SOURCE --budget 60": BUDGET,
    "bloodcell run --study report --data SOURCE --out DIR --budget MINUTES": BUDGET,
    "bloodcell run --study full --data SOURCE --out DIR --budget MINUTES": BUDGET,
    "KERAS_BACKEND=jax": f"test_command.py::test_jax, {BUDGET}",
    "bloodcell run analysis custom_cnn --data SOURCE": INSTALLED,
    "bloodcell run custom_cnn --set epochs=3 --set seed=1": BUDGET,
    "bloodcell search": "test_search.py::test_a_search_finds_the_best_and_goes_on",
    "bloodcell run efficientnet_lite0_fast --profile full --data SOURCE": STUDY,
    "bloodcell run custom_cnn --tensorboard DIR": KILLED,
    "bloodcell predict FOLDER --scale auto --among monocyte,neutrophil":
        "test_models.py::test_another_microscope_at_the_training_scale",
    "bloodcell predict FOLDER --set 0.95": "test_models.py::test_sets_of_classes",
    "bloodcell predict": "test_models.py::test_predict_needs_no_training",
    "bloodcell predict cell.png --tta --json --grad-cam DIR":
        "test_ensemble.py::test_predict, test_models.py::test_predict_needs_no_training",
    "bloodcell demo": "test_demo.py::test_the_command_serves_until_it_is_stopped",
    "bloodcell evaluate": EVALUATE,
    "bloodcell export": "test_shown.py::test_export_writes_a_file",
    "bloodcell submission": "test_models.py::test_published_networks_are_handed_in",
    "bloodcell inspect": "test_encoding.py::test_a_name_that_the_terminal_lacks_is_escaped",
    "bloodcell recipes": INSTALLED,
    "bloodcell page": "test_report.py::test_page_command_names_odd_runs",
    "bloodcell publish": INSTALLED,
}


def shown():
    "Commands of README, in blocks and within sentences, without their comments."
    blocks = re.findall(r"^```\n(.*?)^```", README, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```\n.*?^```", "", README,
                                                          flags=re.M | re.S))
    found = [re.split(r"\s+#\s", line)[0].strip() for line in lines]
    return [line for line in found if line.split(" ")[0] in PROGRAMS and " " in line]


def test_every_command_of_readme_is_run_by_ci():
    """By the longest beginning of it that the table has; and the tests that the table names are
    there and use the command's options.
    """
    used = {command: max((start for start in RUN_BY if f"{command} ".startswith(f"{start} ")),
                         key=len, default=None) for command in shown()}
    assert [command for command, start in used.items() if start is None] == []
    assert len(used) > 20
    for command, start in used.items():
        said = "\n".join(map(with_helpers, RUN_BY[start].split(", ")))
        missing = [option for option in re.findall(r"--[a-z-]+", command) if option not in said]
        assert not missing or ".py::" not in RUN_BY[start], (command, RUN_BY[start], missing)


def with_helpers(where):
    "Source of a test, and of the functions of its file that it names, its fixtures too."
    name, test = re.fullmatch(r"(\S+?)(?:::|: )(.+)", where).groups()
    text = (ROOT / ("tests" if name.endswith(".py") else "") / name).read_text(encoding="utf-8")
    if not name.endswith(".py"):
        assert test in text, where
        return ""
    functions = {node.name: ast.get_source_segment(text, node) for node in ast.parse(text).body
                 if isinstance(node, ast.FunctionDef)}
    named = [test, *(other for other in functions if re.search(rf"\b{other}\b", functions[test]))]
    return "\n".join(functions[one] for one in named)


def options_of(command):
    "What the parser reads in a line, whatever stands before the program."
    return parser().parse_args(shlex.split(
        command.partition("bloodcell ")[2].replace("MINUTES", "60")))


@pytest.mark.parametrize("command", [line for line in shown() if "bloodcell " in line])
def test_a_command_of_readme_is_understood(command):
    "Its options, and the recipes, studies and networks that it names."
    options = options_of(command)
    for name in getattr(options, "names", []):
        read_recipe(find_recipe(name))
    if getattr(options, "study_name", None):
        read_study(options.study_name)
    if getattr(options, "model", None):
        assert find_model(options.model).is_dir()
    assert class_mapping(getattr(options, "classes", "")) is not None


ON_A_GPU, = re.findall(r"run --study .*", (ROOT / "benchmarks/gpu.sh").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", [*(line for line in shown() if "bloodcell run " in line),
                                     f"KERAS_BACKEND=jax bloodcell {ON_A_GPU}"])
def test_a_backend_can_run_what_is_asked_of_it(command, monkeypatch):
    "By README and the GPU's script: no recipe of a study is refused, whose command names it."
    options = vars(options_of(command))
    what = {key: options[key] for key in ("names", "study_name", "settings") if key in options}
    asked = re.match(r"KERAS_BACKEND=(\w+)", command)
    monkeypatch.setattr(plan, "keras_backend", lambda: asked[1] if asked else "tensorflow")
    plan.check_inputs(plan.plan_runs(source="synthetic:n=32", **what).recipes)


def test_options_in_comments_are_there(capsys):
    lines = re.findall(r"^bloodcell (\w+).*?#(.*--.*)$", README, re.M)
    for command, comment in lines:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = capsys.readouterr().out
        assert [option for option in re.findall(r"--[\w-]+", comment) if option not in said] == []
    assert len(lines) >= 2


def test_readme_names_every_kind_of_image():
    line = next(line for line in README.splitlines() if "class folders with" in line)
    kinds = {suffix.strip(".").replace("jpeg", "jpg") for suffix in IMAGE_SUFFIXES}
    assert [kind for kind in kinds if kind not in line] == []


def test_another_teams_figure_has_its_source():
    "Where the best public solution's is named, its repository is linked."
    for path in [ROOT / "README.md", *(ROOT / "nbs").glob("*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        cells = json.loads(text)["cells"] if path.suffix == ".ipynb" else [{"source": text}]
        for source in ("".join(cell["source"]) for cell in cells):
            assert "0.9687" not in source or "Luca-Olivieri/blood_cells_classifier" in source, path


def command_of(target, program):
    "What make would run for a target with a program, as words."
    lines = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True,
                           encoding="utf-8", check=True).stdout.splitlines()
    return shlex.split(next(line for line in lines if line.startswith(f"{program} ")))


def test_make_report_asks_for_what_there_is():
    "Its study, whose recipes are read, and drawn cells."
    options = parser().parse_args(command_of("report", "bloodcell")[1:])
    assert {recipe.notebook for recipe in read_study(options.study_name)[1]} == {
        "01_analysis", "03_custom_cnn", "04_efficientnet", "05_convnext", "06_ensemble",
        "07_robustness"}
    assert fingerprint(options.source) and options.out == "reports/synthetic"


def answer_of(port, server):
    """Status of a server's answer, once it listens; None where it has ended.

    One that answers also hears a signal: before, it is lost.
    """
    while server.poll() is None:
        with suppress(ConnectionRefusedError), closing(HTTPConnection("127.0.0.1", port)) as asked:
            asked.request("GET", "/api")
            return asked.getresponse().status
        time.sleep(0.1)


def test_lab_starts():
    "As root too, in a container: the address is told."
    command = command_of("lab", "jupyter lab")
    process = subprocess.Popen([*command, "--no-browser", "--port=0"], cwd=ROOT,
                               stderr=subprocess.PIPE, encoding="utf-8")
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if "http://" in line:
                break
        assert "http://" in "".join(said[-1:]), said
        port = int(re.search(r"http://[^/]+:(\d+)/", said[-1])[1])
        assert answer_of(port, process) == 200
    finally:
        process.terminate()
        process.stderr.close()
        process.wait()


def test_export_writes_a_file(tmp_path, capsys):
    custom_cnn((96, 96), filters=(4,), dense_units=8).save(tmp_path / "cnn.keras")
    made = tmp_path / "cnn.tflite"
    assert main(["export", str(tmp_path / "cnn.keras"), "--to", "litert", "--out", str(made),
                 "--data", "synthetic:n=40"]) == 0
    assert f"wrote {made}" in capsys.readouterr().out and made.read_bytes()[4:8] == b"TFL3"

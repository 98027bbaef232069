"Exercises: students get no solution, and no check passes before there is one."
import json
import re
import runpy
import zipfile
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "nbs" / "exercises").glob("*.ipynb"))
SCRIPT = runpy.run_path(str(ROOT / "docs" / "exercises.py"))


def sources(notebook, kind):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.fixture(params=SOURCES, ids=lambda path: path.stem)
def exercise(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_each_exercise_has_a_prompt_a_blank_a_check_and_an_answer(exercise):
    parts, kinds = [], {"markdown": {"## ": "prompt", "**Solution.**": "answer"},
                        "code": {"# Check": "check"}}
    for cell in exercise["cells"]:
        source = "".join(cell["source"])
        parts += [kind for start, kind in kinds.get(cell["cell_type"], {}).items()
                  if source.startswith(start)]
        parts += ["blank"] * (cell["cell_type"] == "code" and "### BEGIN SOLUTION" in source)
        assert source.count("### BEGIN") == source.count("### END") == len(
            SCRIPT["REGION"].findall(source))
    order = re.fullmatch(r"(?:prompt (?:blank )+(?:check )+(?:blank |check )*answer ?)+",
                         " ".join(parts))
    assert order and parts.count("prompt") >= 3, parts
    prompts = [text for text in sources(exercise, "markdown") if text.startswith("## ")]
    for number, prompt in enumerate(prompts, 1):
        head = rf"## {number}\. .+\n+\*(easy|middle|open), \d+ minutes\.\*"
        assert re.match(head, prompt), prompt


def test_students_get_no_solution_and_no_output(exercise):
    version = SCRIPT["students_version"](exercise)
    text = json.dumps(version)
    assert "SOLUTION" not in text and "**Solution" not in text
    assert not any(cell.get("outputs") for cell in version["cells"])
    before, after = sources(exercise, "code"), sources(version, "code")
    assert sum("raise NotImplementedError()" in source for source in after) == sum(
        "### BEGIN SOLUTION" in source for source in before)
    for source in after:
        compile(source, "cell", "exec")


def test_no_check_passes_before_there_is_a_solution(exercise, monkeypatch):
    "Each cell of the students' version in its turn, as a student who runs all of them."
    matplotlib.use("agg")
    monkeypatch.chdir(ROOT / "nbs" / "exercises")
    namespace = {"__name__": "__main__"}
    begun = False  # whether the first exercise has
    for source in sources(SCRIPT["students_version"](exercise), "code"):
        begun = begun or "raise NotImplementedError()" in source
        if source.startswith("# Check"):
            with pytest.raises((NotImplementedError, AssertionError, NameError)):
                exec(source, namespace)
        elif begun:
            try:
                exec(source, namespace)
            except (NotImplementedError, NameError):
                pass
        else:
            exec(source, namespace)
    matplotlib.pyplot.close("all")


def test_the_hand_out_holds_every_exercise(tmp_path):
    SCRIPT["hand_out"](tmp_path / "one.zip")
    SCRIPT["hand_out"](tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as file:
        assert file.namelist() == [f"exercises/{path.name}" for path in SOURCES]
        assert all(json.loads(file.read(name))["cells"] for name in file.namelist())

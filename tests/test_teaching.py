"The teacher's page: its tables are those that chapters and exercises give now."
import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parent.parent / "nbs"
CELLS = json.loads((NBS / "teaching.ipynb").read_text(encoding="utf-8"))["cells"]


@pytest.fixture(scope="module")
def page():
    "Names that the page's cells bind, and its tables as shown and as they are now."
    namespace, tables = {}, []
    for cell in CELLS:
        if cell["cell_type"] == "code":
            now = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("IPython.display.display", now.append)
                exec("".join(cell["source"]), namespace)
            shown = ["".join(output["data"]["text/markdown"]) for output in cell["outputs"]]
            tables += [(shown, [table.data for table in now])] if now else []
    return namespace, tables


def test_no_table_is_stale(page):
    assert len(page[1]) == 3
    for shown, now in page[1]:
        assert shown == now, "run nbs/teaching.ipynb anew: a chapter or an exercise has changed"


def test_minutes_are_read_as_they_are_written(page):
    minutes = page[0]["minutes"]
    for words, expected in (("half an hour", 30), (" an hour", 60), ("45 minutes", 45),
                            ("forty minutes", 40), ("a while", None), ("", None)):
        assert minutes(words) == expected, words
    for name, (_, reading) in page[0]["chapters"].items():
        if "**Time**" in page[0]["cells"](NBS / f"{name}.ipynb")[0]:
            assert reading and 5 <= reading <= 120, name


def test_a_lab_fits(page):
    for lecture in page[0]["LECTURES"]:
        chosen, used = page[0]["in_the_room"](lecture[1])
        assert used <= 70 and used == sum(page[0]["exercises"][name][k][1] for name, k in chosen)


def test_exercises_say_how_long_they_take(page):
    for name, exercises in page[0]["exercises"].items():
        if exercises:
            path = NBS / "exercises" / f"exercise_{name}.ipynb"
            head = page[0]["cells"](path)[0]
            said = re.search(r"(\d+) minutes", head)
            assert not said or int(said[1]) == sum(time for _, time in exercises.values()), name


def test_the_points_of_the_rubric_add_up():
    rubric = next(text for cell in CELLS if "full marks" in (text := "".join(cell["source"])))
    *points, whole = re.findall(r"^\| \*\*.+?\*\* \| \**(\d+)\** \|", rubric, re.M)
    assert len(points) == 7 and sum(map(int, points)) == int(whole) == 30

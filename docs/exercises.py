"""The exercises as students get them, in a zip: prompts and checks, no solutions; `make exercises`.

nbs/exercises/ holds one source for each chapter. What stands between `### BEGIN SOLUTION` and
`### END SOLUTION` (nbgrader's markers) is the student's part, and a text that begins with
`**Solution.**` is the answer in words.
"""
import json
import re
import sys
import zipfile
from pathlib import Path

EXERCISES = Path(__file__).resolve().parent.parent / "nbs" / "exercises"
REGION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.M | re.S)
BLANK = r"\1# YOUR CODE HERE" + "\n" + r"\1raise NotImplementedError()"
ANSWER, QUESTION = "**Solution.**", "*Your prediction, and your answer afterwards:*"


def students_cell(cell):
    "A cell as students get it."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return cell | {"source": QUESTION if source.startswith(ANSWER) else source}
    return cell | {"source": REGION.sub(BLANK, source), "outputs": [], "execution_count": None}


def students_version(notebook):
    "A notebook of exercises without its solutions and outputs."
    return notebook | {"cells": [students_cell(cell) for cell in notebook["cells"]]}


def hand_out(target):
    "Write all exercises into a zip; the same bytes for the same exercises."
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(EXERCISES.glob("*.ipynb")):
            notebook = students_version(json.loads(path.read_text(encoding="utf-8")))
            file.writestr(zipfile.ZipInfo(f"exercises/{path.name}"),
                          json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    hand_out(sys.argv[1])

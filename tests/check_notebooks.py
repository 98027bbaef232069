"Notebooks as a reader meets them: every output there, none stale, no logs, short lines."
import ast
import json
import re
import sys
from pathlib import Path

from bloodcell_nb.runs.recipes import recipes
from bloodcell_nb.runs.studies import studies

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100  # columns that a reader sees without scrolling
SHOWING = {"show_table", "print", "figure", "display"}  # what leaves an output below its cell
BEHIND = {"keras", "keras_cv", "tensorflow"}  # what the package has to come before
LISTS = {  # notebook: what its printed tables must name
    "reference/cli.ipynb": lambda: [*recipes(), *studies()],
    "reference/runs/studies.ipynb": lambda: [*studies()],
}


def source_of(cell):
    return "".join(cell["source"])


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def long_lines(notebook):
    "Code lines beyond the width."
    lines = [line for cell in code_cells(notebook) for line in source_of(cell).splitlines()]
    return [f"a line of {len(line)} columns: {line.strip()[:60]}" for line in lines
            if len(line) > WIDTH]


def shows(source):
    "Whether a cell shows something as it runs, outside of functions."
    if source.startswith(("#| export", "#| hide")):
        return False
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a magic
        return False
    calls = [statement.value.func for statement in body
             if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)]
    return bool({getattr(call, "id", getattr(call, "attr", "")) for call in calls} & SHOWING)


def missing_outputs(notebook):
    "Cells that show something and hold no output."
    return [f"no output below: {source_of(cell)[:60]!r}" for cell in code_cells(notebook)
            if shows(source_of(cell)) and not cell["outputs"]]


def open_hidden(notebook):
    "Cells that the site does not show and JupyterLab does not collapse."
    return [f"hidden, not collapsed: {source_of(cell)[:60]!r}" for cell in code_cells(notebook)
            if source_of(cell).startswith("#| hide")
            and not cell["metadata"].get("jupyter", {}).get("source_hidden")]


def logged(notebook):
    "Cells whose outputs hold what libraries log."
    return [f"stderr below: {source_of(cell)[:60]!r}" for cell in code_cells(notebook)
            if any(output.get("name") == "stderr" for output in cell["outputs"])]


def local_paths(notebook):
    "Cells whose outputs hold a path of the machine that ran them, or how Python shows one."
    local = re.compile(r"(?:Posix|Windows)Path\(|/tmp/|/var/folders/|AppData.{1,2}Local|"
                       + re.escape(str(ROOT)))
    return [f"a path below: {source_of(cell)[:60]!r}" for cell in code_cells(notebook)
            if local.search("".join(map(texts, cell["outputs"])))]


def imported(source):
    "Packages that a cell imports as it runs, in order: not what its functions import."
    try:
        waiting = ast.parse(source).body
    except SyntaxError:  # a magic
        return
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        elif not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            waiting = [*ast.iter_child_nodes(node), *waiting]


def late_package(notebook):
    "Keras or TensorFlow before the package, which says how TensorFlow is to compute."
    found = [name for cell in code_cells(notebook) for name in imported(source_of(cell))]
    first = next((name for name in found if name in ("bloodcell_nb", *BEHIND)), "bloodcell_nb")
    return [f"imports {first} before bloodcell_nb"] if first in BEHIND else []


def texts(output):
    "All that an output holds but images."
    shown = {kind: value for kind, value in output.get("data", {}).items()
             if not kind.startswith("image/")}
    return json.dumps([shown, output.get("text", ""), output.get("traceback", "")])


def stale_lists(notebook, names):
    "Names that the printed tables do not hold."
    printed = "".join("".join(output.get("text", [])) for cell in code_cells(notebook)
                      for output in cell["outputs"])
    words = {word.strip(":") for word in printed.split()}
    return [f"its output does not list {name}" for name in names if name not in words]


def problems(folder):
    "What is wrong with the notebooks below a folder."
    for path in sorted(folder.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        notebook, name = json.loads(path.read_text(encoding="utf-8")), path.relative_to(folder)
        checks = long_lines, missing_outputs, logged, local_paths, late_package
        found = [problem for check in checks for problem in check(notebook)]
        if name.parts[0] != "reference":  # whose reader looks for tests too
            found += open_hidden(notebook)
        if name.as_posix() in LISTS:
            found += stale_lists(notebook, LISTS[name.as_posix()]())
        yield from (f"{name}: {problem}" for problem in found)


if __name__ == "__main__":
    found = list(problems(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "nbs"))
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        print("wrap long lines by hand; `make notebooks` makes the outputs anew", file=sys.stderr)
    sys.exit(bool(found))

"Files are UTF-8 on every machine; a terminal that is not shows escapes for what it lacks."
import ast
import io
import os
import sys
from pathlib import Path

import pytest

from bloodcell_nb.cli import main
from bloodcell_nb.data.sources import save
from bloodcell_nb.data.synthetic import draw_cells
from bloodcell_nb.runs.engine import quiet_stderr

ROOT = Path(__file__).resolve().parent.parent


def opens_text(call):
    "Whether a call reads or writes text, and so has an encoding."
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
    if isinstance(call.func, ast.Attribute) and name in ("read_text", "write_text"):
        return True
    if given.get("text") is True:  # of a process
        return True
    of_module = getattr(getattr(call.func, "value", None), "id", "")
    if name == "fdopen" or name == "open" and isinstance(call.func, ast.Name):
        mode = getattr([*call.args, None, None][1], "value", given.get("mode", "r"))
    elif name == "open" and of_module != "os" and call.args:
        mode = getattr(call.args[0], "value", None)  # as of a Path
    else:
        return False
    return isinstance(mode, str) and mode[:1] in "rwxa" and "b" not in mode


def test_files_name_their_encoding():
    "Else Python takes the machine's: cp1252, or ASCII."
    wrong = []
    for path in (ROOT / "bloodcell_nb").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and opens_text(node) and "encoding" not in {
                    keyword.arg for keyword in node.keywords}:
                wrong.append(f"{path.name}: {ast.unparse(node)[:80]}")
    assert wrong == []
    code = "open(p); open(p, 'w'); p.open('a'); os.fdopen(3); run(c, text=True); p.read_text()"
    assert sum(isinstance(node, ast.Call) and opens_text(node)
               for node in ast.walk(ast.parse(code))) == 6
    code = "open(p, 'rb'); p.open('wb'); os.open(p, os.O_RDONLY); Image.open(p); archive.open(name)"
    assert not any(isinstance(node, ast.Call) and opens_text(node)
                   for node in ast.walk(ast.parse(code)))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_name_that_the_terminal_lacks_is_escaped(tmp_path, monkeypatch, encoding):
    "Printed, in an error, and of bytes that no encoding has."
    path = tmp_path / "細胞 µ.npz"
    save(draw_cells(16), path)
    for source, code, expected in ((path, 0, b"\\u7d30\\u80de"),
                                   (tmp_path / "\u7d30.zip", 2, b"\\u7d30.zip: no such file"),
                                   (tmp_path / "\udcff.zip", 2, b"\\udcff.zip: no such file")):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert main(["inspect", str(source)]) == code
        out.flush(), err.flush()
        assert expected in (err if code else out).buffer.getvalue()


def test_progress_is_written_in_the_terminals_encoding(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), "ascii"))
    with quiet_stderr(os.devnull) as stream:
        print("run µ", file=stream)
    assert capfd.readouterr().err == "run \\xb5\n"

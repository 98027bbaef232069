"Slides: each chapter's, by rule, from what is committed; nothing hidden, nothing from a network."
import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SLIDES = runpy.run_path(str(ROOT / "docs" / "slides.py"))
CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_becomes_slides(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    slides = SLIDES["chapter_slides"](notebook)
    text = "\n".join(slides)
    assert 15 < len(slides) < 80 and slides[0].startswith('<section class="title"><h1>')
    seen = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"
            and not SLIDES["SKIPPED"].search("".join(cell["source"]))]
    figures = [output for cell in seen for output in cell["outputs"]
               if "image/png" in output.get("data", {})]
    assert text.count("<img ") == len(figures) > 3  # all of them, and no other
    assert not re.search(r'(?:src|<link[^>]*href)="(?!data:)', text)  # nothing is fetched
    assert "default_exp" not in text and "test_eq" not in text and ".ipynb" not in text
    for slide in slides:
        assert slide.count("<section") == 1 and len(re.sub("<[^>]*>|base64,.*?\"", "", slide)) > 5
        assert slide.count("<img ") <= 1


def test_what_is_shown_and_what_is_not():
    def code(source, **data):
        return {"cell_type": "code", "source": source,
                "outputs": [{"data": data}] if data else []}

    def text(source):
        return {"cell_type": "markdown", "source": source}

    said = {"text/markdown": "A sentence."}
    table = {"text/markdown": "| a | b |\n| --- | --- |\n" + "| 1 | 2 |\n" * 30}
    first = "# Title\n\n> promise\n\n| | |\n|---|---|\n| **You need** | [x](x.ipynb) |"
    long = "\n\n".join(f"Paragraph {k}. " + "word " * 60 + "end." for k in range(4))
    slides = SLIDES["chapter_slides"]({"cells": [
        text(first), code("#| hide\nx", **said), code("#| export\ny", **said),
        text(f"## One\n\n{long}"), code("model.compile(); model.fit()", **said),
        code("show_table()", **table), text("## What you learned\n\n" + long)]})
    shown = [re.sub(r"<aside.*", "", slide, flags=re.S) for slide in slides]
    assert "promise" in shown[0] and "You need" in shown[1] and "ipynb" not in shown[1]
    assert sum("A sentence" in slide for slide in shown) == 1
    first_part = [slide for slide in slides if ">One<" in slide]
    assert "Paragraph 0" in first_part[0] and "Paragraph 3" not in "".join(
        slide for slide in shown if ">One<" in slide)
    assert "Paragraph 3" in first_part[0].partition("<aside")[2]  # the speaker's notes
    assert all(f"Paragraph {k}" in "".join(slide for slide in shown if "learned" in slide)
               for k in range(4))
    assert sum("<table" in slide for slide in shown) > 3 and sum(
        slide.count("<td") for slide in shown) == 62
    assert sum("compile" in slide for slide in shown) == 1

"""Slides of each chapter, from its committed notebook; `make slides`.

What becomes a slide follows from what a cell is, so that none needs a tag:

- A heading begins a slide. Of its prose as many whole paragraphs are shown as fit; the rest is the
  speaker's notes (key S). Of the last section all is shown.
- Figures with the sentences below them, tables and sentences follow, as many on a slide as fit. A
  long table goes on on the next slide.
- Of code only cells that compile and fit a network in plain Keras are shown; what is hidden,
  exported or tested is not.

reveal.js and MathJax lie beside the slides: nothing is fetched from a network.
"""
import base64
import json
import re
import shutil
import struct
import sys
from pathlib import Path
from typing import NamedTuple

from nbconvert.filters import markdown2html
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).resolve().parent.parent
# in words of running text: a slide's room, a wide figure's and a tall one's, a line of a table
FITS, WIDE, TALL, LINE = 130, 65, 95, {"box": 20, "wide": 9, "": 11, "narrow": 12}
CELL, COLUMNS = 70, 112  # characters of a table's cell, and of a line of a wide table
LAST = "What you learned"
SKIPPED = re.compile(r"^#\| ?(?:hide|export|default_exp)", re.M)
LOCAL = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)")  # a link that slides cannot follow
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="stylesheet" href="reveal/reset.css"><link rel="stylesheet" href="reveal/reveal.css">
<link rel="stylesheet" href="slides.css">
<script>
MathJax = {{tex: {{inlineMath: [["$", "$"]]}}, startup: {{typeset: false}}}};
</script>
<script src="tex-svg-full.js"></script><script src="reveal/reveal.js"></script>
<script src="reveal/notes/notes.js"></script></head>
<body><div class="reveal"><div class="slides">
{slides}
</div></div><script src="slides.js"></script></body></html>
"""


class Item(NamedTuple):
    "Something to see, whole, and how much room it takes."
    body: str  # HTML
    room: int
    notes: str = ""
    ends: bool = False  # the slide; but a sentence may follow a figure that has none
    said: bool = False  # by an output


def room_of(text):
    "Room of a paragraph in Markdown."
    words = len(re.sub(r"\$\$.*?\$\$|\$.*?\$", "x", text, flags=re.S).split())
    lines = len(text.splitlines()) if text.startswith(("```", "- ", "1. ")) else 0
    return 5 + words + 6 * lines + 20 * text.count("$$")


def render(text):
    "HTML of Markdown, without links that lead nowhere from here."
    return markdown2html(LOCAL.sub(r"\1", text)).strip()


def inline(text):
    "HTML of a line of Markdown."
    return re.sub(r"^<p>|</p>$", "", render(text))


def paragraphs(text):
    "Paragraphs of a text; what goes on in the next (a formula, a list) stays whole."
    found, fenced = [], False
    for part in re.split(r"\n\s*\n", text.strip()):
        if found and (fenced or part[0].islower() or not re.search(r"[.!?*)`|]$", found[-1])):
            found[-1] += "\n\n" + part
        else:
            found.append(part)
        fenced = found[-1].count("```") % 2 == 1
    return [part for part in found if part]


def pieces(text):
    "A list that is too long for a slide, by its items; else the text."
    is_long = room_of(text) > FITS and text.startswith("- ")
    return re.split(r"\n(?=- )", text) if is_long else [text]


def prose(parts, everything=False):
    "Items of a section's paragraphs: as many as fit a slide, or all of them."
    shown, rest, room = [], [], 0
    for part in (piece for text in parts for piece in pieces(text)):
        room += room_of(part)
        (shown if everything or not shown or room <= FITS and not rest else rest).append(part)
    for k, part in enumerate(shown, 1):
        yield Item(render(part), room_of(part), "\n\n".join(rest) if k == len(shown) else "")


def cells_of(row):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]


def short(cell):
    "A table's cell, cut where it is long."
    return cell if len(cell) <= CELL else cell[:CELL].rsplit(" ", 1)[0].rstrip(",;") + " …"


def table(text, cut=True):
    "Items of a table in Markdown, as many rows in each as fit."
    head, _, *rows = [cells_of(LOCAL.sub(r"\1", row)) for row in text.strip().splitlines()]
    rows = [[short(cell) if cut else cell for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=False)]
    whole = sum(widths) + 2 * len(widths)
    kind = "wide" if whole > 85 else "narrow" if whole < 55 else ""
    kind = kind if cut else "box"

    def room(row):
        shares = [max(8, int(width * min(1, COLUMNS / whole))) for width in widths]
        return LINE[kind] * max(-(-len(cell) // share)
                                for cell, share in zip(row, shares, strict=False))

    parts = -(-sum(map(room, rows)) // (FITS - room(head))) or 1
    size = -(-len(rows) // parts)  # as many in each
    for start in range(0, len(rows), max(size, 1)):
        page = [head, ["---"] * len(head), *rows[start:start + size]]
        lines = "\n".join(f"| {' | '.join(row)} |" for row in page)
        lines = re.sub(r"\[[\d.+, -]+\]", lambda found: found[0].replace(" ", "\xa0"), lines)
        body = re.sub(r">[^<]+", lambda found: found[0].replace("_", "_<wbr>"), render(lines))
        yield Item(body.replace("<table>", f'<table class="{kind}">'),
                   room(head) + sum(map(room, page[2:])))


def blocks(markdown):
    "Tables and other paragraphs of an output."
    for part in re.split(r"\n\s*\n", markdown.strip()):
        yield ("table" if re.match(r"\|.*\n\| ?:?---", part) else "text"), part


def outputs_of(cell):
    "Items of a cell's figures, tables and sentences."
    figures, said = [], []
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            figures.append("".join(data["image/png"]).replace("\n", ""))
        elif "text/markdown" in data:
            for kind, part in blocks("".join(data["text/markdown"])):
                if kind == "table":
                    yield from table(part)
                else:
                    said.append(part)
    below = "\n\n".join(said)
    for k, figure in enumerate(figures, 1):
        width, height = struct.unpack(">II", base64.b64decode(figure[:32])[16:24])
        last = below if k == len(figures) else ""
        yield Item(f'<img alt="" src="data:image/png;base64,{figure}">'
                   + (f'<div class="below">{render(last)}</div>' if last else ""),
                   (WIDE if width > 2 * height else TALL) + room_of(last) * 3 // 4, ends=True)
    if said and not figures:
        yield Item(f'<div class="below">{render(below)}</div>', room_of(below), said=True)


def code(source):
    "Item of a cell that compiles and fits a network in plain Keras."
    source = source.partition("\nMarkdown(")[0]
    return Item(highlight(source, PythonLexer(), HtmlFormatter(noclasses=True)),
                10 + 8 * source.count("\n"))


def section(title, items, kind=""):
    "One slide."
    heading = f"<h2>{inline(title)}</h2>" if title else ""
    notes = "\n\n".join(item.notes for item in items if item.notes)
    aside = f'<aside class="notes">{render(notes)}</aside>' if notes else ""
    dense = "dense" if sum(item.room for item in items) > FITS else ""
    return (f'<section class="{kind or dense}">{heading}'
            + "".join(item.body for item in items) + f"{aside}</section>")


def packed(title, items):
    "Slides of a section, as many items on each as fit."
    page, room = [], 0
    for item in items:
        belongs = (page and page[-1].ends and item.said and item.room < 50
                   and page[-1].body.endswith('">'))
        if page and room + item.room > FITS and not belongs:
            yield section(title, page)
            page, room = [], 0
        page.append(item)
        room = FITS if item.ends else room + item.room
    if page:
        yield section(title, page)


def sections(notebook):
    "Titles and items of a chapter's sections; its first cell is two."
    first, *cells = ("".join(cell["source"]) for cell in notebook["cells"])
    title, said, rest = (first.split("\n\n", 2) + ["", ""])[:3]
    promise = " ".join(line.lstrip("> ") for line in said.splitlines())
    yield "", [Item(f"<h1>{inline(title.lstrip('# '))}</h1><p>{inline(promise)}</p>", FITS)]
    found, title = [], "Before we begin"
    for part in paragraphs(rest):
        found += table(part, cut=False) if part.startswith("|") else prose([part])
    for source, cell in zip(cells, notebook["cells"][1:], strict=True):
        if cell["cell_type"] == "markdown":
            for part in re.split(r"(?m)^(?=##+ )", source):
                if heading := re.match(r"##+ (.*)\n?", part):
                    yield title, found
                    found, title, part = [], heading[1], part[heading.end():]
                found += prose(paragraphs(part), title == LAST)
        elif not SKIPPED.search(source):
            found += [code(source)] if ".compile(" in source and ".fit(" in source else []
            found += outputs_of(cell)
    yield title, found


def chapter_slides(notebook):
    "All slides of a chapter."
    (_, (title,)), *others = sections(notebook)
    return [section("", [title], "title"),
            *(one for name, items in others for one in packed(name, items))]


def write(target, packages):
    "Write the slides of all chapters, and what they need from a folder of Python packages."
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    reveal = packages / "sphinx_revealjs" / "_static" / "revealjs"
    for name in ("dist/reset.css", "dist/reveal.css", "dist/reveal.js", "LICENSE",
                 "plugin/notes/notes.js", "plugin/notes/speaker-view.html"):
        place = target / "reveal" / name.removeprefix("dist/").removeprefix("plugin/")
        place.parent.mkdir(exist_ok=True)
        shutil.copy(reveal / name, place)
    shutil.copy(packages / "sphinx-mathjax-offline" / "static" / "mathjax" / "tex-svg-full.js",
                target)
    for name in ("slides.css", "slides.js"):
        shutil.copy(ROOT / "docs" / name, target)
    lines = []
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        slides = chapter_slides(json.loads(path.read_text(encoding="utf-8")))
        (target / f"{path.stem}.html").write_text(
            PAGE.format(title=path.stem, slides="\n".join(slides)), encoding="utf-8")
        lines.append(f'<li><a href="{path.stem}.html">{path.stem}</a>, {len(slides)} slides</li>')
    (target / "index.html").write_text(
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Slides</title>'
        '<link rel="stylesheet" href="slides.css"><body class="list"><h1>Slides</h1>'
        f"<ul>{''.join(lines)}</ul><p>Arrow keys or space: next; S: notes; O: all slides; F: full "
        "screen; address with <code>?print-pdf</code>: for printing.</p></body></html>",
        encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))

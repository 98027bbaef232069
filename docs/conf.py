"Sphinx's settings: the notebooks, as executed, become pages; see `make docs`."
import json
import os
import re
import shutil
from configparser import ConfigParser
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ConfigParser()
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
RUNS = "reports/pbc96"

project = html_title = SETTINGS["DEFAULT"]["title"]
author, release = SETTINGS["DEFAULT"]["author"], SETTINGS["DEFAULT"]["version"]
project_copyright = SETTINGS["DEFAULT"]["copyright"]
extensions = ["myst_nb"]
exclude_patterns = ["reports"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
highlight_language = "none"  # of a block that names none
html_theme = "furo"
html_css_files = ["site.css"]
mathjax_path = "tex-svg-full.js"  # one file, without fonts to fetch
html_static_path = ["site.css"]
html_show_sourcelink = html_copy_source = False
html_show_search_summary = False  # a page opened as a file may not read another

PACKAGES = ("data", "augment", "runs", "evaluation", "networks", "training", "page", "inference")


def contents(caption, *lines, options=""):
    "A part of the list of pages."
    return "\n".join(["```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", options, "",
                      *lines, "```", ""])


CONTENTS = "".join([contents("Chapters", "[0-9]*", options=":numbered: 1"),
                    contents("Exercises and solutions", "exercises/*"),
                    contents("Teach it, words", "teaching", "glossary"),
                    *(contents(package, f"reference/{package}/*") for package in PACKAGES),
                    contents("Extend it, many machines, the command, an index, speed",
                             "extending", "machines", "limits", "reference/cli",
                             "reference/commands",
                             "Functions <genindex>", "benchmarks/RESULTS")])
INDEX = "```{{index}} {0}\n:name: {0}\n```"
DIRECTIVE = re.compile(r"^#\| ?(\w+).*\n?", re.M)
PUBLIC = re.compile(r"(?<!@patch\n)^(?:def|class) ([A-Za-z]\w*)", re.M)  # no methods
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")  # to a file of the repository
CALL = re.compile(r'(?<!<span class="o">\.</span>)<span class="n">(\w+)</span>'
                  r'(?=<span class="p">\()|<span class="pre">([\w/.]+?)(?:\(\))?</span>')


def markdown(name, source):
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source}


def site_place(path):
    "Where the site has a file of the repository: its root is that of nbs/."
    return path.removeprefix("nbs/")


def site_links(text, folder):
    "Text of a page, whose file lies in a folder of the repository, with links that hold there."
    def place(match):
        path = os.path.normpath(os.path.join(folder, match[1]))
        return "](" + os.path.relpath(site_place(path), site_place(f"{folder}/"))

    return LINK.sub(place, text)


def page_cells(cell, folder):
    "The cells of a page that show a notebook's cell: none for hidden ones, no directives."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [cell | {"source": site_links(source, folder)}]
    said = DIRECTIVE.findall(source)
    if {"hide", "default_exp"} & {*said}:
        return []
    tags = ["remove-input"] if "echo" in said else []
    names = [INDEX.format(name) for name in PUBLIC.findall(source) if "export" in said]
    marks = [markdown(cell["id"] + "-names", "\n".join(names))] if names else []
    return [*marks, cell | {"source": DIRECTIVE.sub("", source), "metadata": {"tags": tags}}]


def write_sources(folder):
    "Write what Sphinx reads; give the place of each exported name."
    places = {f"{RUNS}/index.html": (f"{RUNS}/index", "")}
    for path in [path for pattern in ("*", "exercises/*", "reference/**/*")
                 for path in (ROOT / "nbs").glob(f"{pattern}.ipynb")]:
        name = path.relative_to(ROOT / "nbs")
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"] = [page for cell in notebook["cells"]
                             for page in page_cells(cell, path.relative_to(ROOT).parent.as_posix())]
        if name.stem == "index":
            notebook["cells"].append(markdown("contents", CONTENTS))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(notebook), encoding="utf-8")
        for found in re.findall(r":name: (\w+)", json.dumps(notebook["cells"])):
            places[found] = (name.with_suffix("").as_posix(), "#" + found.lower().replace("_", "-"))
    copy(ROOT / RUNS / "figures" / "ladder.png", folder / RUNS / "figures" / "ladder.png")
    results = folder / "benchmarks" / "RESULTS.md"
    results.parent.mkdir(exist_ok=True)
    results.write_text(site_links((ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8"),
                                  "benchmarks"), encoding="utf-8")
    shutil.copytree(ROOT / "nbs" / "images", folder / "images", dirs_exist_ok=True)
    return places


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def copy_runs(app, error):
    "What the page of all runs is written from: no images of real cells, no networks."
    for name in ("metrics.json", "status.json", "predictions*.npz", "notebook.ipynb",
                 "figures/*.png"):
        for path in (ROOT / RUNS).glob(f"*/{name}"):
            copy(path, app.outdir / path.relative_to(ROOT))


def link_names(app, page, template, context, doctree):
    "Link calls of the package's functions, in code and in text, to the cell that defines them."
    def link(match):
        place = app.places.get(match[1] or match[2])
        if place is None:
            return match[0]
        address = app.builder.get_relative_uri(page, place[0]) + place[1]
        return f'<a class="name" href="{address}">{match[0]}</a>'

    if "body" in context:
        context["body"] = CALL.sub(link, context["body"])


def setup(app):
    app.places = write_sources(Path(app.srcdir))
    mathjax = files("sphinx-mathjax-offline") / "static" / "mathjax" / mathjax_path
    app.config.html_static_path.append(str(mathjax))
    app.connect("html-page-context", link_names)
    app.connect("build-finished", copy_runs)

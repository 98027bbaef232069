"What `make docs` hands to Sphinx; Sphinx itself refuses links that lead nowhere."
import json
import re
import runpy
from configparser import ConfigParser
from pathlib import Path

import pytest

from bloodcell_nb import _modidx

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    return folder, runpy.run_path(str(ROOT / "docs" / "conf.py"))["write_sources"](folder)


def test_pages_show_what_a_reader_needs(site):
    "Every notebook is a page, without directives, hidden cells or links out of the site."
    folder, _ = site
    names = {path.relative_to(ROOT / "nbs") for path in (ROOT / "nbs").rglob("*.ipynb")
             if ".ipynb_checkpoints" not in path.parts}
    assert {path.relative_to(folder) for path in folder.rglob("*.ipynb")} == names
    for name in names:
        before = json.loads((ROOT / "nbs" / name).read_text(encoding="utf-8"))["cells"]
        hidden = {cell["id"] for cell in before if "".join(cell["source"]).startswith("#| hide")}
        cells = json.loads((folder / name).read_text(encoding="utf-8"))["cells"]
        assert not hidden & {cell["id"] for cell in cells}
        for cell in cells:
            assert not re.search(r"^#\|", "".join(cell["source"]), re.M), (name, cell["source"])


def test_links_between_files_lead_to_files_of_the_site(site):
    "Of every page: Sphinx itself would find this, at the end of `make docs`."
    folder, _ = site
    pages = {path: [path.read_text(encoding="utf-8")] for path in folder.rglob("*.md")}
    for path in folder.rglob("*.ipynb"):
        pages[path] = ["".join(cell["source"])
                       for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
                       if cell["cell_type"] == "markdown"]
    links = [(path, link) for path, texts in pages.items() for text in texts
             for link in re.findall(r"\]\(([^):#\s]+)[#)]", text)]
    assert folder / "benchmarks" / "RESULTS.md" in dict(links) and len(links) > 100
    assert [link for link in links if not (link[0].parent / link[1]).exists()] == []


def test_each_exported_function_has_its_place(site):
    "As nbdev's own index has it: the notebook that defines a public function or class."
    folder, places = site
    for module, symbols in _modidx.d["syms"].items():
        for symbol, (place, _) in symbols.items():
            name = symbol.removeprefix(f"{module}.")
            if not name.startswith("_") and "." not in name:
                page = places[name][0]
                assert re.sub(r"^\d\d_", "", page) == place.partition(".html")[0], symbol
                assert f":name: {name}" in (folder / f"{page}.ipynb").read_text(encoding="utf-8")


def test_the_builder_is_pinned():
    config = ConfigParser()
    config.read(ROOT / "settings.ini", encoding="utf-8")
    lines = config["DEFAULT"]["docs_requirements"].split()
    assert lines and all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)

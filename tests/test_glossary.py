"The glossary: whose words are in it, and that each link leads to where its word is used."
import json
import re
from pathlib import Path

import numpy as np
import pytest

from bloodcell_nb.evaluation.metrics import HEADLINE
from bloodcell_nb.evaluation.trust import trust
from bloodcell_nb.page.ladder import SPLITS
from bloodcell_nb.runs.schemas import Recipe
from bloodcell_nb.runs.studies import PROFILES

NBS = Path(__file__).resolve().parent.parent / "nbs"


def text_of(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


GLOSSARY = text_of(NBS / "glossary.ipynb")
ROWS = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \| (.+) \|$", GLOSSARY, re.M)
WORDS = [word.lower() for word, _, _ in ROWS]


def test_it_has_the_words_of_recipes_records_and_page():
    assert len(ROWS) > 80 and len(set(WORDS)) == len(WORDS)
    assert {*PROFILES} <= {*WORDS}
    # a setting that every recipe has is an entry, or named in one
    assert [name for name in Recipe.model_fields
            if name not in WORDS and f"`{name}`" not in GLOSSARY] == []
    kept = trust(np.array([0]), np.eye(1), 0.5, np.array([True]))
    assert {"sure", "familiar", "promise"} <= {*WORDS} & {*kept}
    assert {"corrupted", "corrupted validation"} <= {*WORDS}
    assert all(name == "test" or name.replace("_", "-") in WORDS for name in SPLITS)
    for headline in HEADLINE.values():
        assert headline.words.lower() in GLOSSARY.lower(), headline.words


@pytest.mark.parametrize("row", ROWS, ids=WORDS)
def test_a_word_is_explained_where_its_links_lead(row):
    word, said, links = row
    assert said.endswith(".") and 3 < len(said.split()) < 45
    places = re.findall(r"\]\(([^)#]+)\)", links)
    assert places
    stems = [re.escape(part[:8]) for part in re.findall(r"\w{3,}", word.lower())]
    for place in places:
        assert re.search(rf"(?<![a-z])(?:{'|'.join(stems)})", text_of(NBS / place).lower()), place


def test_the_page_is_in_the_course():
    for page in ("glossary", "teaching"):
        assert f"({page}.ipynb)" in text_of(NBS / "index.ipynb")

"""The page of all runs: odd records cost nothing, what a record says stays text, the template is
shipped.
"""
import csv
import json
import os
import re
import runpy
import shutil
import subprocess
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import nbformat
import numpy as np
import papermill
import pytest
from conftest import COMMITTED
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bloodcell_nb.cli import main
from bloodcell_nb.inference.published import default_name
from bloodcell_nb.page import build
from bloodcell_nb.page.build import build_page
from bloodcell_nb.page.comparisons import gains_table, results_table
from bloodcell_nb.page.ladder import ladder_table, ladders
from bloodcell_nb.page.plots import cost_table
from bloodcell_nb.runs import notebook_html as rendered
from bloodcell_nb.runs.finished import read_runs

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "reports" / "pbc96"
SITE = runpy.run_path(str(ROOT / "docs" / "conf.py"))
MADE = RECORDS / "efficientnet_lite0_heavy"  # two copies of it are the runs of these tests
# the page compares the second with the first
GOOD, ODD = "efficientnet_lite0_mixup_double", "efficientnet_lite0_translation_mixup"
WORDS = {GOOD: "Lite0, MixUp on a second copy",  # their recipes' steps
         ODD: "Lite0, translation, MixUp on a second copy"}
EVALUATED = f"evaluate_{MADE.name}"
WORTH = "What each augmentation and each step was worth"


def two_runs(place):
    "Two good runs, a step and its baseline, without their figures, with a short notebook."
    for name in (GOOD, ODD):
        shutil.copytree(MADE, place / name, ignore=shutil.ignore_patterns("figures", "notebook.*",
                                                                          "*.keras"))
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(name)]),
                       place / name / "notebook.ipynb")
        for file in ("status.json", "metrics.json"):
            path = place / name / file
            path.write_text(path.read_text().replace(f'"{MADE.name}"', f'"{name}"'))
    return place


def undrawn(figure, path, synthetic, metadata):
    "A figure's file without its drawing, which takes most of a page's time."
    about = PngInfo()
    about.add_text("Software", metadata["Software"])
    Image.new("1", (1, 1)).save(path, "png", pnginfo=about)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Two runs; the page of them has no figures to look at, those of `whole` and others have."
    monkeypatch.setattr(build, "save_figure", undrawn)
    return two_runs(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The page of both."
    return unescape(build_page(two_runs(tmp_path_factory.mktemp("whole"))).read_text())


def change(name, edit):
    "A way to spoil a run: edit the content of one of its JSON files."
    def spoil(run):
        value = json.loads((run / name).read_text())
        edit(value)
        (run / name).write_text(json.dumps(value))

    return spoil


def other_split(run):
    "Predictions of other cells."
    for path in run.glob("predictions*.npz"):
        arrays = dict(np.load(path))
        arrays["ids"] = arrays["ids"][::-1]
        np.savez(path, **arrays)


def cut(name):
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:200])


WAYS = {  # how one of two runs is spoiled, and what the page says of it
    "other split": (other_split, "have different cells"),
    "no predictions": (lambda run: (run / "predictions.npz").unlink(), "holds no predictions.npz"),
    "cut predictions": (cut("predictions_stand_in.npz"), "predictions_stand_in.npz cannot be read"),
    "cut record": (cut("metrics.json"), "metrics.json cannot be read"),
    "no record": (lambda run: (run / "metrics.json").unlink(), "metrics.json cannot be read"),
    "foreign record": (lambda run: (run / "metrics.json").write_text('{"score": 1}'),
                       "recipe is missing"),
    "older record": (change("metrics.json", lambda whole: whole["results"]["stand_in"].pop(
        "interval_95")), "results.stand_in.interval_95 is missing"),
    "wrong type": (change("metrics.json", lambda whole: whole["results"]["test"].update(
        accuracy="high")), "results.test.accuracy is 'high'"),
    "cut status": (lambda run: (run / "status.json").write_text('{"state": "do'),
                   "status.json cannot be read"),
    "foreign status": (lambda run: (run / "status.json").write_text("[1]"), "status.json"),
    "status is a folder": (lambda run: ((run / "status.json").unlink(), (
        run / "status.json").mkdir()), "status.json cannot be read"),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_odd_run_is_named_and_costs_nothing_else(folder, whole, way, capsys):
    spoil, reason = WAYS[way]
    assert WORTH in whole and "Left out of the tables" not in whole
    spoil(folder / ODD)
    page = unescape(build_page(folder).read_text())
    named = page[page.index("Left out of the tables"):]
    assert ODD in named and reason in named, named
    assert ODD in capsys.readouterr().out
    row = re.compile(rf'<td class="word"[^>]*><a href="#{GOOD}-.+?</tr>', re.S)
    assert (folder / "figures" / "ladder.png").is_file() and 'src="figures/ladder.png"' in whole
    assert row.search(page).group() == row.search(whole).group() and f' id="{GOOD}-' in page
    shown = f"| {GOOD} |"
    assert shown in results_table(folder) and len(gains_table(folder).splitlines()) == 2
    runs = read_runs(folder)
    assert WORDS[GOOD] in [row[0] for row in cost_table(runs)]
    kept = bool([run for run in runs if run.name == ODD and run.test])
    small = next(steps for steps in ladders() if ODD in [step.recipe for step in steps])
    states = {step.recipe: row[2] for step, row in zip(small, ladder_table(small, runs),
                                                       strict=True)}
    assert states[ODD][:2] == ("0." if kept else "un") and states[GOOD].startswith("0.")


def test_a_record_of_a_notebook_that_is_gone_is_shown(folder):
    "A record says what ran then; only recipes are compared with today's notebooks."
    record = json.loads((folder / GOOD / "metrics.json").read_text())
    record["recipe"]["notebook"] = "45_gone"
    (folder / GOOD / "metrics.json").write_text(json.dumps(record))
    assert (GOOD in [run.name for run in read_runs(folder) if run.test]
            and f"| {GOOD} |" in results_table(folder))
    page = build_page(folder).read_text()
    assert f' id="{GOOD}-' in page and "Left out of the tables" not in page


def test_runs_on_drawn_cells_are_compared_with_each_other_alone(folder):
    "The report's cells were real: its figures stand beside none of these runs."
    for name in (GOOD, ODD):
        change("metrics.json", lambda whole: whole["data"].update(source="drawn", synthetic=True))(
            folder / name)
    page = build_page(folder).read_text()
    assert WORTH in page and f"<td>{WORDS[ODD]}</td><td>{WORDS[GOOD]}</td>" in page
    assert "hidden" not in page.partition("<script>")[0]
    assert "What differs from the original report" not in page


def test_no_row_of_the_page_is_without_a_run(folder):
    "Steps of the report that have no run stand in a sentence, not in the tables."
    page = unescape(build_page(folder).read_text())
    assert "no run yet" not in page
    named = page[page.index("Not run yet: "):].split("</p>")[0]
    assert "convnext_base" in named and GOOD not in named


def test_results_table_shows_the_named_runs_in_this_order(folder):
    rows = results_table(folder, [GOOD, "not_there", ODD]).splitlines()[2:]
    assert [row.split()[1] for row in rows] == [GOOD, ODD]
    assert len(results_table(folder, []).splitlines()) == 2


def test_the_chapter_reads_a_single_run_on_drawn_cells(folder):
    "No step to compare, no ensemble, no rank: the chapter says so and goes on."
    shutil.rmtree(folder / ODD)
    change("metrics.json", lambda whole: whole["data"].update(source="drawn", synthetic=True))(
        folder / GOOD)
    done = papermill.execute_notebook(ROOT / "nbs" / "08_report.ipynb", folder / "done.ipynb",
                                      {"runs": str(folder)}, progress_bar=False)
    shown = json.dumps([cell.get("outputs") for cell in done.cells])
    assert "No run has its baseline here." in shown and f"`{GOOD}`): 0.755, and 0.986" in shown


def denied(kind, place):
    "An error as of somebody without the right."
    def fail(path, *_, **__):
        if path and Path(path).parent.name == place or Path(path or ".").name == place:
            raise PermissionError(13, "Permission denied", str(path))
        return kind(path)

    return fail


def test_folders_that_may_not_be_read_or_written(folder, monkeypatch, capsys):
    "Each is named; the page has the rest."
    monkeypatch.setattr(rendered, "write_text", denied(None, GOOD))
    with monkeypatch.context() as closed:
        closed.setattr(os, "scandir", denied(os.scandir, ODD))
        closed.setattr(Path, "read_bytes", denied(Path.read_bytes, ODD))
        page = unescape(build_page(folder).read_text())
    left = page[page.index("Left out of the tables"):]
    assert "notebook.html cannot be written (Permission denied)" in left
    assert "status.json cannot be read (PermissionError: Permission denied)" in left
    assert f' id="{GOOD}-' in page and f'href="{GOOD}/notebook.ipynb"' in page
    assert f"left out: {ODD}: status.json" in capsys.readouterr().out


def test_a_folder_whose_name_is_no_text(folder, capsys):
    "The page has the other runs, and names it."
    (folder / ODD).rename(folder / "caf\udce9")
    page = build_page(folder).read_text()
    assert GOOD in page and "caf\\udce9" in page
    assert "left out: caf\\udce9: " in capsys.readouterr().out


def test_a_folder_that_a_user_calls_earlier(folder, capsys):
    "Only what was set aside there is left out."
    (folder / "earlier").mkdir()
    shutil.copytree(folder / GOOD, folder / "earlier" / f"{GOOD}-0123abcd-2")
    shutil.move(folder / ODD, folder / "earlier" / ODD)
    assert [run.folder.relative_to(folder).as_posix() for run in read_runs(folder)] == [
        GOOD, f"earlier/{ODD}"]
    (folder / "earlier" / ODD / "metrics.json").write_text("[")
    build_page(folder)
    assert f"left out: earlier/{ODD}: metrics.json" in capsys.readouterr().out


def test_a_page_over_several_folders_of_runs(folder):
    """No two anchors are alike, what the ladder does not show is named, one seed is one seed, and
    what failed on other cells is no step of these.
    """
    for root in ("first", "second"):
        shutil.copytree(folder / ODD, folder / root / ODD)
    for name in (GOOD, ODD):
        shutil.move(folder / name, folder / "first" / name) if name == GOOD else shutil.rmtree(
            folder / name)
    shutil.copytree(folder / "first" / GOOD, folder / "drawn" / GOOD)
    change("metrics.json", lambda whole: whole["data"].update(source="drawn", synthetic=True))(
        folder / "drawn" / GOOD)
    failed = folder / "drawn" / "efficientnet_lite0_head.partial"
    failed.mkdir()
    (failed / "status.json").write_text(json.dumps({
        "recipe": "efficientnet_lite0_head", "state": "failed", "error": "on drawn cells"}))
    page = unescape(build_page(folder).read_text())
    links, anchors = links_and_anchors(page)
    assert len(anchors) == len(set(anchors))
    assert {unquote(link[1:]) for link in links if link.startswith("#")} <= set(anchors)
    assert "seeds:" not in page
    left = page[page.index("Left out of the tables"):]
    assert f"first/{ODD}</td><td>the ladder, the steps and the seeds show second/{ODD}, of" in left
    real, drawn = page.split('id="cells-2"')
    assert "<td>failed</td>" not in real.partition('<h3 id="ladder"')[2]
    assert "efficientnet_lite0_head" in real[real.index("Not run yet: "):].split("</p>")[0]
    assert "<td>failed</td>" in drawn.partition('<h3 id="ladder-2"')[2].partition("</section>")[0]


def test_equal_accuracies_have_no_rank(folder):
    "Three runs of the same answers."
    shutil.copytree(folder / ODD, folder / MADE.name)
    for file in ("status.json", "metrics.json"):
        path = folder / MADE.name / file
        path.write_text(path.read_text().replace(f'"{ODD}"', f'"{MADE.name}"'))
    assert "Spearman" not in build_page(folder).read_text()


def test_page_command_names_odd_runs(folder, capsys):
    cut("metrics.json")(folder / ODD)
    assert main(["page", str(folder)]) == 0
    said = capsys.readouterr().out
    assert ODD in said and "index.html" in said, said


LESS = "(" if os.name == "nt" else "<"  # Windows has no such file names
SCRIPT = "<script>alert(1)</script>\"'"


def replaced(value, kept=()):
    "The same with every text replaced, keys of free tables too."
    if isinstance(value, dict):
        return {key if re.fullmatch(r"[a-z_0-9]+", key) else SCRIPT + key: item if key in kept
                else replaced(item, kept) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, kept) for item in value]
    return SCRIPT if isinstance(value, str) else value


def test_what_a_record_says_stays_text(tmp_path):
    folds = {"folds": 2, "accuracy": [0.9, 0.8], "macro_f1": [0.9, 0.8], "accuracy_mean": 0.85,
             "accuracy_sd": 0.07, "macro_f1_mean": 0.85, "macro_f1_sd": 0.07}
    for name in (MADE.name, "analysis", "ensemble_lite0_atto", "robustness_small"):
        place = tmp_path / f"{LESS}script '{name}"
        place.mkdir()
        for file in ("status.json", "metrics.json"):
            whole = replaced(json.loads((RECORDS / name / file).read_text()),
                             kept=("state", "commit"))
            if "phases" in whole.get("results", {}):
                whole["results"]["cross_validation"] = folds
            if "models" in whole.get("results", {}):
                whole["results"]["models"] = {
                    SCRIPT: next(iter(whole["results"]["models"].values()))}
            (place / file).write_text(json.dumps(whole))
    failed = {"state": SCRIPT, "recipe": SCRIPT, "error": SCRIPT}
    for name, status in (("failed", failed), ("odd", failed | {"profile": 3})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(json.dumps(status))
    (place / "figures").mkdir()
    (place / "figures" / f"{LESS}script a&b.png").touch()
    page = build_page(tmp_path).read_text()
    assert page.count("<script") == page.count("</script") == 1 and "\"'" not in page
    assert len(re.findall("&lt;script&gt;alert", page)) > 40, "all of it is shown, as text"
    for words in ("in AlexNet's errors", "most similar", "Members (weights)", "cross-validation",
                  "Left out of the tables", "Did not finish"):
        assert words in unescape(page), words


def links_and_anchors(page):
    "What a page links to or shows, and the anchors that it has."
    links = [unescape(link) for link in re.findall(r'(?:href|src)="([^"]*)"', page)]
    return links, [unescape(anchor) for anchor in re.findall(r'\bid="([^"]*)"', page)]


def test_links_are_relative_quoted_and_lead_to_files(folder):
    shutil.copytree(MADE / "figures", folder / ODD / "figures")
    (folder / ODD).rename(folder / "a b#c&'")
    links, anchors = links_and_anchors(build_page(folder).read_text())
    places = [link for link in links if not link.startswith("#")]
    assert (len(places) > 3 and all((folder / unquote(link)).is_file()
                                    and not re.search(r"[ #&']", link) for link in places))
    assert len(anchors) == len(set(anchors))
    assert {unquote(link[1:]) for link in links if link.startswith("#")} <= set(anchors)


PAGES = [folder for folder in COMMITTED if (folder / "index.html").exists()]


@pytest.mark.parametrize("folder", PAGES, ids=lambda folder: folder.name)
def test_a_committed_page_is_whole_and_needs_no_network(folder):
    "Nothing is loaded from elsewhere, no link is dead."
    page = (folder / "index.html").read_text(encoding="utf-8")
    links, anchors = links_and_anchors(page)
    files = [folder / unquote(link) for link in links if not link.startswith("#")]
    committed = {ROOT / name for name in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()}
    assert [path for path in files
            if not path.is_file() or (committed and path not in committed)] == []
    assert {unquote(link[1:]) for link in links if link.startswith("#")} <= set(anchors)
    assert len(anchors) == len(set(anchors))
    assert "http" not in page
    notebooks = [path for path in files if path.name == "notebook.ipynb"]
    assert len(notebooks) == len(list(folder.glob("*/notebook.ipynb")))


@pytest.mark.parametrize("notebook", [path for folder in PAGES
                                      for path in sorted(folder.glob("*/notebook.ipynb"))],
                         ids=lambda path: "-".join(path.parts[-3:-1]))
def test_a_notebook_as_html_needs_no_network(notebook, tmp_path):
    "Nothing is loaded from elsewhere, no script runs, no link is dead."
    shutil.copy(notebook, tmp_path)
    text = rendered.render(tmp_path / "notebook.ipynb").read_text(encoding="utf-8")
    loaded = re.findall(r'<(?:img|script|link|iframe)\b[^>]*?(?:src|href)="([^"]{0,40})', text)
    assert loaded and all(link.startswith("data:image/") for link in loaded)
    assert "<script" not in text and "@import" not in text and "url(" not in text
    assert all(link.startswith(("https://", "http://", "#")) or (tmp_path / link).is_file()
               for link in re.findall(r'<a\b[^>]*href="([^"]*)"', text))


def test_the_page_on_real_cells_has_every_part():
    page = (RECORDS / "index.html").read_text(encoding="utf-8")
    contents = re.search(r"<nav.*?</nav>", page, re.S).group()
    assert {"problem", "data", "custom_cnn", "efficientnet", "convnext", "ensemble", "ladder",
            "worth", "failures", "robustness", "differences", "all-runs"} <= {
        link[1:] for link in links_and_anchors(contents)[0]}


@pytest.mark.parametrize("folder", PAGES, ids=lambda folder: folder.name)
def test_a_committed_page_and_csv_say_what_the_records_say(folder, tmp_path):
    again = tmp_path / "reports" / folder.name
    if folder == RECORDS:  # as the site has them
        SITE["copy_runs"](SimpleNamespace(outdir=tmp_path), None)
    else:
        shutil.copytree(folder, again, ignore=shutil.ignore_patterns("*.keras"))
        for name in ("index.html", "results.csv"):
            (again / name).unlink()
    build_page(again, notebooks="ipynb")
    for name in ("index.html", "results.csv"):
        assert ((again / name).read_text() == (folder / name).read_text()
                ), f"run `bloodcell page reports/{folder.name} --notebooks ipynb` and commit {name}"
    rows = {row["run"]: row for row in csv.DictReader((folder / "results.csv").open())}
    records = {path.parent.name: json.loads(path.read_text())["results"]
               for path in folder.glob("*/metrics.json")}
    assert rows.keys() == {name for name, results in records.items() if "test" in results}
    for name, row in rows.items():
        for column, split in (("clean", "test"), ("corrupted", "corrupted"),
                              ("stand_in", "stand_in")):
            for key in ("accuracy", "ece"):
                if split not in records[name]:  # an evaluation without shift
                    assert row[f"{column}_{key}"] == ""
                    continue
                scores = records[name][split]
                low, high = scores["interval_95"][key]
                assert [float(row[f"{column}_{key}{end}"]) for end in ("", "_low", "_high")
                        ] == [scores[key], low, high]


def test_what_chapters_say_of_the_committed_records():
    "In their texts, 09 above all: here, since no run may end for the sake of another's record."
    ladder, home, bccd, away, course = ({run.name: run.metrics.get("results", {}) for run in
                                         read_runs(RECORDS.parent / place)} for place in (
        "pbc96", "published", "bccd", "cellavision", "course"))
    assert round(ladder["efficientnet_lite0_fast"]["test"]["accuracy"], 2) == 0.97  # README too
    found = course["analysis"]
    assert found["kept"] == found["images"] - found["dropped"]["injected"] - 18 == 11_959 - 18

    def gains(place, of, over, what="accuracy"):
        return [one[of][what] - one[over][what] for one in place.values()
                if {of, over} <= one.keys()]

    def of_four(place):  # the networks of chapter 09's longer tables
        four = ("efficientnet_lite0_heavy", "convnext_atto_heavy", "ensemble_lite0_atto",
                default_name())
        return {name: one for name, one in place.items()
                if name.removeprefix("evaluate_").removesuffix("_scale_auto") in four}

    assert min(gains(bccd, "among", "test") + gains(away, "among", "test")) > 0
    assert [len(of_four(place)) for place in (bccd, away)] == [8, 8]
    assert min(gains(of_four(bccd), "among", "test") + gains(of_four(away), "among", "test")) > 0.05
    assert min(gains(away, "test", "unscaled")) > 0.05 < max(gains(bccd, "test", "unscaled"))
    assert min(gains(bccd, "test", "unscaled", "auc")) < -0.02
    assert min(gains(bccd, "label_shift", "among")) < -0.2
    lost = {(name, k): home[name]["test"]["accuracy"] - place[name]["test"]["accuracy"]
            for k, place in enumerate((bccd, away)) for name in place if name in home}
    assert min(lost.values()) > 0.1
    assert lost["evaluate_convnext_atto_heavy", 0] > lost[EVALUATED, 0] + 0.2


def test_a_record_with_the_area_under_the_curve_shows_it(folder):
    def add(whole):
        for split in ("test", "corrupted", "stand_in"):
            whole["results"][split]["auc"] = 0.87654
            whole["results"][split]["interval_95"]["auc"] = [0.86, 0.89]

    def without(whole):  # as in an older record
        for split in ("val", "test", "corrupted", "stand_in"):
            whole["results"][split].pop("auc")
            whole["results"][split]["interval_95"].pop("auc", None)

    for name in (GOOD, ODD):
        change("metrics.json", without)(folder / name)
    assert "AUC" not in build_page(folder).read_text()
    change("metrics.json", add)(folder / GOOD)
    page = build_page(folder).read_text()
    assert ">AUC, stand-in</th>" in page and ">0.877<small>0.860 to 0.890</small>" in page
    rows = {row["run"]: row for row in csv.DictReader((folder / "results.csv").open())}
    assert [rows[name]["clean_auc"] for name in (GOOD, ODD)] == ["0.87654", ""]
    change("metrics.json", lambda whole: whole["results"]["test"].update(auc="high"))(folder / GOOD)
    assert "results.test.auc is &#39;high&#39;" in build_page(folder).read_text()


def test_sentences_follow_the_records(folder):
    "Of two runs with the same answers none is above the other; then one is, and the page says so."
    page = unescape(build_page(folder).read_text())
    assert f"not told apart from “{WORDS[GOOD]}”: +0.000" in page
    assert f"above “{WORDS[GOOD]}”" not in page
    for path in (folder / GOOD).glob("predictions*.npz"):
        arrays = dict(np.load(path))
        arrays["probabilities"] = np.roll(arrays["probabilities"], 1, axis=1)
        np.savez(path, **arrays)
    page = unescape(build_page(folder).read_text())
    assert f"] above “{WORDS[GOOD]}”" in page and "not told apart" not in page


def test_two_data_sets_have_their_own_parts_and_figures(folder):
    change("metrics.json", lambda whole: whole["data"].update(source="drawn", synthetic=True))(
        folder / ODD)
    page = build_page(folder).read_text()
    links, anchors = links_and_anchors(page)
    assert "Real cells: pbc96.zip" in page and "Synthetic cells: drawn" in page
    assert {"problem", "problem-2"} <= set(anchors) and len(anchors) == len(set(anchors))
    assert {"figures/problem.png", "figures_2/problem.png"} <= set(links)
    assert ">data</th>" in page


def test_the_folder_of_one_run_keeps_its_own_figures(folder):
    "The page beside a run's record: its figures are none of the run's."
    shutil.copytree(MADE / "figures", folder / GOOD / "figures")
    before = sorted((folder / GOOD / "figures").iterdir())
    for _ in range(2):
        page = build_page(folder / GOOD).read_text()
    assert sorted((folder / GOOD / "figures").iterdir()) == before
    assert f"“{WORDS[GOOD]}” is right on 0.755" in page

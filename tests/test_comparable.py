"""What the page and the tables say of runs that are not alike, of shares of no cells, of odd names;
and that a page replaces nothing that it did not write.
"""
import csv
import json
import re
import shutil
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from bloodcell_nb.data.cells import DataError
from bloodcell_nb.page.build import build_page, check_page_free
from bloodcell_nb.page.comparable import code_words, label_of, recipe_name
from bloodcell_nb.page.comparisons import (
    compare,
    compare_over_seeds,
    difference,
    on_real_cells,
    one_change_each,
    results_table,
    seed_words,
    seeds_apart,
    step_gains,
)
from bloodcell_nb.page.differences import pooled_variance, seed_groups, seed_variance
from bloodcell_nb.page.sections import data
from bloodcell_nb.runs.finished import read_runs

ROOT = Path(__file__).resolve().parent.parent
RECORDS, PUBLISHED = (ROOT / "reports" / name for name in ("pbc96", "published"))
HEAVY, MEAN, EVALUATED = ("efficientnet_lite0_heavy", "ensemble_lite0_atto",
                          "evaluate_efficientnet_lite0_heavy")
CLASSES = {"basophil": "$a_$", "monocyte": "<b>mono</b>"}  # names that a user may give


def copy(names, folder):
    "Copy committed records, without networks, notebooks and figures."
    for name in names:
        shutil.copytree((PUBLISHED if name == EVALUATED else RECORDS) / name, folder / name,
                        ignore=shutil.ignore_patterns("*.keras", "notebook.*", "figures"))


def edit(path, change):
    "Change a record by a function of what it holds."
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def quick_cnn(folder):
    "Make the copied record of the CNN that of a quick run, 7 of 60 epochs."
    edit(folder / "custom_cnn" / "status.json", lambda status: (
        status.update(profile="quick"), status.pop("asked", None)))
    edit(folder / "custom_cnn" / "metrics.json", lambda record: (
        record["recipe"].update(epochs=7),
        record["results"]["training"].update(epochs=7, stopped_early=False)))


def renamed(value):
    "The same with the classes' names replaced."
    if isinstance(value, dict):
        return {CLASSES.get(key, key): renamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item) for item in value]
    return CLASSES.get(value, value) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    "A folder of runs that are not alike, two of them with shares of nothing, and its page."
    folder = tmp_path_factory.mktemp("mixed")
    copy(["analysis", "custom_cnn", HEAVY, MEAN, EVALUATED, "robustness_small"], folder)
    quick_cnn(folder)
    for path in folder.glob("*/metrics.json"):
        path.write_text(json.dumps(renamed(json.loads(path.read_text()))))
    for path in folder.glob("*/metrics.json"):
        edit(path, lambda record: record.pop("git", None))
    edit(folder / HEAVY / "metrics.json",
         lambda record: record.update(git={"commit": "ab" * 20, "clean": True}))
    none = {"sure": 0.0, "right_where_sure": None, "sure_and_familiar": 0.0,
            "right_where_sure_and_familiar": None}
    edit(folder / EVALUATED / "metrics.json",
         lambda record: record["results"]["trust"]["test"].update(none))
    edit(folder / "robustness_small" / "metrics.json", lambda record: [
        model.update(in_alexnets=missing) for model, missing in zip(
            record["results"]["models"].values(),
            (None, {"balanced_error": None, "relative_balanced_error": None}), strict=False)])
    return folder, unescape(build_page(folder).read_text(encoding="utf-8"))


def test_an_evaluation_is_no_training():
    "It began with no weights: it is a finished network's."
    rows = {row["run"]: row for folder in (RECORDS, PUBLISHED)
            for row in csv.DictReader((folder / "results.csv").open())}
    kinds = {name: row["kind"] for name, row in rows.items()}
    assert {kinds[name] for name in kinds if name.startswith("evaluate_")} == {"evaluation"}
    assert [kinds[name] for name in (HEAVY, MEAN)] == ["training", "ensemble"]
    assert [rows[EVALUATED][key] for key in ("weights", "network", "epochs")] == ["", HEAVY, ""]
    assert f"| {EVALUATED} | evaluation | 1 |" in results_table(PUBLISHED)


def test_epochs_and_views_stand_in_each_table(mixed):
    "Of a quick run beside full ones, of eight views beside one."
    folder, page = mixed
    table = results_table(folder)
    assert "| custom_cnn | 7 of 60 (quick) | 1 |" in table and f"| {HEAVY} | 20 | 1 |" in table
    assert f"| {MEAN} | ensemble | 8 |" in table
    for words in ("“CNN from scratch” (quick: 7 of 60 epochs)",
                  "“mean of Lite0 and ConvNeXt Atto” (8 views)"):
        assert words in page
    assert "With one view it is right on 0.790." in page, "the best, beside runs of one view"
    rows = {row["run"]: row for row in csv.DictReader((folder / "results.csv").open())}
    assert [rows[name][key] for name in ("custom_cnn", MEAN)
            for key in ("epochs", "recipe_epochs", "views")] == ["7", "60", "1", "", "", "8"]


def test_what_is_set_by_hand_is_a_shorter_run_too(tmp_path):
    "bloodcell run custom_cnn --set epochs=3 --profile full"
    copy(["custom_cnn"], tmp_path)
    edit(tmp_path / "custom_cnn" / "status.json", lambda status: status.update(
        profile="full", asked={"epochs": 60}))
    edit(tmp_path / "custom_cnn" / "metrics.json", lambda record: (
        record["recipe"].update(epochs=3), record["results"]["training"].update(epochs=3)))
    assert [label_of(run) for run in read_runs(tmp_path)] == ["CNN from scratch (3 of 60 epochs)"]


def test_what_a_profile_does_not_lower_is_not_short(tmp_path):
    """An ensemble of the profile quick is whole; so is a full run, whatever its recipe's file asks
    for by now.
    """
    copy([MEAN, "custom_cnn"], tmp_path)
    quick_cnn(tmp_path)
    for name, profile in ((MEAN, "quick"), ("custom_cnn", "full")):
        edit(tmp_path / name / "status.json", lambda status, profile=profile: status.update(
            profile=profile))
    assert [label_of(run) for run in read_runs(tmp_path)] == [
        "CNN from scratch", "mean of Lite0 and ConvNeXt Atto (8 views)"]
    assert "Shortened" not in build_page(tmp_path).read_text(encoding="utf-8")


def test_a_training_that_ended_with_no_number_is_named(tmp_path):
    copy(["custom_cnn"], tmp_path)
    quick_cnn(tmp_path)
    edit(tmp_path / "custom_cnn" / "metrics.json", lambda record: record["results"][
        "training"].update(epochs=3, not_finite="loss is nan in epoch 4, learning rate 0.1"))
    page = build_page(tmp_path).read_text(encoding="utf-8")
    assert "3 of 60 (quick, no number)" in page and "stopped early" not in page
    assert "became no number: loss is nan in epoch 4, learning rate 0.1." in page


def test_the_members_have_the_views_that_the_page_says():
    "A gain compares like with like, so no sentence says that members do without."
    for path in (RECORDS / "index.html", ROOT / "nbs" / "08_report.ipynb"):
        assert "do without" not in path.read_text(encoding="utf-8")


def test_the_code_of_records_is_named_and_other_code_marked(mixed):
    folder, page = mixed
    assert "5 of 6 records are of older code, whose commit is not recorded" in page
    assert "not recorded, 1 of commit abababa." in page  # beside a column of the code
    marks = "† marks records of other code than most: 1 of commit abababa."
    for part in ("problem", "ladder", "failures"):  # whose figures have marks
        assert marks in page.partition(f'<h3 id="{part}">')[2].partition("</section>")[0], part
    for part in ("evaluation", "all-runs"):
        assert "†" not in page.partition(f'id="{part}">')[2].partition("</section>")[0], part
    code = json.loads((RECORDS / HEAVY / "metrics.json").read_text())["code"]
    assert f"code abababa ({code})" in page
    rows = {row["run"]: row for row in csv.DictReader((folder / "results.csv").open())}
    assert (rows[HEAVY]["commit"], rows[MEAN]["commit"]) == ("ab" * 20, "")
    for path, place in ((RECORDS / "index.html", RECORDS), (ROOT / "README.md", RECORDS),
                        (RECORDS.parent / "bccd" / "index.html", RECORDS.parent / "bccd")):
        words = code_words([run for run in read_runs(place) if run.metrics])
        said = words.partition(" records are of ")[2].split(",")[0].split(" (")[0].rstrip(".")
        assert f" records are of {said}" in path.read_text(encoding="utf-8"), path


def test_one_code_is_the_usual_one_in_all_parts(tmp_path):
    "Also in a part where most records are of another: what is marked agrees with what is said."
    copy([MEAN, "ensemble_ways", HEAVY, "custom_cnn", "analysis"], tmp_path)
    for path in tmp_path.glob("*/metrics.json"):
        commit = "ab" if path.parent.name.startswith("ensemble") else "cd"
        edit(path, lambda record, commit=commit: record.update(
            git={"commit": commit * 20, "clean": True}))
    page = unescape(build_page(tmp_path).read_text(encoding="utf-8"))
    told = page.partition('<h3 id="ensemble">')[2].partition("</section>")[0]
    for words in ("mean of Lite0 and ConvNeXt Atto (8 views)",
                  "mean of the two ways, Lite0 and Atto"):
        assert f"<td>{words} †</td>" in told
    assert "† marks records of other code than most: 2 of commit abababa." in told
    assert "3 of 5 records are of commit cdcdcdc, 2 of commit abababa." in page


def test_a_share_of_nothing_costs_no_part(mixed):
    "No sure answer, fewer severities than AlexNet's five."
    _, page = mixed
    assert "Left out of the tables" not in page
    assert "is sure of 0.0% of the cells." in page and "holds here cannot be told." in page
    assert page.count("<td>not measured</td>") == 4


def test_class_names_are_text(mixed):
    "In figures, where $a_$ would be mathematics that cannot be read, and in HTML."
    folder, page = mixed
    assert "the part" not in page.partition("Left out")[2]
    assert (folder / "figures" / "failures.png").is_file() and 'src="figures/data.png"' in page
    raw = (folder / "index.html").read_text(encoding="utf-8")
    assert "$a_$" in raw and "<b>" not in raw and "&lt;b&gt;mono" in raw


def test_a_class_keeps_its_colour_where_others_are_missing(tmp_path):
    copy(["analysis"], tmp_path)
    whole, = read_runs(tmp_path)
    five = [0, 1, 4, 5, 6]

    def subset(record):
        results = record["results"]
        results["likeness"] = [[row[k] for k in five] for row in
                               [results["likeness"][k] for k in five]]
        for key in ("class_names", "kept_counts"):
            results[key] = [results[key][k] for k in five]

    edit(tmp_path / "analysis" / "metrics.json", subset)
    part, = read_runs(tmp_path)
    bars = [[bar.get_facecolor() for bar in data([run]).figure.axes[0].patches]
            for run in (whole, part)]
    assert bars[1] == [bars[0][k] for k in five]


def png(path, software):
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", software)
    Image.new("L", (8, 8)).save(path, pnginfo=info if software else None)


THEIRS = {  # files that a user may have in the folder
    "index.html": lambda path: path.write_text("<title>My thesis</title>"),
    "cells.html": lambda path: path.write_text("<title>Images of real cells</title> of mine"),
    "results.csv": lambda path: path.write_text("run,accuracy\n1,0.9\n"),
    "figures/problem.png": lambda path: png(path, "Matplotlib version3.11.2, its address"),
    "figures/worth.png": lambda path: png(path, ""),
}


@pytest.mark.parametrize("name", THEIRS)
def test_a_page_replaces_nothing_that_it_did_not_write(name, tmp_path):
    copy([HEAVY], tmp_path)
    (tmp_path / "figures").mkdir()
    THEIRS[name](tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError) as error:
        build_page(tmp_path)
    assert name in str(error.value) and len(str(error.value).splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(DataError):  # before anything runs
        check_page_free(tmp_path)


def test_a_page_replaces_its_own_also_an_older_one(tmp_path):
    copy([HEAVY], tmp_path)
    check_page_free(tmp_path / "not_there_yet")
    path = build_page(tmp_path)
    first = path.read_text(encoding="utf-8")
    assert '<meta name="generator" content="bloodcell_nb">' in first
    # as they were before pages and figures bore the name
    path.write_text(first.replace('<meta name="generator" content="bloodcell_nb">\n', ""))
    png(tmp_path / "figures" / "problem.png", "Matplotlib version3.11.2, its address")
    (tmp_path / "figures" / "notes.txt").write_text("mine")  # the page writes none of this name
    assert build_page(tmp_path).read_text(encoding="utf-8") == first
    assert (tmp_path / "figures" / "notes.txt").read_text() == "mine"


def shown_in(chapter):
    "The Markdown that a committed chapter's cells gave."
    notebook = json.loads(chapter.read_text(encoding="utf-8"))
    return ["".join(output.get("data", {}).get("text/markdown", ""))
            for cell in notebook["cells"] for output in cell.get("outputs", [])]


@pytest.mark.parametrize("name", ["03_custom_cnn", "04_efficientnet", "05_convnext"])
def test_a_chapter_shows_its_runs_on_real_cells(name):
    "As they lie in reports/ now: a record that came or went since its execution is missed else."
    assert on_real_cells(name) in shown_in(ROOT / "nbs" / f"{name}.ipynb"), "execute it again"


def test_chapters_show_the_differences_of_today():
    "Of each step of a study; an interval changes with any further seed of any recipe."
    now = {gain.step: {difference(gain.clean), difference(gain.stand_in)}
           for study in ("worth", "trials", "pbc96")
           for gain in one_change_each(ROOT / "reports" / study)[0]}
    seen = set()
    for chapter in sorted((ROOT / "nbs").glob("0*.ipynb")):
        for line in "\n".join(shown_in(chapter)).splitlines():
            step, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            shown = {cell for cell in cells if re.fullmatch(r"[+-]0\.\d{4} \[.*\]", cell)}
            if step in now and len(shown) == 2:
                seen.add(step)
                assert shown == now[step], f"{chapter.name}: {step}; execute it again"
    assert len(seen) > 40


def other_data(folder, name):
    "Make a copied record one of other data under the same name."
    edit(folder / name / "metrics.json",
         lambda record: record["data"].update(fingerprint="2" * 16))


def test_data_of_one_name_are_not_taken_for_one(tmp_path):
    "Nor compared: their cells are numbered alike, and may have the same labels."
    copy(["custom_cnn", HEAVY], tmp_path)
    other_data(tmp_path, HEAVY)
    first, second = read_runs(tmp_path)
    with pytest.raises(DataError, match=r"different data \(pbc96.zip 222\w+ and pbc96.zip 455"):
        compare(first, second)
    page = unescape(build_page(tmp_path).read_text(encoding="utf-8"))
    assert page.count("Real cells: pbc96.zip (") == 2 * 2  # in the contents too
    assert " above " not in page.partition("All runs")[0]


def two_seeds(folder, *codes):
    "Copy a step and its baseline with two seeds each; of which code each seed is."
    for name in ("worth_heavy", "worth_none"):
        for code, seed in zip(codes, ("", "_seed1"), strict=True):
            shutil.copytree(ROOT / "reports" / "worth" / f"{name}{seed}", folder / f"{name}{seed}")
            edit(folder / f"{name}{seed}" / "metrics.json",
                 lambda record, code=code: record.update(
                     code=code * 16, git={"commit": code * 40, "clean": True}))
    return one_change_each(folder)


def test_seeds_of_other_code_are_seeds(tmp_path):
    "Where no recipe has two of the same code, a step's own differences tell how far apart."
    (gain,), runs = two_seeds(tmp_path, "1", "2")
    low, high = gain.stand_in["interval_95"]
    assert gain.stand_in["trainings"] == (2, 2) and len(gain.seeds) == 2
    assert low < min(gain.seeds) and max(gain.seeds) < high
    words = seed_words([gain], runs)
    assert "several seeds" in words and not words.startswith("It is one seed")


def held_zero(monkeypatch, noisy, quiet, counts, between):
    """The share of intervals that hold zero, of two recipes that differ in chance alone: twelve
    recipes of three seeds, whose trainings are far or near apart, six of each kind, are what is
    known; `between` takes what is pooled over all, over the far and over the near.
    """
    rng, n, held, repeats = np.random.default_rng(0), 600, 0, 400
    folders = [*range(counts[0]), *range(18, 18 + counts[1])]  # one recipe of either kind
    runs = [SimpleNamespace(folder=k, name=str(k), cells=("a", "b")) for k in folders]
    for _ in range(repeats):
        seed = rng.normal(0, 1, (36, 1)) * np.repeat([noisy, quiet], 18)[:, None]
        right = rng.normal(0, 1, n) + seed + rng.normal(0, 0.7, (36, n)) > -0.5
        monkeypatch.setattr("bloodcell_nb.evaluation.ensemble.read_predictions",
                            lambda folders, _, right=right: SimpleNamespace(
                                labels=np.zeros(n, int), probabilities=np.stack(
                                    [right[folders], ~right[folders]], axis=2)))
        rows = [right[k:k + 3] for k in range(0, 36, 3)]
        known = [pooled_variance(some) for some in (rows, rows[:6], rows[6:])]
        (found,) = compare_over_seeds(runs[:counts[0]], runs[counts[0]:],
                                      {"test": between(*known)})
        low, high = found["interval_95"]
        held += low <= 0 <= high
    return held / repeats


# 95 % of 400 lie between 0.926 and 0.971 in 95 of 100 such trials
@pytest.mark.parametrize(("noisy", "quiet", "counts"), [
    (0, 0, (3, 3)), (0.25, 0.25, (3, 3)), (0.25, 0.25, (1, 3)), (0.4, 0.1, (3, 3)),
    (0.4, 0.1, (1, 3)), (0.1, 0.4, (1, 3))])
def test_an_interval_over_seeds_is_as_wide_as_it_says(monkeypatch, noisy, quiet, counts):
    "Over cells; over cells and seeds; where the one kind's trainings are farther apart."
    between = lambda all, far, near: [all, all] if noisy == quiet else [far, near]  # noqa: E731
    # what is estimated is not below zero: wide where seeds do nothing
    assert 0.92 < held_zero(monkeypatch, noisy, quiet, counts, between) < (0.98 if noisy else 0.99)


def test_an_interval_of_the_others_kind_is_wrong(monkeypatch):
    "What the test above can see."
    swapped = lambda all, far, near: [near, far]  # noqa: E731
    assert held_zero(monkeypatch, 0.4, 0.1, (1, 3), swapped) < 0.9


def test_recipes_compared_with_one_share_what_their_seeds_tell():
    "Where these leave ten degrees of freedom; with fewer, all of them do; whatever else is a file."
    runs = [run for run in read_runs(ROOT / "reports" / "worth") if run.test]
    apart = seeds_apart(runs)
    assert {"", "worth_heavy", "worth_none"} == {*apart}
    # B0 from random weights has one seed; AugMix, and random weights, are beside none
    assert apart["worth_heavy"].freedom + apart["worth_none"].freedom == apart[""].freedom
    few = [run for run in runs if recipe_name(run) in (
        "worth_none", "worth_heavy", "worth_heavy_no_mixing")]
    assert {*seeds_apart(few)} == {""} and seeds_apart(few)[""].freedom == 6
    words = seed_words(step_gains(runs)[0], runs)
    assert re.search(r"0\.0\d\d over “heavy policy” and what is compared with it; 0\.0\d\d over "
                     "“no augmentation” and what else is compared with it; elsewhere 0", words)


def test_a_run_of_other_cells_counts_for_no_seed(tmp_path):
    "Nor one whose predictions cannot be read; what was written anew is read anew."
    _, runs = two_seeds(tmp_path, "1", "1")
    groups, file = seed_groups(runs), tmp_path / "worth_none_seed1" / "predictions_stand_in.npz"
    both = seed_variance(groups)
    assert both.variance > 0 and both.freedom == 2
    with np.load(file) as held:
        np.savez(file, **{key: held[key][:9] if key in ("ids", "labels", "probabilities")
                          else held[key] for key in held.files})
    one = seed_variance(groups)
    assert one.freedom == 1 and one.variance != both.variance
    file.write_bytes(b"")
    assert seed_variance(groups) == one

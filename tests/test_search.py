"A search of a recipe's parameters, with notebooks of one cell in the place of trainings."
import csv

import pytest
import yaml
from test_command import SOURCE, one_cell, one_line_error, recipe

from bloodcell_nb.cli import main
from bloodcell_nb.evaluation.search import read_space
from bloodcell_nb.runs import engine, keys, processes
from bloodcell_nb.runs.recipes import find_recipe, read_recipe
from bloodcell_nb.runs.studies import spaces

# an L2 of 0.001 is best; others have half their accuracy after each epoch, and go on until stopped
TRAINING = """
import runpy, time
import numpy as np
runpy.run_path({small!r})
from bloodcell_nb.runs.recipes import recipe_of
from bloodcell_nb.runs.run import Run
run = Run(recipe_of(globals(), "03_custom_cnn"))
away = abs(np.log10(run.recipe.l2) + 3)
for epoch in range(4):
    run.watched.append((epoch + 1) * (0.24 - 0.1 * away))
    run.progress(f"epoch {{epoch}}")
    time.sleep(0.3)
accuracy = 0.96 - 0.4 * away
np.savez(run.folder / "predictions_val.npz", none=0)
run.finish({{"val": {{"accuracy": accuracy, "interval_95": {{"accuracy": [accuracy, 1.0]}}}}}})
"""
SMALL = """
from pathlib import Path
from bloodcell_nb.runs import engine, keys
engine.project_root = keys.project_root = lambda: Path({project!r})
"""


@pytest.fixture
def searched(tmp_path, monkeypatch):
    "The words of a search's command, its recipe's and its space's files written."
    small = tmp_path / "small.py"
    project = one_cell(tmp_path, TRAINING.format(small=str(small)))
    small.write_text(SMALL.format(project=str(project)))
    for module in (engine, keys):
        monkeypatch.setattr(module, "project_root", lambda: project)
    monkeypatch.setattr(processes, "_COMMAND", f"import runpy; runpy.run_path({str(small)!r}); "
                                               + processes._COMMAND)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(
        {"l2": [0.001, 0.0008, 0.0013, 0.0006, 0.0015, 0.01, 0.02, 0.05]}))
    return ["search", recipe(tmp_path, "small", monitor="val_accuracy"), "--space",
            tmp_path / "space.yaml", "--data", SOURCE, "--out", tmp_path / "found", "--jobs", "2"]


def run(command, *more):
    return main([*map(str, command), *more])


def test_a_search_finds_the_best_and_goes_on(searched, tmp_path, monkeypatch, capsys):
    """A budget ends it in the middle; the same command goes on, asks anew for what was running, and
    stops what is below the median. The best trial is a recipe.
    """
    looks = []

    def over(deadline):
        looks.append(deadline)
        return bool(deadline) and len(list((tmp_path / "found").glob("trial_*/metrics.json"))) >= 2

    monkeypatch.setattr("bloodcell_nb.evaluation.search.is_over", over)
    assert run(searched, "--trials", "9", "--budget", "1000") == 0
    left = {path.name for path in (tmp_path / "found").glob("trial_*.partial")}
    said = capsys.readouterr().out
    assert "trials: " in said and looks
    assert run(searched, "--trials", "9") == 0
    said = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "found" / "leaderboard.csv").open()))
    whole = [row for row in rows if row["ended"] == "whole"]
    assert len(rows) == 8 and float(rows[0]["l2"]) in (0.001, 0.0008, 0.0013), said
    accuracies = [float(row["accuracy"]) for row in whole]
    assert accuracies == sorted(accuracies, reverse=True)
    assert left <= {f"{row['run']}.partial" for row in rows}, "nothing that ran is forgotten"
    assert len(whole) < 8 and "stopped after" in said and "8 of 9 trials" in said, said
    best = read_recipe(tmp_path / "found" / "small_best.yaml")
    assert (best.recipe, best.l2, best.filters) == ("small_best", float(rows[0]["l2"]), [4, 4])
    assert (tmp_path / "found" / "trials.png").is_file()
    one_line_error(capsys, [*searched, "--set", "seed=3"], "holds a search of another recipe")


def test_each_space_is_one_of_some_recipe():
    fits = {"cnn": "custom_cnn", "lion": "efficientnet_lite0_translation_mixup",
            "split": "custom_cnn"}
    assert fits.keys() == spaces().keys()
    for space, name in fits.items():
        assert read_space(space, read_recipe(find_recipe(name)))

"A search of a recipe's parameters, with notebooks of one cell in the place of trainings."
import csv
import json

import optuna
import pytest
import yaml
from test_command import SOURCE, in_place, one_line_error, recipe, small_project

from bloodcell_nb import cli
from bloodcell_nb.cli import main
from bloodcell_nb.evaluation.search import _pruner, _Trials, score_of
from bloodcell_nb.runs.recipes import find_recipe, read_recipe
from bloodcell_nb.runs.spaces import Span, read_space, spaces

# an L2 of 0.001 is best
TRAINING = """
import numpy as np
from bloodcell_nb.runs.recipes import recipe_of
from bloodcell_nb.runs.run import Run
run = Run(recipe_of(globals(), "03_custom_cnn"))
away = abs(np.log10(run.recipe.l2) + 3)
accuracy = 0.96 - 0.4 * away
np.savez(run.folder / "predictions_val.npz", none=0)
run.finish({"val": {"accuracy": accuracy, "interval_95": {"accuracy": [accuracy, 1.0]}}})
"""


@pytest.fixture
def searched(tmp_path, monkeypatch):
    "The words of a search's command, its recipe's and its space's files written."
    in_place(monkeypatch, *small_project(tmp_path, {"03_custom_cnn": TRAINING}))
    monkeypatch.setattr(cli, "_write_page", lambda root: None)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(
        {"l2": [0.001, 0.0008, 0.006, 0.01, 0.05]}))
    return ["search", recipe(tmp_path, "small", monitor="val_accuracy"), "--space",
            tmp_path / "space.yaml", "--data", SOURCE, "--out", tmp_path / "found", "--jobs", "2"]


def run(command, *more):
    return main([*map(str, command), *more])


def test_a_search_finds_the_best_and_goes_on(searched, tmp_path, monkeypatch, capsys):
    """A budget ends it in the middle; the same command goes on, asks anew for what was running, and
    ends where the space holds no other values. The best trial is a recipe.
    """
    looks = []

    def over(deadline):
        looks.append(deadline)
        return bool(deadline) and len(list((tmp_path / "found").glob("trial_*/metrics.json"))) >= 2

    monkeypatch.setattr("bloodcell_nb.evaluation.search.is_over", over)
    assert run(searched, "--trials", "6", "--budget", "1000") == 0
    left = {path.name for path in (tmp_path / "found").glob("trial_*.partial")}
    said = capsys.readouterr().out
    assert "of 6 trials" in said and looks
    assert run(searched, "--trials", "6") == 0
    said = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "found" / "leaderboard.csv").open()))
    assert len(rows) == 5 and float(rows[0]["l2"]) == 0.001 and "5 of 6 trials" in said, said
    accuracies = [float(row["accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert left <= {f"{row['run']}.partial" for row in rows}, "nothing that ran is forgotten"
    best = read_recipe(tmp_path / "found" / "small_best.yaml")
    assert (best.recipe, best.l2, best.filters) == ("small_best", float(rows[0]["l2"]), [4, 4])
    assert (tmp_path / "found" / "trials.png").is_file()
    one_line_error(capsys, [*searched, "--set", "seed=3"], "holds a search of another recipe")


class Tasks:
    "What a search asks of a cluster."

    def __init__(self):
        self.added, self.stopped = [], []

    def add(self, recipes):
        self.added += [one.recipe for one in recipes]

    def stop(self, names):
        self.stopped += names

    def ended(self):
        return []


@pytest.mark.parametrize("monitor, values, stopped", [
    ("val_accuracy", [0.4, 0.4, 0.3], True), ("val_accuracy", [0.4], False),
    ("val_accuracy", [0.6, 0.4, 0.3], False), ("val_loss", [0.6, 0.7, 0.8], True),
    ("val_loss", [0.6, 0.4, 0.3], False)])
def test_what_is_worse_than_the_median_is_stopped(tmp_path, monitor, values, stopped):
    "After the second epoch; of a loss, what is higher."
    small = read_recipe(recipe(tmp_path, "small", monitor=monitor))
    space = {"l2": Span(low=1e-5, high=1e-2, log=True)}
    study = optuna.create_study(
        direction="maximize" if score_of(small).higher_is_better else "minimize", pruner=_pruner())
    for k in range(5):
        study.add_trial(optuna.trial.create_trial(
            value=0.5, params={"l2": 1e-3}, intermediate_values=dict.fromkeys(range(4), 0.5),
            distributions={"l2": optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)},
            user_attrs={"run": f"trial_{k}", "values": {"l2": 1e-3}}))
    trials = _Trials(study, small, space, tasks := Tasks(), tmp_path)
    trials.begin()
    (name,) = tasks.added
    (tmp_path / f"{name}.partial").mkdir()
    (tmp_path / f"{name}.partial" / "progress.json").write_text(
        json.dumps({"watched": dict(enumerate(values))}))
    trials.look()
    assert (tasks.stopped == [name]) == stopped
    assert study.trials[-1].state.name == ("PRUNED" if stopped else "RUNNING")


def test_each_space_is_one_of_some_recipe():
    fits = {"cnn": "custom_cnn", "lion": "efficientnet_lite0_translation_mixup",
            "split": "custom_cnn"}
    assert fits.keys() == spaces().keys()
    for space, name in fits.items():
        assert read_space(space, read_recipe(find_recipe(name)))

"A search of a recipe's parameters, with notebooks of one cell in the place of trainings."
import csv
import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
import yaml
from conftest import ROOT
from test_command import SOURCE, in_place, one_line_error, recipe, small_project

from bloodcell_nb import cli
from bloodcell_nb.cli import main
from bloodcell_nb.evaluation import search
from bloodcell_nb.evaluation.search import (
    _pruner,
    _Trials,
    leaderboard,
    score_of,
    search_parameters,
    trial_recipe,
)
from bloodcell_nb.runs.plan import plan_runs, with_settings
from bloodcell_nb.runs.processes import _SHARED
from bloodcell_nb.runs.recipes import find_recipe, read_recipe
from bloodcell_nb.runs.schemas import WEIGHT_DECAY
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
            tmp_path / "space.yaml", "--data", SOURCE, "--out", tmp_path / "found", "--jobs", "2",
            "--set", "epochs=3"]


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
    assert [json.loads(path.read_text())["asked"] for path in (tmp_path / "found").glob(
        "trial_*/status.json")] == [{"epochs": 4}] * 5, "what a trial has less of is recorded"
    one_line_error(capsys, [*searched, "--set", "seed=3"], "holds a search of another recipe")
    path = tmp_path / "found" / "small_best.yaml"
    written = path.read_text()
    path.write_text(f"{written}# mine\n")
    capsys.readouterr()
    assert run(searched, "--trials", "6") == 0
    assert "small_best.yaml was changed by hand and stays" in capsys.readouterr().err
    assert path.read_text() == f"{written}# mine\n"
    path.unlink()
    assert run(searched, "--trials", "6") == 0 and path.read_text() == written


class Tasks:
    "What a search asks of a cluster: each run ends once, as `ends` says."
    at_once = 2

    def __init__(self, ends=lambda name: None):
        self.added, self.stopped, self.asked, self._ends, self._over = [], [], {}, ends, set()

    def add(self, recipes, asked=None):
        self.added += [one.recipe for one in recipes if one.recipe not in self.added]
        self.asked |= asked or {}

    def stop(self, names):
        self.stopped += names

    def ended(self):
        found = [(name, self._ends(name)) for name in self.added if name not in self._over]
        self._over |= {name for name, status in found if status}
        return [(name, status) for name, status in found if status]


def on_a_cluster(monkeypatch, ends):
    "Let searches have such tasks; gives a list of those that they had."
    had = []

    @contextmanager
    def cluster(*_, **__):
        had.append(Tasks(ends))
        yield had[-1]

    monkeypatch.setattr(search, "cluster", cluster)
    return had


def record(folder):
    "What a finished run leaves."
    shutil.copytree(ROOT / "reports" / "search_cnn" / "trial_0303ba0a", folder)


FAILED = {"state": "failed", "error": "no cells today"}


@pytest.mark.parametrize("space", [{"l2": [0.05, 0.001]}, {"l2": [0.05]}])
def test_a_value_that_failed_is_not_waited_for(tmp_path, monkeypatch, space):
    "Drawn again it ends nothing, and a search ends where the space holds no other."
    small, root = read_recipe(recipe(tmp_path, "small", monitor="val_accuracy")), tmp_path / "found"
    worse = trial_recipe(small, {"l2": 0.05}).recipe

    def ends(name):
        if name != worse and not (root / name).exists():
            record(root / name)
        return FAILED if name == worse else {"state": "done"}

    looks = []
    monkeypatch.setattr(search, "is_over", lambda _: looks.append(1) or len(looks) > 1000)
    monkeypatch.setattr(search.time, "sleep", lambda seconds: None)
    had = on_a_cluster(monkeypatch, ends)
    ended, failed = search_parameters(small, space, root, trials=8)
    assert (ended, failed, len(looks) < 1000) == (len(space["l2"]) - 1, 1, True)
    assert len(had[0].added) == len(space["l2"])


def test_a_trial_that_failed_has_no_score_of_another_run(tmp_path, capsys):
    "Nor one that was stopped: where its run would lie there is one of other code."
    small = read_recipe(recipe(tmp_path, "small", monitor="val_accuracy"))
    trials = _Trials(study := optuna.create_study(direction="maximize"), small, {"l2": [0.05]},
                     tasks := Tasks(lambda name: FAILED), tmp_path)
    trials.begin()
    record(tmp_path / tasks.added[0])
    trials.look()
    assert [trial.state.name for trial in study.trials] == ["FAIL"]
    assert "no cells today" in capsys.readouterr().out
    trial = study.ask()
    trial.suggest_categorical("l2", ["0.05"])
    trial.set_user_attr("run", tasks.added[0])
    trial.set_user_attr("values", {"l2": 0.05})
    trial.report(0.5, 0)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    (row,) = leaderboard(study, tmp_path, "accuracy")
    assert (row["accuracy"], row["low"], row["epochs_trained"]) == (0.5, None, 1)


def test_the_table_tells_epochs_that_are_searched_from_those_trained(tmp_path):
    "And of two as good the one that trained longer is first."
    study = optuna.create_study(direction="maximize")
    values = optuna.distributions.CategoricalDistribution([10, 20])
    for k, (epochs, trained) in enumerate([(20, 3), (10, 4)]):
        study.add_trial(optuna.trial.create_trial(
            state=optuna.trial.TrialState.PRUNED, value=0.5, params={"epochs": epochs},
            distributions={"epochs": values},
            intermediate_values=dict.fromkeys(range(trained), 0.5), user_attrs={
                "run": f"trial_{k}", "values": {"epochs": epochs}}))
    assert [(row["epochs"], row["epochs_trained"]) for row in leaderboard(
        study, tmp_path, "accuracy")] == [(10, 4), (20, 3)]


@pytest.mark.parametrize("looks", [1000, 2])
def test_a_search_leaves_nothing_that_its_runs_shared(tmp_path, monkeypatch, looks):
    "Unless a budget left some: the same command goes on from it."
    small, root = read_recipe(recipe(tmp_path, "small", monitor="val_accuracy")), tmp_path / "found"
    (root / _SHARED).mkdir(parents=True)
    on_a_cluster(monkeypatch, lambda name: FAILED if looks == 1000 else None)
    over = iter(range(looks + 1))
    monkeypatch.setattr(search, "is_over", lambda _: next(over) == looks)
    monkeypatch.setattr(search.time, "sleep", lambda seconds: None)
    search_parameters(small, {"l2": [0.05, 0.001]}, root, trials=2)
    assert (root / _SHARED).exists() == (looks == 2)


def test_a_search_says_what_its_profile_lowers(searched, monkeypatch, capsys):
    "And its runs' records hold what the recipe asks for, also where a trial draws it."
    had = on_a_cluster(monkeypatch, lambda name: FAILED)
    Path(searched[3]).write_text(yaml.safe_dump({"epochs": [2, 4]}))
    run(searched[:-2], "--trials", "2", "--profile", "smoke")
    assert "small: profile smoke lowers epochs 4 -> 1, limit all -> 32" in capsys.readouterr().out
    assert sorted(map(len, had[0].asked.values())) == [1, 2], had[0].asked
    assert {"epochs": 4, "limit": None} in had[0].asked.values()


@pytest.mark.parametrize("setting", [("optimizer", "adamw"), ("optimizer", "adam"),
                                     ("weight_decay", 0.2), ("schedule", "cosine")])
@pytest.mark.parametrize("name, settings", [
    ("custom_cnn", []), ("custom_cnn", ["weight_decay=0.0"]), ("efficientnet_lite0_heavy", []),
    ("custom_cnn", ["optimizer=adamw", "epochs=3"])])
def test_a_trial_is_what_a_run_of_its_settings_is(name, settings, setting):
    "What nobody has named follows what is drawn, as a weight decay does the optimizer."
    (planned,) = plan_runs([name], SOURCE, "quick", settings).recipes
    key, value = setting
    trial = trial_recipe(planned, {key: value})
    given = [one for one in settings if not one.startswith(f"{key}=")] + [f"{key}={value}"]
    (chosen,) = plan_runs([name], SOURCE, "quick", given).recipes
    assert trial.model_dump(exclude={"recipe"}) == chosen.model_dump(exclude={"recipe"})
    (again,) = with_settings([planned], [f"{key}={value}"])
    assert again == chosen
    if key == "optimizer" and "weight_decay=0.0" not in settings:
        assert trial.weight_decay == (WEIGHT_DECAY if value == "adamw" else 0)


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

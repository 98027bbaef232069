"Scores and their intervals: one rule for what is measured and for every draw, in little memory."
import tracemalloc
import warnings

import numpy as np
import pytest
from sklearn.metrics import log_loss

from bloodcell_nb.evaluation.metrics import score
from bloodcell_nb.evaluation.robustness import accuracy_gain


def scored(labels, probabilities, **options):
    "Scores of classes a, b, ..."
    names = tuple("abcdefgh"[:probabilities.shape[1]])
    with warnings.catch_warnings():  # of draws with one class, which have no AUC
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return score(np.array(labels), probabilities, names, **options)


def test_a_class_that_a_draw_lacks_has_no_f1_there():
    "All are right: no class may be worse in any draw; one that nobody has or names stays at 0."
    found = scored([0, 1], np.eye(3)[:2])
    assert [(one["f1"], *one["f1_interval_95"]) for one in found["per_class"].values()] == [
        (1, 1, 1), (1, 1, 1), (0, 0, 0)]
    assert found["interval_95"]["macro_f1"].tolist() == [1, 1]
    # a wrong answer: a draw without either cell of class a, nor the answer a, says nothing of it
    missed = scored([0, 1, 1, 1], np.eye(2)[[1, 1, 1, 1]])
    assert missed["per_class"]["a"]["f1_interval_95"].tolist() == [0, 0]


@pytest.mark.parametrize("least", [0, 1e-300, 1e-18, 1e-15, 1e-9])
def test_log_likelihood_and_its_interval_follow_one_rule(least):
    "All cells alike: whatever is drawn, the loss is the same, and scikit-learn's."
    probabilities = np.tile([least, 1 - least], (8, 1))
    found = scored(np.zeros(8, int), probabilities, resamples=5)
    assert np.allclose(found["interval_95"]["nll"], found["nll"], atol=1e-6)
    assert np.isclose(found["nll"], log_loss(np.zeros(8), probabilities, labels=range(2)))


def test_a_gain_is_drawn_in_little_memory_as_if_at_once():
    rng = np.random.default_rng(0)
    first, second = rng.random((3, 4000)) < 0.8, rng.random((3, 4000)) < 0.82
    accuracy_gain(first, second)
    tracemalloc.start()
    try:
        found = accuracy_gain(first, second, seed=5)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    by_cell = (second.astype(float) - first).mean(axis=0)
    drawn = by_cell[np.random.default_rng(5).integers(4000, size=(2000, 4000))].mean(axis=1)
    assert found == (by_cell.mean(), *np.percentile(drawn, [2.5, 97.5]))

"""Whether shares of classes are estimated better from answers under one temperature or under each
image's own.

    python benchmarks/label_shift.py HOME.zip ELSEWHERE.zip [NETWORK ...]

Asked of the validation cells of HOME as stand-in, drawn anew so that their classes have other
shares (40 draws of 300 cells, shares from a Dirichlet distribution of 0.5), and of all cells of
ELSEWHERE, a microscope on which choices may be made. Share error: half the sum of the absolute
differences between estimated and true shares.
"""
import sys
from dataclasses import replace

import numpy as np

from bloodcell_nb.evaluation.label_shift import estimate_shares, with_shares
from bloodcell_nb.inference.classifier import Seen, load_classifier
from bloodcell_nb.inference.external import labelled_cells
from bloodcell_nb.inference.published import find_model
from bloodcell_nb.runs.splits import distorted

DRAWS, CELLS = 40, 300
WAYS = {"no shares": None, "shares from each image's own": ("probabilities", "probabilities"),
        "shares from one temperature": ("even", "probabilities"),
        "one temperature for both": ("even", "even")}  # estimated from, applied to


def judged(way, seen, labels, trained):
    "Accuracy, share error and negative log likelihood of one way."
    true = np.bincount(labels, minlength=len(trained)) / len(labels)
    answers, shares = seen.probabilities, seen.probabilities.mean(axis=0)
    if way:
        shares = estimate_shares(getattr(seen, way[0]), trained)
        answers = with_shares(getattr(seen, way[1]), trained, shares)
    likely = np.maximum(answers[np.arange(len(labels)), labels], 1e-12)
    return ((answers.argmax(axis=1) == labels).mean(), np.abs(shares - true).sum() / 2,
            -np.log(likely).mean())


def draws(labels, rng):
    "Cells whose classes have other shares, again and again."
    counts = np.bincount(labels)
    for _ in range(DRAWS):
        weights = (rng.dirichlet(np.full(len(counts), 0.5)) / counts)[labels]
        yield rng.choice(len(labels), CELLS, p=weights / weights.sum())


def main(home, elsewhere, *names):
    for name in names or ["efficientnet_lite0_taught_128"]:
        classifier = replace(load_classifier([find_model(name)]), views=1)
        trained = classifier.shares_in_training()
        stand_in = distorted(labelled_cells(home, classifier).part("val"))["stand_in"]
        afar = labelled_cells(elsewhere, classifier)
        print(f"{name}\n| way | stand-in: accuracy; share error; NLL | elsewhere |\n|---|---|---|")
        seen = [classifier.see(cells.images, with_kinds=False) for cells in (stand_in, afar)]
        drawn = [[*draws(stand_in.labels, np.random.default_rng(0))], [np.arange(len(afar))]]
        for way, how in WAYS.items():
            found = [np.mean([judged(how, Seen(one.probabilities[some], one.even[some], None),
                                     cells.labels[some], trained) for some in places], axis=0)
                     for one, cells, places in zip(seen, (stand_in, afar), drawn, strict=True)]
            words = ("; ".join(f"{value:.3f}" for value in scores) for scores in found)
            print(f"| {way} | {' | '.join(words)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])

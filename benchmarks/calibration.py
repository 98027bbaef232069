"""Which temperature keeps probabilities honest under shift: one, or one for each image by its
distance to the training cells.

    python benchmarks/calibration.py HOME.zip ELSEWHERE.zip [NETWORK ...]

Fitted to a random half of the validation cells of HOME, as they are, corrupted and as stand-in;
judged on the other half, and on all cells of ELSEWHERE, a microscope on which choices may be made.
Calibration errors are means over six such halves.
"""
import sys
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize

from bloodcell_nb.evaluation.calibration import (
    LEAST_TEMPERATURE,
    fit_temperature_at,
    temperature_at,
)
from bloodcell_nb.evaluation.ensemble import fit_temperature, temperature_loss, with_temperature
from bloodcell_nb.evaluation.metrics import expected_calibration_error
from bloodcell_nb.inference.classifier import load_classifier
from bloodcell_nb.inference.external import labelled_cells
from bloodcell_nb.inference.published import find_model
from bloodcell_nb.runs.splits import distorted

HALVES = 6
CURVES = {  # of the distance to the nearest training cell
    "a line": lambda d, a, b: np.exp(a) + np.exp(b) * d,
    "a power": lambda d, a, b: np.exp(a) * d ** np.exp(b),
}


def fitted(curve, raw, labels, distance):
    "A function of distances, by whose temperatures the labels are likeliest."
    def temperatures(distance, numbers):
        return np.maximum(curve(np.maximum(distance, 1e-4), *numbers), LEAST_TEMPERATURE)

    numbers = minimize(
        lambda numbers: temperature_loss(raw, labels, temperatures(distance, numbers)),
        [-0.5, 0], method="Nelder-Mead").x
    return lambda distance: temperatures(distance, numbers)


def ways(raw, labels, similar):
    "Each way to find temperatures, fitted to some cells: functions of similarities."
    together = [np.concatenate([*one.values()]) for one in (raw, labels, similar)]
    clean = fit_temperature(raw["clean"], labels["clean"])
    same = fit_temperature(*together[:2])
    by_distance = fit_temperature_at(*together)  # None: no likelier than one
    found = {"one, fitted to clean cells": lambda similar: clean,
             "one, fitted to all": lambda similar: same}
    for name, curve in CURVES.items():
        at = fitted(curve, *together[:2], 1 - together[2])
        found[name] = lambda similar, at=at: at(1 - similar)
    found["levelling off"] = lambda similar: (temperature_at(similar, *by_distance)
                                              if by_distance else same)
    return found


def main(home, elsewhere, *names):
    for name in names or ["efficientnet_lite0_taught_128"]:
        classifier = replace(load_classifier([find_model(name)]), views=1, temperature=1.0,
                             by_distance=())
        val = labelled_cells(home, classifier).part("val")
        cells = {"clean": val, **distorted(val), "elsewhere": labelled_cells(elsewhere, classifier)}
        raw = {place: classifier.predict(some.images) for place, some in cells.items()}
        similar = {place: classifier.similarities(some.images)[0]
                   for place, some in cells.items()}
        labels = {place: some.labels for place, some in cells.items()}
        errors = {}
        for seed in range(HALVES):
            half = np.random.default_rng(seed).permutation(len(val)) < len(val) // 2
            given = [{place: one[place][half] for place in cells if place != "elsewhere"}
                     for one in (raw, labels, similar)]
            for way, at in ways(*given).items():
                for place, some in cells.items():
                    judged = ~half if place != "elsewhere" else np.full(len(some), True)
                    honest = with_temperature(raw[place][judged], at(similar[place][judged]))
                    errors.setdefault(way, {}).setdefault(place, []).append(
                        expected_calibration_error(some.labels[judged], honest))
        print(f"{name}\n| temperature | {' | '.join(cells)} |\n|---|{'---|' * len(cells)}")
        for way, found in errors.items():
            print(f"| {way} | {' | '.join(f'{np.mean(one):.3f}' for one in found.values())} |")


if __name__ == "__main__":
    main(*sys.argv[1:])

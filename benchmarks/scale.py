"""How often cells of a network's own laboratory are magnified, and what is gained elsewhere.

    python benchmarks/scale.py HOME.zip ELSEWHERE.zip [NETWORK ...]

Validation cells of HOME are drawn in batches, of all classes and of one. All cells of ELSEWHERE, a
microscope on which choices may be made, are asked as they are and at the estimated scale, all
together and each class of 20 or more alone.
"""
import sys
from dataclasses import replace

import numpy as np

from bloodcell_nb.data.scale import FACTORS, LEAST_CELLS, magnification, magnified, nucleus_sizes
from bloodcell_nb.inference.classifier import load_classifier
from bloodcell_nb.inference.external import labelled_cells
from bloodcell_nb.inference.published import find_model

DRAWS = 1000


def batches(labels, size, rng):
    "Indices of random batches: of all classes, then of each that has so many."
    yield "all classes", [rng.permutation(len(labels))[:size] for _ in range(DRAWS)]
    for k in np.unique(labels):
        own = np.flatnonzero(labels == k)
        if len(own) > size:
            yield k, [rng.permutation(own)[:size] for _ in range(DRAWS // 5)]


def main(home, elsewhere, *names):
    for name in names or ["ensemble_lite0_atto"]:
        classifier = replace(load_classifier([find_model(name)]), views=1)
        nuclei = classifier.nuclei_in_training()
        val = labelled_cells(home, classifier).part("val")
        answers = np.stack([classifier.predict(magnified(val.images, factor)).argmax(axis=1)
                            for factor in FACTORS])
        right, sizes = (answers == val.labels).mean(axis=1), nucleus_sizes(val.images)
        print(f"{name}: {len(val)} validation cells, right at each factor: " + ", ".join(
            f"{factor:g}: {share:.4f}" for factor, share in zip(FACTORS, right, strict=True)))
        for size in (20, 30, 50, 100):
            for k, drawn in batches(val.labels, size, np.random.default_rng(size)):
                found = np.array([magnification(sizes[some], nuclei[answers[:, some]])
                                  for some in drawn])
                what = k if isinstance(k, str) else val.class_names[k]
                moved = abs(found - 1)
                print(f"  {size} of {what}: magnified {(moved > 0).mean():.3f}, by more than 0.1 "
                      f"{(moved > 0.1).mean():.3f}; from {found.min():.2f} to {found.max():.2f}")
        other = labelled_cells(elsewhere, classifier)
        alone = {other.class_names[k]: other[other.labels == k]
                 for k, count in enumerate(other.counts) if count >= LEAST_CELLS}
        for what, cells in {"cells": other, **alone}.items():
            for one in (1.0, classifier.scale_of(cells.images)):
                found = classifier.predict(magnified(cells.images, one)).argmax(axis=1)
                print(f"  {elsewhere.rpartition('/')[2]}, {len(cells)} {what}, magnified "
                      f"{one:.2f}: {(found == cells.labels).mean():.3f} right")


if __name__ == "__main__":
    main(*sys.argv[1:])

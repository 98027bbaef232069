"""How much of the stand-in a network gets right that was trained on its very distortions.

    python benchmarks/ceiling.py HOME.zip ELSEWHERE.zip [--recipe NAME] [--seeds 0]

A bound, not a way to train: the stand-in takes the place of distortions that nobody knows, so a
network that has seen its kinds is no candidate. Each training cell is distorted anew for each epoch
as the stand-in is, by other draws; all else as in the recipe, but for its own augmentation. Judged
as `travel.py` judges runs.
"""
import tempfile
from dataclasses import replace

import numpy as np
from travel import all_sets, answers, head, right, row, trial

from bloodcell_nb.data.corruptions import _AT_ONCE, STAND_IN, distort
from bloodcell_nb.inference.classifier import load_classifier
from bloodcell_nb.networks.pretrained import transfer_model
from bloodcell_nb.runs.recipes import find_recipe, read_recipe
from bloodcell_nb.runs.run import Run
from bloodcell_nb.runs.splits import prepare
from bloodcell_nb.training.phases import fit_phases


def distorted(images, seed):
    "Images, each under three distortions of the stand-in's."
    rng = np.random.default_rng(seed)
    return np.stack([distort(one, rng.permutation(list(STAND_IN))[:_AT_ONCE], rng)
                     for one in images])


def several(cells, epochs, seed):
    "As many copies of cells as there are epochs, each distorted by draws of its own."
    return replace(cells, ids=np.array([f"{one}/{k}" for k in range(epochs) for one in cells.ids]),
                   images=np.concatenate([distorted(cells.images, [seed, k])
                                          for k in range(epochs)]),
                   labels=np.tile(cells.labels, epochs), parts=np.tile(cells.parts, epochs))


def main(asked):
    sets = None
    for seed in asked.seeds:
        with tempfile.TemporaryDirectory() as out:
            recipe = read_recipe(find_recipe(asked.recipe)).model_copy(
                update={"source": asked.home, "out": out, "seed": seed, "limit": asked.limit,
                        "augmentation": []})
            epochs, once = recipe.phases[0].epochs, recipe.phases[0].model_copy(
                update={"epochs": 1})
            recipe = recipe.model_copy(update={"phases": [once]})  # one over all copies
            run, splits = Run(recipe), prepare(recipe)
            network = transfer_model(recipe, splits.train.images.shape[1:3],
                                     len(splits.train.class_names))
            fit_phases(network, several(splits.balanced, epochs, seed), splits.val, recipe, run)
            network.save(run.folder / "model.keras")
            classifier = load_classifier([run.folder / "model.keras"])
            if sets is None:
                sets = all_sets(asked.home, asked.elsewhere, classifier)
                head(sets)
            row(f"{asked.recipe}, seed {seed}, on the stand-in's distortions, {epochs} draws of "
                "each cell", right(answers(network, sets), sets, classifier.class_names))


if __name__ == "__main__":
    main(trial(__doc__))

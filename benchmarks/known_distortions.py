"""How much of the stand-in a network gets right that was trained on its very distortions.

    python benchmarks/known_distortions.py HOME.zip ELSEWHERE.zip [--recipe NAME] [--seeds 0]

A measure of what there is to be had, not a way to train: the stand-in takes the place of
distortions that nobody knows, so a network that has seen its kinds is no candidate. Each training
cell is distorted anew for each epoch as the stand-in is, by other draws; all else as in the recipe,
but for its own augmentation. Judged as `travel.py` judges runs.
"""
from dataclasses import replace

import numpy as np
from travel import answers, right, row, trials

from bloodcell_nb.data.corruptions import distort_anew


def without_policy(recipe):
    "A recipe that goes once over all copies, as they are."
    once = recipe.phases[0].model_copy(update={"epochs": 1})
    return recipe.model_copy(update={"augmentation": [], "phases": [once]})


def several(splits, recipe):
    "As many copies of the training cells as there are epochs, each distorted by draws of its own."
    cells, epochs, images = splits.balanced, recipe.phases[0].epochs, []
    for k in range(epochs):
        rng = np.random.default_rng([recipe.seed, k])
        images += [distort_anew(one, rng) for one in cells.images]
    return replace(cells, ids=np.array([f"{one}/{k}" for k in range(epochs) for one in cells.ids]),
                   images=np.stack(images), labels=np.tile(cells.labels, epochs),
                   parts=np.tile(cells.parts, epochs))


def main():
    for recipe, splits, network, sets in trials(__doc__, without_policy, several):
        row(f"{recipe.recipe}, seed {recipe.seed}, on the stand-in's distortions, "
            f"{recipe.phases[0].epochs} draws of each cell",
            right(answers(network, sets), sets, splits.train.class_names))


if __name__ == "__main__":
    main()

"""Means of a network's weights over the last epochs of a training and over seeds.

    python benchmarks/weight_averages.py HOME.zip ELSEWHERE.zip [--recipe NAME] [--seeds 0 1 2]

Within a training the mean of every step's weights over the last epochs, as stochastic weight
averaging takes it (Izmailov et al. 2018; of every step: SWAD, Cha et al. 2021, whose range of steps
the rows stand for); of several seeds the mean of their networks (soup, Wortsman et al. 2022). Each
is given running statistics of its own, on augmented training cells, as theirs are. Judged as
`travel.py` judges runs.
"""
import tempfile

import keras
import numpy as np
from travel import all_sets, answers, head, right, row, trained, trial

from bloodcell_nb.training.image_sizes import policies_of

LAST = 1, 2, 3, 4  # epochs
BATCHES = 60  # of 64, for the statistics


class Means(keras.callbacks.Callback):
    "The mean of a network's weights over the steps of each epoch."

    def __init__(self):
        super().__init__()
        self.found = []

    def on_epoch_begin(self, epoch, logs=None):
        self.total, self.steps = 0, 0

    def on_train_batch_end(self, batch, logs=None):
        weights = self.model.network.get_weights()
        self.total = [a + b for a, b in zip(self.total or [0] * len(weights), weights, strict=True)]
        self.steps += 1

    def on_epoch_end(self, epoch, logs=None):
        self.found.append([one / self.steps for one in self.total])


def mean(several):
    return [np.mean(one, axis=0) for one in zip(*several, strict=True)]


def with_own_statistics(network, weights, splits, recipe):
    "Give a network weights, and its batch normalisation the statistics that go with them."
    network.set_weights(weights)
    norms = [layer for layer in network._flatten_layers()
             if isinstance(layer, keras.layers.BatchNormalization)]
    before, policy = [layer.momentum for layer in norms], policies_of(recipe)[-1]
    cells, rng = splits.balanced, np.random.default_rng(recipe.seed)
    order = rng.permutation(len(cells))[: 64 * BATCHES]
    for k, picked in enumerate(np.array_split(order, max(1, len(order) // 64))):
        for layer in norms:
            layer.momentum = k / (k + 1)  # the mean of all batches
        images, targets = np.asarray(cells.images[picked]), keras.utils.to_categorical(
            cells.labels[picked], len(cells.class_names))
        if policy:
            images = np.round(policy(images, targets, rng.random(len(picked)) < 0.5)[0])
        network(np.asarray(images, np.uint8), training=True)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum
    return network


def main(asked):
    sets, best = None, []
    for seed in asked.seeds:
        means, name = Means(), f"{asked.recipe}, seed {seed}"
        with tempfile.TemporaryDirectory() as out:
            network, classifier, splits, recipe = trained(
                asked.home, asked.recipe, seed, asked.limit, out, [means])
            if sets is None:
                sets = all_sets(asked.home, asked.elsewhere, classifier)
                head(sets)
        names = classifier.class_names
        best.append(network.get_weights())
        row(f"{name}, best epoch", right(answers(network, sets), sets, names))
        ways = {"best epoch": best[-1]} | {f"last {k} epochs": mean(means.found[-k:]) for k in LAST}
        for way, weights in ways.items():
            with_own_statistics(network, weights, splits, recipe)
            row(f"{name}, {way}, own statistics", right(answers(network, sets), sets, names))
    if len(best) > 1:
        network.set_weights(mean(best))
        row(f"mean weights of {len(best)}", right(answers(network, sets), sets, names))
        with_own_statistics(network, mean(best), splits, recipe)
        row(f"mean weights of {len(best)}, own statistics",
            right(answers(network, sets), sets, names))


if __name__ == "__main__":
    main(trial(__doc__))

"""Means of a network's weights over the last epochs of a training and over seeds.

    python benchmarks/weight_averages.py HOME.zip ELSEWHERE.zip [--recipe NAME] [--seeds 0 1 2]

Within a training the mean of every step's weights over the last epochs, as stochastic weight
averaging takes it (Izmailov et al. 2018; of every step: SWAD, Cha et al. 2021, whose range of steps
the rows stand for); of several seeds the mean of their networks (soup, Wortsman et al. 2022). Each
is given running statistics of its own, on augmented training cells, as theirs are. Judged as
`travel.py` judges runs.
"""
import keras
import numpy as np
from travel import answers, right, row, trials

from bloodcell_nb.training.image_sizes import policies_of

LAST = 1, 2, 3, 4  # epochs
BATCHES = 60  # for the statistics


class Means(keras.callbacks.Callback):
    "The mean of a network's weights over the steps of each epoch."

    def on_train_begin(self, logs=None):
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
    order = rng.permutation(len(cells))[: recipe.batch_size * BATCHES]
    for k, picked in enumerate(np.array_split(order, max(1, len(order) // recipe.batch_size))):
        for layer in norms:
            layer.momentum = k / (k + 1)  # the mean of all batches
        images, targets = np.asarray(cells.images[picked]), keras.utils.to_categorical(
            cells.labels[picked], len(cells.class_names))
        if policy:
            mixed = rng.random(len(picked)) < recipe.mixing_share
            images = np.round(policy(images, targets, mixed)[0])
        network(np.asarray(images, np.uint8), training=True)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum


def judge(trained, way, weights=None):
    "A row for the network as it is, or with other weights and the statistics that go with them."
    recipe, splits, network, sets = trained
    if weights is not None:
        with_own_statistics(network, weights, splits, recipe)
        way += ", own statistics"
    row(way, right(answers(network, sets), sets, splits.train.class_names))


def main():
    means, best = Means(), []
    for trained in trials(__doc__, callbacks=[means]):
        recipe, _, network, _ = trained
        name = f"{recipe.recipe}, seed {recipe.seed}"
        best.append(network.get_weights())
        judge(trained, f"{name}, best epoch")
        judge(trained, f"{name}, best epoch", best[-1])
        for k in LAST:
            judge(trained, f"{name}, last {k} epochs", mean(means.found[-k:]))
    if len(best) > 1:
        network.set_weights(mean(best))
        judge(trained, f"mean weights of {len(best)}")
        judge(trained, f"mean weights of {len(best)}", mean(best))


if __name__ == "__main__":
    main()

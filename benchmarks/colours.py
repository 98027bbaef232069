"""Whether colours that are brought to those of the training, or statistics of the batch itself,
help a trained network under shift.

    python benchmarks/colours.py HOME.zip ELSEWHERE.zip [NETWORK ...]

Validation cells of HOME as they are and as stand-in, and all cells of ELSEWHERE, a microscope on
which choices may be made, as they are and at the estimated scale.
"""
import sys
from dataclasses import replace

import keras
import numpy as np

from bloodcell_nb.data.scale import magnified
from bloodcell_nb.inference.classifier import load_classifier
from bloodcell_nb.inference.external import labelled_cells
from bloodcell_nb.inference.published import find_model
from bloodcell_nb.runs.splits import distorted

BATCH = 400  # images whose statistics are taken


def background(images):
    "Mean colour of the brightest fifth of each image, (n, 3)."
    pixels = images.reshape(len(images), -1, 3).astype(np.float32)
    light = pixels.mean(axis=2)
    bright = light >= np.quantile(light, 0.8, axis=1, keepdims=True)
    return (pixels * bright[..., None]).sum(axis=1) / bright.sum(axis=1, keepdims=True)


def whole(images):
    "Mean colour of each image, (n, 3): the grey world's white."
    return images.reshape(len(images), -1, 3).mean(axis=1)


def balanced(images, white, home):
    "Images whose channels are multiplied so that their white is that of home."
    factors = home / np.maximum(white, 1)
    return np.clip(images * np.broadcast_to(factors, (len(images), 3))[:, None, None], 0, 255
                   ).round().astype(np.uint8)


def norms(layer):
    "Batch normalisations of a network, those of networks in it too."
    found = [layer] if isinstance(layer, keras.layers.BatchNormalization) else []
    return sum(map(norms, getattr(layer, "layers", [])), found)


def with_batch(layers, statistics, share):
    "Let batch normalisation use these means and variances to a share."
    for layer, (own, other) in zip(layers, statistics, strict=True):
        for weight, first, second in zip((layer.moving_mean, layer.moving_variance), own, other,
                                         strict=True):
            weight.assign((1 - share) * first + share * second)


def kept(layers):
    return [(layer.moving_mean.numpy(), layer.moving_variance.numpy()) for layer in layers]


def main(home, elsewhere, *names):
    for name in names or ["efficientnet_lite0_heavy"]:
        classifier = replace(load_classifier([find_model(name)]), views=1)
        (network,) = classifier.models
        val, other = (labelled_cells(home, classifier).part("val"),
                      labelled_cells(elsewhere, classifier))
        factor = classifier.scale_of(other.images)
        sets = {"home": (val.images, val.labels),
                "home, stand-in": (distorted(val)["stand_in"].images, val.labels),
                "elsewhere": (other.images, other.labels),
                f"elsewhere, {factor:.2f}": (magnified(other.images, factor), other.labels)}

        def right(way, words, sets=sets, classifier=classifier):
            shares = [(classifier.predict(way(images, place)).argmax(axis=1) == labels).mean()
                      for place, (images, labels) in sets.items()]
            print(f"| {words} | " + " | ".join(f"{share:.3f}" for share in shares) + " |",
                  flush=True)

        print(f"{name}\n| | {' | '.join(sets)} |\n|---|{'---|' * len(sets)}")
        right(lambda images, place: images, "as it is")
        for words, white in (("background", background), ("grey world", whole)):
            at_home = np.median(white(val.images), axis=0)
            right(lambda images, place, white=white, at_home=at_home: balanced(
                images, white(images), at_home), f"{words}, each image by itself")
            right(lambda images, place, white=white, at_home=at_home: balanced(
                images, np.median(white(images), axis=0), at_home), f"{words}, all by one factor")
        layers = norms(network)
        own, statistics = kept(layers), {}
        for place, (images, _) in sets.items():
            with_batch(layers, zip(own, own, strict=True), 0)
            for layer in layers:
                layer.momentum = 0.0
            some = np.random.default_rng(0).permutation(len(images))[:BATCH]
            network(images[some].astype(np.float32), training=True)
            statistics[place] = [*zip(own, kept(layers), strict=True)]
        for share in (0.1, 0.3, 1.0):
            def asked(images, place, share=share, statistics=statistics, layers=layers):
                with_batch(layers, statistics[place], share)
                return images
            right(asked, f"batch statistics to {share:.0%}")


if __name__ == "__main__":
    main(*sys.argv[1:])

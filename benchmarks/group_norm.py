"""Group normalisation in the place of batch normalisation, on validation cells and elsewhere.

    python benchmarks/group_norm.py HOME.zip ELSEWHERE.zip [--recipe NAME] [--seeds 0 1 2]

The recipe's network from the same weights, each normalisation with its scale and offset, but over
groups of the channels of one image (Wu and He 2018) and not with the running statistics of many;
all else as in the recipe. Judged as `travel.py` judges runs, in one row a seed.
"""
import keras
from travel import answers, right, row, trials

from bloodcell_nb.networks import pretrained

GROUPS = 8  # divides the number of channels of each layer of EfficientNet-Lite0


def grouped(backbone):
    "A backbone with group normalisation, and with its weights but for running statistics."
    def clone(layer):
        if isinstance(layer, keras.layers.BatchNormalization):
            return keras.layers.GroupNormalization(GROUPS, epsilon=layer.epsilon, name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    def call(layer, *given, **options):
        options.pop("mask", None)  # batch normalisation alone takes one
        return layer(*given, **options)

    new = keras.models.clone_model(backbone, clone_function=clone, call_function=call)
    for layer in filter(lambda layer: layer.weights, new.layers):  # scale and offset come first
        layer.set_weights(backbone.get_layer(layer.name).get_weights()[: len(layer.weights)])
    return new


def main():
    load = pretrained.load_backbone
    pretrained.load_backbone = lambda *given, **options: grouped(load(*given, **options))
    for recipe, splits, network, sets in trials(__doc__):
        row(f"{recipe.recipe}, seed {recipe.seed}, {GROUPS} groups",
            right(answers(network, sets), sets, splits.train.class_names))


if __name__ == "__main__":
    main()

"""Group normalisation in the place of batch normalisation, on validation cells and elsewhere.

    python benchmarks/group_norm.py HOME.zip ELSEWHERE.zip [--recipe NAME] [--seeds 0 1 2]

The recipe's network from the same weights, each normalisation with its scale and offset, but over
groups of the channels of one image (Wu and He 2018) and not with the running statistics of many;
all else as in the recipe. Judged as `travel.py` judges runs, in one row a seed.
"""
import argparse
import tempfile

import keras
from travel import all_sets, answers, right, row

from bloodcell_nb.inference.classifier import load_classifier
from bloodcell_nb.networks import pretrained
from bloodcell_nb.runs.recipes import find_recipe, read_recipe
from bloodcell_nb.runs.run import Run
from bloodcell_nb.runs.splits import prepare
from bloodcell_nb.training.phases import fit_phases

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


def main(home, elsewhere, name, seeds, limit):
    sets, load = None, pretrained.load_backbone
    pretrained.load_backbone = lambda *given, **options: grouped(load(*given, **options))
    for seed in seeds:
        with tempfile.TemporaryDirectory() as out:
            recipe = read_recipe(find_recipe(name)).model_copy(
                update={"source": home, "out": out, "seed": seed, "limit": limit})
            run, splits = Run(recipe), prepare(recipe)
            network = pretrained.transfer_model(recipe, splits.train.images.shape[1:3],
                                                len(splits.train.class_names))
            fit_phases(network, splits.balanced, splits.val, recipe, run)
            network.save(run.folder / "model.keras")
            if sets is None:
                classifier = load_classifier([run.folder / "model.keras"])
                sets = all_sets(home, elsewhere, classifier)
                print(f"| | {' | '.join(sets)} |\n|---|{'---|' * len(sets)}")
            row(f"{name}, seed {seed}, {GROUPS} groups",
                right(answers(network, sets), sets, splits.train.class_names))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("home")
    parser.add_argument("elsewhere")
    parser.add_argument("--recipe", default="worth_pointwise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, help="images of each split, for a trial")
    asked = parser.parse_args()
    main(asked.home, asked.elsewhere, asked.recipe, asked.seeds, asked.limit)

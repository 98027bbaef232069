"""What runs have on validation cells and on another microscope, and their mean weights with them.

    python benchmarks/travel.py HOME.zip ELSEWHERE.zip RUN [RUN ...]

Shares of right answers, one view, no temperature: validation cells of HOME as they are, under one
corruption each and as stand-in; all cells of ELSEWHERE, a microscope on which choices may be made,
as they are, at 1.2 times their size, and told which classes occur. Of runs that differ in their
seed alone: the mean and the range, the mean of their answers, and the network of their mean
weights ("soup", Wortsman et al. 2022). Of runs that differ in more: the mean of all answers.
"""
import argparse
import tempfile
from itertools import groupby
from pathlib import Path

import numpy as np

from bloodcell_nb.data.scale import magnified
from bloodcell_nb.evaluation.ensemble import predict_views
from bloodcell_nb.evaluation.label_shift import restricted
from bloodcell_nb.inference.classifier import load_classifier
from bloodcell_nb.inference.external import labelled_cells
from bloodcell_nb.networks import pretrained
from bloodcell_nb.runs.recipes import find_recipe, read_recipe
from bloodcell_nb.runs.run import Run
from bloodcell_nb.runs.splits import distorted, prepare
from bloodcell_nb.training.phases import fit_phases

MAGNIFIED = 1.2


def all_sets(home, elsewhere, classifier):
    "Images, labels and the classes that can occur, by name."
    val = labelled_cells(home, classifier).part("val")
    if not len(val):
        raise SystemExit(f"{home} has no validation cells; expected a source with splits")
    other = labelled_cells(elsewhere, classifier)
    occur = tuple(name for name, count in zip(other.class_names, other.counts, strict=True)
                  if count)
    hard = distorted(val)
    larger = magnified(other.images, MAGNIFIED)
    return {"clean": (val.images, val.labels, ()),
            "corrupted": (hard["corrupted"].images, val.labels, ()),
            "stand-in": (hard["stand_in"].images, val.labels, ()),
            "elsewhere": (other.images, other.labels, ()),
            "elsewhere, told": (other.images, other.labels, occur),
            f"elsewhere, {MAGNIFIED}": (larger, other.labels, ()),
            f"elsewhere, {MAGNIFIED}, told": (larger, other.labels, occur)}


def head(sets):
    print(f"| | {' | '.join(sets)} |\n|---|{'---|' * len(sets)}")


def trials(about, change=lambda recipe: recipe, cells=lambda splits, recipe: splits.balanced,
           callbacks=()):
    """Train a recipe otherwise, once a seed, as a command line asks for it: the recipe, its splits
    and network, and the sets to judge that by.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("home")
    parser.add_argument("elsewhere")
    parser.add_argument("--recipe", default="worth_pointwise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, help="images of each split, for a trial")
    asked, sets = parser.parse_args(), None
    for seed in asked.seeds:
        with tempfile.TemporaryDirectory() as out:
            recipe = read_recipe(find_recipe(asked.recipe)).model_copy(
                update={"source": asked.home, "out": out, "seed": seed, "limit": asked.limit})
            run, splits = Run(recipe), prepare(recipe)
            network = pretrained.transfer_model(recipe, splits.train.images.shape[1:3],
                                                len(splits.train.class_names))
            fit_phases(network, cells(splits, recipe), splits.val, change(recipe), run,
                       callbacks=callbacks)
            if sets is None:
                network.save(run.folder / "model.keras")
                sets = all_sets(asked.home, asked.elsewhere,
                                load_classifier([run.folder / "model.keras"]))
                head(sets)
        yield recipe, splits, network, sets


def answers(network, sets):
    "Probabilities for each set; images that two sets share are asked once."
    known = {}
    for images, _, _ in sets.values():
        if id(images) not in known:
            known[id(images)] = predict_views(network, images, 1, 256).mean(axis=0)
    return [known[id(images)] for images, _, _ in sets.values()]


def right(found, sets, names):
    "Share of right answers in each set."
    return np.array([((restricted(probable, names, occur) if occur else probable).argmax(axis=1)
                      == labels).mean()
                     for probable, (_, labels, occur) in zip(found, sets.values(), strict=True)])


def row(words, shares):
    cells = [f"{one.mean():.3f}" + (f" [{one.min():.3f}, {one.max():.3f}]" if len(one) > 1 else "")
             for one in np.atleast_2d(shares).T]
    print(f"| {words} | " + " | ".join(cells) + " |", flush=True)


def without_seed(run):
    "Name of a run's recipe."
    return Path(run).name.partition("_seed")[0]


def main(home, elsewhere, *runs):
    sets, everyone = None, []
    for name, places in groupby(sorted(runs, key=without_seed), without_seed):
        found, weights = [], []
        for place in places:
            classifier = load_classifier([place])
            if sets is None:
                sets = all_sets(home, elsewhere, classifier)
                head(sets)
            if len(classifier.models) > 1:
                raise SystemExit(f"{place} is an ensemble; expected runs of one network each")
            network = classifier.models[0]
            found.append(answers(network, sets))
            weights.append(network.get_weights())
        names = classifier.class_names
        row(name, np.stack([right(one, sets, names) for one in found]))
        if len(found) > 1:
            row(f"{name}, mean of {len(found)} answers",
                right([np.mean(one, axis=0) for one in zip(*found, strict=True)], sets, names))
            network.set_weights([np.mean(one, axis=0) for one in zip(*weights, strict=True)])
            row(f"{name}, mean weights of {len(found)}",
                right(answers(network, sets), sets, names))
        everyone.extend(found)
    if len(everyone) > len(found):
        row(f"mean of all {len(everyone)} answers",
            right([np.mean(one, axis=0) for one in zip(*everyone, strict=True)], sets, names))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("home")
    parser.add_argument("elsewhere")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder, or a .keras file")
    given = parser.parse_args()
    main(given.home, given.elsewhere, *given.runs)

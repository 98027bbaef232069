"""Seconds until a network from ImageNet's weights knows 97 % of the clean validation split.

    python benchmarks/time_to_accuracy.py SOURCE --out curves.jsonl [--sides pytorch ours]

EfficientNet-Lite0, the weights that come with the package, the same cells and splits on both
sides. The clock starts where the training does: imports, loading and making the network are not
counted, building the graph and the validation after each epoch are. Each seed's curve is appended
to the file as a line of JSON; a seed that stands there is not run again. The sides take turns, seed
by seed. Prints a Markdown table of what the file holds. PyTorch's side needs torch and timm, in
this interpreter or in that of `--torch-python`.
"""
import argparse
import json
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median

from sides import ROOT, TORCH, Side, heading, torch_versions, versions

WEIGHTS = ROOT / "bloodcell_nb" / "weights" / "efficientnet_lite0.npz"
PYTORCH = {  # the plain recipe: AdamW, cosine, flips, all layers and batch statistics
    "epochs": 2, "batch": 64, "learning_rate": 1e-3, "weight_decay": 1e-2, "warmup": 0.0,
    "label_smoothing": 0.0}


def splits_of(source):
    "Cleaned cells as every run of the project has them."
    from bloodcell_nb.runs.recipes import read_recipe, recipes
    from bloodcell_nb.runs.splits import prepare

    recipe = read_recipe(recipes()["efficientnet_lite0_all"])
    return prepare(recipe.model_copy(update={"source": source}))


def write_arrays(splits, path):
    "The arrays that PyTorch's side reads."
    import numpy as np

    np.savez(path, images=splits.train.images, labels=splits.train.labels,
             val_images=splits.val.images, val_labels=splits.val.labels)


def check_features(options, path, images):
    "Both sides begin with the same network: pooled features of a batch agree to 1e-3."
    import numpy as np

    from bloodcell_nb.networks.efficientnet import efficientnet_lite

    task = {"what": "features", "weights": str(WEIGHTS), "cells": path, "batch": len(images)}
    with Side(TORCH, task, options.torch_python) as side:
        theirs = np.array(side.answer()["features"])
    network = efficientnet_lite("EfficientNetLite0", images.shape[1:3], "imagenet")
    worst = float(np.abs(network.predict(images.astype("float32"), verbose=0) - theirs).max())
    print(f"pooled features of {len(images)} cells differ by at most {worst:.1e}", file=sys.stderr)
    if worst > 1e-3:
        raise SystemExit(f"features differ by {worst}; expected at most 1e-3")


def pytorch(options, path, seed):
    "The curve of PyTorch's side, and the settings that it rests on."
    settings = PYTORCH | {key: getattr(options, key) for key in PYTORCH
                          if getattr(options, key) is not None} | {"bfloat16": options.bfloat16}
    task = settings | {"what": "accuracy", "weights": str(WEIGHTS), "cells": path, "seed": seed}

    def measure():
        with Side(TORCH, task, options.torch_python) as side:
            return side.answer()["curve"]

    return settings, measure


def ours(options, path, seed):
    "The curve of a recipe of ours, in a process of its own."
    settings = {"recipe": options.recipe, "bfloat16": options.bfloat16}

    def measure():
        with Side(Path(__file__), settings | {"cells": path, "seed": seed}) as side:
            return side.answer()["curve"]

    return settings, measure


def our_curve(task):
    "Train as the recipe says; validation accuracy after each epoch, and seconds since it began."
    import keras
    import numpy as np

    from bloodcell_nb.data.cells import Cells
    from bloodcell_nb.networks.pretrained import transfer_model
    from bloodcell_nb.runs.recipes import find_recipe, read_recipe
    from bloodcell_nb.runs.run import Run
    from bloodcell_nb.training.phases import fit_phases

    curve = []

    class Curve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            curve.append((time.perf_counter() - start, logs["val_accuracy"]))

    recipe = read_recipe(find_recipe(task["recipe"]))
    recipe = recipe.model_copy(update={
        "seed": task["seed"], "source": "synthetic",
        "mixed_precision": task["bfloat16"] or recipe.mixed_precision})
    with np.load(task["cells"]) as file:
        train = Cells(file["images"], file["labels"])
        val = Cells(file["val_images"], file["val_labels"])
    model, run = transfer_model(recipe, train.images.shape[1:3]), Run(recipe)
    start = time.perf_counter()  # features of a frozen backbone are counted too
    fit_phases(model, train, val, recipe, run, callbacks=[Curve()])
    print(json.dumps({"curve": curve}), flush=True)


SIDES = {"pytorch": pytorch, "ours": ours}


def read_lines(path):
    "Curves that are finished; a line that a kill cut short is left out."
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def reached(line, goal):
    "Seconds to the first epoch that meets the goal; None where none does."
    return next((seconds for seconds, accuracy in line["curve"] if accuracy >= goal), None)


def measure(options, path):
    "Run what the file lacks."
    from bloodcell_nb.runs.machine import device_name

    for seed in options.seeds:
        for name in options.sides:
            settings, curve = SIDES[name](options, path, seed)
            if any(line["side"] == name and line["seed"] == seed and line["settings"] == settings
                   for line in read_lines(options.out)):
                continue
            line = {"side": name, "seed": seed, "settings": settings, "curve": curve(),
                    "date": str(date.today()), "device": device_name(),
                    "versions": torch_versions(options.torch_python) if name == "pytorch"
                    else versions("keras", "tensorflow", "jax")}
            with open(options.out, "a") as file:
                file.write("\n" * (file.tell() > 0 and not ends_line(options.out))
                           + json.dumps(line) + "\n")


def ends_line(path):
    "Whether a file ends with a whole line."
    return path.read_bytes().endswith(b"\n")


def print_table(lines, goal):
    "Print a row for each side and its settings, and each seed's curve below."
    print(f"| side | settings | seeds that reach {goal:g} | median seconds to {goal:g} | range "
          "| median of the last accuracy | median seconds of all epochs |\n" + "|---" * 7 + "|")
    groups = {}
    for line in lines:
        groups.setdefault((line["side"], json.dumps(line["settings"])), []).append(line)
    for (name, settings), group in groups.items():
        times = [reached(line, goal) or float("inf") for line in group]
        met = [seconds for seconds in times if seconds < float("inf")]
        words = ", ".join(f"{key} {value}" for key, value in json.loads(settings).items())
        print(f"| {name} | {words} | {len(met)} of {len(group)} | "
              f"{f'{median(times):.0f}' if median(times) < float('inf') else 'not reached'} | "
              f"{f'{min(met):.0f} to {max(met):.0f}' if met else ''} | "
              f"{median(line['curve'][-1][1] for line in group):.4f} | "
              f"{median(line['curve'][-1][0] for line in group):.0f} |")
    print("\n| side | seed | accuracy (seconds) after each epoch |\n|---|---|---|")
    for line in lines:
        points = ", ".join(f"{accuracy:.4f} ({seconds:.0f})" for seconds, accuracy in line["curve"])
        print(f"| {line['side']} | {line['seed']} | {points} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="cells, such as pbc96.zip")
    parser.add_argument("--out", type=Path, required=True, help="file of the curves, JSON lines")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    parser.add_argument("--goal", type=float, default=0.97, help="validation accuracy")
    parser.add_argument("--recipe", default="efficientnet_lite0_fast",
                        help="ours: name or file; efficientnet_lite0_fast by default")
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision on both sides")
    parser.add_argument("--torch-python", default=sys.executable,
                        help="interpreter of PyTorch's side; this one by default")
    for key, value in PYTORCH.items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(value),
                            help=f"PyTorch's; {value} by default")
    options = parser.parse_args()
    splits = splits_of(options.source)
    with tempfile.TemporaryDirectory() as place:
        path = str(Path(place) / "cells.npz")
        write_arrays(splits, path)
        if "pytorch" in options.sides:
            check_features(options, path, splits.train.images[:32])
        measure(options, path)
    print(heading(f"{len(splits.train):,} training and {len(splits.val):,} validation cells of "
                  f"{Path(options.source).name}\n"))
    print_table(read_lines(options.out), options.goal)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        our_curve(json.loads(sys.argv[1]))
    else:
        main()

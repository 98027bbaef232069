"""orchard-ml beside ours: one YAML recipe each, the same cells, network, epochs and batch size.

    python -m venv ORCHARD                                        # Python 3.11 or later
    python benchmarks/orchard.py SOURCE --python ORCHARD/bin/python

Installs orchard-ml into that environment, timed, where it is not there yet. EfficientNet-Lite0
from random weights, three epochs. orchard-ml reads its published data sets alone and checks their
MD5, so the cells are written in the form of `bloodmnist_128.npz` and the check is answered before
it starts. Each side does what its one command does: ours also draws figures, scores the test split
under shift and writes a page. Prints Markdown.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from sides import heading

THEIRS = """\
task_type: classification
dataset:
    name: bloodmnist
    data_root: ./dataset
    use_weighted_sampler: false
    resolution: 128
    img_size: {pixels}
architecture:
    name: timm/efficientnet_lite0
    pretrained: false
training:
    batch_size: 64
    epochs: {epochs}
    optimizer_type: adamw
    learning_rate: 0.001
    mixup_alpha: 0.0
    mixup_epochs: 0
    use_tta: false
    use_amp: {bfloat16}
    monitor_metric: accuracy
augmentation:
    hflip: 0.5
    rotation_angle: 0
    jitter_val: 0.0
    min_scale: 1.0
"""
OURS = """\
notebook: 04_efficientnet
recipe: beside_orchard
backbone: EfficientNetLite0
weights: none
limit: {cells}
batch_size: 64
monitor: val_accuracy
optimizer: adamw
schedule: cosine
train_batch_norm: true
phases: [{{trainable: all, epochs: {epochs}, learning_rate: 0.001}}]
augmentation: [{{RandomFlip: {{mode: horizontal}}}}]
mixed_precision: {bfloat16}
"""
ANSWER = """\
import sys
from orchard.data_handler.fetchers import medmnist_fetcher
medmnist_fetcher._is_valid_npz = lambda path, md5: path.exists()
from orchard.cli_app import app
app(["run", sys.argv[1]])
"""
CONVERT = """\
arrays = {}
for part in ("train", "val", "test"):
    cells = getattr(splits, part)
    arrays |= {f"{part}_images": cells.images, f"{part}_labels": cells.labels[:, None]}
np.savez(path, **arrays)
"""  # run below; it counts among the lines that a user writes


def size_of(python):
    "MB of an environment."
    folder = Path(python).absolute().parent.parent
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def install(python):
    "Seconds that pip takes for orchard-ml; None where it is there."
    if not subprocess.run([python, "-c", "import orchard"], capture_output=True).returncode:
        return None
    start = time.perf_counter()
    subprocess.run([python, "-m", "pip", "install", "--quiet", "orchard-ml"], check=True)
    return time.perf_counter() - start


def write_cells(source, cells, path):
    "The cells of our recipe in the form of MedMNIST."
    import numpy as np

    from bloodcell_nb.runs.recipes import check_recipe
    from bloodcell_nb.runs.splits import prepare

    recipe = check_recipe({"notebook": "01_analysis", "recipe": "cells", "source": source,
                           "limit": cells})
    splits = prepare(recipe)
    path.parent.mkdir()
    exec(CONVERT, {"np": np, "splits": splits, "path": path})
    return splits


def timed(command, folder, **environment):
    "Seconds of a command, and what it printed; ends with its last line where it fails."
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stdout.strip().splitlines()[-1:]}")
    return time.perf_counter() - start, done.stdout


def theirs(options, folder, given):
    "Seconds of all and of training, and accuracies, of orchard-ml."
    (folder / "recipe.yaml").write_text(THEIRS.format(**given))
    (folder / "answer.py").write_text(ANSWER)
    seconds, output = timed([str(Path(options.python).absolute()), "answer.py", "recipe.yaml"],
                            folder, HF_HUB_OFFLINE="1")
    return {"seconds": seconds, **read_log(output)}


def read_log(output):
    "Seconds of training with validation, and accuracies, from orchard-ml's log."
    def at(words):
        stamp = next(line[:19] for line in output.splitlines() if words in line)
        return datetime.fromisoformat(stamp)

    def number(pattern):
        return float(re.search(pattern, output).group(1))

    return {"training": (at("Training Complete") - at(" Epoch 01/")).total_seconds(),
            "val": number(r"Training Complete . Best ACCURACY: ([.0-9]+)"),
            "test": number(r"Test Metrics +: Acc: ([.0-9]+)")}


def ours(source, folder, given):
    "Seconds of all and of training, and accuracies, of ours."
    (folder / "beside_orchard.yaml").write_text(OURS.format(**given))
    command = str(Path(sys.executable).with_name("bloodcell"))
    seconds, _ = timed([command, "run", "beside_orchard.yaml", "--data", source, "--profile",
                        "full", "--out", "runs"], folder)
    record = json.loads((folder / "runs" / "beside_orchard" / "metrics.json").read_text())
    return {"seconds": seconds, "training": record["seconds"]["fit"],
            "val": max(record["results"]["training"]["history"]["val_accuracy"]),
            "test": record["results"]["test"]["accuracy"]}


def lines(text):
    "Lines that are not empty."
    return len([line for line in text.splitlines() if line.strip()])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="cells, such as pbc96.zip")
    parser.add_argument("--python", required=True, help="interpreter of orchard-ml's environment")
    parser.add_argument("--cells", type=int, default=4000, help="at most, of each split")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision on both sides")
    options = parser.parse_args()
    source = str(Path(options.source).resolve())
    installed = install(options.python)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        splits = write_cells(source, options.cells, folder / "dataset" / "bloodmnist_128.npz")
        given = {"cells": options.cells, "epochs": options.epochs,
                 "pixels": splits.train.images.shape[1],
                 "bfloat16": str(options.bfloat16).lower()}
        sides = {"orchard-ml": theirs(options, folder, given), "ours": ours(source, folder, given)}
    got = subprocess.run([options.python, "-c", "from sides import versions; print(', '.join("
                          "map(' '.join, versions('orchard-ml', 'torch', 'timm').items())))"],
                         cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    print(heading(got, f"{len(splits.train):,} training, {len(splits.val):,} validation and "
                  f"{len(splits.test):,} test cells, {given['pixels']} pixels, {options.epochs} "
                  f"epochs, {'bfloat16' if options.bfloat16 else 'float32'}\n"))
    print("| | orchard-ml | ours |\n|---|---|---|")
    asks = {"seconds of the command": "{seconds:.0f}",
            "of them training with validation": "{training:.0f}",
            "best validation accuracy": "{val:.4f}", "test accuracy": "{test:.4f}"}
    for name, text in asks.items():
        print(f"| {name} | " + " | ".join(text.format(**some) for some in sides.values()) + " |")
    print(f"| commands, once the cells are there | 2: python answer.py recipe.yaml, after a "
          f"script that writes the cells | 1: bloodcell run |\n"
          f"| lines of the recipe | {lines(THEIRS)} | {lines(OURS)} |\n"
          f"| lines of Python | {lines(CONVERT) + lines(ANSWER)} | 0 |\n"
          f"| environment, MB | {size_of(options.python):,.0f} | {size_of(sys.executable):,.0f} |")
    if installed:
        print(f"| pip install, s | {installed:.0f} | |")


if __name__ == "__main__":
    main()

"""One recipe with one setting changed at a time, over seeds: what each change is worth.

    python benchmarks/sweep.py SOURCE benchmarks/weight_decay.yaml --out trials.jsonl --seeds 0 1 2

The file names a recipe, settings that all variants share, and the variants, each with the settings
in which it differs. Trained on the training split and scored on the validation split, as it is,
corrupted and as stand-in (one view); the test split is never looked at. Each trial is a process of
its own and a line of JSON in the file; a trial that stands there is not run again. Prints a
Markdown table of what the file holds: the mean over seeds, and the mean difference to the first
variant over the seeds that both have, with its standard error.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from threading import Lock

import yaml
from sides import ROOT, heading, versions
from time_to_accuracy import ends_line, read_lines

SPLITS = ("clean", "corrupted", "stand_in")


def recipe_with(task, source="synthetic"):
    "The recipe with a variant's settings."
    from bloodcell_nb.runs.recipes import check_recipe, find_recipe, read_recipe
    from bloodcell_nb.runs.spaces import with_values

    return check_recipe(with_values(read_recipe(find_recipe(task["recipe"])), task["settings"] | {
        "seed": task["seed"], "source": source}))


def write_arrays(options, study, path):
    "The cells of all trials."
    import numpy as np

    from bloodcell_nb.runs.splits import distorted, prepare

    task = {"recipe": study["recipe"], "settings": study.get("set", {}), "seed": 0}
    splits = prepare(recipe_with(task, options.source))
    shifted = distorted(splits.val)
    np.savez(path, images=splits.train.images, labels=splits.train.labels,
             val_labels=splits.val.labels, clean=splits.val.images,
             **{name: cells.images for name, cells in shifted.items()})


def trial(task):
    "Train and score; prints a line of JSON."
    import numpy as np

    from bloodcell_nb.data.cells import Cells
    from bloodcell_nb.networks.pretrained import transfer_model
    from bloodcell_nb.runs.machine import device_name
    from bloodcell_nb.runs.run import Run
    from bloodcell_nb.training.fit import predict
    from bloodcell_nb.training.phases import fit_phases

    recipe = recipe_with(task)
    with np.load(task["cells"]) as file:
        arrays = dict(file)
    train = Cells(arrays["images"], arrays["labels"])
    sides = {name: Cells(arrays[name], arrays["val_labels"]) for name in SPLITS}
    run = Run(recipe)
    fitted, _ = fit_phases(transfer_model(recipe, train.images.shape[1:3]), train, sides["clean"],
                           recipe, run)
    accuracy = {name: float((predict(fitted.final, cells).argmax(axis=1) == cells.labels).mean())
                for name, cells in sides.items()}
    print(json.dumps({"accuracy": accuracy, "best_epoch": fitted.best_epoch,
                      "epochs": len(fitted.history["loss"]), "seconds": fitted.seconds,
                      "code": run.code, "device": device_name(), "date": str(date.today()),
                      "versions": versions("keras", "tensorflow", "jax")}), flush=True)


def run_trials(options, study, path):
    "Run what the file lacks, seed by seed, several at a time."
    waiting, lock, done = [], Lock(), read_lines(options.out)
    for seed in options.seeds:
        for name, settings in study["variants"].items():
            task = {"recipe": study["recipe"], "variant": name, "seed": seed,
                    "settings": study.get("set", {}) | (settings or {})}
            if not any(all(line[key] == task[key] for key in task) for line in done):
                waiting.append(task)

    def run(task):
        places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "TQDM_DISABLE": "1"}
        ended = subprocess.run([sys.executable, __file__, json.dumps(task | {"cells": path})],
                               capture_output=True, text=True, env=environment)
        lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
        if not lines:
            reason = (ended.stderr.strip() or "no message").splitlines()[-1][:300]
            print(f"{task['variant']}, seed {task['seed']}: {reason}", file=sys.stderr, flush=True)
            return
        line = task | json.loads(lines[-1])
        print(f"{task['variant']}, seed {task['seed']}: {line['accuracy']}", file=sys.stderr,
              flush=True)
        with lock, open(options.out, "a") as file:
            file.write("\n" * (file.tell() > 0 and not ends_line(options.out))
                       + json.dumps(line) + "\n")

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, waiting))


def print_table(lines):
    "Print a row for each variant."
    groups = {}
    for line in lines:
        groups.setdefault(line["variant"], {})[line["seed"]] = line["accuracy"]
    first = next(iter(groups), None)
    print("| variant | seeds | " + " | ".join(f"{name} | difference" for name in SPLITS) + " |")
    print("|---" * (2 + 2 * len(SPLITS)) + "|")
    for name, seeds in groups.items():
        cells = []
        for split in SPLITS:
            cells.append(f"{mean(one[split] for one in seeds.values()):.4f}")
            pairs = [seeds[seed][split] - groups[first][seed][split]
                     for seed in seeds if seed in groups[first]]
            error = f" ± {stdev(pairs) / len(pairs) ** 0.5:.4f}" if len(pairs) > 1 else ""
            cells.append("" if name == first or not pairs else f"{mean(pairs):+.4f}{error}")
        print(f"| {name} | {len(seeds)} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="cells, such as pbc96.zip")
    parser.add_argument("study", type=Path, help="YAML file: recipe, set, variants")
    parser.add_argument("--out", type=Path, required=True, help="file of the trials, JSON lines")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    options = parser.parse_args()
    study = yaml.safe_load(options.study.read_text())
    with tempfile.TemporaryDirectory() as place:
        path = str(Path(place) / "cells.npz")
        write_arrays(options, study, path)
        run_trials(options, study, path)
    print(heading(f"{study['recipe']}, {Path(options.source).name}, validation split\n"))
    print_table([line for line in read_lines(options.out) if line["recipe"] == study["recipe"]])


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        trial(json.loads(sys.argv[1]))
    else:
        main()

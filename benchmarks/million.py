"""A training on more cells than memory holds, beside one on cells that it holds.

    python benchmarks/million.py FOLDER [--images 1000000] [--held 50000]

Writes, once, two files of drawn cells of 96x96 into FOLDER (28 GB for a million): blended in pairs,
so that no two are alike, not compressed, 10,000 for validation and as many for the test. The same
recipe, one epoch of a custom CNN of three narrow blocks, is run on each by the command, so that
reading and not the arithmetic is seen. Rate and memory are those of the runs' records. The smaller
file is held in memory, the larger one stays on disk. Prints Markdown.
"""
import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from sides import ROOT, heading

from bloodcell_nb.data.arrays import write_stored
from bloodcell_nb.data.cells import CLASS_NAMES
from bloodcell_nb.data.synthetic import draw_cells

ASIDE = 10_000  # cells of the validation split, and of the test split
RECIPE = {"recipe": "million", "notebook": "03_custom_cnn", "filters": [8, 8, 8], "dense_units": 16,
          "batch_size": 64, "epochs": 1}


def blends(few, count):
    "Blocks of two cells laid over each other, one turned and moved; labels are those of the first."
    rng = np.random.default_rng(0)
    first, second, turns, move = (rng.integers(most, size=count)
                                  for most in (len(few), len(few), 4, 96))

    def blocks():
        for start in range(0, count, 1000):
            block = slice(start, start + 1000)
            moved = [np.roll(np.rot90(few.images[k], turn), by, axis=0)
                     for k, turn, by in zip(second[block], turns[block], move[block], strict=True)]
            yield few.images[first[block]] // 2 + np.stack(moved) // 2

    return blocks(), few.labels[first]


def make(path, count):
    "A file of so many cells, unless it is there."
    if not path.exists():
        blocks, labels = blends(draw_cells(2000), count)
        parts = np.full(count, "train")
        parts[-2 * ASIDE : -ASIDE], parts[-ASIDE:] = "val", "test"
        write_stored(path, blocks, (count, 96, 96, 3), labels=labels, parts=parts,
                     class_names=np.array(CLASS_NAMES))
    return path


def run(folder, path):
    "The record of the recipe on a file."
    recipe, out = folder / "million.yaml", folder / f"runs_{path.stem}"
    recipe.write_text(yaml.safe_dump(RECIPE))
    subprocess.run([Path(sys.executable).with_name("bloodcell"), "run", recipe, "--data", path,
                    "--out", out], cwd=ROOT, check=True, stdout=sys.stderr,
                   env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    return json.loads((out / "million" / "metrics.json").read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--held", type=int, default=50_000)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(heading("96x96\n"))
    print("| cells | file, GB | run, s | training, images/s | most memory, MiB | test accuracy |\n"
          "|---|---|---|---|---|---|")
    for count in (options.held, options.images):
        path = make(options.folder / f"cells_{count}.npz", count)
        record = run(options.folder, path)
        training, test = record["results"]["training"], record["results"]["test"]
        print(f"| {count:,} | {path.stat().st_size / 1e9:.1f} | {record['seconds']['total']:,.0f} "
              f"| {training['images_per_second']:,.0f} | {record['peak_memory_mib']:,.0f} "
              f"| {test['accuracy']:.3f} |", flush=True)


if __name__ == "__main__":
    main()

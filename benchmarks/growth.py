"""How each stage of a run grows with the number of images: seconds, and the most memory held.

    python benchmarks/growth.py [--images 1000 10000 100000]

Drawn cells of 96x96, blended in pairs so that no two are alike, in a zip of class folders. Each
number of images is a process of its own; the network is a custom CNN of three narrow blocks, so
that the stages and not the arithmetic are seen. The exponent is that of the last two numbers of
images: 1 is linear. Memory is the peak of resident memory within the stage (Linux), with the cells
that the process holds. Prints Markdown.
"""
import argparse
import io
import json
import math
import sys
import tempfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

from sides import Side, heading


def draw(count):
    "Images that differ, and labels of eight classes."
    import numpy as np

    from bloodcell_nb.data.synthetic import draw_cells

    rng, few = np.random.default_rng(0), draw_cells(2000)
    first, second = rng.integers(len(few), size=(2, count))
    for i, k in zip(first, second, strict=True):
        turned = np.rot90(few.images[k], rng.integers(4))
        yield (few.images[i] // 2 + turned // 2), few.labels[i]


def write_zip(path, count):
    "Cells as PNG files in a zip of class folders."
    from PIL import Image

    from bloodcell_nb.data.cells import CLASS_NAMES

    with zipfile.ZipFile(path, "w") as archive:
        for i, (image, label) in enumerate(draw(count)):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG", compress_level=1)
            archive.writestr(f"{CLASS_NAMES[label].replace(' ', '_')}/{i:06d}.png", file.getvalue())


def peak(reset=False):
    "The most memory held since the last reset, MiB; None where the system does not say."
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def stages(task):
    "Run the stages on a source, as a run of the project does, and tell what each took."
    import numpy as np

    from bloodcell_nb.data.analysis import clean, duplicate_groups, perceptual_hashes
    from bloodcell_nb.data.corruptions import one_corruption_each, stand_in
    from bloodcell_nb.data.files import write_json
    from bloodcell_nb.data.sources import fingerprint, load
    from bloodcell_nb.evaluation.metrics import score
    from bloodcell_nb.networks.custom_cnn import custom_cnn
    from bloodcell_nb.page.build import build_page
    from bloodcell_nb.runs.recipes import check_recipe
    from bloodcell_nb.runs.run import Run
    from bloodcell_nb.runs.splits import assign_splits
    from bloodcell_nb.training.fit import fit, predict

    found = {}

    @contextmanager
    def stage(name):
        peak(reset=True)
        start = time.perf_counter()
        yield
        found[name] = (time.perf_counter() - start, peak())

    folder = Path(task["folder"])
    recipe = check_recipe({"notebook": "03_custom_cnn", "recipe": "growth", "epochs": 1,
                           "batch_size": 256, "source": task["source"], "out": str(folder)})
    few = slice(0, 64)
    with stage("fingerprint of the file"):
        fingerprint(task["source"])
    with stage("load"):
        cells = load(task["source"])
    perceptual_hashes(cells.images[few])  # imports
    with stage("perceptual hashes"):
        hashes = perceptual_hashes(cells.images)
    duplicate_groups(hashes[few])
    with stage("groups of duplicates"):
        groups = duplicate_groups(hashes)
    with stage("clean and split"):
        kept = clean(cells, groups) == ""
        parts = assign_splits(cells[kept], groups[kept], recipe)
        cells = cells[kept]
        train, val, test = (cells[parts == part] for part in ("train", "val", "test"))
    del cells
    run = Run(recipe)
    with stage("one epoch"):
        fitted = fit(custom_cnn(filters=(8, 8, 8), dense_units=16), train, val, recipe, run)
    with stage("distort the test split"):
        one_corruption_each(test), stand_in(test)
    predict(fitted.final, test[few])
    with stage("predict the test split"):
        probabilities = predict(fitted.final, test)
    with stage("score the test split"):
        scores = score(test.labels, probabilities, test.class_names)
    with stage("record and page"):
        run.predictions(test, probabilities)
        run.finish({"training": fitted.record(), "test": scores})
        write_json(folder / "status.json", {"recipe": "growth", "state": "done"})
        build_page(folder.parent)
    sizes = [len(np.unique(groups)), len(train), len(test)]
    print(json.dumps({"stages": found, "sizes": sizes}), flush=True)


def measure(count):
    "All stages on so many images."
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "cells.zip"
        write_zip(path, count)
        task = {"source": str(path), "folder": str(Path(place) / "reports" / "growth")}
        with Side(Path(__file__), task) as side:
            return side.answer()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options = parser.parse_args()
    found = {count: measure(count) for count in options.images}
    print(heading("96x96\n"))
    print("| stage | " + " | ".join(f"{count:,} images, s (MiB)" for count in found)
          + " | exponent |\n" + "|---" * (len(found) + 2) + "|")
    for name in next(iter(found.values()))["stages"]:
        values = [some["stages"][name] for some in found.values()]
        texts = [f"{seconds:.2f} ({memory:,.0f})" if memory else f"{seconds:.2f}"
                 for seconds, memory in values]
        exponent = ""
        if len(found) > 1:
            counts = list(found)[-2:]
            exponent = f"{math.log(values[-1][0] / values[-2][0], counts[1] / counts[0]):.2f}"
        print(f"| {name} | {' | '.join(texts)} | {exponent} |")
    for count, some in found.items():
        print(f"\n{count:,} images: {some['sizes'][0]:,} groups, {some['sizes'][1]:,} for training,"
              f" {some['sizes'][2]:,} for testing", end="")
    print()


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        stages(json.loads(sys.argv[1]))
    else:
        main()

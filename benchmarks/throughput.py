"""Training images per second: ours, PyTorch, and a bare Keras `fit`, on one machine.

    python benchmarks/throughput.py                         # ours beside timm in PyTorch
    python benchmarks/throughput.py --best                  # beside PyTorch's best way of four
    python benchmarks/throughput.py --keras                 # our fit beside a bare Keras fit
    python benchmarks/throughput.py --depthwise             # our ConvNeXt beside Keras'
    python benchmarks/throughput.py --batches 8 64 512      # ours over the batch size
    python benchmarks/throughput.py --overhead              # what a run costs beside its work

Two sides are two processes that train in turn, so a ratio is that of one minute; median of the
rounds and what they span. On a GPU: `KERAS_BACKEND=jax`. PyTorch's side
needs torch, timm and albumentations, in this interpreter or in that of `--torch-python`.
Prints Markdown. How the cost of everything else grows is measured by `growth.py`.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from sides import TORCH, Side, compared, heading, in_turn, ratio_text, torch_versions

NETWORKS = {"EfficientNetLite0": 64, "EfficientNetB0": 32, "EfficientNetB2": 32,
            "ConvNeXtAtto": 64, "ConvNeXtTiny": 32, "ConvNeXtBase": 16}  # batch size on a CPU


def recipe_of(task):
    "A committed recipe with another network, from random weights; nothing that PyTorch leaves out."
    from bloodcell_nb.runs.recipes import check_recipe, read_recipe, recipes

    like = "convnext_atto_heavy" if "ConvNeXt" in task["network"] else "efficientnet_lite0_heavy"
    more = {"drop_path": 0.0} if "ConvNeXt" in task["network"] else {}
    return check_recipe(read_recipe(recipes()[like]).model_dump() | more | {
        "backbone": task["network"], "weights": "none", "batch_size": task["batch"], "ema": 0.0,
        "augmentation": "heavy" if task.get("heavy") else [], "patience": 10**6,
        "phases": [{"trainable": "all", "epochs": 10**6, "learning_rate": 1e-3}],
        "epochs": 10**6, "train_batch_norm": True,
        "mixed_precision": "pointwise" if task.get("pointwise") else task["bfloat16"]})


def cells_of(count):
    "Synthetic cells, over and over."
    import numpy as np

    from bloodcell_nb.data.cells import Cells
    from bloodcell_nb.data.synthetic import draw_cells

    few = draw_cells(min(count, 512))
    picked = np.arange(count) % len(few)
    return Cells(few.images[picked], few.labels[picked], few.class_names)


def say(**values):
    "Answer the driver, and wait until it asks again."
    print(json.dumps(values), flush=True)
    if not sys.stdin.readline():
        raise SystemExit


def rounds(task):
    """A Keras callback that measures in rounds: steps, or whole epochs with their validation.

    A step is counted from the one before it, the first from where its epoch begins.
    """
    import keras

    class Rounds(keras.callbacks.Callback):
        uncounted = None  # steps to come that are not measured

        def begin(self):
            self.uncounted = task["uncounted"]
            self.images, self.spent, self.mark = 0, 0.0, time.perf_counter()

        def on_epoch_begin(self, epoch, logs=None):
            self.mark, self.done = time.perf_counter(), 0
            if task["epochs"] and epoch:
                if epoch == 1:  # the first compiled
                    say(ready=True)
                self.begin()
                self.start = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            steps, self.done = batch + 1 - self.done, batch + 1
            if self.uncounted is None:
                if not task["epochs"]:
                    say(ready=True)
                    self.begin()
                return
            if self.uncounted > 0:
                self.uncounted -= steps
                if self.uncounted <= 0:
                    float(logs["loss"])  # waits for the device
                    self.mark = time.perf_counter()
                return
            self.images += steps * task["batch"]
            if self.spent + time.perf_counter() - self.mark > task["seconds"]:
                float(logs["loss"])
            self.spent += time.perf_counter() - self.mark
            if self.spent > task["seconds"] and not task["epochs"]:
                say(speed=self.images / self.spent)
                self.begin()
            self.mark = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            if task["epochs"] and epoch:
                whole = time.perf_counter() - self.start
                say(speed=self.images / self.spent, epoch=task["images"] / whole)

    return Rounds()


def ours(task):
    "The training loop of the recipes."
    from bloodcell_nb.networks.pretrained import transfer_model
    from bloodcell_nb.runs.run import Run
    from bloodcell_nb.training.phases import fit_phases

    recipe = recipe_of(task)
    fit_phases(transfer_model(recipe, (96, 96)), cells_of(task["images"]), cells_of(256), recipe,
               Run(recipe), callbacks=[rounds(task)])


def bare(task):
    """Keras' own fit of the same network on the same arrays, gradients and memory as ours:
    what is left is the loop.
    """
    import keras

    from bloodcell_nb.networks.pretrained import set_trainable, transfer_model
    from bloodcell_nb.networks.speed import keep_freed_memory, speed_up_training

    recipe, train, val = recipe_of(task), cells_of(task["images"]), cells_of(256)
    model = transfer_model(recipe, (96, 96))
    set_trainable(model, "all", True)
    speed_up_training(model)
    keep_freed_memory()
    model.compile(keras.optimizers.AdamW(1e-3), jit_compile=False,
                  loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.05),
                  metrics=[keras.metrics.CategoricalAccuracy(name="accuracy"),
                           keras.metrics.F1Score(average="macro", name="macro_f1")])
    targets = [keras.utils.to_categorical(cells.labels, 8) for cells in (train, val)]
    model.fit(train.images, targets[0], batch_size=task["batch"], epochs=10**6, verbose=0,
              validation_data=(val.images, targets[1]), validation_batch_size=256,
              callbacks=[rounds(task)])


def backbone(task):
    "A ConvNeXt as we or as keras.applications build it, in a bare fit."
    import keras

    from bloodcell_nb.networks.convnext import convnext_backbone
    from bloodcell_nb.networks.speed import keep_freed_memory

    options = {"include_top": False, "weights": None, "input_shape": (96, 96, 3), "pooling": "avg"}
    keep_freed_memory()
    features = (convnext_backbone(task["network"]) if task["ours"]
                else getattr(keras.applications, task["network"])(**options))
    model = keras.Sequential([features, keras.layers.Dense(8, "softmax")])
    model.compile(keras.optimizers.AdamW(1e-3), "sparse_categorical_crossentropy")
    cells, size = cells_of(task["images"]), task["batch"]

    def batches():  # without an end: a bare epoch begins with a wait that is neither side's
        while True:
            for start in range(0, len(cells) - size + 1, size):
                yield cells.images[start : start + size], cells.labels[start : start + size]

    model.fit(batches(), steps_per_epoch=10**6, verbose=0, callbacks=[rounds(task)])


def side(what, task):
    "One of the functions above in a process of its own."
    return Side(Path(__file__), task | {"what": what})


# what a process of PyTorch keeps its freed memory by, as ours does without being told
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
WAYS = {"plain": {"compile": False, "bfloat16": False},
        "compiled": {"compile": True, "bfloat16": False},
        "bfloat16": {"compile": False, "bfloat16": True},
        "compiled, bfloat16": {"compile": True, "bfloat16": True}}


def best_way(options, task):
    "The fastest of PyTorch's ways, by one round of each, freed memory kept."
    speeds = {}
    for name, way in WAYS.items():
        with Side(TORCH, task | way, options.torch_python, **KEPT) as side:
            side.answer()
            speeds[name] = side.round()["speed"]
    print(f"{task['network']}: {speeds}", file=sys.stderr, flush=True)
    return max(speeds, key=speeds.get)


def beside_torch(options, tasks):
    "Print ours against PyTorch."
    print("| network | batch | policy | ours, images/s | PyTorch, images/s | ours of PyTorch | "
          "PyTorch's way |\n" + "|---" * 7 + "|")
    import numpy as np

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "cells.npz"
        cells = cells_of(options.images)
        np.savez(path, images=cells.images, labels=cells.labels)
        for task in tasks:
            plain = task | {"heavy": False, "cells": str(path), "what": "throughput"}
            way = best_way(options, plain) if options.best else "as asked"
            kept = KEPT if options.best else {}
            for policy in options.policies:
                now = task | {"heavy": policy == "heavy", "cells": str(path),
                              "workers": options.workers, "what": "throughput"}
                # a DataLoader has full buffers where a round begins
                now["uncounted"] = 2 + (2 * options.workers if now["heavy"] else 0)
                with (side("ours", now) as one,
                      Side(TORCH, now | WAYS.get(way, {}), options.torch_python, **kept) as other):
                    us, them, ratios = compared(in_turn(one, other, options.rounds))
                print(f"| {task['network']} | {task['batch']} | {policy} | {us:,.1f} | {them:,.1f} "
                      f"| {ratio_text(ratios)} | {way} |", flush=True)


def beside_keras(options, tasks):
    "Print our fit against a bare one: steps alone, and whole epochs."
    print("| network | batch | ours, images/s of steps | bare fit | ours of bare | whole epochs: "
          "ours, images/s | bare fit | ours of bare |\n" + "|---" * 8 + "|")
    for task in tasks:
        now = task | {"epochs": True}
        with side("ours", now) as one, side("bare", now) as other:
            pairs = in_turn(one, other, options.rounds)
        texts = []
        for key in ("speed", "epoch"):
            us, them, ratios = compared(pairs, key)
            texts += [f"{us:,.1f}", f"{them:,.1f}", ratio_text(ratios)]
        print(f"| {task['network']} | {task['batch']} | {' | '.join(texts)} |", flush=True)


def depthwise(options, tasks):
    "Print our ConvNeXt against that of keras.applications."
    print("| network | batch | ours, images/s | keras.applications | ours of Keras' |\n"
          + "|---" * 5 + "|")
    for task in tasks:
        with (side("backbone", task | {"ours": True}) as one,
              side("backbone", task | {"ours": False}) as other):
            us, them, ratios = compared(in_turn(one, other, options.rounds))
        print(f"| {task['network']} | {task['batch']} | {us:,.1f} | {them:,.1f} "
              f"| {ratio_text(ratios)} |", flush=True)


def over_batches(options, tasks):
    "Print our speed over the batch size."
    print("| network | batch | images/s | ms a step |\n" + "|---" * 4 + "|")
    for task in tasks:
        for batch in options.batches:
            now = task | {"batch": batch, "images": max(task["images"], 2 * batch)}
            with side("ours", now) as one:
                one.answer()
                speed = median(one.round()["speed"] for _ in range(options.rounds))
            print(f"| {task['network']} | {batch} | {speed:,.1f} | {1000 * batch / speed:,.0f} |",
                  flush=True)


def overhead():
    "Print what a run costs beside its work."
    import nbformat

    def seconds(*command):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        return min(times)

    python = [sys.executable, "-c"]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "empty.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), path)
        rows = {"python": seconds(*python, "pass"),
                "import bloodcell_nb": seconds(*python, "import bloodcell_nb"),
                "import bloodcell_nb.training.fit": seconds(
                    *python, "import bloodcell_nb.training.fit"),
                "papermill, a notebook of one empty cell": seconds(
                    sys.executable, "-m", "papermill", str(path), os.devnull)}
    print("| | seconds, least of three |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.2f} |")


def arguments():
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--keras", action="store_true", help="against a bare Keras fit instead")
    mode.add_argument("--depthwise", action="store_true",
                      help="our ConvNeXt against keras.applications' instead; Tiny by default")
    mode.add_argument("--batches", type=int, nargs="+", help="ours over these batch sizes instead")
    mode.add_argument("--overhead", action="store_true", help="what a run costs beside its work")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--policies", nargs="+", choices=("none", "heavy"),
                        default=["none", "heavy"], help="augmentation, beside PyTorch")
    parser.add_argument("--batch", type=int, help="images in a batch; 32 or 64 by default")
    parser.add_argument("--images", type=int, default=2048, help="in the training split, synthetic")
    parser.add_argument("--rounds", type=int, default=3, help="of each side")
    parser.add_argument("--seconds", type=float, default=10, help="of each round, at least")
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision on both sides")
    parser.add_argument("--pointwise", action="store_true",
                        help="ours: pointwise layers in bfloat16, the rest in float32")
    parser.add_argument("--best", action="store_true", help="PyTorch compiled or not, in bfloat16 "
                        "or not, whichever is fastest; freed memory kept")
    parser.add_argument("--torch-python", default=sys.executable,
                        help="interpreter of PyTorch's side; this one by default")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count(), 16),
                        help="of PyTorch's DataLoader, where it augments")
    return parser.parse_args()


def main():
    options = arguments()
    if options.overhead:
        return overhead()
    some = (["ConvNeXtTiny"] if options.depthwise else ["EfficientNetLite0"]
            if options.batches or options.keras else
            [name for name in NETWORKS if name != "ConvNeXtBase"])  # which takes a GPU
    tasks = [{"network": name, "batch": options.batch or NETWORKS[name], "images": options.images,
              "seconds": options.seconds, "bfloat16": options.bfloat16,
              "pointwise": options.pointwise, "uncounted": 2, "epochs": False}
             for name in options.networks or some]
    torch = not (options.keras or options.depthwise or options.batches)
    about = [torch_versions(options.torch_python), f"{options.workers} workers"] if torch else []
    print(heading(*about, f"96x96, {options.images:,} images, {options.rounds} rounds of "
                  f"{'an epoch' if options.keras else f'{options.seconds:g} s'}, "
                  f"{'bfloat16' if options.bfloat16 else 'float32'}"
                  f"{', ours: pointwise layers in bfloat16' if options.pointwise else ''}\n"))
    measure = (beside_keras if options.keras else depthwise if options.depthwise
               else over_batches if options.batches else beside_torch)
    measure(options, tasks)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        given = json.loads(sys.argv[1])
        {"ours": ours, "bare": bare, "backbone": backbone}[given["what"]](given)
    else:
        main()

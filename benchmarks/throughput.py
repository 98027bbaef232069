"""Training images per second: ours, PyTorch, and a bare Keras `fit`, on one machine.

Each measurement has a process of its own.

    python benchmarks/throughput.py                         # ours beside PyTorch
    python benchmarks/throughput.py --keras                 # our step beside a bare Keras fit
    python benchmarks/throughput.py --grow                  # ours over batch size, images
    python benchmarks/throughput.py --overhead              # what a run costs beside its work
    python benchmarks/throughput.py --depthwise             # our ConvNeXt beside Keras'

`KERAS_BACKEND` chooses ours (tensorflow, jax, torch). PyTorch's side needs torch, torchvision and
timm; where they are missing its rows say so.
Prints Markdown. The share of the matrix rate counts 3 x the forward pass's FLOP (2 a multiply-add)
against the largest of three products of square matrices.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

NETWORKS = ("custom_cnn", "EfficientNetB2", "ConvNeXtBase")
TIMM = {"EfficientNetB2": "efficientnet_b2", "ConvNeXtBase": "convnext_base",
        "ConvNeXtTiny": "convnext_tiny"}


def cells_of(count):
    "Synthetic cells, over and over."
    import numpy as np

    from bloodcell_nb.data import Cells
    from bloodcell_nb.synthetic import draw_cells

    few = draw_cells(min(count, 256))
    picked = np.arange(count) % len(few)
    return Cells(few.images[picked], few.labels[picked], few.class_names)


def recipe_of(task):
    "The recipe of a measurement: all layers move."
    from bloodcell_nb.recipes import check_recipe, read_recipe, recipes

    common = {"recipe": "throughput", "epochs": 1000, "patience": 1000, "batch_size": task["batch"],
              "optimizer": "adamw", "source": "synthetic:n=200",
              "mixed_precision": task["bfloat16"], "steps_per_execution": task["steps"]}
    if task["heavy"]:
        heavy = read_recipe(recipes()["custom_cnn_heavy"])
        common |= {"augmentation": heavy.augmentation, "mixing": heavy.mixing,
                   "mixing_share": heavy.mixing_share}
    if task["network"] == "custom_cnn":
        return check_recipe(common | {"notebook": "03_custom_cnn"})
    chapter = "05_convnext" if task["network"].startswith("ConvNeXt") else "04_efficientnet"
    return check_recipe(common | {"notebook": chapter, "backbone": task["network"],
                                  "weights": "none", "train_batch_norm": True,
                                  "phases": [{"trainable": "all", "epochs": 1000,
                                              "learning_rate": 1e-3}]})


def network_of(recipe):
    "Its network, in the recipe's precision."
    from bloodcell_nb.custom_cnn import custom_cnn
    from bloodcell_nb.training import precision
    from bloodcell_nb.transfer import set_trainable, transfer_model

    if recipe.notebook == "03_custom_cnn":
        with precision(recipe):
            return custom_cnn()
    model = transfer_model(recipe, (96, 96))
    set_trainable(model, "all", True)
    return model


def flop(model):
    "FLOP of a forward pass of one image: convolutions and dense layers, two for a multiply-add."
    import numpy as np

    total = 0
    for layer in model._flatten_layers():
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and hasattr(layer, "output"):
            total += 2 * int(np.prod(layer.output.shape[1:-1])) * int(np.prod(kernel.shape))
    return total


def clock(seconds):
    """A Keras callback that stops a fit after so long, and knows the time that its epochs after
    the first one took, validation not counted.
    """
    import keras

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start, self.end = time.perf_counter(), None

        def on_test_begin(self, logs=None):
            self.end = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.spent = (self.end
                          or time.perf_counter()) - self.start + (self.spent if epoch > 1 else 0)
            self.epochs, self.model.stop_training = epoch, self.spent > seconds and epoch > 0

    return Clock()


def ours(task):
    "Speed of fit, as a recipe runs it; the saved state is not counted."
    import keras

    from bloodcell_nb.records import Run, peak_memory
    from bloodcell_nb.training import fit

    recipe = recipe_of(task)
    model, train, run = network_of(recipe), cells_of(task["images"]), Run(recipe)
    timer = clock(task["seconds"])
    fitted = fit(model, train, cells_of(64), recipe, run, callbacks=[timer])
    memory = None
    if keras.backend.backend() == "jax":
        import jax

        memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    speed = timer.epochs * (len(train) // task["batch"]) * task["batch"] / timer.spent
    return {"speed": speed, "flop": flop(model), "first": fitted.seconds["first step"],
            "host": peak_memory(), "gpu": memory and memory / 2**20}


def beside_keras(task):
    """Speed of our training step in Keras' fit, the cells on the device or copied, and of a bare
    fit on arrays; epochs in turn, medians of eight.
    """
    import keras
    import numpy as np

    from bloodcell_nb.policies import augmented
    from bloodcell_nb.training import Batches, _compiles

    recipe, train, size = recipe_of(task), cells_of(task["images"]), task["batch"]
    targets, sides = keras.utils.to_categorical(train.labels, 8), {}
    for name in ("on_device", "copied", "bare"):
        model = network_of(recipe)
        trained = (model if name == "bare"
                   else augmented(model, cells=train if name == "on_device" else None))
        trained.compile(keras.optimizers.AdamW(1e-3), "categorical_crossentropy",
                        jit_compile=_compiles(False),
                        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy"),
                                 keras.metrics.F1Score(average="macro", name="macro_f1")])
        given = ({"x": train.images, "y": targets, "batch_size": size} if name == "bare"
                 else {"x": Batches(train, size, on_device=name == "on_device")})
        sides[name] = lambda trained=trained, given=given: trained.fit(
            **given, shuffle=False, verbose=0)
    speeds = {name: [] for name in sides}
    for k in range(9):
        for name, epoch in sides.items():
            start = time.perf_counter()
            epoch()
            if k:  # the first compiles
                speeds[name].append(len(train) // size * size / (time.perf_counter() - start))
    return {name: float(np.median(some)) for name, some in speeds.items()}


def depthwise(task):
    "Training speed of ConvNeXt as we and as keras.applications build it; epochs in turn, medians."
    import keras
    import numpy as np

    from bloodcell_nb.convnext import convnext_backbone

    train, speeds, sides = cells_of(task["images"]), {}, {}
    options = {"include_top": False, "weights": None, "input_shape": (96, 96, 3), "pooling": "avg"}
    build = getattr(keras.applications, task["network"])
    backbones = {"ours": convnext_backbone(task["network"]), "keras.applications": build(**options)}
    for name, backbone in backbones.items():
        model = keras.Sequential([backbone, keras.layers.Dense(8, "softmax")])
        model.compile(keras.optimizers.AdamW(1e-3), "sparse_categorical_crossentropy")
        model.train_on_batch(train.images[: task["batch"]], train.labels[: task["batch"]])
        sides[name], speeds[name] = model, []
    for _ in range(3):
        for name, model in sides.items():
            start = time.perf_counter()
            model.fit(train.images, train.labels, batch_size=task["batch"], verbose=0)
            speeds[name].append(len(train) / (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in speeds.items()}


def torch_network(name):
    "The same network in PyTorch."
    import timm
    from torch import nn

    if name != "custom_cnn":
        return timm.create_model(TIMM[name], num_classes=8)
    layers, channels = [], 3
    for count in (32, 64, 128, 256):
        layers += [nn.Conv2d(channels, count, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                   nn.Dropout(0.25)]
        channels = count
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 256),
                         nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 8))


def torch_heavy():
    """torchvision's operations that come nearest to the heavy policy's, for one uint8 image: four
    of ten after flips and rotation.
    """
    import torch
    from torchvision.transforms import v2

    class Noise(torch.nn.Module):
        def forward(self, image):
            return (image + 12 * torch.randn(image.shape)).clamp(0, 255).to(torch.uint8)

    class Overlay(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patterns = torch.randint(0, 256, (16, 3, 96, 96), dtype=torch.uint8)

        def forward(self, image):
            share = 0.5 * torch.rand(()) * (torch.rand(()) < 0.5)
            return (image * (1 - share) + self.patterns[int(torch.randint(16, ()))] * share).to(
                torch.uint8)

    some = [v2.RandAugment(2, 15), v2.RandomErasing(1.0, (0.02, 0.16)),
            v2.RandomAffine(0, shear=17), v2.RandomAffine(0, translate=(0.2, 0.2)),
            v2.ColorJitter(0.2, 0.2, 0.3, 0.1), v2.RandomSolarize(128, 1.0),
            v2.RandomAffine(0, scale=(0.8, 1.2)), v2.GaussianBlur(7, (0.1, 2.0)), Noise(),
            Overlay()]
    first = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.RandomRotation(180)])

    def augment(image):
        image = first(image)
        for k in torch.randperm(len(some))[:4].sort().values:
            image = some[int(k)](image)
        return image

    return augment


def pytorch(task):
    """Speed of a plain PyTorch loop: channels_last, bfloat16 autocast, torch.compile on a GPU.

    The cells on the GPU, or, augmented, from a DataLoader.
    """
    import torch
    from torchvision.transforms import v2

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    model = torch_network(task["network"]).to(device, memory_format=torch.channels_last)
    run = torch.compile(model) if device == "cuda" else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=device == "cuda")
    cells = cells_of(task["images"])
    images, labels = torch.from_numpy(cells.images).permute(
        0, 3, 1, 2).contiguous(), torch.from_numpy(cells.labels)

    def step(x, y):
        x = (x.to(torch.float32) / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=task["bfloat16"]):
            loss = torch.nn.functional.cross_entropy(run(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    if task["heavy"]:
        augment, mix = torch_heavy(), v2.CutMix(num_classes=8)

        class Images(torch.utils.data.Dataset):
            def __len__(self):
                return len(images)

            def __getitem__(self, index):
                return augment(images[index]), labels[index]

        def collate(batch):
            x, y = torch.utils.data.default_collate(batch)
            y, half = torch.nn.functional.one_hot(y, 8).float(), len(x) // 2
            mixed, mixed_y = mix(x[:half], y[:half].argmax(1))
            return torch.cat([mixed, x[half:]]), torch.cat([mixed_y, y[half:]])

        workers = os.cpu_count()
        loader = torch.utils.data.DataLoader(Images(), task["batch"], shuffle=True,
                                             drop_last=True, num_workers=workers,
                                             collate_fn=collate,
                                             pin_memory=device == "cuda", persistent_workers=True)

        def epoch():
            for x, y in loader:
                step(x.to(device, non_blocking=True), y.to(device, non_blocking=True))
    else:
        images, labels = images.to(device), labels.to(device)

        def epoch():
            order = torch.randperm(len(images), device=device)
            for i in range(0, len(images) // task["batch"] * task["batch"], task["batch"]):
                picked = order[i : i + task["batch"]]
                step(images[picked], labels[picked])

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    epoch()
    wait()
    start, epochs = time.perf_counter(), 0
    while time.perf_counter() - start < task["seconds"]:
        epoch()
        wait()
        epochs += 1
    speed = epochs * (len(images) // task["batch"]) * task["batch"] / (time.perf_counter() - start)
    return {"speed": speed, "gpu": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda"
            else None}


def matrix_rate(task):
    "FLOP/s of a square matrix product in the precision of the training, on random numbers."
    import keras
    import numpy as np

    from bloodcell_nb.records import device_name, environment

    best, dtype = 0.0, "bfloat16" if task["bfloat16"] else "float32"
    for size in (1024, 2048) if "CPU" in device_name() else (4096, 8192, 16384):
        a = keras.ops.cast(keras.ops.convert_to_tensor(
            np.random.default_rng(0).normal(size=(size, size)).astype("float32")), dtype)
        for _ in range(3):
            keras.ops.convert_to_numpy(keras.ops.matmul(a, a)[:1, :1])
        start = time.perf_counter()
        for _ in range(10):
            product = keras.ops.matmul(a, a)
        keras.ops.convert_to_numpy(product[:1, :1])
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - start))
    return {"rate": best, "environment": environment(), "dtype": dtype}


def here(name, task):
    "A measurement in a new process; what went wrong where it failed."
    done = subprocess.run([sys.executable, __file__, "--one", name, json.dumps(task)],
                          capture_output=True, text=True)
    lines = (done.stdout if done.returncode == 0
             else done.stderr).strip().splitlines() or [f"ended with {done.returncode}"]
    return json.loads(lines[-1]) if done.returncode == 0 else {"error": lines[-1][:120]}


def compare(options, task, rate):
    "Print ours against PyTorch."
    print("| network | augmentation | ours, images/s | PyTorch | ours of PyTorch | share of the "
          "matrix rate | GPU MiB, ours / PyTorch |\n" + "|---" * 7 + "|")
    for network in options.networks:
        for heavy in (False, True):
            now = task | {"network": network, "heavy": heavy}
            found = [here("ours", now), here("pytorch", now)]
            speeds = [some.get("speed") for some in found]
            texts = [f"{speed:,.{0 if speed > 20 else 2}f}" if speed else some.get("error", "")
                     for speed, some in zip(speeds, found, strict=True)]
            shares = [f"{speeds[0] / speeds[1]:.2f}" if all(speeds) else ""]
            of_rate = f"{3 * found[0]['flop'] * speeds[0] / rate:.1%}" if speeds[0] else ""
            memory = " / ".join(f"{some['gpu']:,.0f}" for some in found if some.get("gpu"))
            print(f"| {network} | {'heavy' if heavy else 'none'} | {' | '.join([*texts, *shares])} "
                  f"| {of_rate} | {memory} |", flush=True)


def keras_beside(options, task, rate):
    "Print our step against a bare Keras fit of the same network."
    print("| network | ours, images/s | ours, batches copied | bare Keras fit | ours of bare | "
          "copied of bare |\n" + "|---" * 6 + "|")
    for network in options.networks:
        some = here("beside_keras", task | {"network": network})
        if "error" in some:
            print(f"| {network} | {some['error']} | | | | |")
            continue
        speeds = [some[name] for name in ("on_device", "copied", "bare")]
        shares = [speed / some["bare"] for speed in speeds[:2]]
        print(f"| {network} | " + " | ".join([f"{speed:,.1f}" for speed in speeds] + [
            f"{share:.2f}" for share in shares]) + " |", flush=True)


def depthwise_beside(options, task):
    "Print our ConvNeXt's training speed beside that of the same network in keras.applications."
    print("| network | ours, images/s | keras.applications | ratio |\n" + "|---" * 4 + "|")
    for network in options.networks:
        found = here("depthwise", task | {"network": network})
        if "error" in found:
            print(f"| {network} | {found['error']} | | |")
        else:
            ours, theirs = found.values()
            print(f"| {network} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |", flush=True)


def grow(options, task, rate):
    "Print ours over the batch size, and the time of an epoch over the number of images."
    def row(start, some, texts):
        print(f"| {start} | " + " | ".join(texts(some) if "speed" in some
                                           else [some["error"]]) + " |", flush=True)

    def memory(some):
        return f"{some['gpu']:,.0f}" if some["gpu"] else ""

    print("| network | batch | images/s | share of the matrix rate | first step, s | GPU MiB |\n"
          + "|---" * 6 + "|")
    for network in options.networks:
        for batch in options.batches:
            some = here("ours", task | {"network": network, "batch": batch,
                                        "images": max(task["images"], 4 * batch)})
            row(f"{network} | {batch}", some,
                lambda some: [f"{some['speed']:,.0f}",
                              f"{3 * some['flop'] * some['speed'] / rate:.1%}",
                                                            f"{some['first']:.1f}", memory(some)])
    print("\n| network | images | seconds an epoch | images/s | host MiB | GPU MiB |\n" + "|---" * 6
          + "|")
    for network in options.networks:
        for images in options.many:
            some = here("ours", task | {"network": network, "images": images})
            row(f"{network} | {images:,}", some, lambda some,
                images=images: [f"{images / some['speed']:.2f}", f"{some['speed']:,.0f}",
                                f"{some['host']:,}",
                                                                             memory(some)])


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

    python = seconds(sys.executable, "-c", "pass")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "empty.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), path)
        rows = {"import bloodcell_nb": max(seconds(sys.executable, "-c",
                                                   "import bloodcell_nb") - python, 0),
                "import bloodcell_nb.training (Keras and its backend)": seconds(
                    sys.executable, "-c", "import bloodcell_nb.training") - python,
                "papermill of a notebook with one empty cell": seconds(sys.executable, "-m",
                                                                       "papermill",
                                                                       "--no-progress-bar", "-k",
                                                                       "python3", str(path),
                                                                       str(path.with_name(
                                                                           "out.ipynb")))}
    print("| what | seconds, best of three |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.2f} |")


def main():
    if sys.argv[1:2] == ["--one"]:  # a measurement, in a process that `here` started
        return print(json.dumps(globals()[sys.argv[2]](json.loads(sys.argv[3]))))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=(*NETWORKS, "ConvNeXtTiny"))
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--images", type=int, default=2048, help="in the training part, synthetic")
    parser.add_argument("--seconds", type=float, default=10,
                        help="that each measurement lasts at least, after its first epoch")
    parser.add_argument("--steps", type=int, default=1, help="training steps in one call")
    parser.add_argument("--bfloat16", action="store_true",
                        help="mixed precision on all sides, for a GPU")
    parser.add_argument("--keras", action="store_true",
                        help="measure our step against a bare Keras fit of the same network "
                             "instead")
    parser.add_argument("--grow", action="store_true",
                        help="measure ours over batch sizes and numbers of images instead")
    parser.add_argument("--batches", type=int, nargs="+",
                        default=[32, 64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--many", type=int, nargs="+",
                        default=[1_000, 3_000, 10_000, 30_000, 100_000])
    parser.add_argument("--overhead", action="store_true",
                        help="measure what a run costs beside its work instead")
    parser.add_argument("--depthwise", action="store_true",
                        help="measure our ConvNeXt against keras.applications' instead; Tiny")
    options = parser.parse_args()
    options.networks = options.networks or (["ConvNeXtTiny"] if options.depthwise else NETWORKS)
    if options.overhead:
        return overhead()
    task = {"batch": options.batch, "images": options.images, "seconds": options.seconds,
            "steps": options.steps, "bfloat16": options.bfloat16, "heavy": False}
    if options.depthwise:
        return depthwise_beside(options, task)
    measured = here("matrix_rate", task)
    if "error" in measured:
        raise SystemExit(measured["error"])
    about, versions = measured["environment"], measured["environment"]["libraries"]
    print(f"{about['device']}, {about['backend']} {versions.get(about['backend'], '')}, Keras "
          f"{versions['keras']}, PyTorch {versions.get('torch', 'none')}, "
          f"batch {options.batch}, 96x96, {options.images:,} images, {options.steps} steps a call, "
          f"{measured['dtype']}; "
          f"matrix rate {measured['rate'] / 1e12:.3g} TFLOP/s\n")
    (grow if options.grow else keras_beside if options.keras
     else compare)(options, task, measured["rate"])


if __name__ == "__main__":
    main()

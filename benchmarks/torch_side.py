"""PyTorch's side of the benchmarks, as a user of timm and albumentations would write it.

Started by the other scripts with a task in JSON; needs torch, timm, albumentations and NumPy,
nothing of this project.
"""
import json
import os
import sys
import time

import numpy as np
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

NETWORKS = {"EfficientNetLite0": "tf_efficientnet_lite0", "EfficientNetB0": "efficientnet_b0",
            "EfficientNetB2": "efficientnet_b2", "ConvNeXtAtto": "convnext_atto",
            "ConvNeXtTiny": "convnext_tiny", "ConvNeXtBase": "convnext_base"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def heavy():
    "albumentations' operations that come nearest to the policy `heavy`, for one uint8 image."
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)  # a DataLoader's worker has one core
    rng = np.random.default_rng()
    patterns = rng.integers(0, 256, (16, 96, 96, 3), np.uint8)
    affine = {"border_mode": cv2.BORDER_REFLECT, "p": 1}

    def overlay(image, **_):
        share = 0.5 * rng.random() * (rng.random() < 0.5)
        pattern = patterns[rng.integers(len(patterns))]
        return cv2.addWeighted(image, 1 - share, pattern, share, 0)

    def strength(factor):  # half of AutoAugment's range, either way
        return {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0),
                factor: (0.55, 1.45), "p": 1}

    two = A.SomeOf([  # RandAugment(2, 15)
        A.Affine(shear={"x": (-8.6, 8.6)}, **affine), A.Affine(shear={"y": (-8.6, 8.6)}, **affine),
        A.Affine(translate_percent={"x": (-0.23, 0.23)}, **affine),
        A.Affine(translate_percent={"y": (-0.23, 0.23)}, **affine),
        A.Rotate((-15, 15), **affine), A.AutoContrast(p=1), A.Equalize(p=1),
        A.Solarize((0.5, 0.5), p=1), A.Posterize(6, p=1), A.ColorJitter(**strength("saturation")),
        A.ColorJitter(**strength("contrast")), A.ColorJitter(**strength("brightness")),
        A.Sharpen(p=1), A.NoOp(p=1)], n=2)
    return A.Compose([
        A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.Rotate((-180, 180), **affine),
        A.SomeOf([
            two, A.CoarseDropout((1, 1), (0.01, 0.4), (0.01, 0.4), p=1),
            A.Affine(shear={"x": (-17, 17), "y": (-17, 17)}, **affine),
            A.Affine(translate_percent={"x": (-0.2, 0.2), "y": (-0.2, 0.2)}, **affine),
            A.ColorJitter(0.2, 0.2, 0.3, 0.05, p=1), A.Solarize((0.5, 1), p=1),
            A.Affine(scale=(0.8, 1.2), **affine), A.GaussianBlur((7, 7), (0.01, 1), p=1),
            A.GaussNoise((12 / 255, 12 / 255), p=1), A.Lambda(image=overlay)], n=4)])


class Augmented(Dataset):
    "Images, each augmented anew."

    def __init__(self, images, labels):
        self.images, self.labels, self.augment = images, torch.from_numpy(labels), heavy()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.augment(image=self.images[index])["image"]
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), self.labels[index]


def batches(images, labels, task):
    "Endless batches: images on the device, or augmented by a DataLoader's workers."
    size = task["batch"]
    if task["heavy"]:
        loader = DataLoader(Augmented(images, labels), size, shuffle=True, drop_last=True,
                            num_workers=task["workers"], persistent_workers=True,
                            pin_memory=DEVICE == "cuda")
        while True:
            for x, y in loader:
                yield x.to(DEVICE, non_blocking=True), y.to(DEVICE, non_blocking=True)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(DEVICE)
    labels = torch.from_numpy(labels).to(DEVICE)
    while True:
        order = torch.randperm(len(images), device=DEVICE)
        for picked in order[: len(order) // size * size].split(size):
            yield images[picked], labels[picked]


def training_step(model, optimizer, task):
    "One step: channels_last; bfloat16 and compiled where asked for, compiled on a GPU."
    run = torch.compile(model) if DEVICE == "cuda" or task.get("compile") else model
    # CutMix in half of the batches; label smoothing, as ours
    mix = timm.data.Mixup(mixup_alpha=0, cutmix_alpha=1, prob=0.5, num_classes=8,
                          label_smoothing=0.05)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0 if task["heavy"] else 0.05)

    def step(x, y):
        x = (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        if task["heavy"]:
            x, y = mix(x, y)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=task["bfloat16"]):
            loss = loss_of(run(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def wait():
    "Let the device finish."
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def throughput(task, images, labels):
    "Images a second, a round for each line of stdin."
    model = timm.create_model(NETWORKS[task["network"]], num_classes=8, drop_path_rate=0)
    model = model.to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    step, given = training_step(model, optimizer, task), batches(images, labels, task)
    step(*next(given))
    print(json.dumps({"ready": True}), flush=True)
    while sys.stdin.readline():
        for _ in range(task["uncounted"]):
            step(*next(given))
        wait()
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < task["seconds"]:
            step(*next(given))
            steps += 1
        wait()
        speed = steps * task["batch"] / (time.perf_counter() - start)
        print(json.dumps({"speed": speed}), flush=True)


def imagenet(model, arrays):
    "Give timm's EfficientNet-Lite0 the weights of a Keras file, whose order is the same."
    state, order = model.state_dict(), {4: (3, 2, 0, 1), 1: (0,)}
    own = [name for name in state if not name.startswith("classifier") and "num_" not in name]
    for name, array in zip(own, arrays, strict=True):
        array = array.astype(np.float32)
        if array.ndim == 4 and array.shape[-1] == 1:  # depthwise: (h, w, channels, 1)
            array = array.transpose(0, 1, 3, 2)
        value = torch.from_numpy(np.ascontiguousarray(array.transpose(order[array.ndim])))
        if state[name].shape != value.shape:
            raise SystemExit(f"{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}")
        state[name] = value
    model.load_state_dict(state)


def pixels(images):
    "As EfficientNet-Lite was trained: uint8 (n, 3, h, w) to about [-1, 1], channels_last."
    return ((images.float() - 127) / 128).contiguous(memory_format=torch.channels_last)


def lite0(task):
    "The pretrained network, with a new classifier."
    model = timm.create_model(NETWORKS["EfficientNetLite0"], num_classes=8)
    with np.load(task["weights"]) as file:
        imagenet(model, [file[name] for name in file.files])
    return model.to(DEVICE, memory_format=torch.channels_last)


def features(task, images, **_):
    "Pooled features of some images, for a comparison."
    model = lite0(task).eval()
    with torch.inference_mode():
        x = pixels(torch.from_numpy(images[: task["batch"]]).permute(0, 3, 1, 2).to(DEVICE))
        found = model.global_pool(model.forward_features(x))
    print(json.dumps({"features": found.cpu().numpy().tolist()}), flush=True)


def flipped(x):
    "Each image mirrored left and right, up and down, or not."
    for axis in (2, 3):
        coin = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
        x = torch.where(coin, x.flip(axis), x)
    return x


def right_answers(model, images, labels):
    "How many of the validation images the network knows."
    model.eval()
    with torch.inference_mode():
        return sum(int((model(pixels(x)).argmax(1) == y).sum())
                   for x, y in zip(images.split(256), labels.split(256), strict=True))


def accuracy(task, images, labels, val_images, val_labels):
    "Fine-tune all layers; validation accuracy after each epoch, and seconds since the first step."
    torch.manual_seed(task["seed"])
    images, val_images = (torch.from_numpy(some).permute(0, 3, 1, 2).contiguous().to(DEVICE)
                          for some in (images, val_images))
    labels, val_labels = (torch.from_numpy(some).to(DEVICE) for some in (labels, val_labels))
    model, size = lite0(task), task["batch"]
    run = torch.compile(model) if DEVICE == "cuda" else model
    optimizer = torch.optim.AdamW(model.parameters(), task["learning_rate"], fused=True,
                                  weight_decay=task["weight_decay"])
    steps = len(images) // size * task["epochs"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, task["learning_rate"], steps, pct_start=task["warmup"]
    ) if task["warmup"] else torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss_of, curve = nn.CrossEntropyLoss(label_smoothing=task["label_smoothing"]), []
    start = time.perf_counter()
    for _ in range(task["epochs"]):
        model.train()
        order = torch.randperm(len(images), device=DEVICE)
        for picked in order[: len(order) // size * size].split(size):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=task["bfloat16"]):
                loss = loss_of(run(pixels(flipped(images[picked]))), labels[picked])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        right = right_answers(model, val_images, val_labels)
        curve.append((time.perf_counter() - start, right / len(val_labels)))
        print(curve[-1], file=sys.stderr, flush=True)
    print(json.dumps({"curve": curve}), flush=True)


def main():
    task = json.loads(sys.argv[1])
    torch.set_flush_denormal(True)
    torch.set_num_threads(os.cpu_count())
    torch.backends.cudnn.benchmark = True
    with np.load(task["cells"]) as file:
        arrays = {name: file[name] for name in file.files}
    tasks = {"throughput": throughput, "features": features, "accuracy": accuracy}
    tasks[task["what"]](task, **arrays)


if __name__ == "__main__":
    main()

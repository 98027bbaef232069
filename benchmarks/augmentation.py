"""Images per second of each augmentation operation and of the recipes' policies, in one run.

Ours beside keras-cv.

    python benchmarks/augmentation.py [--batch 64] [--seconds 2]
    python benchmarks/augmentation.py --step EfficientNetB0    # its training step

Prints a Markdown table. keras-cv needs the TensorFlow backend.
"""
import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from bloodcell_nb.policies import KERAS_CV, LIBRARIES, OPERATIONS, Policy, augmented
from bloodcell_nb.recipes import read_recipe, recipes
from bloodcell_nb.records import device_name, environment
from bloodcell_nb.synthetic import draw_cells


def images_per_second(policy, images, labels, seconds):
    "Speed of a policy compiled as a TensorFlow function, after one call to trace it."
    import tensorflow as tf

    step = tf.function(policy.__call__)
    step(images, labels)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        keras.ops.convert_to_numpy(step(images, labels)[0])
        calls += 1
    return calls * len(images) / (time.perf_counter() - start)


def steps(backbone, batch, seconds):
    """Print the speed of a training step, all layers moving, without augmentation and with the
    report's policies.
    """
    import numpy as np

    from bloodcell_nb.transfer import set_trainable, transfer_model

    base = read_recipe(recipes()["efficientnet_b2_all"]).model_copy(
        update={"backbone": backbone, "weights": "none"})
    cells = draw_cells(max(batch, 16))[:batch]
    labels = keras.utils.to_categorical(cells.labels, 8)
    print("| policy | network images/s | share of the speed without augmentation |\n|---|---|---|")
    plain = None
    for name in (None, "efficientnet_b2_all", "efficientnet_b2_translation_mixup",
                 "efficientnet_b2_mixup_part", "efficientnet_b2_extras", "custom_cnn_heavy"):
        model = transfer_model(base, (96, 96))
        set_trainable(model, "all")
        inputs = cells.images
        if name:
            recipe = read_recipe(recipes()[name])
            policy = Policy(recipe.augmentation, library=recipe.augmentation_library)
            model = augmented(model, policy, batch_size=batch)
            inputs = {"images": cells.images, "labels": labels}
        model.compile("adam", "categorical_crossentropy", jit_compile=False)
        for _ in range(3):
            model.train_on_batch(inputs, labels)
        times = []
        while sum(times) < seconds:
            start = time.perf_counter()
            model.train_on_batch(inputs, labels)
            times.append(time.perf_counter() - start)
        speed = batch / np.median(times)
        plain = plain or speed
        print(f"| {name or 'none'} | {speed:.1f} | {speed / plain:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--seconds", type=float, default=2, help="that each measurement lasts")
    parser.add_argument("--step", metavar="BACKBONE",
                        help="measure this network's training step instead")
    options = parser.parse_args()
    if options.step:
        print(f"{device_name()}, {options.step}, batch {options.batch}, 96x96, median step\n")
        return steps(options.step, options.batch, options.seconds)
    cells = draw_cells(max(options.batch, 16))[: options.batch]
    images = keras.ops.convert_to_tensor(cells.images)
    labels = keras.ops.convert_to_tensor(keras.utils.to_categorical(cells.labels, 8))
    policies = {name: [name] for name in OPERATIONS}
    for name, path in recipes().items():
        policy = getattr(read_recipe(path), "augmentation", None)
        if policy and policy not in policies.values():
            policies[f"recipe {name}"] = policy
    libraries = environment()["libraries"]
    print(f"{device_name()}, batch {options.batch}, 96x96, keras-cv {libraries['keras-cv']}, "
          f"Keras {libraries['keras']}\n")
    print("| operation or policy | ours, images/s | keras-cv, images/s |\n|---|---|---|")
    for name, policy in policies.items():
        speeds = []
        for library in LIBRARIES:
            ours = name in OPERATIONS and name not in KERAS_CV
            if library == "keras_cv" and ours:
                speeds.append("")
                continue
            made = Policy(policy, library=library)
            speeds.append(f"{images_per_second(made, images, labels, options.seconds):,.0f}")
        print(f"| {name} | {' | '.join(speeds)} |", flush=True)


if __name__ == "__main__":
    main()

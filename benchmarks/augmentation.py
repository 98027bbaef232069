"""Images per second of each augmentation operation and of the recipes' policies, in one run.

Ours beside keras-cv.

    python benchmarks/augmentation.py [--batch 64] [--seconds 2]
    python benchmarks/augmentation.py --step EfficientNetLite0 ConvNeXtAtto    # training steps

Prints a Markdown table. keras-cv needs the TensorFlow backend.
"""
import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from bloodcell_nb.augment.policies import KERAS_CV, LIBRARIES, OPERATIONS, Policy
from bloodcell_nb.data.synthetic import draw_cells
from bloodcell_nb.runs.machine import device_name, environment
from bloodcell_nb.runs.recipes import read_recipe, recipes


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


def steps(networks, batch, rounds):
    """Print what share of a training step the heavy policy takes: epochs of 16 batches with it and
    without it, in turn; medians.
    """
    import numpy as np
    from throughput import recipe_of

    from bloodcell_nb.networks.pretrained import set_trainable, transfer_model
    from bloodcell_nb.training.fit import _compiled
    from bloodcell_nb.training.image_sizes import policies_of

    cells = draw_cells(batch * 16)
    print("| network | images/s, no policy | heavy policy | share of the step |\n|---|---|---|---|")
    for network in networks:
        sides = {}
        for heavy in (False, True):
            recipe = recipe_of({"network": network, "batch": batch, "heavy": heavy,
                                "bfloat16": False})
            model = transfer_model(recipe, (96, 96))
            set_trainable(model, "all", True)
            now = recipe.model_copy(update={"learning_rate": 1e-3})
            sides[heavy] = (*_compiled(model, cells, now, policies_of(now)), [])
        for k in range(rounds + 1):
            for trained, batches, seconds in sides.values():
                start = time.perf_counter()
                trained.fit(batches, epochs=1, verbose=0, shuffle=False)
                if k:  # the first builds the graph
                    seconds.append(time.perf_counter() - start)
        plain, augmented = (np.median(seconds) for _, _, seconds in sides.values())
        print(f"| {network} | {len(cells) / plain:.0f} | {len(cells) / augmented:.0f} | "
              f"{1 - plain / augmented:.1%} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--seconds", type=float, default=2, help="that each measurement lasts")
    parser.add_argument("--step", metavar="BACKBONE", nargs="+",
                        help="measure the training steps of these networks instead")
    parser.add_argument("--rounds", type=int, default=7, help="of --step, one epoch a side each")
    options = parser.parse_args()
    if options.step:
        print(f"{device_name()}, batch {options.batch}, 96x96, {options.rounds} rounds\n")
        return steps(options.step, options.batch, options.rounds)
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

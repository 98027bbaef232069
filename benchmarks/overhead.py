"""What a run costs beside its training, and what each way of running several adds.

    python benchmarks/overhead.py [--runs 4]

A custom CNN of four filters, 200 drawn cells of 96x96, one epoch: the training takes a second or
two, all else is overhead. The same recipes are run by a command each; by one command, one at a
time, in its own cluster; and by one command on a scheduler whose worker runs one at a time. Prints
Markdown.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import yaml
from sides import ROOT, heading

BIN = Path(sys.executable).parent
QUIET = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def recipes(folder, count):
    "Files of recipes that differ in their seed."
    paths = [folder / f"small_{k}.yaml" for k in range(count)]
    for k, path in enumerate(paths):
        path.write_text(yaml.safe_dump({
            "recipe": path.stem, "notebook": "03_custom_cnn", "filters": [4, 4], "dense_units": 8,
            "batch_size": 16, "epochs": 1, "seed": k}))
    return paths


def command(out, paths, *options):
    "Seconds of a command that runs recipes."
    start = time.perf_counter()
    subprocess.run(["bloodcell", "run", *paths, "--data", "synthetic:n=200", "--out", out,
                    *options],
                   cwd=ROOT, env=QUIET, check=True, capture_output=True)
    return time.perf_counter() - start


@contextmanager
def cluster(folder, *options):
    "A scheduler and a worker; gives the scheduler's file."
    folder.mkdir()
    file = folder / "scheduler.json"
    quiet = {"env": QUIET, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    each = [subprocess.Popen(["dask", "scheduler", "--host", "127.0.0.1", "--port", "0",
                              "--no-dashboard", "--scheduler-file", file], **quiet)]
    while not file.exists():
        time.sleep(0.1)
    each.append(subprocess.Popen(
        ["dask", "worker", "--scheduler-file", file, "--no-nanny", "--no-dashboard", "--nthreads",
         "1", "--local-directory", folder, *options], cwd=ROOT, **quiet))
    try:
        yield file
    finally:
        for process in reversed(each):
            process.terminate()
            process.wait()


def ways(folder, paths):
    "Seconds of all runs, by the way they are run; and of the trainings within them."
    yield "a command each", sum(command(folder / "each", [path]) for path in paths)
    yield "one command, one at a time", command(folder / "one", paths)
    with cluster(folder / "cluster") as file:
        yield "a scheduler and a worker", command(folder / "many", paths, "--scheduler", file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found = dict(ways(folder, recipes(folder, options.runs)))
        records = [json.loads(path.read_text()) for path in folder.glob("each/*/metrics.json")]
    trained = sum(sum(record["results"]["training"]["seconds"].values()) for record in records)
    print(heading("96x96\n"))
    print("| way | a run, s | beside its training, s |\n|---|---|---|")
    for way, seconds in found.items():
        print(f"| {way} | {seconds / options.runs:.1f} "
              f"| {(seconds - trained) / options.runs:.1f} |")


if __name__ == "__main__":
    main()

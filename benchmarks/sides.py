"""What the benchmarks share: a process for each side, rounds in turn, the heading of a table."""
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
TORCH = Path(__file__).with_name("torch_side.py")


class Side:
    "A measurement in a process of its own: it makes ready, then answers each round with a line."

    def __init__(
        self,
        script: Path,  # prints JSON, reads a line of stdin before each round
        task: dict,  # its argument
        python: str = sys.executable,  # interpreter
        **variables: str,  # of its environment, besides this process's
    ):
        self.log = tempfile.TemporaryFile("w+")
        places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | variables | {
            "PYTHONPATH": os.pathsep.join(places), "TF_CPP_MIN_LOG_LEVEL": "3",
            "TQDM_DISABLE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
        self.process = subprocess.Popen(
            [python, str(script), json.dumps(task)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)

    def answer(self) -> dict:
        "The next line of JSON; ends the benchmark with the side's error where it died."
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.process.wait()
        self.log.seek(0)
        lines = self.log.read().strip().splitlines() or ["nothing"]
        raise SystemExit(f"{' '.join(self.process.args[:2])} ended with "
                         f"{self.process.returncode}: {lines[-1][:300]}")

    def round(self) -> dict:
        "Let it measure once."
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()  # it ends where it would have waited
        self.process.stdout.close()
        if error[0]:
            self.process.terminate()
        self.process.wait()
        self.log.close()


def in_turn(
    first: Side,
    second: Side,
    rounds: int,
) -> list[tuple[dict, dict]]:  # what each answered, in each round
    "Let two sides measure in turn; who begins changes with each round."
    for side in (first, second):
        side.answer()  # ready
    pairs = []
    for k in range(rounds):
        order = (first, second) if k % 2 == 0 else (second, first)
        found = [side.round() for side in order]
        pairs.append(tuple(found if k % 2 == 0 else found[::-1]))
        print(f"round {k + 1}: {pairs[-1]}", file=sys.stderr, flush=True)
    return pairs


def compared(
    pairs: list[tuple[dict, dict]],
    key: str = "speed",
) -> tuple[float, float, list[float]]:  # medians of both sides, ratio of each round, sorted
    "Summarise rounds."
    ratios = sorted(one[key] / other[key] for one, other in pairs)
    return *(median(side[key] for side in some) for some in zip(*pairs, strict=True)), ratios


def ratio_text(
    ratios: list[float],  # sorted
) -> str:
    "The median and what it spans."
    spread = f" [{ratios[0]:.2f}, {ratios[-1]:.2f}]" if len(ratios) > 1 else ""
    return f"{median(ratios):.2f}{spread}"


def versions(
    *names: str,  # of distributions
) -> dict[str, str]:  # of those that this interpreter has
    "Look versions up."
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def torch_versions(
    python: str,  # interpreter of PyTorch's side
) -> str:
    "Versions of PyTorch's side."
    code = ("from sides import versions; "
            "print(versions('torch', 'timm', 'albumentations'))")
    done = subprocess.run([python, "-c", code], cwd=TORCH.parent, capture_output=True, text=True)
    if done.returncode or "torch" not in done.stdout:
        raise SystemExit(f"{python} has no torch; name an interpreter that has torch, timm and "
                         "albumentations with --torch-python")
    return done.stdout.strip()[1:-1].replace("'", "").replace(": ", " ")


def heading(
    *parts: str,  # what else describes the measurement
) -> str:
    "Date, device and versions, for the line above a table."
    import keras

    from bloodcell_nb.runs.machine import device_name

    found = versions("tensorflow", "jax", "torch")
    backend = keras.backend.backend()
    return ", ".join([str(date.today()), device_name(), f"Keras {keras.__version__} on {backend} "
                      f"{found.get(backend, '')}", *parts])

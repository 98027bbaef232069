"""Hundreds of spoiled inputs, each given to the commands that read it: pytest -s
tests/faults/mutated_inputs.py

For each holds: an exit code that is documented, no traceback, lines that are short and hold nothing
that a terminal would obey, nothing written but at the destination, a limit of time and of memory.
"""
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
import mutations as m  # noqa: E402
from test_command import FAST  # noqa: E402
from test_report import MADE, RECORDS, two_runs, undrawn  # noqa: E402

from bloodcell_nb import cli  # noqa: E402
from bloodcell_nb.cli import main  # noqa: E402
from bloodcell_nb.data.cells import CLASS_NAMES, PARTS  # noqa: E402
from bloodcell_nb.data.synthetic import draw_cells  # noqa: E402
from bloodcell_nb.evaluation import search  # noqa: E402
from bloodcell_nb.inference import published  # noqa: E402
from bloodcell_nb.page import build  # noqa: E402
from bloodcell_nb.runs.keys import run_key  # noqa: E402
from bloodcell_nb.runs.recipes import RecipeError  # noqa: E402

SECONDS, LONGEST, MEMORY = 60, 1000, 2 * 2**30
DRAWN = "synthetic:n=32"
KINDS = {}  # kind: number of inputs, commands refused and accepted, slowest, longest message
Told = namedtuple("Told", "code out err seconds broken")


class TooSlow(BaseException):
    "A command that takes longer than any may."


def late(*_):
    raise TooSlow(f"more than {SECONDS} s")


def peak():
    "Bytes that this process ever held at once."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024)


def listing(place):
    "Files below a folder with size and time, folders, links."
    found = {}
    for folder, _, files in os.walk(place):
        found[folder] = ""
        for name in files:
            path = os.path.join(folder, name)
            about = os.lstat(path)
            found[path] = about.st_size, about.st_mtime_ns
    return found


def odd_characters(text):
    return re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text)


class Surrounding:
    "A folder that holds an input and a destination, from which commands are given."

    def __init__(self, place, capfd):
        self.place, self.capfd, self.made = place, capfd, 0
        self.out, self.begun = Path("out"), peak()
        (place / "tmp").mkdir()
        (place / "beside").mkdir()
        (place / "beside" / "mine.png").write_bytes(m.IMAGES["grey"])

    def new(self, suffix=""):
        "A name for an input that no other had."
        for path in Path().glob("input*"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.made += 1
        return Path(f"input{self.made:04}{suffix}")  # of one length, whichever it is

    def call(self, words):
        "Code, outputs, seconds and the law that the command broke, if any."
        self.capfd.readouterr()
        before, start, broken = peak(), time.monotonic(), []
        signal.signal(signal.SIGALRM, late)
        signal.alarm(SECONDS)
        try:
            code = main(words)
        except SystemExit as error:  # of argparse
            code = error.code
        except BaseException as error:
            code, broken = -1, [f"{type(error).__name__}: {str(error)[:300]}"]
        finally:
            signal.alarm(0)
        seconds = time.monotonic() - start
        out, err = self.capfd.readouterr()
        # bars of progress, which a slow machine shows
        err = re.sub("(\r[^\r\n]*%\\|[^\r\n]*)+\n?", "", err)
        if peak() > max(before, self.begun + MEMORY):
            broken.append(f"{(peak() - self.begun) / 2**20:,.0f} MiB more than at first")
        return Told(code, out, err, seconds, broken)

    def judge(self, kind, words, written=None):
        "Give a command; adds to the kind's row, and gives the laws that were broken."
        words, written = [str(word) for word in words], f"./{written or self.out}"
        before = listing(".")
        told = self.call(words)
        broken, after = told.broken, listing(".")
        codes = (0, 1, 2) if words[0] == "predict" else (0, 2)
        if told.code not in codes:
            broken.append(f"exit code {told.code}")
        lines = told.err.split("\n")[:-1]
        broken += [f"no line of the command's: {line[:300]}" for line in lines
                   if not line.startswith("bloodcell: ")]
        if told.code == 2 and not lines:
            broken.append("refused without a word")
        messages = [line.removeprefix("bloodcell: ") for line in lines]
        if words[0] != "predict":  # whose answers name each image whole
            messages += told.out.split("\n")
        longest = max(map(len, messages), default=0)
        if longest > LONGEST:
            broken.append(f"a line of {longest} characters: {max(messages, key=len)[:150]}")
        if odd := odd_characters(told.err + told.out):
            broken.append(f"a terminal would obey {odd[:3]!r}")
        changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
        if strange := [path for path in changed
                       if not f"{path}/".startswith(f"{written}/")]:
            broken.append(f"written: {strange[:3]}")
        if told.code == 2 and os.path.lexists(self.out) and written == f"./{self.out}" and (
                left := [path for path in after if path.startswith(f"{written}/")
                         and not path.endswith(".locks.partial")
                         and "/.locks.partial/" not in path]):
            broken.append(f"refused, and left {left[:3]}")
        if self.out.is_dir():
            shutil.rmtree(self.out)
        row = KINDS.setdefault(kind, {"inputs": 0, "refused": 0, "accepted": 0, "slowest": 0.0,
                                      "longest": 0, "said": set()})
        row["refused" if told.code == 2 else "accepted"] += 1
        row["slowest"], row["longest"] = (max(row["slowest"], told.seconds),
                                          max(row["longest"], longest))
        row["said"] |= {re.sub(r"input\S+|\d+", "0", line)[:60] for line in messages[:len(lines)]}
        return [f"{' '.join(words)[:200]}: {law}" for law in broken]


@pytest.fixture
def around(tmp_path, monkeypatch, capfd):
    "The surrounding; runs, searches and the page's drawings end where training would begin."
    place = tmp_path / "place"
    place.mkdir()
    surrounding = Surrounding(place, capfd)
    monkeypatch.chdir(place)
    monkeypatch.setattr(tempfile, "tempdir", str(place / "tmp"))
    monkeypatch.setattr(published, "working_root", lambda: place)
    monkeypatch.setattr(build, "save_figure", undrawn)

    def would_run(chosen, *_, **__):
        for one in chosen:
            assert run_key(one)
        return [], []

    def would_search(recipe, space, *_):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(3):
            try:
                search.trial_recipe(recipe, search.draw_values(study.ask(), space))
            except RecipeError:
                continue
        return 0, 0

    monkeypatch.setattr(cli, "run_all", would_run)
    monkeypatch.setattr(search, "search_parameters", would_search)
    return surrounding


def each(kind, count, one, capfd, known=()):
    """Give so many inputs of a kind, those first that were found by hand.

    one: a function of Hypothesis' draw, or of a known input, that gives broken laws.
    """
    broken = {}

    def add(found):
        KINDS[kind]["inputs"] += 1
        for law in found:
            broken.setdefault(re.sub(r"[\d/]+|input\S*", "#", law)[:120], law)

    for name in known:
        add(one(None, name))

    @settings(max_examples=count, derandomize=True, database=None, deadline=None,
              phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.data())
    def give(data):
        add(one(data.draw))

    give()
    with capfd.disabled():
        for law in broken.values():
            print(f"\n{kind}: {law}")
    assert not broken, "\n".join(broken.values())
    assert len(KINDS[kind]["said"]) >= 3, "what is given is not refused for one reason"


@pytest.fixture(scope="module", autouse=True)
def table():
    "The figures, when all are done."
    yield
    print(f"\n{'kind':<12}{'inputs':>8}{'commands':>10}{'refused':>9}{'accepted':>10}"
          f"{'slowest s':>11}{'longest message':>17}")
    for kind, row in KINDS.items():
        print(f"{kind:<12}{row['inputs']:>8}{row['refused'] + row['accepted']:>10}"
              f"{row['refused']:>9}{row['accepted']:>10}{row['slowest']:>11.1f}"
              f"{row['longest']:>17}")
    print(f"{'all':<12}{sum(row['inputs'] for row in KINDS.values()):>8}")


PHASES = [{"trainable": "last 40", "epochs": 2, "learning_rate": 0.001, "augment": True},
          {"trainable": "all", "epochs": 1, "learning_rate": 0.0001}]
RECIPES = [
    FAST | {"learning_rate": 0.001, "augmentation": [
        "RandomFlip", {"RandomRotation": {"factor": 0.1}},
        {"RandomApply": {"k": 1, "of": ["RandomCutout", "GaussianNoise"]}}],
        "class_weights": [1, 1, 1, 1, 1, 1, 1, 2], "image_sizes": [48, 96], "folds": 2},
    {"like": "custom_cnn_heavy", "l2": 0.01, "step": "more", "reported": 0.9},
    {"notebook": "05_convnext", "backbone": "ConvNeXtAtto", "weights": "none", "resize": 64,
     "phases": PHASES, "optimizer": "adamw", "schedule": "cosine", "warmup": 0.1},
    {"notebook": "06_ensemble", "members": ["a", "b/snapshot_1"], "weighting": "greedy",
     "views": 2, "runs": "beside"},
    {"notebook": "07_robustness", "models": ["a"], "severities": 2},
    {"notebook": "01_analysis", "embedding_images": 100, "source": DRAWN, "limit": 64}]


def test_recipes(around, capfd):
    def one(draw):
        base, path = draw(st.sampled_from(RECIPES)), around.new(".yaml")
        setting = draw(st.integers(0, 4)) == 0
        path.write_bytes(m.as_yaml(base) if setting else m.spoiled_text(draw, base))
        words = ["run", path, "--out", around.out]
        words += [] if "source" in base else ["--data", DRAWN]
        if setting:
            key = draw(st.sampled_from([*base, *m.NAMES]))
            text = m.as_yaml(draw(m.values)).decode(errors="replace").strip()
            words.append(f"--set={key}={text}".replace("\0", ""))
        return around.judge("recipe", words)

    each("recipe", 120, one, capfd)


def test_studies(around, capfd):
    for name in ("one", "two"):
        (around.place / f"{name}.yaml").write_bytes(m.as_yaml(FAST))
    study = {"runs": {str(around.place / "one.yaml"): [0, 1], str(around.place / "two.yaml"): [3],
                      "course_ensemble": [0]}, "profile": "smoke", "jobs": 2,
             "set": {"epochs": 3, "filters": [4, 8]}, "scheduler": "tcp://127.0.0.1:1"}

    def one(draw):
        path = around.new(".yaml")
        path.write_bytes(m.spoiled_text(draw, study))
        return around.judge("study", ["run", "--study", path, "--data", DRAWN, "--out", around.out])

    each("study", 50, one, capfd)


def test_spaces(around, capfd):
    space = {"l2": {"low": 1e-5, "high": 0.01, "log": True}, "batch_norm": [False, True],
             "dropout": {"low": 0.0, "high": 0.5, "step": 0.05}, "filters": [[4], [4, 8]],
             "dense_units": {"low": 4, "high": 64}, "augmentation": ["simple", ["RandomFlip"]]}

    def one(draw):
        path = around.new(".yaml")
        path.write_bytes(m.spoiled_text(draw, space))
        return around.judge("space", ["search", "custom_cnn", "--space", path, "--data", DRAWN,
                                      "--out", around.out])

    each("space", 50, one, capfd)


def npz_forms():
    "Arrays of the three forms."
    images, labels = draw_cells(16).images[:, ::12, ::12], np.arange(16) % 8
    halves = {f"{part}_{key}": value for part in PARTS for key, value in (
        ("images", images), ("labels", labels[:, None].astype(np.uint8)))}
    ids = np.array([f"cell {k}" for k in range(16)])
    return [{"images": images, "labels": labels[:, None]}, halves,
            {"images": images, "labels": labels, "ids": ids,
             "parts": np.array(["train", "test"] * 8), "class_names": np.array(CLASS_NAMES)}]


def test_npz(around, capfd):
    forms = npz_forms()

    def one(draw):
        path = around.new(".npz")
        path.write_bytes(m.spoiled_npz(draw, draw(st.sampled_from(forms))))
        return [law for words in (
            ["inspect", path], ["convert", path, around.out / "new.npz"],
            ["convert", path, around.out / "tree"],
            ["run", "custom_cnn", "--data", path, "--out", around.out])
            for law in around.judge("npz", words)]

    each("npz", 120, one, capfd)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    "A small network's file."
    from bloodcell_nb.networks.custom_cnn import custom_cnn

    path = tmp_path_factory.mktemp("network") / "small.keras"
    custom_cnn((96, 96), filters=(4,), dense_units=8).save(path)
    return path


def test_images(around, network, capfd):
    pixels = draw_cells(16)
    good = {f"{CLASS_NAMES[label]}/{k}.png": m.encoded(Image.fromarray(image[::12, ::12]))
            for k, (image, label) in enumerate(zip(pixels.images, pixels.labels, strict=True))}

    def one(draw, known=None):
        draw = draw or m.first  # of a known input nothing else is odd
        is_folder = not known and draw(st.booleans())
        pairs = known or m.spoiled_entries(draw, good)
        path = around.new("" if is_folder else ".zip")
        if is_folder:
            path.mkdir()
            m.write_folder(draw, path, pairs)
        else:
            path.write_bytes(m.zipped(draw, pairs))
        predict = ["predict", path, "--model", network]
        return [law for words in (
            ["inspect", path], ["convert", path, around.out],
            ["convert", path, around.out / "a.npz", "--size", "16"],
            ["run", "custom_cnn", "--data", path, "--out", around.out],
            [*predict, *draw(st.sampled_from([["--json"], ["--csv"], ["--grad-cam", around.out],
                                              []]))])
            for law in around.judge("images", words)]

    long = 5000 * "x"
    each("images", 60, one, capfd, [[*good.items(), (name, next(iter(good.values())))] for name in (
        f"basophil/{long}.txt", f"{long}/1.png", f"basophil/{long}.png")])


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    "A published network: its files by name."
    rng = np.random.default_rng(0)
    features = rng.random((20, 4)).astype(np.float16)
    settings = json.loads((published.project_root() / "models" / "convnext_atto_heavy"
                           / "ensemble.json").read_text())
    return {"model.keras": network.read_bytes(), "ensemble.json": settings, "features.npz": {
        "features": features, "kinds": rng.random((5, 3)),
        "hashes": rng.integers(0, 256, (20, 32), np.uint8)}}


def test_models(around, folder, capfd):
    cell = around.place / "cell.png"
    Image.fromarray(draw_cells(8).images[0]).save(cell)

    def one(draw, known=None):
        path = around.new()
        path.mkdir()
        chosen = "model.keras" if known else draw(st.sampled_from(
            ["model.keras", "model.keras", "ensemble.json", "features.npz"]))
        for name, content in (folder | {"ensemble.json": folder["ensemble.json"] | {
                "members": [path.name]}}).items():
            spoil = name == chosen
            if name == "model.keras":
                data = known or (m.spoiled_network(draw, content) if spoil else content)
            elif name == "ensemble.json":
                data = m.spoiled_text(draw, content, m.as_json) if spoil else m.as_json(content)
            else:
                data = m.spoiled_npz(draw, content) if spoil else m.npz(content)
            (path / name).write_bytes(data)
        is_file = known or chosen == "model.keras" and draw(st.booleans())
        place = path / "model.keras" if is_file else path
        return [law for words in (
            ["predict", cell, "--model", place],
            ["submission", place, "--out", around.out / "s.zip"], ["card", place],
            ["evaluate", place, "--data", DRAWN, "--out", around.out])
            for law in (around.out.mkdir(), *around.judge("model", words))[1:]]

    each("model", 40, one, capfd, [m.widened(folder["model.keras"], key) for key in m.WIDE])


def test_records(around, network, capfd):
    base = around.place.parent / "base"
    base.mkdir()
    two_runs(base)
    first = next(path.name for path in base.iterdir())
    shutil.copytree(RECORDS / "analysis", base / "analysis",
                    ignore=shutil.ignore_patterns("figures", "notebook*"))
    for run in base.iterdir():
        for path in run.glob("notebook*"):
            path.unlink()
        for path in run.glob("*.npz"):  # fewer cells: the page is quick
            with np.load(path) as file:
                few = {key: array[:80] if len(array) > 80 else array for key, array in file.items()}
            np.savez(path, **few)

    def one(draw):
        place = around.new()
        shutil.copytree(base, place)
        run = place / draw(st.sampled_from([first, first, first, "analysis"]))
        path = run / draw(st.sampled_from(["metrics.json", "metrics.json", "status.json",
                                           *["predictions.npz", "predictions_val.npz"]
                                           * (run.name == first)]))
        if path.suffix == ".npz":
            with np.load(path) as file:
                arrays = dict(file)
            path.write_bytes(m.spoiled_npz(draw, arrays))
        else:
            path.write_bytes(m.spoiled_text(draw, json.loads(path.read_text()), m.as_json))
        shutil.copy(network, run / "model.keras")
        cell = around.place / "beside" / "mine.png"
        # the page lies beside the runs
        return [law for words, written in (
            (["publish", run, "--data", DRAWN], None),
            (["predict", cell, "--model", run], None),
            (["page", place], place)) for law in around.judge("record", words, written)]

    each("record", 30, one, capfd)
    assert MADE.is_dir()

"""One reader of images: what a source holds is the same for every command, nothing is left out or
changed without a word, and what cannot be used costs one line.
"""
import io
import json
import os
import shutil
import warnings
import zipfile
from dataclasses import dataclass
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import papermill
import pytest
from PIL import Image

from bloodcell_nb.cli import main
from bloodcell_nb.data.cells import CLASS_NAMES, Cells, DataError
from bloodcell_nb.data.image_files import read_image
from bloodcell_nb.data.sources import fingerprint, load, save
from bloodcell_nb.data.synthetic import draw_cells
from bloodcell_nb.inference import classifier
from bloodcell_nb.inference.external import labelled_cells
from bloodcell_nb.runs.keys import run_key
from bloodcell_nb.runs.recipes import check_recipe
from bloodcell_nb.runs.run import Run

FIVE = ("Monocytes", "Immature_Granulocytes", "LYMPHOCYTE", "neutrophil", "Platelet")


@pytest.fixture(scope="module")
def drawn():
    return draw_cells(40).images


def tree(root, names, images, each=2, suffix="png"):
    "A folder of class folders."
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            Image.fromarray(images[each * k + i]).save(root / name / f"{k}_{i}.{suffix}")
    return root


def grey(images, **_):
    "Probabilities by an image's mean grey level, so that equal images have equal answers."
    level = images.mean(axis=(1, 2, 3)) / 255
    return np.stack([level, *[(1 - level) / 7] * 7], axis=1)


@dataclass(frozen=True)
class Brightness(classifier.Classifier):
    "Its network is `grey`."
    files: tuple = ()
    weights: tuple = (1.0,)
    models = (SimpleNamespace(input_shape=(None, 96, 96, 3), predict=grey),)


@pytest.fixture
def command(capfd, monkeypatch):
    "A command in this process, predictions by Brightness: exit code, stdout, lines of stderr."
    monkeypatch.setattr(classifier, "load_classifier", lambda places: Brightness())
    monkeypatch.setattr("bloodcell_nb.inference.published.find_model", str)

    def run(*arguments):
        capfd.readouterr()
        code = main([*map(str, arguments)])
        out, err = capfd.readouterr()
        return code, out, err.splitlines()
    return run


def counted(command, source):
    "Images of a class folder as inspect, predict, load and the listing in a zip count them."
    _, out, said = command("inspect", source)
    inspected = int(out.split(": ")[1].split()[0])
    code, out, said_too = command("predict", source, "--json")
    shutil.make_archive(str(source), "zip", source)
    assert code == 0 and len(json.loads(out)) == inspected == len(load(f"{source}.zip"))
    assert said == said_too
    return inspected, said


def test_every_command_reads_the_same_files(tmp_path, drawn, command):
    source = tree(tmp_path / "cells", CLASS_NAMES, drawn)
    assert counted(command, source) == (16, [])
    tree(source, ("neutrophil",), drawn[20:], 3, "tif")
    for name in ("neutrophil/.DS_169665.jpg", "neutrophil/._1.png", ".DS_Store", "Thumbs.db",
                 "platelet/.ipynb_checkpoints/1-checkpoint.png", "__MACOSX/platelet/1.png",
                 "desktop.ini"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"hidden")
    assert counted(command, source) == (19, [])
    for name in ("notes.txt", "neutrophil/1.gif", "neutrophil/2.gif"):
        (source / name).write_bytes(b"no image")
    count, said = counted(command, source)
    assert count == 19 and said == [f"bloodcell: {source}: left out, no images: 2 .gif, 1 .txt, "
                                    "such as neutrophil/1.gif"]


def test_links_are_followed(tmp_path, drawn, command):
    tree(tmp_path / "cells" / "Training", CLASS_NAMES, drawn)
    (tmp_path / "cells" / "Validation").symlink_to(tree(tmp_path / "val", CLASS_NAMES, drawn[16:]))
    cells = load(tmp_path / "cells")
    assert [len(cells.part(part)) for part in ("train", "val", "test", "")] == [16, 16, 0, 0]
    (tmp_path / "val" / "back").symlink_to(tmp_path / "cells")
    for arguments in (("inspect", tmp_path / "cells"), ("predict", tmp_path / "cells")):
        code, out, (line,) = command(*arguments)
        assert (code, out) == (2, "") and "Validation/back links to a folder" in line


def test_a_zip_of_windows(tmp_path, drawn):
    tree(tmp_path / "cells", CLASS_NAMES, drawn)
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as archive:
        for path in sorted((tmp_path / "cells").rglob("*.png")):
            name = path.relative_to(tmp_path).as_posix().replace("/", "\\")
            archive.writestr(name, path.read_bytes())
    windows, folder = load(tmp_path / "windows.zip"), load(tmp_path / "cells")
    assert np.array_equal(windows.images, folder.images) and list(windows.ids) == list(folder.ids)


NAMES = ["2024-05-01 12:30:07.png", "con.png", "caf\udce9.png", "two\nlines \x1b[31m.png"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_legal_is_read(tmp_path, drawn, command, name):
    source = tree(tmp_path / "cells", CLASS_NAMES, drawn)
    for folder in ("neutrophil", "platelet"):  # a duplicate with another label, which is named
        Image.fromarray(drawn[20]).save(source / folder / name)
    code, out, said = command("inspect", source)
    assert code == 0 and out.startswith(f"{source}: 18 images, ") and said == []
    assert out.isprintable() or set(filter(lambda c: not c.isprintable(), out)) == {"\n"}
    for form in ("--csv", "--json"):
        code, out, said = command("predict", source / "neutrophil" / name, form)
        assert code == 0 and said == [] and "basophil" in out
    code, out, said = command("predict", source / "neutrophil" / name)
    assert (code, out.count("\n"), said) == (0, 1, [])
    assert command("convert", source, tmp_path / "cells.npz")[0] == 0
    assert len(load(tmp_path / "cells.npz")) == 18
    code, _, said = command("inspect", tmp_path / f"no {name}")
    assert code == 2 and len(said) == 1


def test_one_bad_image_costs_one_line(tmp_path, drawn, command):
    source = tree(tmp_path / "cells", ("monocyte",), drawn, 5)
    whole = sorted((source / "monocyte").iterdir())
    whole[1].write_bytes(whole[1].read_bytes()[:200])
    for names in ([source], [source / "monocyte"], whole, [source / "monocyte" / "*.png"]):
        code, out, said = command("predict", *names, tmp_path / "none.png", "--json")
        assert (code, len(json.loads(out)), len(said)) == (1, 4, 2), said
        assert {"0_1.png cannot be read" in line for line in said} == {True, False}
    code, out, said = command("predict", whole[1])
    assert (code, out, len(said)) == (2, "", 1)
    code, out, said = command("inspect", source)  # what is trained on has to be whole
    assert (code, out, len(said)) == (2, "", 1) and "0_1.png cannot be read" in said[0]


def test_depth_and_ground_change_no_answer(tmp_path, drawn, command):
    grey = drawn[0].mean(axis=-1).astype(np.uint8)
    alpha = np.where(np.indices((96, 96))[0] < 48, 0, 255).astype(np.uint8)
    hidden = np.dstack([np.where(alpha[..., None], drawn[0], 7), alpha])
    shown = np.where(alpha[..., None], drawn[0], 255).astype(np.uint8)
    same = {"deep": [("8.png", grey), ("16.png", grey.astype(np.uint16) * 257),
                     ("16.tif", grey.astype(np.uint16) * 257)],
            "clear": [("white.png", shown), ("clear.png", hidden), ("clear.tif", hidden)]}
    for folder, files in same.items():
        (tmp_path / folder / "monocyte").mkdir(parents=True)
        for name, image in files:
            Image.fromarray(image).save(tmp_path / folder / "monocyte" / name)
        code, out, said = command("predict", tmp_path / folder, "--json")
        assert code == 0 and len({one["probability"] for one in json.loads(out)}) == 1, out
        words = {"deep": "16 bits scaled to 8", "clear": "transparent ground laid on white"}[folder]
        assert said == [f"bloodcell: {words} in 2 of 3 images"]
        cells = load_silently(tmp_path / folder)
        assert (cells.images == cells.images[0]).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_white_may_be_0(tmp_path, drawn, kind):
    "TIFF's WhiteIsZero: the image is the one whose black is 0."
    grey = drawn[0].mean(axis=-1).astype(np.uint8)
    deep = grey if kind is np.uint8 else 65535 - grey.astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "black.png")
    Image.fromarray(deep).save(tmp_path / "white.tif", tiffinfo={262: 0})  # turns those of 8 bits
    black, white = (read_image(lambda path=path: open(path, "rb"), path.name)
                    for path in sorted(tmp_path.iterdir()))
    np.testing.assert_array_equal(black, white)


def test_a_kind_of_tiff_that_is_not_read_is_told_from_no_image(tmp_path, command):
    path = tmp_path / "a.tif"
    Image.fromarray(np.zeros((96, 96), np.float32)).save(path, tiffinfo={262: 0})
    assert "its white is 0, in numbers of 32 bits" in command("predict", path)[2][0]
    path.write_bytes(b"II*\0" + bytes(200))
    assert "a TIFF that is damaged, or of a kind that is not read" in command("predict", path)[2][0]
    path.write_bytes(b"III" + bytes(200))
    assert "unknown format" in command("predict", path)[2][0]


def test_one_image_has_one_answer_and_one_name_one_image(tmp_path, drawn, command):
    source = tree(tmp_path / "cells", ("monocyte",), drawn, 3)
    first = source / "monocyte" / "0_0.png"
    code, out, said = command("predict", first, source, first)
    assert (code, out.count("\n")) == (0, 3)
    assert said == [f"bloodcell: named more than once, answered once: {first}"]
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for k, name in enumerate(("monocyte/1.png", "monocyte//1.png", "./monocyte/2.png")):
            archive.writestr(name, (source / "monocyte" / f"0_{k}.png").read_bytes())
    for words in (["predict"], ["inspect"]):
        code, out, (line,) = command(*words, tmp_path / "two.zip")
        assert code == 2 and out == "" and "2 entries are named monocyte/1.png" in line


def test_a_pipe_among_images_is_named(tmp_path, drawn, command):
    "Nobody waits for it."
    source = tree(tmp_path / "cells", CLASS_NAMES, drawn)
    os.mkfifo(source / "monocyte" / "f.png")
    _, out, said = command("inspect", source)
    code, answered, said_too = command("predict", source, "--json")
    assert code == 0 and said == said_too and "left out, no images: 1 .png, such as" in said[0]
    assert int(out.split(": ")[1].split()[0]) == len(json.loads(answered)) == 16
    for name in (source / ("x" * 300), source / "none" / ("x" * 300)):
        code, out, said = command("predict", name, source / CLASS_NAMES[3] / "3_0.png")
        assert (code, out.count("\n"), len(said)) == (1, 1, 1)


@pytest.fixture
def drawable(monkeypatch):
    "Let `Brightness` have evidence, the same for all."
    monkeypatch.setattr("bloodcell_nb.inference.predict.evidence",
                        lambda classifier, images, labels: np.concatenate([images] * 2, axis=2))


def test_no_drawing_becomes_a_cell(tmp_path, drawn, command, drawable, monkeypatch):
    "However the images are named that lie beside it, now or the next time."
    source = tree(tmp_path / "cells", ("monocyte",), drawn, 3) / "monocyte"
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for names in ([source], [source / "*.png"], ["~/cells/*/*.png"], [tmp_path / "**" / "*.png"]):
        for folder in (source, source / "drawn"):
            code, out, (line,) = command("predict", *names, "--grad-cam", folder)
            assert (code, out) == (2, "") and "lies in a folder that is read" in line, names
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.chdir(source)
    assert command("predict", "./0_0.png", "~/cells/monocyte/0_1.png", "--grad-cam", ".")[0] == 0
    for path in source.glob("*_grad_cam.png"):
        path.unlink()
    for pattern in ("~/cells/*/*.png", tmp_path / "*" / "*" / "*.png"):  # that it would match
        code, out, (line,) = command("predict", pattern, "--grad-cam", tmp_path / "cells" / "new")
        assert (code, out) == (2, "") and "lies in a folder that is read" in line
    named = sorted(source.iterdir())  # as a shell names them
    assert command("predict", *named, "--grad-cam", source)[0] == 0
    code, out, said = command("predict", *sorted(source.iterdir()), "--json")
    assert (code, len(json.loads(out)), len(said)) == (1, 3, 3)
    long = tmp_path / f"{'x' * 245}.png"
    shutil.copy(named[0], long)
    code, out, (line,) = command("predict", long, named[0], "--grad-cam", tmp_path / "drawn")
    assert (code, out) == (2, "") and "too long a name for a drawing" in line
    long.unlink()
    assert all("grad_cam.png" in line and "a figure that this project drew" in line
               for line in said)
    assert "a figure that this project drew" in command("inspect", tmp_path / "cells")[2][0]


def test_a_place_for_no_drawing_is_refused_before_images_are_read(tmp_path, command, drawable):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/inside"):
        code, out, (line,) = command("predict", "none.png", "--grad-cam", tmp_path / place)
        assert (code, out) == (2, "") and "file" in line and "none.png" not in line


@pytest.mark.parametrize("form", [[], ["--csv"], ["--json"]])
def test_a_disk_that_fills_up_withholds_no_answer(tmp_path, drawn, command, drawable, monkeypatch,
                                                  form):
    source = tree(tmp_path / "cells", ("monocyte",), drawn, 5)
    monkeypatch.setattr("bloodcell_nb.inference.predict._PORTION", 2)

    def full(self, path, *_, **__):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", full)
    code, out, said = command("predict", source, "--grad-cam", tmp_path / "drawn", *form)
    (line,) = (one for one in said if one.startswith("bloodcell: "))  # and a bar
    assert code == 1 and "No space left on device" in line
    assert len(json.loads(out) if form == ["--json"] else out.splitlines()[bool(form):]) == 5


def test_answers_come_as_they_are_known(tmp_path, drawn, command, monkeypatch):
    "An interrupted command has given those that it had."
    source = tree(tmp_path / "cells", ("monocyte",), drawn, 5)
    monkeypatch.setattr("bloodcell_nb.inference.predict._PORTION", 2)
    whole = {form: command("predict", source, form)[1].splitlines() for form in ("--csv", "--tta")}
    see, asked = Brightness.see, []

    def stops(self, images):
        if asked.append(len(images)) or len(asked) == 3:
            raise KeyboardInterrupt
        return see(self, images)

    monkeypatch.setattr(Brightness, "see", stops)
    for form, lines in whole.items():
        asked.clear()
        code, out, said = command("predict", source, form)
        assert (code, out.splitlines()) == (130, lines[:4 + (form == "--csv")])
        assert said[-1] == "bloodcell: interrupted; the same command begins anew"


def load_silently(source, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(source, *arguments, **options)


def test_a_subset_of_the_classes_is_a_source(tmp_path, drawn, command):
    source, wanted = tree(tmp_path / "five", FIVE, drawn), (
        "immature granulocyte", "lymphocyte", "monocyte", "neutrophil", "platelet")
    code, out, (line,) = command("inspect", source)
    assert code == 0 and " 5 classes, " in out and [row.rsplit(maxsplit=1)[0].strip() for row
                                                    in out.splitlines()[2:7]] == list(wanted)
    assert "Immature Granulocytes as immature granulocyte, LYMPHOCYTE as lymphocyte" in line
    assert command("convert", source, tmp_path / "five.npz")[0] == 0
    for place in (source, tmp_path / "five.npz"):
        cells = load_silently(place)
        assert cells.class_names == wanted and cells.counts.tolist() == [2] * 5
        network = SimpleNamespace(class_names=CLASS_NAMES, models=[
            SimpleNamespace(input_shape=(None, 96, 96, 3))])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            judged = labelled_cells(str(place), network)
        assert judged.class_names == CLASS_NAMES and (judged.counts > 0).sum() == 5


@pytest.mark.parametrize("name", ["new", "new.npz"])
@pytest.mark.parametrize("parts", [None, ["train", "train", "test", "test"]], ids=["", "parts"])
@pytest.mark.parametrize("names, only_npz", [
    (("promyelocyte", "band cell"), False), (("platelet", "basophil"), False),
    (("pro_myelocyte", "blast"), True), (("test", "blast"), True), (("Val data", "blast"), True),
    (("blast", "Blasts"), None), (("IG", "Monocytes"), None), (("blast", "blast"), None)])
def test_what_is_saved_comes_back(tmp_path, drawn, names, only_npz, parts, name):
    "Images, ids and class names; what would not come back is refused in a line."
    cells = Cells(drawn[:4], [0, 1] * 2, names, ["b c", "a", "d_e", "f"], parts)
    place = tmp_path / name
    if only_npz is None or only_npz and not place.suffix:
        with pytest.raises(DataError, match="would be read as|more than once"):
            save(cells, place)
        assert not place.exists()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = load(save(cells, place))
    back, cells = (one[np.argsort(one.ids)] for one in (back, cells))
    for field in ("images", "ids", "parts"):
        np.testing.assert_array_equal(getattr(back, field), getattr(cells, field))
    assert [back.class_names[k] for k in back.labels] == [names[k] for k in cells.labels]


def test_an_id_is_saved_once_in_a_class(tmp_path, drawn):
    with pytest.raises(DataError, match="ids holds 'a' twice"):
        save(Cells(drawn[:8], range(8), ids=["a"] * 8)[[0, 0]], tmp_path / "twice.npz")


def test_what_is_not_read_changes_no_fingerprint(tmp_path, drawn):
    source = tree(tmp_path / "cells", CLASS_NAMES, drawn)
    recipe = check_recipe({"notebook": "01_analysis", "recipe": "one", "source": str(source)})
    before = fingerprint(source), run_key(recipe)
    for name in (".DS_Store", "platelet/Thumbs.db", "notes.txt", "platelet/1.gif"):
        (source / name).write_bytes(b"x")
        assert (fingerprint(source), run_key(recipe)) == before, name
    (source / "platelet" / "new.png").write_bytes(b"x")
    assert fingerprint(source) != before[0] and run_key(recipe) != before[1]


def test_a_file_is_its_bytes(pbc96):
    assert fingerprint(pbc96) == "455bde719a734559"  # in committed records


def test_a_run_is_refused_before_it_starts(tmp_path, drawn, command, monkeypatch):
    monkeypatch.setattr(papermill, "execute_notebook",
                        lambda *_, **__: pytest.fail("something was started"))
    sizes = tree(tmp_path / "sizes", CLASS_NAMES, drawn)
    Image.fromarray(drawn[0][:40]).save(sizes / "platelet" / "last.png")
    tree(tmp_path / "only" / "test", CLASS_NAMES, drawn)
    for source, words in ((sizes, "last.png is 96x40, the first 96x96"),
                          (sizes, "bloodcell convert SOURCE NEW.npz --size 96"),
                          (tmp_path / "only", "only a test split; expected training cells"),
                          ("synthetic:n=100000000000", "draws 100,000,000,000 images")):
        code, out, (line,) = command("run", "analysis", "--data", source, "--out", tmp_path / "out")
        assert (code, out) == (2, "") and words in line and len(line) < 300, line
    assert not (tmp_path / "out").exists()


def test_odd_sources_cost_one_line(tmp_path, drawn, command):
    source = tree(tmp_path / "cells", CLASS_NAMES, drawn)
    loose = tmp_path / "loose" / "test"
    loose.mkdir(parents=True)
    Image.fromarray(drawn[0]).save(loose / "1.png")
    arrays = {"images": drawn, "labels": np.arange(40) % 8}
    for name, change in (("no_images", {"images": np.uint8(1)}), ("label", {"labels": 3})):
        np.savez(tmp_path / f"{name}.npz", **arrays | change)
    for arguments, words in ((["inspect", source, "--size", "100000"], "unpacks to 447.03 GiB"),
                             (["inspect", tmp_path / "loose"], "1.png lies in no class folder"),
                             (["inspect", tmp_path / "no_images.npz"], "images have shape ()"),
                             (["inspect", tmp_path / "label.npz"], "labels have shape ()"),
                             (["inspect", "~nobody-of-this-name/x"], "no such file or folder"),
                             (["inspect", "x" * 3000], "no such file or folder")):
        code, out, (line,) = command(*arguments)
        assert (code, out) == (2, "") and words in line and len(line) < 1100, line


def test_classes_beside_a_split(tmp_path, drawn, command):
    source = tree(tmp_path / "cells", CLASS_NAMES, drawn)
    tree(source / "test", CLASS_NAMES, drawn[16:])
    code, out, said = command("inspect", source)
    assert (code, said) == (0, []) and out.splitlines()[10].split() == ["sum", "32", "16", "16"]


def test_a_dollar_in_a_name_is_no_formula(tmp_path):
    run = Run(check_recipe({"notebook": "01_analysis", "recipe": "one", "out": str(tmp_path)}))
    fig, ax = plt.subplots()
    ax.set_yticks([1], ["$a_$"])
    ax.plot([1, 2], label="$b_$")
    ax.legend()
    ax.set(title="$c_$", xscale="log")
    drawn = io.BytesIO()
    run.figure(fig, "names")
    fig.savefig(drawn)
    shown = [text.get_text() for text in (ax.get_yticklabels()[0], ax.title)]
    assert shown == ["$a_$", "$c_$"] and os.path.exists(tmp_path / "figures" / "names.png")
    assert all(tick.get_parse_math() for tick in ax.get_xticklabels())

"What must hold on real cells; skipped where they are not at hand."
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image

from bloodcell_nb.data import analysis
from bloodcell_nb.data.analysis import (
    DROPPED,
    clean,
    duplicate_groups,
    list_groups,
    perceptual_hashes,
)
from bloodcell_nb.data.cells import CLASS_NAMES, COURSE_COUNTS, fold_indices, split_indices
from bloodcell_nb.data.corruptions import CORRUPTIONS, STAND_IN_VERSION, corrupt, stand_in
from bloodcell_nb.data.sources import course_arrays, load, save

# of every hundredth test cell: checksum of the pixels as Pillow decodes them, and sums of grey
# levels under version 1 of the stand-in,
# with the locked NumPy 2.4.6, SciPy 1.17.1 and Pillow 13.0.0
CLEAN_CRC32 = 3109761112
STAND_IN_SUMS = [4297689, 3167473, 4990576, 5688052, 4917357, 3720630, 6228574, 2808062, 2738152,
                 3847209, 5764602, 6195290, 3474825,
                 5091778, 5255380, 5174699, 4591665, 4969856, 3964931, 3430089, 5452294, 3924470,
                 2236975, 4903893, 4990456]


@pytest.fixture(scope="module")
def cells(real_cells):
    return real_cells


@pytest.fixture(scope="module")
def course(cells):
    arrays = course_arrays(cells)
    return arrays["images"], arrays["labels"]


@pytest.fixture(scope="module")
def hashes(course):
    return perceptual_hashes(course[0])


@pytest.fixture(scope="module")
def groups(hashes):
    return duplicate_groups(hashes, 16)


def test_counts(cells):
    assert len(cells) == 16093
    assert cells.part("train").counts.tolist() == list(COURSE_COUNTS)
    assert [len(cells.part(part)) for part in ("train", "val", "test")] == [11959, 1712, 2422]


def test_rebuild_is_pixel_exact(originals):
    rebuilt = load(originals / "jpg")
    assert len(rebuilt) == 200 and rebuilt.counts.tolist() == [25] * 8
    folders = dict(zip(CLASS_NAMES, (*CLASS_NAMES[:3], "ig", *CLASS_NAMES[4:]), strict=True))
    for image, label, name in zip(rebuilt.images, rebuilt.labels, rebuilt.ids, strict=True):
        expected = Image.open(originals / "expected_96"
                              / folders[CLASS_NAMES[label]] / f"{name}.png").convert("RGB")
        assert np.array_equal(image, np.asarray(expected)), name


@pytest.mark.parametrize("size", [(360, 363), (366, 369), (280, 280), (2000, 1500)])
def test_predict_reads_as_load_does(originals, tmp_path, size):
    """One rule: originals are cut to their centre, an image of another size is used whole, in a
    folder and alone.
    """
    from bloodcell_nb.inference.predict import image_files, read_images

    for source in sorted((originals / "jpg").rglob("*.jpg"))[::40]:
        path = tmp_path / source.parent.name / f"{source.stem}.png"
        path.parent.mkdir()
        Image.open(source).resize(size).save(path)
    cells = load(tmp_path, 96)
    assert len(cells) == 5
    alone, paths, *_ = read_images(image_files(tmp_path)[0], (96, 96))
    assert len(paths) == 5
    for path, found in zip(paths, alone, strict=True):
        image = cells.images[list(cells.ids).index(path.stem)]
        assert np.array_equal(found, image), path
        whole = np.asarray(Image.open(path).resize((96, 96), Image.Resampling.BILINEAR))
        assert np.array_equal(whole, image) == (size in [(280, 280), (2000, 1500)])


def test_originals_to_course_file(originals, tmp_path):
    file = tmp_path / "training_set.npz"
    done = subprocess.run(["bloodcell", "convert", str(originals / "jpg"), str(file), "--course"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(file) as arrays:
        assert arrays["images"].shape == (2000, 96, 96, 3) and arrays["images"].dtype == np.uint8
        assert arrays["labels"].shape == (2000, 1)
    assert (load(file).counts >= 225).all()


def test_course_file(course):
    images, labels = course
    assert images.shape == (13759, 96, 96, 3) and labels.shape == (13759, 1)
    assert np.bincount(labels[:, 0]).tolist() == [1052, 2381, 1285, 2226, 1049, 1393, 2530, 1843]
    assert (images[11959:13559] == images[11959]).all() and (images[13559:] == images[13559]).all()
    assert np.bincount(labels[11959:13559, 0]).tolist() == [200] * 8 and (labels[13559:] == 5).all()


def test_duplicates_in_the_course_file(course, hashes, groups):
    images, labels = course
    found = list_groups(groups)
    # 17 pairs are pixel-identical before encoding; WebP encodes equal pixels to equal bytes, so the
    # hash finds all of them
    assert [len(group) for group in found] == [1600, 200] + [2] * 17
    assert all((images[group] == images[group[0]]).all() for group in found), "a false group"
    assert ([len(list_groups(duplicate_groups(hashes, distance)))
             for distance in (0, 20)] == [19, 19]), "any threshold up to 20 bits does"
    from bloodcell_nb.data.cells import Cells

    whole = Cells(images, labels)
    reasons = clean(whole, groups)
    assert [int((reasons == reason).sum()) for reason in DROPPED] == [1800, 2, 16]
    kept = whole[reasons == ""]
    assert len(kept) == 11959 - 18
    train, val = split_indices(kept.labels, 0.2)
    assert np.abs(np.bincount(kept.labels[val]) / kept.counts - 0.2).max() < 0.005


def test_inspect_names_what_is_wrong_with_the_course_file(course, hashes, tmp_path, monkeypatch,
                                                          capsys):
    from bloodcell_nb.cli import inspect

    def known(images):
        assert np.array_equal(images, course[0])
        return hashes

    monkeypatch.setattr(analysis, "perceptual_hashes", known)
    np.savez(tmp_path / "course.npz", images=course[0], labels=course[1])
    inspect(str(tmp_path / "course.npz"))
    said = capsys.readouterr().out
    counts = ", ".join(f"{name} 200" for name in CLASS_NAMES)
    assert f"1,600 copies, first 011959 (basophil), image 11959; labels: {counts}\n" in said
    assert "200 copies, first 013559 (monocyte), image 13559; labels: monocyte 200\n" in said
    assert "17 pairs; with conflicting labels: 1\n" in said and said.count(" = ") == 17
    assert ("cleaning drops 1,818: 1,800 injected, 2 conflicting labels, 16 duplicate; keeps "
            "11,941\n" in said)


def test_duplicates_never_straddle(cells, course, groups):
    train = cells.part("train")
    assert np.array_equal(course[0][:len(train)], train.images)
    groups = groups[:len(train)]
    for seed in range(3):
        a, b = split_indices(train.labels, 0.1, groups, seed=seed)
        assert not set(groups[a]) & set(groups[b])
    for a, b in fold_indices(train.labels, 5, groups):
        assert not set(groups[a]) & set(groups[b])


def test_every_corruption_hurts_more_with_severity(cells):
    some = cells.part("test").images[:240]
    for name in CORRUPTIONS:
        mild, strong = (np.abs(corrupt(some, name, severity).astype(int) - some).mean(
            axis=(1, 2, 3)) for severity in (1, 5))
        assert (mild > 0).all() and (strong > 0).all() and strong.mean() > 1.3 * mild.mean(), name


def test_stand_in_is_frozen(cells):
    some = cells.part("test")[::100]
    assert STAND_IN_VERSION == 1
    assert (
        zlib.crc32(
            some.images.tobytes()) == CLEAN_CRC32), "other cells or other pixels"
    sums = stand_in(some).images.sum(axis=(1, 2, 3), dtype=np.int64)
    # ten levels in the 27,648 values of an image are room for another rounding
    assert (np.abs(sums
                   - STAND_IN_SUMS).max() <= 10), "one version, one scale: raise STAND_IN_VERSION"


def test_png_tree_and_back(cells, tmp_path):
    some = cells.part("val")[::8]
    tree = save(some, tmp_path / "tree")
    back = load(tree)
    order = np.lexsort((some.ids,))
    assert (np.array_equal(back.images, some.images[order])
            and (back.labels == some.labels[order]).all() and (back.ids == some.ids[order]).all())


def test_float16_weights_give_the_same_features(cells, pbc96):
    "Rounding the kernels to float16 moves no feature of a real cell by more than 0.07."
    from bloodcell_nb.networks.pretrained import load_backbone

    # the weights before rounding lie in weights/, beside the folder that BLOODCELL_DATA names
    original = pbc96.parent.parent / "weights" / "efficientnet_lite0_imagenet.npz"
    if not original.exists():
        pytest.skip(f"no {original.name} in weights/ beside BLOODCELL_DATA")
    some = cells.part("test").images[::150].astype(np.float32)
    rounded, exact = (load_backbone("EfficientNetLite0", (96, 96), weights).predict(some, verbose=0)
                      for weights in ("imagenet", str(original)))
    difference = np.abs(rounded - exact)
    assert 0 < difference.max() < 0.07 and difference.mean() < 0.003

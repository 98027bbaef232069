"No cell is tested on that a network has learnt from, however it was turned or saved."
import io

import numpy as np
import pytest
from PIL import Image

from bloodcell_nb.analysis import nearest_distances, perceptual_hashes
from bloodcell_nb.cli import inspect
from bloodcell_nb.ensemble import dihedral
from bloodcell_nb.recipes import check_recipe
from bloodcell_nb.sources import write_npz
from bloodcell_nb.splits import prepare
from bloodcell_nb.synthetic import draw_cells


def saved_again(image, form, quality):
    "An image as it is after lossy compression."
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def brighter(image, factor):
    return np.clip(np.round(image * factor), 0, 255).astype(np.uint8)


COPIES = {
    "the eight symmetries": [lambda image, view=view: dihedral(image[None], view)[0]
                             for view in range(1, 8)],
    "a quarter turn, JPEG": [lambda image: saved_again(np.rot90(image), "JPEG", 75)],
    "mirrored, WebP": [lambda image: saved_again(image[:, ::-1], "WEBP", 90)],
    "turned by half, brighter": [lambda image: brighter(image[::-1, ::-1], 1.03)],
    "upside down, darker, JPEG": [lambda image: saved_again(brighter(image[::-1], 0.95), "JPEG",
                                                            85)]}


@pytest.mark.parametrize("copies", COPIES)
def test_an_enlarged_set_has_no_twins_across_its_splits(tmp_path, capsys, copies):
    cells = draw_cells(120)
    images = np.concatenate([cells.images, *(np.stack(list(map(change, cells.images)))
                                             for change in COPIES[copies])])
    times = len(images) // len(cells)
    # where each came from, in the place of a name
    write_npz(tmp_path / "enlarged.npz", images=images, labels=np.tile(cells.labels, times),
              class_names=np.array(cells.class_names))
    splits = prepare(check_recipe({"notebook": "03_custom_cnn", "recipe": "x", "epochs": 1,
                                   "val_share": 0.2, "source": str(tmp_path / "enlarged.npz")}))
    origin = {image.tobytes(): k % len(cells) for k, image in enumerate(images)}
    train, val, test = ([origin[image.tobytes()] for image in part.images]
                        for part in (splits.train, splits.val, splits.test))
    kept = [*train, *val, *test]
    assert len(kept) == len(set(kept)) == len(cells), "each cell once, and none is lost"
    inspect(str(tmp_path / "enlarged.npz"))
    assert (f"duplicates: {len(cells)} groups, {len(images)} images; with turned or mirrored "
            f"copies: {len(cells)}\n" in capsys.readouterr().out)


def test_real_cells_have_no_more_groups_when_turned(pbc96):
    "Of 2,422 test cells none is a copy of another; the nearest are far beyond the threshold."
    from bloodcell_nb.sources import load

    hashes = perceptual_hashes(load(pbc96).part("test").images)
    assert nearest_distances(hashes).min() > 32

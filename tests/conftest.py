"Where real cells lie, and a small source for runs."
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ["TQDM_DISABLE"] = "1"  # where it is slow, a bar would stand beside what a test reads
ROOT = Path(__file__).resolve().parent.parent
COMMITTED = [ROOT / "reports" / name for name in (  # as in setup.py
    "bccd", "cellavision", "course", "pbc96", "published", "search_cnn", "travel", "trials",
    "worth")]
LONGEST = ["test_ensemble", "test_command", "test_installed", "test_networks", "test_models",
           "test_report"]


def pytest_collection_modifyitems(items):
    "The longest files begin, so that no process of several waits for one in the end."
    items.sort(key=lambda item: (LONGEST.index(item.path.stem) if item.path.stem in LONGEST
                                 else len(LONGEST)))


@pytest.fixture(scope="session")
def published_once():
    "Published networks are read, and traced, once; any other file whenever it is asked."
    from bloodcell_nb.networks import explain

    models, read, once = ROOT / "models", explain.load_model, {}

    def load_model(path, *args, **kwargs):
        place = Path(path).resolve()
        if models not in place.parents:
            return read(path, *args, **kwargs)
        if place not in once:
            once[place] = read(path, *args, **kwargs)
        return once[place]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain, "load_model", load_model)
        yield


@pytest.fixture(scope="session")
def under_jax():
    "Environment variables under which a process computes with JAX, which `make test` puts apart."
    apart = ROOT / ".venv" / "jax"
    if not (apart / "jax").is_dir() and find_spec("jax") is None:
        pytest.skip("JAX is not installed; make .venv/jax/.installed, or pip install -e .[jax]")
    places = [str(apart), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(places)}


def _data(name):
    place = os.environ.get("BLOODCELL_DATA")
    if not place:
        pytest.skip("real cells: set BLOODCELL_DATA to the folder that holds pbc96.zip, "
                    "cellavision.zip and pbc_originals/")
    path = Path(place) / name
    assert path.exists(), f"BLOODCELL_DATA holds no {name}"
    return path


@pytest.fixture(scope="session")
def pbc96():
    "16,093 real cells, 96x96, with parts."
    return _data("pbc96.zip")


@pytest.fixture(scope="session")
def real_cells(pbc96):
    "They, read."
    from bloodcell_nb.data.sources import load

    return load(pbc96)


@pytest.fixture(scope="session")
def microscope():
    "100 real cells of the development microscope."
    return _data("cellavision.zip")


@pytest.fixture(scope="session")
def originals():
    "200 untouched originals and the pixels that the rebuild must give."
    return _data("pbc_originals")

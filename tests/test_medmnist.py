"Downloading BloodMNIST, against a server on this machine."
import functools
import hashlib
import http.server
import threading

import numpy as np
import pooch
import pytest

from bloodcell_nb.data import medmnist, sources


@pytest.fixture
def server(tmp_path, monkeypatch):
    "Serves a folder as if it were the archive; the cache lies beside it."
    (tmp_path / "served").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler,
                                directory=str(tmp_path / "served"))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(medmnist, "_URL",
                            f"http://127.0.0.1:{running.server_port}/{{name}}")
        monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
        yield tmp_path / "served"
        running.shutdown()


def serve_bloodmnist(folder, monkeypatch):
    labels = np.arange(16)[:, None] % 8
    images = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    np.savez(folder / "bloodmnist_64.npz", **{f"{part}_{what}": values for part in medmnist.PARTS
                                              for what,
                                              values in (("images", images), ("labels", labels))})
    md5 = hashlib.md5((folder / "bloodmnist_64.npz").read_bytes()).hexdigest()
    monkeypatch.setitem(medmnist.MEDMNIST_MD5, 64, md5)
    return images


def test_download_once(server, monkeypatch):
    images = serve_bloodmnist(server, monkeypatch)
    cells = sources.load("medmnist:64")
    assert np.array_equal(cells.part("val").images, images) and len(cells) == 48
    (server / "bloodmnist_64.npz").unlink()
    assert len(sources.load("medmnist:64")) == 48, "the second time it comes from the cache"


def test_a_spoiled_download_is_refused(server, monkeypatch):
    serve_bloodmnist(server, monkeypatch)
    monkeypatch.setitem(medmnist.MEDMNIST_MD5, 64, "0" * 32)
    with pytest.raises(sources.DataError, match="could not be downloaded") as error:
        sources.load("medmnist:64")
    assert "\n" not in str(error.value) and not list((server.parent / "cache").glob("*.npz"))


def test_a_cached_file_that_changed_is_refused(server, monkeypatch):
    "Though its MD5 is the published one, and though it could be fetched anew."
    serve_bloodmnist(server, monkeypatch)
    path = medmnist.download_medmnist(64)
    record = path.with_name("bloodmnist_64.npz.sha256")
    assert (record.read_text() == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  "
                                  "bloodmnist_64.npz\n")
    path.write_bytes(path.read_bytes() + b"forged")
    monkeypatch.setitem(medmnist.MEDMNIST_MD5, 64, hashlib.md5(path.read_bytes()).hexdigest())
    with pytest.raises(sources.DataError,
                       match="its SHA-256 is not the one in bloodmnist_64.npz.sha256") as error:
        sources.load("medmnist:64")
    assert "\n" not in str(error.value) and path.read_bytes().endswith(b"forged")
    path.unlink(), record.unlink()
    serve_bloodmnist(server, monkeypatch)
    assert len(sources.load("medmnist:64")) == 48


def test_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(medmnist, "_URL", "http://127.0.0.1:9/{name}")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path)
    with pytest.raises(sources.DataError,
                       match="download it by hand and give the file's path instead") as error:
        sources.load("medmnist")
    assert "\n" not in str(error.value)

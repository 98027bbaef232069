"""Twenty thousand images for a submission, and fifty clients at once for the demo: pytest -s
tests/faults/many_asked.py

Limits of time only end a failure.
"""
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from test_demo import connect, reply, request  # noqa: E402

from bloodcell_nb.data.synthetic import draw_cells  # noqa: E402
from bloodcell_nb.inference import demo  # noqa: E402
from bloodcell_nb.inference.classifier import load_classifier  # noqa: E402
from bloodcell_nb.inference.submission import try_submission, write_submission  # noqa: E402
from bloodcell_nb.networks.custom_cnn import custom_cnn  # noqa: E402

FEW, MANY, DRAWN = 2_000, 20_000, 200
CLIENTS, SILENT = 50, 10
SECONDS = 600
MORE = 64  # MiB that the memory may differ by, the images themselves apart


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    "A small network's file."
    path = tmp_path_factory.mktemp("network") / "small.keras"
    custom_cnn((96, 96), filters=(8, 16), dense_units=8).save(path)
    return path


def test_a_submission_takes_twenty_thousand_images(network, tmp_path):
    "In a process of its own: its peak grows by the images alone, not by what is made of them."
    cells = draw_cells(DRAWN).images
    path = write_submission([network], tmp_path / "submission.zip")
    expected = load_classifier([network]).predict(cells).argmax(axis=1)
    above = {}
    for count in (FEW, MANY):
        images = np.tile(cells, (count // DRAWN, 1, 1, 1))
        start = time.monotonic()
        labels, peak = try_submission(path, images)
        above[count] = peak - images.nbytes / 2**20
        print(f"\n{count:,} images, {images.nbytes / 2**20:,.0f} MiB: peak {peak:,} MiB, "
              f"{above[count]:,.0f} above the images; {time.monotonic() - start:.0f} s")
        assert labels.shape == (count,) and labels.dtype == np.int64
        assert np.array_equal(labels, np.tile(expected, count // DRAWN))
        if not peak:
            pytest.skip("the peak of the memory is read on Linux alone")
    assert abs(above[MANY] - above[FEW]) < MORE, above
    assert above[MANY] < 1536, "of Keras, TensorFlow and the network"


@pytest.fixture
def served(network):
    "The command in a process of its own; its port, once it answers."
    process = subprocess.Popen(["bloodcell", "demo", "--model", str(network), "--port", "0"],
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               # a shell's job in the background does not hear it
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    watch = threading.Timer(SECONDS, process.kill)
    watch.start()
    port = int(re.search(r":(\d+) answers", process.stdout.readline())[1])
    yield process, SimpleNamespace(server_port=port)
    watch.cancel()
    process.kill()
    process.communicate()


def ask(server, image):
    "The answer's bytes and the seconds that it took."
    start = time.monotonic()
    connection = connect(server, request("/answer", image))
    connection.settimeout(SECONDS)
    return reply(connection), time.monotonic() - start


@pytest.mark.parametrize("ends", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
def test_fifty_at_once(served, ends):
    "Ten say nothing, or half of what they ask for; the others get what each would get alone."
    process, server = served
    images = [demo._png(image) for image in draw_cells(8).images]
    alone = [ask(server, image) for image in images]
    assert all(status == 200 and json.loads(body)["picture"] for (status, body), _ in alone)
    silent, found, gate = [], {}, threading.Barrier(CLIENTS - SILENT)

    def client(k):
        gate.wait()
        found[k] = ask(server, images[k % len(images)])

    half = request("/answer", images[0])
    for k in range(SILENT):
        silent.append(connect(server, [b"", b"GET / HT", half[:40], half[:-10]][k % 4]))
    threads = [threading.Thread(target=client, args=(k,), daemon=True)
               for k in range(CLIENTS - SILENT)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    took = time.monotonic() - start
    assert len(found) == CLIENTS - SILENT, f"{len(found)} were answered"
    wrong = [k for k, (answer, _) in found.items() if answer != alone[k % len(images)][0]]
    assert not wrong, f"{len(wrong)} got another answer than alone, such as client {wrong[0]}"
    seconds = sorted(seconds for _, seconds in found.values())
    print(f"\n{len(found)} of {CLIENTS} clients at once, {SILENT} of them silent: answered in "
          f"{took:.1f} s, median {statistics.median(seconds):.2f} s, slowest {seconds[-1]:.2f} s; "
          f"alone {statistics.median(seconds for _, seconds in alone):.2f} s")
    assert ask(server, images[0])[0] == alone[0][0], "it still answers"
    assert {reply(connection) for connection in silent} <= {None}, "they are closed"
    with connect(server, half[:-10]):  # one is still open as it ends
        process.send_signal(ends)
        out, err = process.communicate(timeout=60)
    print(f"{ends.name}: exit code {process.returncode}")
    assert process.returncode == 0 and "Traceback" not in out + err, (process.returncode, err)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", server.server_port)):
        pass

"""The demo's server: who waits for whom, and who is answered.

Time limits of sockets and events only end a failure.
"""
import json
import queue
import socket
import threading

import keras
import pytest

from bloodcell_nb.cli import main
from bloodcell_nb.data.synthetic import draw_cells
from bloodcell_nb.inference import demo
from bloodcell_nb.inference.classifier import Classifier, load_classifier
from bloodcell_nb.networks.custom_cnn import custom_cnn

CELL = demo._png(draw_cells(8).images[0])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "cnn.keras"
    custom_cnn((96, 96), filters=(4,), dense_units=8).save(path)
    return Classifier((path,), (1.0,))


@pytest.fixture
def server(classifier):
    server = demo.demo_server(classifier, "cnn", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def connect(server, text=b""):
    "A connection on which so much was sent."
    connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=60)
    connection.sendall(text)
    return connection


def request(path="/", body=b"", **headers):
    "A request's bytes; underscores in headers' names stand for hyphens."
    headers = {"Host": "127.0.0.1:8000"} | headers
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.0", f"Content-Length: {len(body)}",
             *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def reply(connection):
    "Status and body, once the server has closed the connection; None where it said nothing."
    with connection, connection.makefile("rb") as stream:
        text = stream.read()
    head, _, body = text.partition(b"\r\n\r\n")
    return (int(head.split()[1]), body) if text else None


def test_one_who_says_nothing_keeps_nobody_waiting(server):
    half = request("/answer", CELL)[:-10]
    with connect(server), connect(server, b"GET"), connect(server, half):
        assert reply(connect(server, request("/model"))) == (200, b'{"name": "cnn"}')
        status, body = reply(connect(server, request("/answer", CELL)))
        assert status == 200 and json.loads(body)["probabilities"]


def test_a_network_without_evidence_answers_without_a_picture(tmp_path, capsys):
    "A softmax of its own; branches that join late. Why is said once, and on the page."
    image = keras.Input((96, 96, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(image)
    means = [keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, side, 4)(y))
             for side, y in ((3, x), (5, keras.layers.Rescaling(1 / 127)(image)))]
    both = keras.layers.Concatenate()(means)
    for name, output, why in (
            ("softmax", keras.layers.Softmax()(keras.layers.Dense(8)(both)), "dense output layer"),
            ("branches", keras.layers.Dense(8, "softmax")(both), "through which everything goes")):
        keras.Model(image, output).save(tmp_path / f"{name}.keras")
        found = demo.describe(load_classifier([tmp_path / f"{name}.keras"]), CELL)
        assert found["probabilities"] and "picture" not in found and why in found["no_picture"]
    server = demo.demo_server(load_classifier([tmp_path / "softmax.keras"]), "softmax", 0)
    server.server_close()
    for reason in (None, found["no_picture"], found["no_picture"]):
        server.say_once(reason)
    assert capsys.readouterr().out.count("answers without a picture: ") == 1


def test_a_silent_connection_is_closed(server, monkeypatch, capsys):
    assert 0 < demo._Handler.timeout <= 60
    monkeypatch.setattr(demo._Handler, "timeout", 0.05)
    for sent in (b"", b"GET / HTTP/1.0\r\n", request("/answer", CELL)[:-10]):
        assert reply(connect(server, sent)) is None
    assert capsys.readouterr().err == ""


def test_the_page_answers_while_the_network_works(server, monkeypatch):
    "The network is asked by one thread at a time."
    begun, go_on, describe = threading.Event(), threading.Event(), demo.describe

    def slow(*arguments):
        assert server.one_at_a_time.locked()
        begun.set()
        assert go_on.wait(60)
        return describe(*arguments)

    monkeypatch.setattr(demo, "describe", slow)
    asked = [connect(server, request("/answer", CELL)) for _ in range(3)]
    assert begun.wait(60) and reply(connect(server, request("/drawn")))[0] == 200
    go_on.set()
    answers = {reply(connection) for connection in asked}
    assert len(answers) == 1 and answers.pop()[0] == 200
    assert not server.one_at_a_time.locked()


def test_a_reader_who_left_costs_no_traceback(server, monkeypatch, capsys):
    def left(*_):
        raise BrokenPipeError

    monkeypatch.setattr(demo, "describe", left)
    assert reply(connect(server, request("/answer", CELL))) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:80", "localhost", "LOCALHOST:9000",
                                  "[::1]", "[::1]:8000"])
def test_names_of_this_machine_are_obeyed(server, host):
    "With a port, and without one, as of port 80."
    assert reply(connect(server, request(Host=host)))[0] == 200
    own = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
    assert reply(connect(server, request("/answer", b"no image", **own)))[0] == 400


@pytest.mark.parametrize("host", ["", "example.org", "example.org:80", "127.0.0.1.example.org",
                                  "127.0.0.1:80@example.org", "localhost:", "::1", "127.0.0.2"])
def test_other_names_are_refused(server, host):
    assert reply(connect(server, request(Host=host)))[0] == 403
    assert reply(connect(server, request("/answer", CELL, Host=host)))[0] == 403


@pytest.mark.parametrize("headers", [
    {"Origin": "https://example.org"}, {"Origin": "null"}, {"Origin": "http://localhost:8000"},
    {"Origin": "https://127.0.0.1:8000"}, {"Origin": "http://127.0.0.1:9000"},
    {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}])
def test_pages_of_other_sites_are_refused(server, headers, monkeypatch):
    monkeypatch.setattr(demo, "describe", lambda *_: pytest.fail("the network was asked"))
    assert reply(connect(server, request("/answer", CELL, **headers)))[0] == 403


def test_the_command_serves_until_it_is_stopped(classifier, monkeypatch, capsys):
    opened, codes, demo_server = queue.Queue(), [], demo.demo_server

    def noted(*arguments):
        server = demo_server(*arguments)
        opened.put(server)
        return server

    monkeypatch.setattr(demo, "demo_server", noted)
    arguments = ["demo", "--model", str(classifier.files[0]), "--port", "0"]
    command = threading.Thread(target=lambda: codes.append(main(arguments)), daemon=True)
    command.start()
    server = opened.get(timeout=60)
    assert reply(connect(server, request("/model"))) == (200, b'{"name": "cnn"}')
    server.shutdown()
    command.join(60)
    assert codes == [0]
    assert f"http://127.0.0.1:{server.server_port} answers" in capsys.readouterr().out

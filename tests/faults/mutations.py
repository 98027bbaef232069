"""How good inputs are spoiled: bytes, values, arrays, entries of a zip, images.

What is spoiled, and how, is drawn by Hypothesis.
"""
import io
import json
import os
import re
import struct
import zipfile
import zlib
from copy import deepcopy

import numpy as np
import yaml
from hypothesis import strategies as st
from PIL import Image

DEEP = "x"
for _ in range(60):
    DEEP = [DEEP]
NAMES = ["x" * 5000, "../x", "../../../x.png", "/x.png", "C:\\x.png", "..\\x", "a\nb",
         "\x1b[31mred\x1b[0m", "\u202egnp.x", "é" * 100, "x" * 300, "con.png", ".hidden", "a ",
         "a:b", "", " ", "%s{0}", "basophil", "𝔘\U0001f600", "\x00", "-x", "~", "*"]
HUGE = [2**31, 2**63, 10**30, 1e308, -1, -10**30, 0, float("nan"), float("inf"), -0.5]
WRONG = [None, True, False, [], {}, DEEP, {"a": {"b": [1, {"c": None}]}}, [None, "a", 1.5],
         {"low": 1}, list(range(5000)), {f"k{k}": k for k in range(2000)}, *HUGE, *NAMES]
values = st.one_of(
    st.sampled_from(WRONG), st.integers(), st.floats(),
    # no text is a folder of this machine: a source / would be all of it
    st.text(min_size=1, max_size=30).filter(lambda text: text.strip("/.~ ") and text[0] not in
                                            "/~."),
    st.lists(st.integers(-5, 300), max_size=9))


def first(strategy):
    "Of a choice the first, in the place of Hypothesis' draw."
    return strategy.elements[0]


def spoiled_bytes(draw, data):
    "Cut, changed, with something put in, empty or twice."
    how = draw(st.sampled_from(["cut", "flip", "flip", "insert", "insert", "empty", "twice"]))
    where = draw(st.integers(0, max(len(data) - 1, 0)))
    if how == "cut":
        return data[:where]
    if how == "flip":
        spoiled = bytearray(data)
        for _ in range(draw(st.integers(1, 8))):
            spoiled[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
        return bytes(spoiled)
    if how == "insert":
        more = draw(st.one_of(st.binary(min_size=1, max_size=40), st.sampled_from(
            [b"\x00" * 100, b"\xff\xfe", b"[" * 3000, b"{a: " * 2000, b"\n&a [*a]\n", b"\r\r",
             b"\xed\xa0\x80", b"- " * 3000, b"!!python/object:os.system x", b"\x1b]0;x\x07"])))
        return data[:where] + more + data[where:]
    return b"" if how == "empty" else data + data


def spoiled_value(draw, value):
    "The same with a value in it replaced, a key added, renamed or taken away."
    value = deepcopy(value)
    place = value
    while True:
        keys = [*place] if isinstance(place, dict) else [*range(len(place))]
        if not keys:
            return draw(values)
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 3)):
            place = place[key]
            continue
        break
    how = draw(st.sampled_from(["replace"] * 6 + ["remove", "rename", "add"]))
    if how == "replace" or isinstance(place, list):
        place[key] = draw(values)
    elif how == "remove":
        del place[key]
    elif how == "rename":
        place[draw(st.sampled_from(NAMES))] = place.pop(key)
    else:
        place[draw(st.one_of(st.sampled_from(NAMES), st.text(max_size=9)))] = draw(values)
    return value


def as_yaml(value):
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False).encode(
        errors="surrogatepass")


def spoiled_text(draw, value, dump=as_yaml):
    "A file's bytes: of a spoiled value, or spoiled themselves."
    if draw(st.integers(0, 2)):
        return dump(spoiled_value(draw, value))
    return spoiled_bytes(draw, dump(value))


def as_json(value):
    return json.dumps(value).encode(errors="surrogatepass")


# arrays

def npz(arrays, **options):
    stream = io.BytesIO()
    np.savez(stream, **arrays, **options)
    return stream.getvalue()


def spoiled_array(draw, array):
    "Of another type, shape or rank, or with odd values."
    n = len(array)
    ways = {
        "type": lambda: array.astype(draw(st.sampled_from(
            ["float16", "float64", "complex64", "bool", "U4", "S4", "M8[s]", "int8", "uint64",
             ">i8", "V3", "O"]))),
        "shape": lambda: draw(st.sampled_from([
            array.ravel(), array[..., None], array[None], array.T, array[:0], array[:n - 1],
            array[..., :1], np.squeeze(array), array.reshape(n, -1)])),
        "scalar": lambda: np.array(draw(st.sampled_from([0, -1, 1.5, "x", np.nan, 2**62]))),
        "record": lambda: np.zeros(n, [("a", "u1"), ("b", "f8")]),
        "text": lambda: np.array([draw(st.sampled_from(NAMES)) for _ in range(n)]),
        "nothing": lambda: np.zeros((n, 0, 0, 3), array.dtype),
    }
    if array.dtype.kind in "iu":
        odd = array.astype(draw(st.sampled_from(["float32", "float64", "int64"])))
        odd.flat[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(
            [-1, 300, 2**40] + [0.5, 1e30, np.nan, np.inf, -np.inf] * (odd.dtype.kind == "f")))
        ways["value"] = ways["value again"] = lambda: odd
    return ways[draw(st.sampled_from([*ways]))]()


def header_of(shape, descr="|u1"):
    "The bytes of an .npy file of which only the header is there, and a little more."
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {
        "descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(100)


def spoiled_npz(draw, arrays):
    "The bytes of an .npz file."
    how = draw(st.sampled_from(["array"] * 5 + ["bytes"] * 3 + ["header", "key", "entry", "npy"]))
    key = draw(st.sampled_from([*arrays]))
    if how == "array":
        return npz(arrays | {key: spoiled_array(draw, arrays[key])})
    if how == "bytes":
        return spoiled_bytes(draw, npz(arrays))
    if how == "npy":
        stream = io.BytesIO()
        np.save(stream, arrays[key])
        return stream.getvalue()
    if how == "key":
        left = {name: array for name, array in arrays.items() if name != key}
        return npz(left | draw(st.sampled_from([{}, {"images": arrays[key]}, {"file_": np.arange(
            3)}, {"parts": np.array(["no"])}, {"ids": arrays[key]}])))
    stream = io.BytesIO(npz(arrays))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        name = draw(st.sampled_from([f"{key}.npy", f"{key}.npy", "other.txt", "../x.npy", "a\nb"]))
        content = draw(st.sampled_from([
            b"", b"text", header_of((2**40, 3)), header_of((-1, 8)), header_of((2**62, 2**62)),
            header_of((16,), "|O"), header_of((16, 8, 8, 3)), bytes(30 * 2**20),
            b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, b"\x93NUMPY\x09\x00"]))
        archive.writestr(name, content)
    return stream.getvalue()


# images

def encoded(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png_of(width, height, data=b"", colour=2):
    "A PNG that declares a size, with true checksums and few pixels."
    def chunk(kind, content):
        return (struct.pack(">I", len(content)) + kind + content
                + struct.pack(">I", zlib.crc32(kind + content)))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour,
                                                              0, 0, 0))
            + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b""))


def odd_images():
    "Files of an image that is none, or an odd one, by what it is."
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (8, 8), np.uint8)
    image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    frames = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "red")]}
    nan = np.full((8, 8), np.nan, np.float32)
    return {
        "empty": b"", "text": b"no image", "huge": png_of(2**31 - 1, 2**31 - 1),
        "wide": png_of(40_000, 40_000), "no width": png_of(0, 5), "missing": png_of(96, 96),
        "bomb": png_of(7000, 7000, bytes(3 * 7000 * 7000 + 7000)), "palette": png_of(8, 8, b"", 3),
        "gif": encoded(image, "GIF"), "moving": encoded(image, "PNG", **frames),
        "pages": encoded(image, "TIFF", **frames), "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "nan": encoded(Image.fromarray(nan), "TIFF"), "negative": encoded(
            Image.fromarray(nan * 0 - 7), "TIFF"), "one": encoded(image.resize((1, 1))),
        "infinite": encoded(Image.fromarray(np.full((8, 8), np.inf, np.float32)), "TIFF"),
        "long": encoded(Image.new("L", (5000, 1))), "grey": encoded(Image.fromarray(grey)),
        "clear": encoded(image.convert("RGBA"), "WEBP", lossless=True),
        "deep": encoded(Image.fromarray(grey.astype(np.uint16) * 257)),
        "zip": npz({"a": grey}), "bits": encoded(image.convert("1"), "BMP")}


IMAGES = odd_images()


def spoiled_image(draw, good):
    if draw(st.booleans()):
        return IMAGES[draw(st.sampled_from([*IMAGES]))]
    return spoiled_bytes(draw, good)


def spoiled_entries(draw, entries):
    "Pairs of a name and a file's bytes, of which some are odd; of class folders."
    pairs = [*entries.items()]
    for _ in range(draw(st.integers(1, 2))):
        k = draw(st.integers(0, len(pairs) - 1))
        name, content = pairs[k]
        how = draw(st.sampled_from(["image"] * 3 + ["name"] * 3 + ["more"] * 2 + ["gone", "twice"]))
        if how == "image":
            pairs[k] = name, spoiled_image(draw, content)
        elif how == "name":
            odd = draw(st.sampled_from(NAMES))
            parts = [*name.split("/")]
            parts[draw(st.integers(0, len(parts) - 1))] = odd
            pairs[k] = draw(st.sampled_from(["/".join(parts), f"{name}/{odd}", odd])), content
        elif how == "more":
            pairs.append((draw(st.sampled_from(
                ["x.png", "test/x.png", "basophil/x.txt", "a/b/c/d/e/f/x.png", "Basophils/x.png",
                 f"platelet/{5000 * 'x'}.txt", "ig/x.jpg", "platelet/x.PNG", "new/"])),
                content))
        elif how == "gone":
            pairs = [pair for pair in pairs if pair[0].split("/")[0] != name.split("/")[0]]
        else:
            pairs.append((name, content))
        pairs = pairs or [("a/1.png", content)]
    return pairs


def write_folder(draw, place, pairs):
    "Files of names that a file can have, and links."
    for name, content in pairs:
        path = place / name.lstrip("/")
        try:
            if ".." not in name and not os.path.lexists(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        except (OSError, ValueError):  # no name of a file
            continue
    links = {"itself": place, "above": place.parent, "nowhere": place / "gone",
             "outside": place.parent / "beside", "device": "/dev/zero"}
    for word in draw(st.lists(st.sampled_from([*links, "pipe", "folder"]), max_size=2,
                              unique=True)):
        path = draw(st.sampled_from([place, place / "basophil"])) / draw(
            st.sampled_from([f"{word}.png", word]))
        path.parent.mkdir(parents=True, exist_ok=True)
        if word == "pipe":
            os.mkfifo(path)
        elif word == "folder":
            path.mkdir()
        else:
            path.symlink_to(links[word])


def zipped(draw, pairs):
    "The bytes of a zip."
    stream = io.BytesIO()
    method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in pairs:
            archive.writestr(zipfile.ZipInfo(name), content)
        how = draw(st.sampled_from(["", "", "", "bomb", "bytes", "bytes", "link", "many", "locked",
                                    "comment", "odd"]))
        if how == "bomb":
            archive.writestr("basophil/bomb.png", bytes(80 * 2**20), zipfile.ZIP_DEFLATED)
        elif how == "link":
            entry = zipfile.ZipInfo("basophil/link.png")
            entry.external_attr = 0o120777 << 16
            archive.writestr(entry, "/etc/passwd")
        elif how == "many":
            for k in range(3000):
                archive.writestr(f"platelet/{k}.txt", b"")
        elif how == "comment":
            archive.comment = b"PK\x05\x06" * 50
    data = stream.getvalue()
    if how == "locked":  # a password is asked for
        data = data.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    elif how == "odd":  # a way to pack that nobody knows
        data = data.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x00",
                            b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x63")
    return spoiled_bytes(draw, data) if how == "bytes" else data


def rezipped(data, change):
    "A zip whose entries went through a function of name and bytes; None leaves one out."
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for entry in old.infolist():
            if (content := change(entry.filename, old.read(entry))) is not None:
                new.writestr(entry.filename, content)
    return stream.getvalue()


# what Keras would make before it reads a weight
WIDE = [b'"kernel_size": [3, 3]', b'"input_shape": [null, 4]', b'"units": 8', b'"filters": 4']


def widened(data, key):
    "A .keras file of which a layer has another width than its weights."
    return rezipped(data, lambda name, content: content.replace(key, re.sub(
        rb"\d(\]?)$", rb"90000000\1", key), 1) if name == "config.json" else content)


def spoiled_network(draw, data):
    "The bytes of a .keras file."
    how = draw(st.sampled_from(["config"] * 5 + ["bytes"] * 2 + ["weights"] * 2 + [
        "metadata", "gone", "bomb", "layer"]))
    if how == "bytes":
        return spoiled_bytes(draw, data)
    if how == "bomb":
        return rezipped(data, lambda name, content: bytes(100 * 2**20) if name
                                   == "model.weights.h5" else content)
    names = {"config": "config.json", "layer": "config.json",
             "weights": "model.weights.h5", "metadata": "metadata.json"}
    chosen = names.get(how) or draw(st.sampled_from([*names.values()]))

    def change(name, content):
        if name != chosen:
            return content
        if how == "gone":
            return None
        if how == "weights":
            return spoiled_bytes(draw, content)
        if how == "layer":
            return content.replace(b'"class_name": "Conv2D"', draw(st.sampled_from(
                [b'"class_name": "Lambda"', b'"class_name": "Nothing"', b'"class_name": "Dense"',
                 b'"class_name": "LSTM"'])))
        return spoiled_text(draw, json.loads(content), as_json)

    return rezipped(data, change)

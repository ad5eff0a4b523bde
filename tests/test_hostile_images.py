"""Labels, images, names and folders that nobody should have made: a clear line for each, and no wrong training."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import zlib

import mxnet as mx
import numpy as np
import pytest

import data.imagenet
from base.errors import UserError
from data.augmentation import aspect_ratios
from data.folders import FolderImages, list_images
from data.imagenet import as_jpeg, open_imagenet, prepare
from data.loader import Loader, LoaderOptions
from data.records import Records, write_encoded
from tests.conftest import ROOT, assert_refused, wait_until
from tests.test_imagenet import encoded, make_folders, smooth_image

GOOD = encoded(smooth_image())


def bomb(width=20_000, height=20_000):
    """A PNG of a few kilobytes: black and white, and 400 million pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = zlib.compress(bytes((1 + width // 8) * height), 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def make_records(folder, *samples):
    """train.rec and val.rec of (content, label), of two classes."""
    for split in ("train", "val"):
        write_encoded(folder / f"{split}.rec", samples)
    (folder / "classes.txt").write_text("ant\nbee\n")
    return open_imagenet(folder, size=32)


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as raised:
        call(*arguments, **options)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def read(dataset, training, batch_size=2):
    list(Loader(dataset, "train", LoaderOptions(batch_size, seed=0), mx.cpu(), training=training).epoch(0))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "label, shown",
    [(-1, "-1"), (0.5, "0.5"), (2, "2"), (np.inf, "inf"), (-np.inf, "-inf"), (np.nan, "nan"), (1e-7, "0.0000001")],
)
def test_a_label_is_the_number_of_a_class(tmp_path, label, shown, training):
    dataset = make_records(tmp_path, (GOOD, 0), (GOOD, 1), (GOOD, 0), (GOOD, label))
    said = refusal(read, dataset, training)
    assert f"record 3 of {tmp_path / 'train.rec'} has the label {shown}: " in said and "from 0 to 1" in said


def test_labels_of_folders_are_looked_at_too(tmp_path):
    dataset = open_imagenet(make_folders(tmp_path), size=32)._replace(classes=1)
    assert f"{tmp_path / 'train' / 'bee'}/0.JPEG has the label 1: " in refusal(read, dataset, False)


BAD = {
    "bomb": (bomb(), "400000000 pixels"),
    "truncated": (encoded(smooth_image(300, 200))[:-2000], "truncated"),
    "truncated PNG": (encoded(smooth_image(300, 200), "PNG")[:-3000], "truncated"),
    "GIF": (encoded(smooth_image().quantize(64), "GIF"), "no image header"),  # which DALI does not decode
    "empty": (b"", "empty"),
    "text": (b"this is no image", "no image header"),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_an_image_that_cannot_be_decoded_is_named_with_the_reason(tmp_path, name, training):
    content, reason = BAD[name]
    dataset = make_records(tmp_path, *[(GOOD, 0)] * 5, (content, 1), *[(GOOD, 1)] * 2)
    said = refusal(read, dataset, training)
    assert f"record 5 of {tmp_path / 'train.rec'} cannot be decoded: " in said and reason in said
    assert "ritical" not in said and " at 0x" not in said


def test_a_file_that_cannot_be_decoded_is_named(tmp_path):
    dataset = open_imagenet(make_folders(tmp_path), size=32)
    (tmp_path / "train" / "bee" / "1.JPEG").write_bytes(BAD["truncated"][0])
    assert f"{tmp_path}/train/bee/1.JPEG cannot be decoded: " in refusal(read, dataset, False)


def test_what_only_dali_refuses_is_told_in_its_words(tmp_path, monkeypatch):
    monkeypatch.setattr("data.loader.fault", lambda content: None)
    said = refusal(read, make_records(tmp_path, (GOOD, 0), BAD["GIF"][:1] + (1,)), False)
    assert said == f"a batch of {tmp_path / 'train.rec'} cannot be decoded: GIF images are not supported."


def test_images_too_large_are_refused_where_only_headers_are_read():
    with pytest.raises(ValueError, match="400000000 pixels"):
        aspect_ratios([np.frombuffer(bomb(), np.uint8)])
    with pytest.raises(ValueError, match="400000000 pixels"):
        as_jpeg(bomb())


SEPARATORS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_class_of_several_lines_is_refused(tmp_path, separator):
    make_folders(tmp_path, splits=["train"], classes=("ant", f"be{separator}e"))
    said = refusal(list_images, tmp_path / "train")
    assert "control character" in said and repr(separator)[1:-1] in said


def test_an_image_of_several_lines_is_one_in_messages_and_lists(tmp_path):
    folder = make_folders(tmp_path / "in")
    (folder / "train" / "ant" / "a\nb.jpg").write_bytes(b"")
    assert "ant/a\\nb.jpg (empty)" in refusal(prepare, folder, tmp_path / "out")
    prepare(folder, tmp_path / "out", skip_broken=True)
    assert (tmp_path / "out" / "changed.txt").read_text() == "train/ant/a\\nb.jpg: skipped, empty\n"


def test_each_folder_is_walked_once(tmp_path):
    train = make_folders(tmp_path / "in", splits=["train"]) / "train"
    plain = list_images(train)
    (train / "ant" / "deep").mkdir()
    (train / "ant" / "deep" / "9.jpg").write_bytes(GOOD)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "8.jpg").write_bytes(GOOD)
    links = {"self": ".", "again": "self", "up": "..", "top": "/", "other": "../bee", "twice": "deep"}
    for name, target in {**links, "out": tmp_path / "elsewhere", "out2": tmp_path / "elsewhere"}.items():
        (train / "ant" / name).symlink_to(target)
        (train / "ant" / "deep" / name).symlink_to(train / "ant" / target)
    (tmp_path / "elsewhere" / "back").symlink_to(train / "ant")
    _, paths, labels = list_images(train)
    added = {os.path.realpath(path) for path in paths} - set(plain[1])
    assert added == {str(train / "ant" / "deep" / "9.jpg"), str(tmp_path / "elsewhere" / "8.jpg")}
    assert len(paths) == len(plain[1]) + 2 and labels == [0] * 5 + [1] * 3


def test_folders_may_lie_deeper_than_python_recurses(tmp_path):
    train = make_folders(tmp_path, splits=["train"]) / "train"
    before = os.getcwd()
    try:
        os.chdir(train / "ant")
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        open("9.jpg", "wb").close()
        os.chdir(before)
        assert len(list_images(train)[1]) == 7
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-r", train / "ant" / "d"], check=True)  # which pytest's own cleaning cannot


@pytest.mark.parametrize("name, target", [("x.jpg", "x.jpg"), ("x.jpg", "gone"), ("more", "more"), ("more", "gone")])
@pytest.mark.parametrize("where", ["ant", "."])
def test_a_link_that_leads_nowhere_is_named(tmp_path, name, target, where):
    train = make_folders(tmp_path, splits=["train"]) / "train"
    (train / where / ("." + name)).symlink_to(target)  # hidden: an editor's lock, for example
    assert len(list_images(train)[1]) == 6
    (train / where / name).symlink_to(target)
    assert f"{name} is a symbolic link that leads nowhere" in refusal(list_images, train)


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device"])
def test_an_image_is_a_regular_file(tmp_path, kind):
    train = make_folders(tmp_path, splits=["train"]) / "train"
    path = train / "bee" / "9.jpg"
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path if kind == "pipe" else tmp_path / "pipe")
        if kind != "pipe":
            path.symlink_to(tmp_path / "pipe")
    for call in (list_images, FolderImages):
        assert f"{path} is no regular file" in refusal(call, train)
    assert_refused(run_preparation(tmp_path, tmp_path / "out", "--val-share", "0.5"), "bee/9.jpg is no regular file")


def test_a_file_too_large_for_a_record_is_broken(tmp_path):
    folder = make_folders(tmp_path / "in")
    with open(folder / "val" / "ant" / "9.jpg", "wb") as file:
        file.truncate(1 << 40)
    assert "ant/9.jpg (1,099,511,627,776 bytes are too many" in refusal(prepare, folder, tmp_path / "out")


def test_a_file_too_large_for_the_memory_is_named(tmp_path):
    train = make_folders(tmp_path, splits=["train"]) / "train"
    with open(train / "ant" / "0.JPEG", "wb") as file:
        file.truncate(1 << 42)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    most = 1 << 41 if limits[1] == resource.RLIM_INFINITY else min(1 << 41, limits[1])
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))  # some machines promise any memory
    try:
        assert "ant/0.JPEG: it is too large" in refusal(FolderImages(train).encoded, [0])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def run_preparation(*arguments, **environ):
    command = [sys.executable, "-m", "data.imagenet", *arguments]
    environ = {**os.environ, **environ}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, errors="replace", timeout=120)


@pytest.mark.parametrize("images, expected", [(2, 2), (1000, 3 * data.imagenet.PER_CORE)])
def test_there_are_no_more_processes_than_images_or_the_cores_can_feed(monkeypatch, images, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    asked = []

    class Executor:
        def __init__(self, workers, *_, **__):
            asked.append(workers)
            raise KeyboardInterrupt

    monkeypatch.setattr(data.imagenet, "ProcessPoolExecutor", Executor)
    with pytest.raises(KeyboardInterrupt):
        list(data.imagenet._converted(["x"] * images, (None, 95), 100_000))
    assert asked == [expected]


def test_a_hundred_thousand_workers_are_no_more_than_needed(tmp_path):
    process = run_preparation(make_folders(tmp_path / "in"), tmp_path / "out", "--workers", "100000")
    assert (process.returncode, process.stderr) == (0, "")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@pytest.fixture
def long_preparation(tmp_path):
    """A preparation of some minutes, and its workers, once they work."""
    folder, out = make_folders(tmp_path / "in"), tmp_path / "out"
    content = encoded(smooth_image(3000, 2500), "PNG")
    first = folder / "train" / "ant" / "0.png"
    first.write_bytes(content)
    for number in range(1, 300):
        os.link(first, first.with_name(f"{number}.png"))
    command = [sys.executable, "-m", "data.imagenet", folder, out, "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert wait_until(lambda: any(path.stat().st_size for path in tmp_path.glob("out.new-*/train.rec")), 300)
    workers = children(process.pid)
    assert len(workers) == 2
    yield process, workers
    process.kill()
    process.communicate()


def test_a_preparation_that_is_killed_leaves_no_process_and_the_next_tidies_up(tmp_path, long_preparation):
    process, workers = long_preparation
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: not any(map(alive, workers)), 300)
    left = list(tmp_path.glob("out.new-*"))
    assert len(left) == 1 and not (tmp_path / "out").exists()
    prepare(make_folders(tmp_path / "other"), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "other", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("train.rec", "train.idx", "val.rec", "val.idx", "classes.txt", "changed.txt")
    }


def test_a_preparation_that_is_terminated_with_its_workers_ends_quietly(tmp_path, long_preparation):
    process, workers = long_preparation
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "") and not any(map(alive, workers))
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
OPEN = """
import json, sys
import numpy as np
from data.folders import FolderImages
from data.imagenet import open_imagenet
from data.records import Records
classes = []
for folder in sys.argv[1:]:
    dataset = open_imagenet(folder)
    path = dataset.records["train"]
    records = FolderImages(path) if path.is_dir() else Records(path)
    everything = np.arange(len(records))
    classes.append([dataset.classes, sorted(records.labels(everything).tolist()), len(records.encoded(everything))])
print(json.dumps(classes))
"""
NAMES = ["Käfer", "\udcff\udcfe", "ant", "\U0001f41d", "虫"]  # the second one is not UTF-8


@pytest.mark.parametrize("environ", [{}, ASCII], ids=["UTF-8", "ASCII"])
def test_names_may_be_of_any_bytes_in_any_locale(tmp_path, environ):
    """Read and written alike, with labels in the order of the names' bytes."""
    folder, out = make_folders(tmp_path / "ïn\udcff", classes=NAMES), tmp_path / "öut\udcfe"
    (folder / "train" / NAMES[1] / "é\udcfd.jpg").write_bytes(b"")
    refused = run_preparation(folder, out, **environ)
    assert_refused(refused, "1 broken image")
    process = run_preparation(folder, out, "--skip-broken", **environ)
    assert (process.returncode, process.stderr, process.stdout.count("\n")) == (0, "", 1)
    expected = sorted(map(os.fsencode, NAMES))
    assert (out / "classes.txt").read_bytes() == b"".join(name + b"\n" for name in expected)
    assert (out / "changed.txt").read_bytes() == b"train/\xff\xfe/\xc3\xa9\xfd.jpg: skipped, empty\n"
    by_content = {
        path.read_bytes(): expected.index(os.fsencode(path.parent.name)) for path in folder.glob("train/*/?.JPEG")
    }
    records = Records(out / "train.rec")
    for content, label in zip(records.encoded(np.arange(15)), records.labels(np.arange(15))):
        assert by_content[content.tobytes()] == label
    (folder / "train" / NAMES[1] / "é\udcfd.jpg").unlink()
    command = [sys.executable, "-c", OPEN, out, folder]
    process = subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, timeout=60)
    labels = [float(label) for label in range(5) for _ in range(3)]
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == [[5, labels, 15]] * 2


def test_a_list_of_classes_that_cannot_be_read_or_is_empty_is_named(tmp_path):
    make_records(tmp_path, (GOOD, 0))
    (tmp_path / "classes.txt").write_text("")
    assert "classes.txt is empty" in refusal(open_imagenet, tmp_path)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "classes.txt").mkdir()
    assert "cannot read" in refusal(open_imagenet, tmp_path)


ODD_EXIF = """
import io
from PIL import Image
from data.imagenet import as_jpeg
buffer = io.BytesIO()
Image.new("RGB", (32, 32)).save(buffer, "JPEG", exif=b"Exif\\0\\0II*\\0\\x08\\0\\0\\0\\x05\\0\\x12\\x01")
print(as_jpeg(buffer.getvalue())[0][:2])
"""


def test_odd_exif_data_are_nothing_to_say():
    process = subprocess.run([sys.executable, "-c", ODD_EXIF], cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (0, repr(b"\xff\xd8") + "\n", "")

"""RecordIO files: MXNet's own format, written whole or not at all, rewritten when damaged or stale."""

import json
import os
import subprocess
import sys
import tempfile

import cv2
import mxnet as mx
import numpy as np
import pytest

from base.errors import UserError
from data.records import (
    MAGIC,
    MANIFEST,
    UNFINISHED,
    Records,
    ensure_records,
    locked,
    replacement,
    write_encoded,
    write_records,
)
from tests.conftest import ROOT, assert_refused


def some_images(count=5, seed=0):
    draw = np.random.default_rng(seed)
    return [(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8), label) for label in range(count)]


def decoded(png):
    return cv2.imdecode(png, cv2.IMREAD_COLOR)[:, :, ::-1]


def test_images_and_labels_come_back_unchanged(tmp_path):
    samples = some_images()
    write_records(tmp_path / "a.rec", samples)
    records = Records(tmp_path / "a.rec")
    positions = np.array([3, 0, 4, 4])
    assert records.labels(positions).tolist() == [3, 0, 4, 4]
    for png, position in zip(records.encoded(positions), positions):
        np.testing.assert_array_equal(decoded(png), samples[position][0])


def test_mxnet_reads_what_is_written(tmp_path):
    samples = some_images()
    write_records(tmp_path / "a.rec", samples)
    reader = mx.recordio.MXIndexedRecordIO(str(tmp_path / "a.idx"), str(tmp_path / "a.rec"), "r")
    header, png = mx.recordio.unpack(reader.read_idx(2))
    assert header.label == 2
    np.testing.assert_array_equal(decoded(np.frombuffer(png, np.uint8)), samples[2][0])


def test_payloads_that_mxnet_splits_and_extra_labels_are_read(tmp_path):
    magic = np.array([MAGIC], "<u4").tobytes()
    payloads = [b"plain", magic + b"inside" + b"." * 2 + magic + magic + b"end", b"labelled" + magic]
    labels = [1.0, 2.0, [7.0, 8.0]]
    writer = mx.recordio.MXIndexedRecordIO(str(tmp_path / "a.idx"), str(tmp_path / "a.rec"), "w")
    for key, (label, payload) in enumerate(zip(labels, payloads)):
        writer.write_idx(key, mx.recordio.pack(mx.recordio.IRHeader(0, label, key, 0), payload))
    writer.close()
    records = Records(tmp_path / "a.rec")
    assert [payload.tobytes() for payload in records.encoded(np.arange(3))] == payloads
    assert records.labels(np.arange(3)).tolist() == [1.0, 2.0, 7.0]


def test_a_limit_keeps_the_first_records(tmp_path):
    write_records(tmp_path / "a.rec", some_images())
    assert len(Records(tmp_path / "a.rec", limit=2)) == 2
    assert len(Records(tmp_path / "a.rec", limit=9)) == 5


@pytest.mark.parametrize("damage", ["missing", "truncated", "no index", "foreign index", "garbage"])
def test_files_that_are_no_records_are_named(tmp_path, damage):
    rec, idx = tmp_path / "a.rec", tmp_path / "a.idx"
    write_records(rec, some_images())
    if damage == "missing":
        rec.unlink()
    elif damage == "truncated":
        rec.write_bytes(rec.read_bytes()[:-100])
    elif damage == "no index":
        idx.write_text("not an index\n")
    elif damage == "foreign index":
        idx.write_text("0\t4\n")
    else:
        rec.write_bytes(b"\x01" * rec.stat().st_size)
    with pytest.raises(UserError, match=r"a\.rec") as raised:
        records = Records(rec)
        records.encoded(np.arange(len(records)))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_cut_short_while_it_is_read_is_named(tmp_path):
    write_records(tmp_path / "a.rec", some_images())
    records = Records(tmp_path / "a.rec")
    with open(tmp_path / "a.rec", "r+b") as file:
        file.truncate(60)
    assert records.labels(np.arange(1)).tolist() == [0]
    for read in (records.labels, records.encoded):
        with pytest.raises(UserError, match=r"a\.rec ends inside the record"):
            read(np.arange(5))


def test_a_label_beyond_the_end_is_damage(tmp_path):
    write_records(tmp_path / "a.rec", some_images())
    content = bytearray((tmp_path / "a.rec").read_bytes())
    last = int((tmp_path / "a.idx").read_text().split()[-1])
    content[last + 8] = 1  # extra labels, of which there is no room for any
    (tmp_path / "a.rec").write_bytes(content[: last + 32])
    with pytest.raises(UserError, match="ends inside"):
        Records(tmp_path / "a.rec").labels(np.array([4]))


class Splits(dict):
    """Splits that count how often they are asked for."""

    def __init__(self):
        super().__init__(train=self.samples, test=self.samples)
        self.asked = 0

    def samples(self):
        self.asked += 1
        return some_images(), 5


def test_records_are_written_once(tmp_path):
    splits = Splits()
    for _ in range(3):
        paths = ensure_records(tmp_path / "set", {"version": 1}, splits)
    assert splits.asked == 2
    assert all(len(Records(path)) == 5 for path in paths.values())


@pytest.mark.parametrize(
    "change",
    ["flipped byte", "missing file", "[1", pytest.param("[" * 100_000, id="deep"), '{"files": [[1]]}', "other source"],
)
def test_damaged_or_stale_records_are_written_anew(tmp_path, change):
    splits, source = Splits(), {"version": 1}
    paths = ensure_records(tmp_path / "set", source, splits)
    good = paths["train"].read_bytes()
    if change == "flipped byte":
        paths["train"].write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    elif change == "missing file":
        paths["train"].with_suffix(".idx").unlink()
    elif change[0] in "[{":
        (tmp_path / "set" / MANIFEST).write_text(change)
    else:
        source = {"version": 2}
    ensure_records(tmp_path / "set", source, splits)
    assert splits.asked == 4
    assert paths["train"].read_bytes() == good
    assert json.loads((tmp_path / "set" / MANIFEST).read_text())["source"] == source


def test_an_interrupted_write_leaves_the_old_records_and_nothing_else(tmp_path):
    paths = ensure_records(tmp_path / "set", {"version": 1}, Splits())
    before = paths["train"].read_bytes()

    def interrupted():
        yield some_images()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_records(tmp_path / "set", {"version": 2}, {"train": lambda: (interrupted(), 5)})
    assert paths["train"].read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"set"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        ensure_records(tmp_path / "file" / "set", {}, Splits())


def test_the_bytes_are_those_of_mxnets_writer(tmp_path):
    magic = MAGIC.to_bytes(4, "little")
    payloads = [b"", b"1", b"1234", magic, magic * 3, b".." + magic, b"...." + magic + b"...", b".." + magic * 2 + b"."]
    draw = np.random.default_rng(0)
    for _ in range(200):
        pieces = [magic, magic[:2], magic[2:], b"."]
        payloads.append(b"".join(pieces[i] for i in draw.integers(0, 4, draw.integers(1, 30))))
    write_encoded(tmp_path / "a.rec", zip(payloads, range(len(payloads))))
    writer = mx.recordio.MXIndexedRecordIO(str(tmp_path / "b.idx"), str(tmp_path / "b.rec"), "w")
    for key, payload in enumerate(payloads):
        writer.write_idx(key, mx.recordio.pack(mx.recordio.IRHeader(0, key, key, 0), payload))
    writer.close()
    for suffix in (".rec", ".idx"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    read = Records(tmp_path / "a.rec").encoded(np.arange(len(payloads)))
    assert [payload.tobytes() for payload in read] == payloads


def test_a_full_disk_is_told():
    with pytest.raises(OSError, match="No space left"):
        write_encoded("/dev/full", [(b"." * 100_000, 0)] * 3)


@pytest.mark.parametrize("suffix", [".rec", ".idx"])
def test_a_pipe_is_not_waited_for(tmp_path, suffix):
    write_records(tmp_path / "a.rec", some_images())
    (tmp_path / f"a{suffix}").unlink()
    os.mkfifo(tmp_path / f"a{suffix}")
    open_records = "import sys; from data.records import Records; Records(sys.argv[1])"
    process = run_python(open_records, tmp_path / "a.rec")
    assert f"a{suffix} is no regular file" in process.stderr


def run_python(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **options)


HOLD = """
import os, sys, time
from data.records import locked
folder, rounds = sys.argv[1], int(sys.argv[2])
for _ in range(rounds):
    with locked(folder + "/set"):
        os.mkdir(folder + "/held")  # which fails where another process is in here too
        time.sleep(0.001)
        os.rmdir(folder + "/held")
"""


def test_one_process_at_a_time_holds_a_lock_and_leaves_no_file(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path, "200"]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_a_killed_process_left_is_nobodys(tmp_path):
    (tmp_path / "set.lock").touch()
    with locked(tmp_path / "set"):
        assert (tmp_path / "set.lock").exists()
    assert not list(tmp_path.iterdir())


def test_whole_records_are_read_without_a_change_to_their_folder(tmp_path):
    ensure_records(tmp_path / "set", {"version": 1}, Splits())
    os.utime(tmp_path, (0, 0))  # a change within a tick of the clock would not be seen
    ensure_records(tmp_path / "set", {"version": 1}, Splits())
    assert tmp_path.stat().st_mtime == 0


def test_what_a_link_leads_to_is_replaced_where_it_lies(tmp_path):
    (tmp_path / "disk" / "set").mkdir(parents=True)
    (tmp_path / "set").symlink_to(tmp_path / "disk" / "set")
    with replacement(tmp_path / "set") as new:
        assert new.parent == tmp_path / "disk", "and not on the link's disk"
        (new / "file").touch()
    assert (tmp_path / "set").is_symlink() and [path.name for path in (tmp_path / "set").iterdir()] == ["file"]


def test_a_mount_point_is_named_before_anything_is_written(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "set")
    with pytest.raises(UserError, match="set is a mount point: name a folder in it"), replacement(tmp_path / "set"):
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_killed_processes_left_vanishes_and_nothing_else(tmp_path):
    kept = ["set.new-mine", "set.new-december", "other.new-abcdefgh", "set.new-b.new-abcdefgh"]
    for name in ["set.new-abcdefgh", *kept]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.rec").touch()
        if name != "set.new-december":  # somebody's own, and whole
            (tmp_path / name / UNFINISHED).touch()
    with replacement(tmp_path / "set") as new:
        (new / "file").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"set", *kept}
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["file"]


def test_a_folder_without_the_right_to_write_is_named_in_one_line():
    code = "import sys; from data.digits import open_digits; from base.errors import run_command\n"
    code += "import sklearn.datasets, sklearn.model_selection\nrun_command(lambda: open_digits(sys.argv[1]))"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o555)
        # another user may not be let into the checkout, where the installed packages' names and versions are read
        code = "import os, data.digits\ndata.digits.version = lambda package: '1'\n" + code
        if os.geteuid() == 0:  # who may write anywhere
            code = code.replace("run_command(lambda", "os.setuid(65534)\nrun_command(lambda", 1)
        process = run_python(code, folder)
        assert not os.listdir(folder)
    assert_refused(process, "cannot write the records", "Permission denied")


def test_what_is_not_its_own_is_left_in_a_folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "mine.csv").write_text("mine")
    with pytest.raises(UserError, match="set holds mine.csv, which is none of its own"):
        ensure_records(folder, {"of": 1}, {"train": lambda: (some_images(), 5)})
    (folder / "mine.csv").rename(tmp_path / "mine.csv")
    ensure_records(folder, {"of": 1}, {"train": lambda: (some_images(), 5)})
    with pytest.raises(UserError, match="holds late.txt"), replacement(folder, [MANIFEST, "train.rec", "train.idx"]):
        (folder / "late.txt").write_text("mine")
    assert (folder / "late.txt").read_text() == "mine" and len(Records(folder / "train.rec")) == 5


def test_of_a_shortened_index_no_more_than_the_image_is_read(tmp_path, monkeypatch):
    write_records(tmp_path / "a.rec", some_images(50))
    lines = (tmp_path / "a.idx").read_text().splitlines(keepends=True)
    (tmp_path / "a.idx").write_text("".join(lines[:2]))
    sizes, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: sizes.append(size) or pread(file, size, offset))
    np.testing.assert_array_equal(decoded(Records(tmp_path / "a.rec").encoded([1])[0]), some_images()[1][0])
    assert max(sizes) < 400 < (tmp_path / "a.rec").stat().st_size

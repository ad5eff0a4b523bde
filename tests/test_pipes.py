"""A pipe or a device in the place of a file is not waited for, and not read for ever."""

import os
import resource
import signal
from pathlib import Path

import pytest

from base.errors import UserError
from base.files import file_digest, open_regular
from data.imagenet import open_imagenet
from data.records import ensure_records
from scripts.experiments import finished
from scripts.plot_curves import read_figures
from tests.test_records import Splits
from training.run.checkpoint import Checkpoint
from training.run.files import new_run
from training.run.resume import Resumed


@pytest.fixture(autouse=True)
def impatient():
    """A test that waits, or takes a gigabyte, fails."""

    def give_up(*_):
        raise AssertionError("it waits")

    before, limits = signal.signal(signal.SIGALRM, give_up), resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, limits[1]))
    signal.alarm(60)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["pipe", "device", "folder"])
def strange(request):
    """Puts something strange at a path."""

    def put(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[request.param](
            path
        )
        return path

    return put


def test_only_regular_files_are_opened(tmp_path, strange):
    for read in (open_regular, file_digest):
        with pytest.raises(OSError, match="it is no regular file"):
            read(strange(tmp_path / read.__name__))
    (tmp_path / "file").write_bytes(b"content")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"content"


def test_rows_are_a_regular_file(tmp_path, strange):
    with pytest.raises(UserError, match="is no CSV of a run: .*it is no regular file"):
        read_figures(strange(tmp_path / "run.csv"))
    strange(tmp_path / "text" / "trial.csv")
    assert finished("trial", 3, tmp_path) is None


def test_manifests_are_regular_files(tmp_path, strange):
    strange(tmp_path / "checkpoint-000001" / "manifest.json")
    with pytest.raises(ValueError, match="it is no regular file"):
        Checkpoint(tmp_path / "checkpoint-000001")
    strange(tmp_path / "set" / "manifest.json")
    assert all(path.is_file() for path in ensure_records(tmp_path / "set", {"version": 1}, Splits()).values())


def test_a_list_of_classes_is_a_regular_file(tmp_path, strange):
    strange(tmp_path / "classes.txt")
    (tmp_path / "train.rec").touch()
    with pytest.raises(UserError, match="cannot read .*classes.txt: it is no regular file"):
        open_imagenet(tmp_path)


def test_a_text_log_that_is_none_has_no_last_line(tmp_path, strange):
    with new_run(tmp_path, "run", "stem") as files:
        files.log.unlink()
        strange(files.log)
        resumed = object.__new__(Resumed)
        resumed.files, resumed.written = files, type("Written", (), {"sizes": {}})
        assert resumed.last_line() is None

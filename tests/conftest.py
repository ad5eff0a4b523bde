"""What every test needs: the same surroundings wherever it is started, MXNet as the scripts set it up, data to read."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from base.runtime import prepare_mxnet

prepare_mxnet()  # before any test module imports MXNet

# A script's job in the background begins with Ctrl-C ignored, and nohup's with SIGHUP; what the tests start would
# inherit that. A handler, even one that does nothing, is not inherited.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda *_: None)
signal.pthread_sigmask(signal.SIG_SETMASK, ())

ROOT = Path(__file__).parent.parent


def shared_data_set(name):
    """The path of something in the folder of real data sets; skips the test where it is missing."""
    path = Path(os.environ.get("RAN_DATASETS", ROOT.parent / "shared" / "datasets")) / name
    if not path.exists():
        pytest.skip(f"no real images: {path} does not exist (set RAN_DATASETS)")
    return path


def run_script(script, *flags, **options):
    """Run a script from the repository's root; returns the finished process."""
    command = [sys.executable, script, *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def wait_until(condition, seconds=120):
    """Wait until ``condition()`` is true, or for a time that is long even on a busy machine. Returns whether it is."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def assert_refused(process, *words):
    """A finished process said in one line what is wrong, with these words in it."""
    assert process.returncode == 2, process.stdout + process.stderr
    assert process.stderr.count("\n") == 1 and all(word in process.stderr for word in words), process.stderr


@pytest.fixture(scope="session")
def real_images(tmp_path_factory):
    """A folder with 500 + 100 real CIFAR-10 images in the official binary layout."""
    maker = shared_data_set("make_cifar10_bin.py")
    folder = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, maker, folder, "--train", "500", "--test", "100"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """200 ImageNet photographs, one in each of 200 class folders."""
    folder = tmp_path_factory.mktemp("photographs")
    with tarfile.open(shared_data_set("imagenet-sample-200.tar")) as tar:
        tar.extractall(folder)
    return folder / "imagenet-sample-200"


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The digits data set, written once for all tests."""
    from data.digits import open_digits

    return open_digits(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def numbered(tmp_path):
    """Makes a `Dataset` whose image number i is one flat colour that says i, so that batches can be told apart."""
    from data.dataset import Dataset
    from data.records import write_records

    def make(count, size=32, mirror=True):
        images = (np.full((size, size, 3), (i % 250 + 5, i // 250, 0), np.uint8) for i in range(count))
        write_records(tmp_path / "numbered.rec", zip(images, range(count)))
        records = dict.fromkeys(("train", "test"), tmp_path / "numbered.rec")
        return Dataset("numbered", count, records, size, (0.0,) * 3, (1.0,) * 3, mirror)

    return make

"""What every test needs: MXNet set up as the scripts do it, and data to read."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.runtime import prepare_mxnet

prepare_mxnet()  # before any test module imports MXNet

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_images(tmp_path_factory):
    """A folder with 500 + 100 real CIFAR-10 images in the official binary layout."""
    datasets = Path(os.environ.get("RAN_DATASETS", ROOT.parent / "shared" / "datasets"))
    maker = datasets / "make_cifar10_bin.py"
    if not maker.exists():
        pytest.skip(f"no real images: {maker} does not exist (set RAN_DATASETS)")
    folder = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, maker, folder, "--train", "500", "--test", "100"], check=True, capture_output=True)
    return folder


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

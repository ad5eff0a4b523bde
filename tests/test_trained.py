"""The trained networks that the repository holds: found by their short names, and as good as they are said to be."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from base.errors import UserError
from scripts import pack_network
from tests.conftest import ROOT, run_module, run_script, shared_data_set
from training import trained
from training.network_file import describe, load_network, make_network, read_description
from training.run.exports import Exports
from training.trained import DEFAULT, params_path


@pytest.fixture
def packed(tmp_path, monkeypatch, digits):
    """A network, packed under the name "mine" into a folder of its own."""
    monkeypatch.setattr(trained, "TRAINED", tmp_path / "trained")
    (tmp_path / "run").mkdir()
    description = describe(digits, "resnet", 20, "bottleneck")
    net = make_network(description)
    net.initialize(mx.init.Xavier())
    Exports(tmp_path / "run", 0, description).save(net, 3, 1, 0.5)
    flags = ["--params", str(tmp_path / "run" / "last.params"), "--name", "mine", "--accuracy", "0.25"]
    monkeypatch.setattr("sys.argv", ["pack_network", *flags])
    pack_network.main()
    return net


def test_a_short_name_is_the_file_of_that_network(packed, tmp_path, monkeypatch):
    path = tmp_path / "trained" / "mine" / "mine.params"
    assert params_path("mine") == str(path)
    assert params_path("other") == "other"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_bytes(b"")
    assert params_path("mine") == "mine", "a file of that name goes first"


def test_a_packed_network_is_the_network_in_half_precision(packed):
    again, description = load_network(params_path("mine"))
    assert (description.epoch, description.accuracy) == (3, 0.25)
    images = mx.nd.random.normal(shape=(4, 3, 32, 32))
    np.testing.assert_allclose(again(images).asnumpy(), packed(images).asnumpy(), rtol=0.05, atol=0.01)
    for name, array in again._collect_params_with_prefix().items():
        original, array = packed._collect_params_with_prefix()[name].data().asnumpy(), array.data().asnumpy()
        expected = original.astype("float16").astype("float32") if original.ndim > 1 else original
        np.testing.assert_array_equal(array, expected)


def test_a_packed_network_has_a_checksum(packed):
    with open(params_path("mine"), "r+b") as file:
        file.seek(-200, 2)
        file.write(b"x")
    with pytest.raises(UserError, match="damaged"):
        read_description(params_path("mine"))


def test_numbers_beyond_half_precision_are_refused(packed, tmp_path, monkeypatch):
    packed.output.weight.set_data(1e6 * mx.nd.ones_like(packed.output.weight.data()))
    description = read_description(params_path("mine"))
    Exports(tmp_path / "run", 0, description).save(packed, 4, 4, 0.5)
    flags = ["--params", str(tmp_path / "run" / "last.params"), "--name", "other"]
    monkeypatch.setattr("sys.argv", ["pack_network", *flags])
    with pytest.raises(UserError, match="half precision does not hold the numbers of output"):
        pack_network.main()
    assert not (tmp_path / "trained" / "other").exists()


def test_a_network_of_which_no_epoch_is_known_is_refused(packed, tmp_path, monkeypatch):
    packed.initialize(mx.init.Xavier(), force_reinit=True)
    packed.save_parameters(str(tmp_path / "run" / "mine.params"))
    flags = ["--params", str(tmp_path / "run" / "mine.params"), "--name", "other"]
    monkeypatch.setattr("sys.argv", ["pack_network", *flags])
    with pytest.raises(UserError, match="does not say which epoch"):
        pack_network.main()
    assert not (tmp_path / "trained" / "other").exists()


def test_another_network_does_not_take_a_name(packed, tmp_path, monkeypatch, digits):
    before = [path.read_bytes() for path in sorted((tmp_path / "trained" / "mine").iterdir())]
    other = describe(digits._replace(class_names="abcdefghij"), "resnet", 20, "bottleneck")
    (tmp_path / "other").mkdir()
    Exports(tmp_path / "other", 0, other).save(packed, 1, 1, 0.5)
    monkeypatch.setattr("sys.argv", ["pack_network", "--params", str(tmp_path / "other/last.params"), "--name", "mine"])
    with pytest.raises(UserError, match="mine holds another network"):
        pack_network.main()
    assert before == [path.read_bytes() for path in sorted((tmp_path / "trained" / "mine").iterdir())]


@pytest.mark.parametrize("name", ["../up", "Upper", ""])
def test_a_short_name_is_a_folders(name):
    with pytest.raises(argparse.ArgumentTypeError, match="small letters"):
        pack_network.short_name(name)


# The network in the box


def test_it_is_said_by_its_file_what_it_is():
    description = read_description(params_path(DEFAULT))
    assert (description.family, description.depth, description.dataset) == ("cifar", 56, "cifar10")
    assert trained.trained_params(DEFAULT).stat().st_size < 16e6


def test_it_names_what_is_drawn():
    process = run_module("scripts.predict", "docs/pictures", "--json", "--top", 1)  # with no --params
    assert process.returncode == 0, process.stderr
    found = {}
    for line in map(json.loads, process.stdout.splitlines()):
        (guess,) = line["predictions"]
        found[Path(line["path"]).stem] = guess["class"]
    assert found == {name: name for name in ("airplane", "automobile", "frog", "ship", "truck")}


def test_it_is_as_good_as_it_is_said_to_be(tmp_path):
    sets, maker = tmp_path / "sets", shared_data_set("make_cifar10_bin.py")
    fetched = ROOT / "data/sets/cifar-10-batches-bin"
    if fetched.exists() and (fetched / "test_batch.bin").stat().st_size >= 1000 * 3073:
        sets.mkdir()
        (sets / fetched.name).symlink_to(fetched)
    elif maker:
        command = [sys.executable, maker, sets, "--train", "100", "--test", "1000"]
        subprocess.run(command, check=True, capture_output=True)
    else:
        pytest.skip("CIFAR-10 is not in data/sets, where a training fetches it to")
    flags = ("--eval-only", "--params", DEFAULT, "--data-dir", sets, "--limit", 1000, "--out", tmp_path)
    process = run_script("cifar10_train.py", *flags)
    assert process.returncode == 0, process.stderr
    accuracy = float(re.search(r"accuracy ([\d.]+)", process.stdout)[1])
    assert accuracy == pytest.approx(read_description(params_path(DEFAULT)).accuracy, abs=0.03)

"""The trained networks that the repository holds: found by their short names, and as good as they are said to be."""

import mxnet as mx
import numpy as np
import pytest

from base.errors import UserError
from scripts import pack_network
from training import trained
from training.network_file import describe, load_network, make_network, read_description
from training.run.exports import Exports
from training.trained import params_path


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


def test_a_network_of_which_no_epoch_is_known_is_refused(packed, tmp_path, monkeypatch):
    packed.initialize(mx.init.Xavier(), force_reinit=True)
    packed.save_parameters(str(tmp_path / "run" / "mine.params"))
    flags = ["--params", str(tmp_path / "run" / "mine.params"), "--name", "other"]
    monkeypatch.setattr("sys.argv", ["pack_network", *flags])
    with pytest.raises(UserError, match="does not say which epoch"):
        pack_network.main()
    assert not (tmp_path / "trained" / "other").exists()


@pytest.mark.parametrize("name", ["../up", "Upper", ""])
def test_a_short_name_is_a_folders(name):
    with pytest.raises(ValueError):
        pack_network.short_name(name)

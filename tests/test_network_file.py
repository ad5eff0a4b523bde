"""network.json: what parameters are of, as it is written and read."""

import dataclasses
import json
import re

import mxnet as mx
import numpy as np
import pytest

from base.errors import UserError
from model import units
from model.attention import AttentionModule, LocalMask, attentions, learnings
from training.commands import network_fields
from training.flags import parse_arguments, training_parser
from training.network_file import (
    FAMILIES,
    NETWORK_FILE,
    check_depth,
    describe,
    load_network,
    make_network,
    read_description,
    read_parameters,
)
from training.run.exports import Exports


@pytest.fixture(scope="module")
def written(new_folder, digits):
    """A folder with the parameters of two epochs as a training writes them, and the network they are of."""
    folder = new_folder("run")
    description = describe(digits, "cifar", 56, "bottleneck")
    net = make_network(description)
    net.initialize(mx.init.Xavier())
    exports = Exports(folder, 1, description)
    exports.save(net, 1, 1, 0.25)
    net.output.bias.set_data(mx.nd.arange(10))
    exports.save(net, 2, 1, 0.125)
    return folder, net


@pytest.fixture
def folder(written, tmp_path):
    """A copy of that folder's last.params and network.json."""
    for name in ("last.params", NETWORK_FILE):
        (tmp_path / name).write_bytes((written[0] / name).read_bytes())
    return tmp_path


def test_each_file_says_what_it_is_and_how_good(written):
    folder, _ = written
    for name, expected in {"best": (1, 0.25), "last": (2, 0.125), "epoch-0001": (1, 0.25)}.items():
        description = read_description(folder / f"{name}.params")
        assert (description.epoch, description.accuracy) == expected
    assert (description.family, description.depth, description.unit) == ("cifar", 56, "bottleneck")
    assert (description.dataset, description.classes, description.input_size) == ("digits", tuple("0123456789"), 32)
    assert (description.mean, description.std, description.crop_ratio) == ((77.9,) * 3, (82.5,) * 3, 1.0)


@pytest.mark.parametrize("family", ["cifar", "imagenet"])
@pytest.mark.parametrize("unit", units)
def test_a_network_is_what_the_flags_say(digits, family, unit):
    flags = ["--attention", "spatial", "--learning", "naive", "--mask", "local", "--modules", "2,1,1", "--unit", unit]
    args = parse_arguments(training_parser("", datasets=["digits"]), flags)
    net = make_network(describe(digits, family, 56, **network_fields(args)))
    modules = [block for block in net.features if isinstance(block, AttentionModule)]
    assert len(modules) == 4 and type(net) is FAMILIES[family].network
    for module in modules:
        assert module.learning is learnings["naive"]
        assert module.mask.attention is attentions["spatial"] and type(module.mask.hourglass) is LocalMask
        for part in (module.before, module.trunk, module.after, module.mask.hourglass.down):
            assert {type(block) for block in part} == {units[unit]}


def test_bfloat16_numbers_are_refused(folder):
    arrays = mx.nd.load(str(folder / "last.params"))
    kind = np.dtype([("bfloat16", np.uint16)])
    arrays["output.weight"] = mx.nd.amp_cast(arrays["output.weight"], dtype=kind)
    mx.nd.save(str(folder / "last.params"), arrays)
    with pytest.raises(UserError, match="cannot read .*last.params"):
        read_parameters(folder / "last.params")


def test_the_network_comes_back_with_its_parameters(written):
    folder, net = written
    again, _ = load_network(folder / "last.params")
    images = mx.nd.random.normal(shape=(2, 3, 32, 32))
    np.testing.assert_array_equal(again(images).asnumpy(), net(images).asnumpy())


def test_a_copy_under_another_name_keeps_its_figures(folder):
    (folder / "last.params").rename(folder / "mine.params")
    assert read_description(folder / "mine.params").epoch == 2


def test_killed_between_the_two_files_either_is_described(folder, digits, monkeypatch):
    net = make_network(describe(digits, "cifar", 56, "bottleneck"))
    net.initialize(mx.init.Zero())

    def killed(path, source):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.run.exports.write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        Exports(folder, 0, read_description(folder / "last.params")).save(net, 3, 1, 0.5)
    assert read_description(folder / "last.params").epoch == 2  # still the old one
    net.save_parameters(str(folder / "last.params"))
    assert read_description(folder / "last.params").epoch == 3


def assert_refused(path, *words):
    with pytest.raises(UserError, match=".*".join(map(re.escape, words))) as raised:
        load_network(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [{"family": "vgg"}, {"depth": 57}, {"depth": "56"}, {"unit": []}, {"classes": []}, {"classes": [1]},
     {"classes": ["a\nb"]}, {"input_size": 33}, {"input_size": True}, {"mean": [1, 2]}, {"std": [1, 0, 1]},
     {"std": [1, 1, float("nan")]}, {"crop_ratio": 0}, {"dataset": None}, {"more": 1}],
    ids=str,
)  # fmt: skip
def test_a_field_that_cannot_be_is_refused(folder, change):
    content = json.loads((folder / NETWORK_FILE).read_text())
    content["network"].update(change)
    (folder / NETWORK_FILE).write_text(json.dumps(content))
    assert_refused(folder / "last.params", NETWORK_FILE, "is damaged", next(iter(change)))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "1", '{"format": 2}', "[" * 100_000, '{"format": 1, "network": [], "files": []}',
             '{"format": 1, "network": {}, "files": []}', '{"format": 1, "network": {}, "files": [1]}'],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_damaged_network_file_is_refused(folder, text):
    (folder / NETWORK_FILE).write_text(text)
    assert_refused(folder / "last.params", NETWORK_FILE, "is damaged")


def test_a_missing_file_is_refused_by_name(folder):
    assert_refused(folder / "none.params", "none.params", "No such file")
    (folder / NETWORK_FILE).unlink()
    assert_refused(folder / "last.params", NETWORK_FILE, "is missing")


def test_parameters_that_are_not_finite_are_refused_by_name(folder):
    path = folder / "other.params"  # of which network.json knows no checksum
    arrays = mx.nd.load(str(folder / "last.params"))
    arrays["output.weight"][3, 5] = np.nan
    mx.nd.save(str(path), arrays)
    assert_refused(path, "other.params", "output.weight is not finite")


def test_changed_bytes_are_found(folder):
    path = folder / "last.params"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert_refused(path, "last.params", "is damaged or was replaced")
    path.write_bytes(content[: len(content) // 2])
    assert_refused(path, "last.params")


@pytest.mark.parametrize("change, words", [({"depth": 92}, "alone"), ({"classes": ["a", "b"]}, "output.weight")])
def test_parameters_of_another_network_are_refused(folder, change, words):
    content = json.loads((folder / NETWORK_FILE).read_text())
    content["network"].update(change)
    (folder / NETWORK_FILE).write_text(json.dumps(content))
    assert_refused(folder / "last.params", "is not of this network", words)


@pytest.mark.parametrize(
    "family, depth, fields",
    [
        ("cifar", 56, {"unit": "bottleneck", "modules": (1, 1, 1), "attention": "spatial", "learning": "naive"}),
        ("cifar", 56, {"unit": "bottleneck", "mask": "none"}),
        ("resnet", 11, {"unit": "bottleneck"}),
    ],
)
def test_variants_are_built_anew_from_their_file(digits, tmp_path, family, depth, fields):
    description = describe(digits, family, depth, **fields)
    net = make_network(description)
    net.initialize(mx.init.Xavier())
    Exports(tmp_path, 0, description).save(net, 1, 1, 0.5)
    loaded, found = load_network(tmp_path / "best.params")
    assert found == dataclasses.replace(description, epoch=1, accuracy=0.5)
    images = mx.nd.random.normal(shape=(2, 3, 32, 32))
    np.testing.assert_array_equal(loaded(images).asnumpy(), make_same(net, description)(images).asnumpy())


def make_same(net, description):
    """A network of a description with another's parameters, in the form in which `load_network` gives it."""
    same = make_network(description)
    same.initialize(mx.init.Zero())
    for source, target in zip(net.collect_params().values(), same.collect_params().values()):
        target.set_data(source.data())
    return same


@pytest.mark.parametrize("family, depth", [("cifar", 57), ("imagenet", 164 + 1), ("resnet", 56 + 1), ("resnet", 2)])
def test_depths_that_there_are_not_are_refused(family, depth):
    with pytest.raises(UserError, match=f"--num-layers {depth}: choose one of"):
        check_depth(family, depth)

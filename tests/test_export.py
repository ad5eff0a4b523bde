"""Networks in other programs' formats give what they give in Gluon, on photographs."""

import dataclasses
import json
import os
import re
import sys

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.gluon import SymbolBlock, nn

from base.errors import UserError
from data.views import list_pictures, normalized, read_view
from model.plain import make_plain
from scripts import export
from tests.conftest import assert_refused, run_module
from training.interchange import needed, onnx_model, write_onnx
from training.network_file import NetworkDescription, load_network, make_network, read_description
from training.run.exports import Exports

onnx = pytest.importorskip("onnx", reason="onnx is not installed: requirements-export.txt")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: requirements-export.txt")
safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed: requirements-export.txt")

SMALL = NetworkDescription(
    "cifar", 56, "bottleneck", tuple("abcde"), 32, (123.0, 117.0, 104.0), (58.0, 57.0, 57.0), 0.875, "some photographs"
)
LARGE = dataclasses.replace(SMALL, family="imagenet", input_size=224)
NETWORKS = [
    SMALL,
    *[dataclasses.replace(SMALL, unit=unit) for unit in ("resnext", "inception", "se")],
    *[dataclasses.replace(SMALL, attention=attention) for attention in ("channel", "spatial")],
    *[dataclasses.replace(SMALL, mask=mask) for mask in ("local", "none")],
    dataclasses.replace(SMALL, learning="naive"),
    dataclasses.replace(SMALL, modules=(1, 2, 1)),
    dataclasses.replace(SMALL, family="resnet", depth=11),
    dataclasses.replace(SMALL, input_size=40),  # maps of 5 pixels, of which pooling's windows hang over the edge
    *[dataclasses.replace(LARGE, unit=unit) for unit in ("bottleneck", "resnext", "inception", "se")],
]


def called(description):
    changed = {
        field: value
        for field, value in dataclasses.asdict(description).items()
        if value != dataclasses.asdict(SMALL)[field]
    }
    return str(changed)


def settled(description, images):
    """An initialized network whose batch normalization has the statistics of some images, as after a training."""
    net = make_network(description)
    mx.random.seed(3)
    net.initialize(mx.init.MSRAPrelu(factor_type="in", slope=0))
    for name, least in {"gamma": 0.5, "beta": -0.5}.items():  # all alike in a new network, which would hide mistakes
        for parameter in net.collect_params(f".*{name}").values():
            parameter.set_data(mx.nd.random.uniform(least, least + 1, shape=parameter.shape))

    def forget(block):
        if isinstance(block, nn.BatchNorm):
            block._kwargs["momentum"] = 0

    net.apply(forget)
    with autograd.record():
        logits = net(images)
    logits.backward()  # which is when the statistics are written
    mx.nd.waitall()
    return net


def network_images(photographs, description, count):
    """Photographs as a network's input: NDArray (count, 3, H, W)."""
    paths = list_pictures([photographs])[:count]
    views = [read_view(path, description.input_size, description.crop_ratio) for path in paths]
    return mx.nd.array(normalized(np.stack(views), description.mean, description.std))


def run_onnx(content, images):
    """The outputs of an ONNX model, as bytes or a path, for an array of images."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"data": images.asnumpy()})
    return logits


@pytest.fixture(scope="module")
def exported(tmp_path_factory, photographs):
    """A folder that the command has written, the .params file it was of, and images."""
    params, out = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("exported") / "new" / "folder"
    images = network_images(photographs, SMALL, 6)
    Exports(params, 0, SMALL).save(settled(SMALL, images), 3, 3, 0.5)
    process = run_module("scripts.export", "--params", params / "best.params", "--out", out, "--onnx", "--speed", 1)
    assert (process.returncode, process.stderr) == (0, "")
    *paths, one, many = process.stdout.splitlines()
    names = ["network.json", "best-symbol.json", "best-0000.params", "best.safetensors", "best.onnx"]
    assert paths == [str(out / name) for name in names]
    for line, batch in {one: 1, many: 32}.items():
        assert re.fullmatch(rf"batch {batch}: Gluon [\d.]+ images/s, onnxruntime [\d.]+ images/s", line)
    return out, params / "best.params", images


@pytest.mark.parametrize("description", NETWORKS, ids=called)
def test_onnx_agrees_with_gluon_at_every_batch_size(description, photographs):
    images = network_images(photographs, description, 6 if description.input_size < 100 else 3)
    net = settled(description, images)
    expected = net(images).asnumpy()
    assert expected.std(axis=0).min() > 0.01  # images are told apart
    content = onnx_model(make_plain(net), description).SerializeToString()
    for batch in (len(images), 1):
        np.testing.assert_allclose(run_onnx(content, images[:batch]), expected[:batch], atol=1e-4, rtol=1e-4)


def test_every_format_agrees_with_the_network_of_the_command(exported):
    out, params, images = exported
    net, _ = load_network(params)
    expected = net(images).asnumpy()
    block = SymbolBlock.imports(str(out / "best-symbol.json"), ["data"], str(out / "best-0000.params"))
    np.testing.assert_allclose(block(images).asnumpy(), expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(run_onnx(str(out / "best.onnx"), images), expected, atol=1e-4, rtol=0)
    arrays = needed("safetensors.numpy").load_file(out / "best.safetensors")
    saved = mx.nd.load(str(params))
    assert arrays.keys() == saved.keys()
    assert all((arrays[name] == saved[name].asnumpy()).all() for name in saved)


def test_the_files_say_what_they_are_of(exported):
    out, params, _ = exported
    assert (out / "network.json").read_bytes() == params.with_name("network.json").read_bytes()
    model = onnx.load(out / "best.onnx")
    with safetensors.safe_open(out / "best.safetensors", "numpy") as file:
        metadata = [file.metadata()["network"], {prop.key: prop.value for prop in model.metadata_props}["network"]]
    expected = dataclasses.asdict(read_description(params))
    assert expected["accuracy"] == 0.5 and expected["epoch"] == 3
    assert [json.loads(text) for text in metadata] == [json.loads(json.dumps(expected))] * 2
    (images,), (logits,) = model.graph.input, model.graph.output
    shapes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in (images, logits)
    ]
    assert shapes == [["batch", 3, 32, 32], ["batch", 5]]


def test_what_cannot_be_exported_is_refused_in_one_line(exported, tmp_path):
    _, params, _ = exported
    assert_refused(run_module("scripts.export", "--params", tmp_path / "no.params", "--out", tmp_path), "no.params")
    assert_refused(run_module("scripts.export", "--params", params, "--out", tmp_path, "--speed", 2), "--onnx")
    (tmp_path / "file").write_text("")
    assert_refused(run_module("scripts.export", "--params", params, "--out", tmp_path / "file"), "cannot write")
    other = dataclasses.replace(SMALL, family="resnet", depth=11)
    net = make_network(other)
    net.initialize()
    Exports(tmp_path, 0, other).save(net, 1, 1, 0.1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    process = run_module("scripts.export", "--params", params, "--out", tmp_path)
    assert_refused(process, "network.json is what", "choose another folder")
    (tmp_path / "best.params").unlink()
    (tmp_path / "last.params").rename(tmp_path / "last-symbol.json")  # as an export of that network has left it
    assert_refused(run_module("scripts.export", "--params", params, "--out", tmp_path), "is what last-symbol.json")
    (tmp_path / "last-symbol.json").rename(tmp_path / "last.params")
    (tmp_path / "best.params").write_bytes(before["best.params"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_missing_package_names_the_file_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="onnx is not installed: .*requirements-export.txt"):
        needed("onnx")
    monkeypatch.setattr(sys, "argv", ["export", "--params", "no.params", "--out", str(tmp_path / "out"), "--onnx"])
    with pytest.raises(UserError, match="onnx is not installed"):
        export.main()
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_half_of_a_file(tmp_path):
    net = make_plain(make_network(dataclasses.replace(SMALL, family="resnet", depth=11)))
    net.initialize()
    (tmp_path / f"a.onnx.{os.getpid()}.new").symlink_to("/dev/full")
    with pytest.raises(UserError, match="cannot write .*a.onnx"):
        write_onnx(net, SMALL, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []

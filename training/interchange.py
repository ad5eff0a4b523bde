"""A trained network in the formats of other programs: MXNet's symbol with its parameters, safetensors, ONNX.

What the network is, its `training.network_file.NetworkDescription` as JSON, is in the metadata of the latter two under
``network``. All of them hold the network's straightforward form, of MXNet's own operators.
"""

import dataclasses
import functools
import importlib
import io
import json

import mxnet as mx
import numpy as np

from base.errors import UserError
from base.files import write_whole
from training.params_format import saved_in_memory

__all__ = ["ONNX_OPSET", "REQUIREMENTS", "needed", "onnx_model", "write_onnx", "write_safetensors", "write_symbol"]

REQUIREMENTS = "requirements-export.txt"
ONNX_OPSET = 13  # the newest that MXNet 1.9.1 has converters for; every onnxruntime since 2020 reads it
LARGEST_MESSAGE = 2**31 - 1  # bytes that protobuf writes


def needed(package):
    """A package of requirements-export.txt, imported. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        top = package.partition(".")[0]
        raise UserError(f"{top} is not installed: python3 -m pip install -r {REQUIREMENTS}") from None


def write_symbol(net, stem):
    """Write STEM-symbol.json and STEM-0000.params, which ``mxnet.gluon.SymbolBlock.imports`` reads.

    Parameters
    ----------
    net : HybridBlock
        With its parameters, as `model.plain.make_plain` returns it.
    stem : pathlib.Path
        Of both paths.

    Returns the two paths. Raises UserError where they cannot be written.
    """
    symbol = net(mx.sym.var("data"))
    kinds = dict.fromkeys(symbol.list_arguments(), "arg") | dict.fromkeys(symbol.list_auxiliary_states(), "aux")
    arrays = {f"{kinds[name]}:{name}": array for name, array in _arrays(net).items()}
    paths = stem.with_name(f"{stem.name}-symbol.json"), stem.with_name(f"{stem.name}-0000.params")
    write_whole(paths[0], io.BytesIO(symbol.tojson().encode()))
    with saved_in_memory(arrays) as memory:
        write_whole(paths[1], memory)
    return paths


def write_safetensors(net, description, path):
    """Write a network's parameters, by the names that .params files have for them, as safetensors.

    Raises UserError where the package is not installed and where the file cannot be written.
    """
    arrays = {name: parameter.data().asnumpy() for name, parameter in net._collect_params_with_prefix().items()}
    content = needed("safetensors.numpy").save(arrays, metadata={"network": _as_json(description)})
    write_whole(path, io.BytesIO(content))


def write_onnx(net, description, path):
    """Write what `onnx_model` returns. Raises UserError as it does, and where the file cannot be written."""
    write_whole(path, io.BytesIO(onnx_model(net, description).SerializeToString()))


def onnx_model(net, description):
    """A network as an onnx.ModelProto, ``data`` (batch, 3, input size, input size) to ``logits`` (batch, classes).

    MXNet's exporter makes it, in opset 13. Its export_model is passed by: it always writes the newest opset that the
    onnx package knows, with converters of opset 13.

    Parameters
    ----------
    net : HybridBlock
        With its parameters, as `model.plain.make_plain` returns it.
    description : training.network_file.NetworkDescription

    Raises UserError where a package is not installed, and for a network of more than 2 GB.
    """
    onnx = needed("onnx")
    from mxnet.onnx.mx2onnx._export_onnx import MXNetGraph

    for operator, convert in CONVERTERS.items():
        MXNetGraph.register(operator, ONNX_OPSET)(functools.partial(convert, onnx))
    symbol = mx.sym.identity(net(mx.sym.var("data")), name="logits")
    size, float32 = description.input_size, onnx.TensorProto.FLOAT
    graph = MXNetGraph().create_onnx_graph_proto(
        symbol,
        _arrays(net),
        in_shapes=[(1, 3, size, size)],
        in_types=[float32],
        opset_version=ONNX_OPSET,
        dynamic=True,
        dynamic_input_shapes=[("batch", 3, size, size)],
    )
    # The exporter names parameters as inputs too, which would keep a runtime from folding them into each other.
    images = [value for value in graph.input if value.name == "data"]
    logits = onnx.helper.make_tensor_value_info("logits", float32, ("batch", len(description.classes)))
    graph.ClearField("input")
    graph.ClearField("output")
    graph.input.extend(images)
    graph.output.append(logits)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", ONNX_OPSET)], ir_version=8)
    onnx.helper.set_model_props(model, {"network": _as_json(description)})
    if model.ByteSize() > LARGEST_MESSAGE:
        raise UserError("the network is too large for one ONNX file: it may have 2 GB")
    onnx.checker.check_model(model, full_check=True)
    return model


def convert_variable(onnx, node, **graph):
    """An input or a parameter. The exporter's own makes a Python list of a parameter's numbers."""
    name = node["name"]
    if graph["is_input"]:
        return [onnx.helper.make_tensor_value_info(name, graph["in_type"], graph["in_shape"])], (np.float32,)
    values = graph["weights"][name]
    graph["initializer"].append(onnx.numpy_helper.from_array(values, name))
    return [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, values.shape)], (values.dtype,)


def convert_resize(onnx, node, **graph):
    """Interpolation of one map to another's height and width. The exporter has none."""
    name, (x, like) = node["name"], _inputs(node, graph)
    first, middle, last = bounds = [f"{name}_{bound}" for bound in (0, 2, 4)]
    graph["initializer"].extend(
        onnx.numpy_helper.from_array(np.array([value], np.int64), bound) for value, bound in zip((0, 2, 4), bounds)
    )
    make_node = onnx.helper.make_node
    coordinates = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    return [
        make_node("Shape", [x], [f"{name}_shape"]),
        make_node("Slice", [f"{name}_shape", first, middle], [f"{name}_maps"]),
        make_node("Shape", [like], [f"{name}_like"]),
        make_node("Slice", [f"{name}_like", middle, last], [f"{name}_size"]),
        make_node("Concat", [f"{name}_maps", f"{name}_size"], [f"{name}_sizes"], axis=0),
        make_node("Resize", [x, "", "", f"{name}_sizes"], [name], name=name, **coordinates),
    ]


def convert_mean(onnx, node, **graph):
    """The mean over all positions. The exporter's own has axes where the onnx package checks for newer opsets."""
    if node["attrs"] != {"axis": "(2, 3)", "keepdims": "True"}:
        raise NotImplementedError(f"a mean with {node['attrs']}")
    name = node["name"]
    return [onnx.helper.make_node("GlobalAveragePool", _inputs(node, graph), [name], name=name)]


# What MXNet's exporter lacks for these networks, by MXNet's names of the operators. A converter takes the onnx module,
# a node of its graph, and as keywords what the exporter knows of the graph; it returns nodes, and may add constants.
CONVERTERS = {"null": convert_variable, "_contrib_BilinearResize2D": convert_resize, "mean": convert_mean}


def _inputs(node, graph):
    """The names of what a node reads."""
    return [graph["outputs_lookup"][source][output].name for source, output, *_ in node["inputs"]]


def _arrays(net):
    """A network's parameters by the names that they have in its graph, {name: NDArray}."""
    return {parameter.name: parameter.data() for parameter in net.collect_params().values()}


def _as_json(description):
    return json.dumps(dataclasses.asdict(description))

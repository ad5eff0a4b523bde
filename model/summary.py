"""Sizes of a network, layer by layer: python -m model.summary --num-layers 56 [--cifar] [--unit resnext]"""

import json
import signal
from collections import Counter, namedtuple
from math import prod

import mxnet as mx

from base.errors import UserError, run_command
from base.flags import MOST_CLASSES, HelpFormatter, OneLineParser, bounded_int, choose, positive_int
from model.attention_net import AttentionNet, AttentionNetCifar, attention_net_spec
from model.units import units

__all__ = ["Layer", "layers", "multiply_adds", "products", "stage_names", "trainable_parameters"]

Layer = namedtuple("Layer", ["path", "operator", "shape", "parameters", "multiply_adds"])
Layer.__doc__ = """One layer of a network.

path : str
    Where it stands, as in the names of saved parameters.
operator : str
    MXNet's name of what it does.
shape : tuple of int
    Of its output.
parameters : int
    Trainable ones.
multiply_adds : int
    As the literature counts them: those of convolutions and fully connected layers, without biases.
"""


def trainable_parameters(net):
    """Number of values the optimizer changes, in an initialized or uninitialized network of known shapes."""
    return sum(prod(p.shape) for p in net.collect_params().values() if p.grad_req != "null")


def multiply_adds(net, input_shape):
    """Multiply-adds of convolutions and fully connected layers for one batch of ``input_shape`` (N, C, H, W).

    The way the literature counts: biases, normalization, pooling, interpolation and sums are left out.
    """
    return sum(layer.multiply_adds for layer in layers(net, input_shape))


def layers(net, input_shape):
    """The `Layer`s of a network that have parameters or pool, in the order of its graph.

    Nothing is computed and no parameter allocated: shapes are inferred from ``input_shape`` (N, C, H, W).
    """
    nodes, shape = _graph(net, input_shape)
    parameters = {p.name: path for path, p in net._collect_params_with_prefix().items() if p.grad_req != "null"}
    blocks = _paths(net)
    found = []
    for node in nodes:
        inputs = [nodes[source]["name"] for source, *_ in node["inputs"]]
        own = [name for name in inputs if name in parameters]
        if not own and node["op"] != "Pooling":
            continue
        block = node["name"].rsplit("_", 1)[0]
        path = parameters[own[0]].rsplit(".", 1)[0] if own else blocks.get(block, block)
        output = shape.get(node["name"] + "_output") or shape[node["name"] + "_output0"]
        # one row of the weight makes one output value
        per_value = prod(shape[inputs[1]][1:]) if node["op"] in ("Convolution", "FullyConnected") else 0
        count = sum(prod(shape[name]) for name in own)
        found.append(Layer(path, node["op"], output, count, per_value * prod(output)))
    return found


def products(net, input_shape):
    """The convolutions and fully connected layers, in the order in which they run on a batch of ``input_shape``.

    Yields for each its node in the network's graph, and the shapes of what it reads and of what it writes.
    """
    nodes, shape = _graph(net, input_shape)
    for node in nodes:
        if node["op"] in ("Convolution", "FullyConnected"):
            source = nodes[node["inputs"][0][0]]["name"]
            yield node, shape.get(source) or shape[f"{source}_output"], shape[f"{node['name']}_output"]


def _graph(net, input_shape):
    """(The nodes of a network's graph, {name of an output: its shape})."""
    graph = net(mx.sym.var("data"))
    internals = graph.get_internals()
    _, shapes, _ = internals.infer_shape(data=input_shape)
    return json.loads(graph.tojson())["nodes"], dict(zip(internals.list_outputs(), shapes))


def _paths(block, path=""):
    """{name: path} of a block's descendants."""
    paths = {}
    for key, child in block._children.items():
        paths[child.name] = f"{path}{key}"
        paths.update(_paths(child, f"{path}{key}."))
    return paths


def stage_names(net):
    """The stage of every block that an `AttentionNet`'s paths may begin with: a residual unit begins a stage."""
    stages, stage = {"output": "classifier"}, 0
    for key, child in net.features._children.items():
        stage += isinstance(child, tuple(units.values()))
        stages[f"features.{key}"] = f"stage {stage}" if stage else "stem"
    return stages


def table(net, input_shape):
    """The lines of a table: layers, sums of each stage and of all."""
    stages = stage_names(net)
    rows, sums = [], {}
    for layer in layers(net, input_shape):
        stage = next(name for path, name in stages.items() if f"{layer.path}.".startswith(f"{path}."))
        sums.setdefault(stage, Counter()).update(parameters=layer.parameters, multiply_adds=layer.multiply_adds)
        rows.append((stage, layer))
    width = max(len(layer.path) for _, layer in rows)
    line = f"{{:{width}}}  {{:15}}  {{:>14}}  {{:>12}}  {{:>15}}"
    yield line.format("layer", "operator", "output", "parameters", "multiply-adds")
    for stage, total in sums.items():
        yield ""
        for _, layer in (row for row in rows if row[0] == stage):
            shape = " x ".join(map(str, layer.shape[1:]))
            yield line.format(layer.path, layer.operator, shape, f"{layer.parameters:,}", f"{layer.multiply_adds:,}")
        yield line.format(stage, "", "", f"{total['parameters']:,}", f"{total['multiply_adds']:,}")
    total = sum(sums.values(), Counter())
    yield ""
    yield line.format("in all", "", "", f"{total['parameters']:,}", f"{total['multiply_adds']:,}")


def main():
    depths = ", ".join(map(str, attention_net_spec))
    parser = OneLineParser(
        prog="python -m model.summary",
        description="Print a network's layers, output shapes, parameters and multiply-adds.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--num-layers", type=positive_int, default=56, help=f"depth: {depths}")
    parser.add_argument("--cifar", action="store_true", help="the network for 32x32 images")
    parser.add_argument("--unit", choices=list(units), default="bottleneck", help="residual unit")
    parser.add_argument("--input-size", type=positive_int, help="height and width (default: 224, and 32 with --cifar)")
    classes_help = "classes (default: 1000, and 10 with --cifar)"
    parser.add_argument("--classes", type=bounded_int(MOST_CLASSES), help=classes_help)
    args = parser.parse_args()
    network, size, classes = (AttentionNetCifar, 32, 10) if args.cifar else (AttentionNet, 224, 1000)
    size, classes = args.input_size or size, args.classes or classes
    stages = choose("--num-layers", args.num_layers, attention_net_spec)
    if not network.takes(size):
        raise UserError(f"--input-size {size}: choose {network.sizes()}")
    net = network(classes, *stages, unit=units[args.unit])
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # head and less may close the pipe early
    for line in table(net, (1, 3, size, size)):
        print(line)


if __name__ == "__main__":
    run_command(main)

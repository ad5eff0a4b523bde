"""Put a trained network into the repository: python -m scripts.pack_network --params FILE --name NAME

Writes model/trained/NAME/NAME.params, with the weights in half precision, and network.json beside it. Every flag
that takes a .params file then takes NAME. Vectors (biases, and batch normalization's parameters and statistics) stay in
single precision: they are few, and variances may be smaller than half precision's least number.
"""

import argparse
import dataclasses
import re

from base.errors import UserError, run_command
from base.files import writing
from base.flags import HelpFormatter, OneLineParser, bounded_float
from base.runtime import prepare_mxnet
from base.text import one_line
from training.trained import params_path, trained_params


def parse_arguments():
    parser = OneLineParser(
        prog="python -m scripts.pack_network",
        description="Put a trained network into the repository, in half precision.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--params", required=True, type=params_path, metavar="FILE", help="a .params file of a run")
    parser.add_argument("--name", required=True, type=short_name, help="short name of the network")
    parser.add_argument(
        "--accuracy", type=bounded_float(0, 1), help="on all test images, where that of the run is of fewer"
    )
    return parser.parse_args()


def short_name(value):
    """A flag's type: a name that is a folder's on any system."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", value):
        raise argparse.ArgumentTypeError(f"{value!r} is not of small letters, digits and dashes")
    return value


def main():
    args = parse_arguments()
    prepare_mxnet(use_gpus=False)  # everything below imports MXNet
    import numpy as np

    from training.network_file import NetworkFile, load_network, read_description
    from training.run.exports import parameters_of, write_parameters

    net, description = load_network(args.params)
    if description.epoch is None:
        raise UserError(f"{args.params}: the network.json beside it does not say which epoch it is of")
    arrays = {name: array.astype("float16") if array.ndim > 1 else array for name, array in parameters_of(net).items()}
    large = next((name for name, array in arrays.items() if not np.isfinite(array.asnumpy()).all()), None)
    if large is not None:
        raise UserError(f"{args.params}: half precision does not hold the numbers of {large}")
    path = trained_params(args.name)
    accuracy = description.accuracy if args.accuracy is None else args.accuracy
    unlike = {"epoch": description.epoch, "accuracy": description.accuracy}
    if path.exists() and dataclasses.replace(read_description(path), **unlike) != description:
        raise UserError(f"{one_line(path.parent)} holds another network: remove it, or choose another --name")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    network_file = NetworkFile(path.parent, description)
    write_parameters(path.parent, arrays, network_file, [path.name], (description.epoch, accuracy))
    print(f"{one_line(path)}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_command(main)

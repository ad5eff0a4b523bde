"""Write a trained network in the formats of other programs: python -m scripts.export --params FILE --out DIR --onnx

Beside a copy of network.json, for a FILE called NAME.params: NAME-symbol.json and NAME-0000.params for MXNet without
this project, NAME.safetensors, and with --onnx NAME.onnx. Prints the paths.
"""

import os
from pathlib import Path
from statistics import median

from base.errors import run_command
from base.files import writing
from base.flags import HelpFormatter, OneLineParser, positive_int
from base.runtime import prepare_mxnet
from base.text import one_line
from training.trained import add_params_flag

BATCHES = 1, 32  # images at a time that --speed measures


def parse_arguments():
    parser = OneLineParser(
        prog="python -m scripts.export",
        description="Write a trained network as MXNet's symbol and parameters, as safetensors and as ONNX.",
        formatter_class=HelpFormatter,
    )
    add_params_flag(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the files")
    parser.add_argument("--onnx", action="store_true", help="write ONNX too")
    parser.add_argument(
        "--speed",
        type=positive_int,
        metavar="TURNS",
        help="time onnxruntime and Gluon, one thread each, in so many turns (with --onnx)",
    )
    args = parser.parse_args()
    if args.speed and not args.onnx:
        parser.error("--speed measures onnxruntime: it needs --onnx")
    return args


def main():
    args = parse_arguments()
    if args.speed:
        os.environ["OMP_NUM_THREADS"] = "1"
    prepare_mxnet(use_gpus=False)  # everything below imports MXNet
    from model.plain import make_plain
    from training.interchange import needed, write_onnx, write_safetensors, write_symbol
    from training.network_file import copy_network_file, load_network

    for package in ["safetensors", *["onnx"] * args.onnx, *["onnxruntime"] * bool(args.speed)]:
        needed(package)  # before anything is written
    net, description = load_network(args.params)
    make_plain(net)
    with writing(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / Path(args.params).name.removesuffix(".params")
    paths = [copy_network_file(args.params, args.out), *write_symbol(net, stem)]
    paths.append(stem.with_name(f"{stem.name}.safetensors"))
    write_safetensors(net, description, paths[-1])
    if args.onnx:
        paths.append(stem.with_name(f"{stem.name}.onnx"))
        write_onnx(net, description, paths[-1])
    for path in paths:
        print(one_line(path))
    if args.speed:
        print(*speed_lines(args.params, paths[-1], args.speed), sep="\n")


def speed_lines(params, path, turns):
    """How many images a second onnxruntime and Gluon classify, in turns: yields a line for each size of a batch.

    Parameters
    ----------
    params : path
        Gluon's network, which runs in the form in which it validates.
    path : pathlib.Path
        The same as ONNX.
    turns : int
    """
    import mxnet as mx

    from model.onednn import hybridize
    from scripts.measurements import in_turns
    from training.interchange import needed
    from training.network_file import load_network

    net, description = load_network(params)
    hybridize(net, inference=True)
    onnxruntime = needed("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for batch in BATCHES:
        images = mx.nd.random.normal(shape=(batch, 3, description.input_size, description.input_size))
        feed = {"data": images.asnumpy()}
        works = {"Gluon": lambda images=images: net(images), "onnxruntime": lambda feed=feed: session.run(None, feed)}
        speeds = {name: batch / median(seconds) for name, seconds in in_turns(works, turns).items()}
        named = ", ".join(f"{name} {speed:.1f} images/s" for name, speed in speeds.items())
        yield f"batch {batch}: {named}"


if __name__ == "__main__":
    run_command(main)

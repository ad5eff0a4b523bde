"""Name what images show: python -m scripts.predict --params FILE IMAGE|FOLDER...

Prints a line for each image, its path and the most probable classes, or with --json an object. A file that is no image
is named on stderr; the others are done, and the exit status is 2 in the end.
"""

import json
import sys
from itertools import islice
from pathlib import Path

from base.errors import UserError, run_command
from base.flags import HelpFormatter, OneLineParser, batch_size, positive_int
from base.runtime import prepare_mxnet
from base.text import one_line
from training.trained import add_params_flag


def parse_arguments():
    parser = OneLineParser(
        prog="python -m scripts.predict", description="Name what images show.", formatter_class=HelpFormatter
    )
    add_params_flag(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER", help="images of any size, or folders of them")
    parser.add_argument("--top", type=positive_int, default=5, help="classes to name for each image")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each image, one a line")
    parser.add_argument("--batch-size", "-b", type=batch_size, default=32, help="images at a time")
    parser.add_argument(
        "--attention", type=Path, metavar="DIR", help="draw what the network attends to in each image, as PNG"
    )
    parser.add_argument("--num-gpus", type=int, choices=[0, 1], default=0, help="1 for a GPU; 0 is the CPU")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16, on a CPU that can")
    args = parser.parse_args()
    if args.bfloat16 and args.num_gpus:
        parser.error("--bfloat16 is for the CPU")
    return args


def main():
    args = parse_arguments()
    prepare_mxnet(use_gpus=args.num_gpus > 0, bfloat16=args.bfloat16)  # everything below imports MXNet
    from base.devices import explaining_memory

    with explaining_memory("--batch-size"):
        broken = predict(args)
    if broken:
        sys.exit(UserError.status)


def predict(args):
    """Print what the images show. Returns how many cannot be read, which are named."""
    from base.devices import contexts
    from data.views import list_pictures
    from model.onednn import hybridize
    from training.network_file import load_network

    paths = list_pictures(args.images)
    net, description = load_network(args.params, contexts(args.num_gpus))
    hybridize(net, static=False, inference=True, bfloat16=args.bfloat16)
    artist = None
    if args.attention:
        from training.attention_pictures import AttentionArtist, check_folders_apart  # which import matplotlib

        check_folders_apart(args.attention, args.images)
        artist = AttentionArtist(net, description, args.attention)
    broken = 0
    for examples, failures in batches(paths, args.batch_size, description):
        for path, reason in failures:
            broken += 1
            print(f"error: cannot read {one_line(path)}: {one_line(reason)}", file=sys.stderr)
            if args.json:
                print(json.dumps({"path": path, "error": str(reason)}))
        if examples:
            show(examples, best_guesses(net, examples, description, args.top), args.json)
            if artist:
                list(artist.each(examples, features=False))
        sys.stdout.flush()
    return broken


def batches(paths, size, description):
    """`training.prediction.read_examples` of every ``size`` paths."""
    from training.prediction import read_examples

    left = iter(paths)
    while some := list(islice(left, size)):
        yield read_examples(some, description)


def best_guesses(net, examples, description, count):
    """For each image its most probable classes: lists of (name, probability), the best first."""
    from training.prediction import classify, network_input

    images = network_input(net, [example.view for example in examples], description)
    return [
        [(description.classes[label], float(row[label])) for label in (-row).argsort(kind="stable")[:count]]
        for row in classify(net, images)
    ]


def show(examples, guesses, as_json):
    for example, classes in zip(examples, guesses):
        if as_json:
            predictions = [{"class": name, "probability": round(share, 6)} for name, share in classes]
            print(json.dumps({"path": example.name, "predictions": predictions}))
        else:
            named = ", ".join(f"{one_line(name)} {share:.4f}" for name, share in classes)
            print(f"{one_line(example.name)}: {named}")


if __name__ == "__main__":
    run_command(main)

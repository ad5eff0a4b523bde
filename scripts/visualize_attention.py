"""Draw what a network attends to: python -m scripts.visualize_attention --params FILE --dataset digits --out DIR

Writes overview-masks.png, the images beside the masks of all attention modules; and for each image NAME-masks.png, with
single channels too, and NAME-features.png, features before and after the masks as in figure 1 of arXiv 1704.06904.
"""

from itertools import chain
from pathlib import Path

from base.errors import UserError, run_command
from base.flags import HelpFormatter, OneLineParser, positive_int
from base.runtime import prepare_mxnet
from base.text import one_line
from data.datasets import photographs, small_images
from training.trained import add_params_flag


def parse_arguments():
    parser = OneLineParser(
        prog="python -m scripts.visualize_attention",
        description="Draw what a network attends to.",
        formatter_class=HelpFormatter,
    )
    add_params_flag(parser)
    parser.add_argument("--images", nargs="+", metavar="IMAGE|FOLDER", help="images, or folders of them")
    parser.add_argument(
        "--dataset",
        choices=[*small_images, *photographs],
        help="take held-out images of a data set, by default of the one that the network was trained on",
    )
    parser.add_argument("--data-dir", default="./data/sets", help="folder of the data sets")
    parser.add_argument("--count", type=positive_int, default=8, help="images of the data set")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the pictures")
    args = parser.parse_args()
    for flag in ("dataset", "data_dir", "count"):
        if args.images and getattr(args, flag) != parser.get_default(flag):
            parser.error(f"--images and --{flag.replace('_', '-')} exclude each other")
    return args


def main():
    args = parse_arguments()
    prepare_mxnet(use_gpus=False)  # everything below imports MXNet
    from data.views import list_pictures
    from training.attention_pictures import AttentionArtist, check_folders_apart
    from training.network_file import load_network
    from training.prediction import held_out_examples, read_examples

    net, description = load_network(args.params)
    if args.images:
        check_folders_apart(args.out, args.images)
        examples, broken = read_examples(list_pictures(args.images), description)
    else:
        name = args.dataset or description.dataset
        examples, broken = held_out_examples(name, args.data_dir, args.count, description), []
    if examples:
        artist = AttentionArtist(net, description, args.out)
        for path in chain([artist.overview(examples)], artist.each(examples, features=True)):
            print(one_line(path), flush=True)
    if broken:
        raise UserError("; ".join(f"cannot read {path}: {reason}" for path, reason in broken))


if __name__ == "__main__":
    run_command(main)

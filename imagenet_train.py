#!/usr/bin/env python3
"""Train or evaluate a residual attention network on ImageNet or other photographs by class."""

from base.errors import UserError, run_command
from base.flags import MOST_CLASSES, bounded_float, bounded_int, fraction_below_one, non_negative_float, positive_int
from base.runtime import prepare_mxnet
from data.datasets import open_dataset, photographs
from training.flags import (
    RESNET,
    add_evaluation_flags,
    check_evaluation_flags,
    parse_arguments,
    training_parser,
)
from training.threads import choose_threads

# Epochs of 1,281,167 images. The paper (arXiv 1704.06904, section 4.2) has rate 0.1, divided by 10 after 200,000,
# 400,000 and 500,000 of 530,000 iterations, and no batch size. An author had 32 images a card (github.com/fwang91/
# residual-attention-network/issues/3). That there were 8 cards is inferred: 256 images make these iterations epochs 40,
# 80, 100 and 106, the usual length. The tricks are those of arXiv 1812.01187, whose rate is 0.1 for every 256 images of
# a step, 0.025 for the 64 of one device, and which trains 200 epochs with mixup (section 5.4).
RECIPES = {
    "paper": {"epochs": 106, "batch_size": 32, "lr_steps": "40,80,100"},
    "tricks": {
        "epochs": 200,
        "lr": 0.025,
        "lr_mode": "cosine",
        "warmup_epochs": 5,
        "epsilon": 0.1,
        "mix_up": 1,
        "alpha": 0.2,
        "colour_jitter": 0.4,
        "no_wd": True,
        "last_gamma": True,
    },
}


def flags():
    """The parser."""
    # what a recipe may set is a default here: one that a flag has by itself would go before the recipe's
    defaults = {"data_dir": "./data/sets/imagenet", "colour_jitter": 0.0}
    parser = training_parser(__doc__, datasets=list(photographs), recipes=RECIPES, **defaults)
    group = parser.add_argument_group("ImageNet")
    group.add_argument(
        "--classes",
        type=bounded_int(MOST_CLASSES),
        help="number of classes (default: what the data set says, or 1000)",
    )
    group.add_argument("--input-size", type=positive_int, default=224, help="height and width the network sees")
    group.add_argument(
        "--crop-ratio",
        type=bounded_float(0.1, 1),
        default=0.875,
        help="share of the short side that the centre crop of validation has",
    )
    group.add_argument(
        "--colour-jitter", type=fraction_below_one, help="strength of random brightness, contrast and saturation"
    )
    group.add_argument(
        "--lighting", type=non_negative_float, default=0.1, help="strength of the standard colour augmentation"
    )
    add_evaluation_flags(parser)
    return parser


def main():
    parser = flags()
    args = parse_arguments(parser)
    check_evaluation_flags(parser, args)
    if args.unit == RESNET:
        parser.error(f"--model {RESNET} is for 32x32 images: cifar10_train.py has it")

    threads = choose_threads(args.num_gpus, args.resumed)
    prepare_mxnet(use_gpus=args.num_gpus > 0, threads=threads, bfloat16=args.bfloat16)  # everything below imports MXNet
    from model import AttentionNet
    from training.commands import train_or_evaluate

    if not args.eval_only and not AttentionNet.takes(args.input_size):
        raise UserError(f"--input-size {args.input_size}: choose {AttentionNet.sizes()}")
    train_or_evaluate("imagenet", photographs, open_photographs, args)


def open_photographs(args):
    """The `Dataset` that the flags describe."""
    views = {
        "size": args.input_size,
        "crop_ratio": args.crop_ratio,
        "jitter": args.colour_jitter,
        "lighting": args.lighting,
    }
    return open_dataset(args.dataset, args.data_dir, classes=args.classes, **views)


if __name__ == "__main__":
    run_command(main)

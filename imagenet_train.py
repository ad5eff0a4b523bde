#!/usr/bin/env python3
"""Train or evaluate a residual attention network on ImageNet or other photographs by class."""

import argparse
import functools

from base.errors import UserError, run_command
from base.flags import (
    OneLineParser,
    choose,
    fraction,
    non_negative_float,
    positive_fraction,
    positive_int,
)
from base.runtime import prepare_mxnet
from data.datasets import open_dataset, photographs
from training.flags import RESNET, UNITS, parse_arguments, training_parser

# Epochs of 1,281,167 images. The paper's recipe (arXiv 1704.06904, section 4.2) in iterations of 64 images: rate 0.1,
# divided by 10 after 200,000, 400,000 and 500,000 of 530,000. The tricks are those of arXiv 1812.01187, whose rate is
# 0.1 for every 256 images of a step: 0.025 for the 64 of one device.
RECIPES = {
    "paper": {"epochs": 27, "lr_steps": "10,20,25"},
    "tricks": {
        "epochs": 120,
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

RECIPE_HELP = """whose defaults the other flags have: the paper's, or the tricks of arXiv 1812.01187, whose --lr is 0.1
for every 256 images of a step, and so 0.025 for 64 on one device: give --lr where there are more"""


def flags():
    """The parser; a recipe is a set of defaults, so that one must be known first."""
    first = OneLineParser(add_help=False, allow_abbrev=False)
    choice = {"choices": list(RECIPES), "default": "paper", "help": RECIPE_HELP}
    first.add_argument("--recipe", **choice)
    recipe = RECIPES[first.parse_known_args()[0].recipe]
    parser = training_parser(__doc__, datasets=list(photographs))
    group = parser.add_argument_group("ImageNet")
    group.add_argument("--recipe", **choice)
    group.add_argument(
        "--classes", type=positive_int, help="number of classes (default: what the data set says, or 1000)"
    )
    group.add_argument("--input-size", type=positive_int, default=224, help="height and width the network sees")
    group.add_argument(
        "--crop-ratio",
        type=positive_fraction,
        default=0.875,
        help="share of the short side that the centre crop of validation has",
    )
    group.add_argument(
        "--colour-jitter", type=fraction, default=0.0, help="strength of random brightness, contrast and saturation"
    )
    group.add_argument(
        "--lighting", type=non_negative_float, default=0.1, help="strength of the standard colour augmentation"
    )
    group.add_argument("--no-wd", action="store_true", help="no weight decay on biases, gammas and betas")
    group.add_argument("--wd-all", action="store_false", dest="no_wd", help="weight decay on everything: not --no-wd")
    group.add_argument(
        "--last-gamma",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="start every residual unit as its shortcut",
    )
    group.add_argument("--eval-only", action="store_true", help="validate --params and end")
    group.add_argument("--params", metavar="FILE", help="parameters for --eval-only")
    parser.set_defaults(data_dir="./data/sets/imagenet", **recipe)
    return parser


def make_net(classes, args):
    """The network that the flags describe, uninitialized."""
    from model import get_attention_net
    from model.units import start_as_shortcuts
    from training.commands import attention_options

    net = get_attention_net(classes, args.num_layers, **attention_options(args))
    if args.last_gamma:
        start_as_shortcuts(net)
    if args.no_wd:
        for parameter in net.collect_params(".*(gamma|beta|bias)").values():
            parameter.wd_mult = 0.0
    return net


def main():
    parser = flags()
    args = parse_arguments(parser)
    if args.eval_only != (args.params is not None):
        parser.error("--eval-only and --params need each other")
    if args.unit == RESNET:
        parser.error(f"--model {RESNET} is for 32x32 images: cifar10_train.py has it")

    prepare_mxnet()  # everything below imports MXNet
    from model import AttentionNet, attention_net_spec
    from training.commands import evaluate, join_group, train

    choose("--num-layers", args.num_layers, attention_net_spec)
    if not AttentionNet.takes(args.input_size):
        step = AttentionNet.size_step
        raise UserError(f"--input-size {args.input_size}: choose a multiple of {step} above {step}")
    views = {
        "size": args.input_size,
        "crop_ratio": args.crop_ratio,
        "jitter": args.colour_jitter,
        "lighting": args.lighting,
    }
    with join_group(args) as group:
        dataset = group.main_process_first(
            functools.partial(open_dataset, args.dataset, args.data_dir, classes=args.classes, **views)
        )
        new_net = functools.partial(make_net, dataset.classes, args)
        if args.eval_only:
            evaluate(new_net(), dataset, group, args)
        else:
            train(new_net, dataset, UNITS[args.unit], group, args)


if __name__ == "__main__":
    run_command(main)

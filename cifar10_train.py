#!/usr/bin/env python3
"""Train a residual attention network on CIFAR-10, CIFAR-100 or scikit-learn's digits."""

import functools

from base.errors import run_command
from base.flags import choose
from base.runtime import prepare_mxnet
from training.flags import parse_arguments, training_parser


def main():
    # The defaults are the paper's recipe (arXiv 1704.06904, section 4.1) in epochs: batch 64, rate 0.1, divided by 10
    # after 64,000 and 96,000 of 160,000 iterations.
    parser = training_parser(__doc__, datasets=["cifar10", "cifar100", "digits"])
    parser.add_argument("--unit", default="bottleneck", help="residual unit: bottleneck, resnext, inception or se")
    args = parse_arguments(parser)

    prepare_mxnet()  # everything below imports MXNet
    from data.cifar import open_cifar
    from data.digits import open_digits
    from model import attention_net_spec, get_attention_cifar, units
    from training.commands import join_group, train

    choose("--num-layers", args.num_layers, attention_net_spec)
    unit = choose("--unit", args.unit, units)
    if args.dataset == "digits":
        open_dataset = functools.partial(open_digits, args.data_dir)
    else:
        open_dataset = functools.partial(open_cifar, args.dataset, args.data_dir)
    with join_group(args) as group:
        dataset = group.main_process_first(open_dataset)
        make_net = functools.partial(get_attention_cifar, dataset.classes, args.num_layers, unit=unit)
        train(make_net, dataset, unit.network, group, args)


if __name__ == "__main__":
    run_command(main)

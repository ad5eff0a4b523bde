#!/usr/bin/env python3
"""Train or evaluate a residual attention network on CIFAR-10, CIFAR-100 or scikit-learn's digits."""

import functools

from base.errors import run_command
from base.flags import choose
from base.runtime import prepare_mxnet
from data.datasets import open_dataset, small_images
from training.flags import (
    add_evaluation_flags,
    check_evaluation_flags,
    parse_arguments,
    training_parser,
)


def main():
    # The defaults are the paper's recipe (arXiv 1704.06904, section 4.1) in epochs: batch 64, rate 0.1, divided by 10
    # after 64,000 and 96,000 of 160,000 iterations.
    parser = training_parser(__doc__, datasets=list(small_images))
    add_evaluation_flags(parser)
    args = parse_arguments(parser)
    check_evaluation_flags(parser, args)

    prepare_mxnet(use_gpus=args.num_gpus > 0)  # everything below imports MXNet
    from model import attention_net_spec
    from training.commands import evaluate, join_group, load_for_evaluation, train
    from training.network_file import describe, make_network

    choose("--num-layers", args.num_layers, attention_net_spec)
    with join_group(args) as group:
        trained = load_for_evaluation(args, group.devices, small_images) if args.eval_only else None
        dataset = group.main_process_first(functools.partial(open_dataset, args.dataset, args.data_dir))
        if trained:
            evaluate(*trained, dataset, group, args)
        else:
            description = describe(dataset, "cifar", args.num_layers, args.unit)
            train(functools.partial(make_network, description), description, dataset, group, args)


if __name__ == "__main__":
    run_command(main)

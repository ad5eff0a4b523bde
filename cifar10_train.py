#!/usr/bin/env python3
"""Train or evaluate a residual attention network on CIFAR-10, CIFAR-100 or scikit-learn's digits."""

import functools

from base.errors import run_command
from base.runtime import prepare_mxnet
from data.datasets import open_dataset, small_images
from training.flags import (
    RESNET,
    add_evaluation_flags,
    check_evaluation_flags,
    parse_arguments,
    training_parser,
)
from training.threads import choose_threads


def main():
    # The defaults are the paper's recipe (arXiv 1704.06904, section 4.1) in epochs: batch 64, rate 0.1, divided by 10
    # after 64,000 and 96,000 of 160,000 iterations.
    parser = training_parser(__doc__, datasets=list(small_images))
    add_evaluation_flags(parser)
    args = parse_arguments(parser)
    check_evaluation_flags(parser, args)

    threads = choose_threads(args.num_gpus, args.resumed)
    prepare_mxnet(use_gpus=args.num_gpus > 0, threads=threads)  # everything below imports MXNet
    from training.commands import evaluate, join_group, load_for_evaluation, network_fields, train
    from training.network_file import check_depth, describe, make_network

    family = "resnet" if args.unit == RESNET else "cifar"
    check_depth(family, args.num_layers)
    with join_group(args) as group:
        trained = load_for_evaluation(args, group.devices, small_images) if args.eval_only else None
        dataset = group.main_process_first(functools.partial(open_dataset, args.dataset, args.data_dir))
        if trained:
            evaluate(*trained, dataset, group, args)
        else:
            description = describe(dataset, family, args.num_layers, **network_fields(args))
            train(functools.partial(make_network, description), description, dataset, group, args)


if __name__ == "__main__":
    run_command(main)

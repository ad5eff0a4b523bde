#!/usr/bin/env python3
"""Train a residual attention network on CIFAR-10, CIFAR-100 or scikit-learn's digits."""

import functools

from base.errors import UserError, run_command
from base.flags import choose
from base.runtime import prepare_mxnet
from data.datasets import open_dataset, small_images
from training.flags import NETWORKS, RESNET, parse_arguments, training_parser


def network(args):
    """The function that makes the network of the flags from the number of classes and of layers.

    Raises UserError for a number of layers that there is not.
    """
    from model import attention_net_spec, get_attention_cifar, get_resnet_cifar
    from training.commands import attention_options

    if args.unit != RESNET:
        choose("--num-layers", args.num_layers, attention_net_spec)
        return functools.partial(get_attention_cifar, **attention_options(args))
    try:
        get_resnet_cifar(1, args.num_layers)
    except ValueError as error:
        raise UserError(f"--num-layers {args.num_layers}: {error}") from None
    return get_resnet_cifar


def main():
    # The defaults are the paper's recipe (arXiv 1704.06904, section 4.1) in epochs: batch 64, rate 0.1, divided by 10
    # after 64,000 and 96,000 of 160,000 iterations.
    args = parse_arguments(training_parser(__doc__, datasets=list(small_images)))

    prepare_mxnet()  # everything below imports MXNet
    from training.commands import join_group, train

    get_net = network(args)
    with join_group(args) as group:
        dataset = group.main_process_first(functools.partial(open_dataset, args.dataset, args.data_dir))
        make_net = functools.partial(get_net, dataset.classes, args.num_layers)
        train(make_net, dataset, NETWORKS[args.unit], group, args)


if __name__ == "__main__":
    run_command(main)

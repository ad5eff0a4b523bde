#!/usr/bin/env python3
"""Train a residual attention network on CIFAR-10, CIFAR-100 or scikit-learn's digits."""

import functools

from training.arguments import parse_arguments, training_parser
from training.errors import UserError, run
from training.runtime import prepare_mxnet


def main():
    # The defaults are the paper's recipe (arXiv 1704.06904, section 4.1) in epochs: batch 64, rate 0.1, divided by 10
    # after 64,000 and 96,000 of 160,000 iterations.
    parser = training_parser(__doc__, datasets=["cifar10", "cifar100", "digits"])
    parser.add_argument("--unit", default="bottleneck", help="residual unit: bottleneck, resnext, inception or se")
    args = parse_arguments(parser)

    prepare_mxnet()  # everything below imports MXNet
    from data.cifar import open_cifar
    from data.digits import open_digits
    from data.loader import ShardedLoader
    from data.mixing import Mixing
    from model import attention_net_spec, get_attention_cifar, units
    from training.devices import contexts
    from training.loop import fit

    if args.num_layers not in attention_net_spec:
        raise UserError(f"--num-layers {args.num_layers}: choose one of {', '.join(map(str, attention_net_spec))}")
    if args.unit not in units:
        raise UserError(f"--unit {args.unit}: choose one of {', '.join(units)}")
    unit = units[args.unit]
    devices = contexts(args.num_gpus)
    dataset = open_digits(args.data_dir) if args.dataset == "digits" else open_cifar(args.dataset, args.data_dir)
    loading = {"seed": args.seed, "threads": args.workers, "limit": args.limit}
    train = ShardedLoader(dataset, "train", args.batch_size, devices, training=True, **loading)
    validation = ShardedLoader(dataset, "test", args.batch_size, devices, training=False, **loading)
    mixing = Mixing(
        dataset.classes,
        alpha=args.alpha * args.mix_up,
        mixup_epochs=args.epochs - args.mix_up_off_epochs,
        epsilon=args.epsilon,
        seed=args.seed,
    )
    make_net = functools.partial(get_attention_cifar, dataset.classes, args.num_layers, unit=unit)
    run_stem = f"{dataset.name}_{unit.network}{args.num_layers}"
    fit(make_net, train, validation, mixing, devices, args, run_stem)


if __name__ == "__main__":
    run(main)

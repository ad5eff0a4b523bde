"""What every training script does with its flags."""

import contextlib
import functools
import sys
from pathlib import Path

import numpy as np

from base.devices import explaining_memory
from base.errors import UserError
from base.text import one_line
from data.augmentation import Cutout, RandomErasing
from data.loader import LoaderOptions, Shard, ShardedLoader
from data.mixup import TargetTransform
from model.attention_net import attention_net_spec
from model.onednn import hybridize
from model.units import start_as_shortcuts
from training.distributed import process_group
from training.evaluation import Findings, class_table, draw_findings
from training.fine_tuning import FineTuning
from training.flags import NETWORKS, RESNET
from training.learner import Learner, LearnerOptions, mirror_averaged, stored, validate
from training.loop import fit
from training.network_file import NETWORK_FILE, check_depth, describe, load_network, make_network
from training.optimizers import optimizer_options
from training.prediction import check_classes
from training.run.progress_bar import ProgressBar
from training.run.run import Run, RunOptions
from training.schedule import Falls, learning_rates

__all__ = [
    "evaluate",
    "join_group",
    "load_for_evaluation",
    "make_loader",
    "make_net",
    "network_fields",
    "train",
    "train_or_evaluate",
]


@contextlib.contextmanager
def join_group(args):
    """Enter the process group that --sync or the launcher names; all its processes get one seed, in ``args``.

    Raises UserError where the engine is not installed, no launcher started this process, or, inside, memory is used up.
    """
    half, timeout = args.gradient_compression == "fp16", 60 * args.sync_timeout
    with process_group.start(args.sync, args.num_gpus, half, timeout) as group, explaining_memory():
        seed = args.seed if group.is_main_process else 0
        args.seed = args.settings["seed"] = int(group.sum("seed", [seed])[0])
        yield group


def network_fields(args):
    """What the flags say of a network but its family and depth: fields of `training.network_file.NetworkDescription`.

    Of a residual network without attention, that is its unit.
    """
    if args.unit == RESNET:
        return {"unit": "bottleneck"}
    modules = None if args.modules is None else tuple(args.modules)
    names = ("unit", "attention", "learning", "mask")
    return {name: getattr(args, name) for name in names} | {"modules": modules}


def flags_of(description):
    """What the flags of a network are where it is that of a description, {name: value}; the reverse of the above.

    None are those which a network of that kind has not.
    """
    unit = RESNET if description.family == "resnet" else description.unit
    flags = {"num_layers": description.depth, "unit": unit}
    names = ("attention", "learning", "mask")
    if unit == RESNET:
        return flags | dict.fromkeys([*names, "modules"])
    modules = description.modules or attention_net_spec[description.depth].modules
    return flags | {name: getattr(description, name) for name in names} | {"modules": list(modules)}


def make_net(description, last_gamma, no_wd):
    """The network of a `NetworkDescription`, uninitialized, with what the flags say of its start and its decay."""
    net = make_network(description)
    if last_gamma:
        start_as_shortcuts(net)
    if no_wd:
        for parameter in net.collect_params(".*(gamma|beta|bias)").values():
            parameter.wd_mult = 0.0
    return net


def make_loader(dataset, split, group, args):
    """The `ShardedLoader` of a split, "train" or "test", for this process's devices."""
    options = LoaderOptions(
        args.batch_size,
        seed=args.seed,
        threads=args.workers,
        limit=args.limit,
        label_noise=args.label_noise,
        accumulate=args.accumulate,
    )
    return ShardedLoader(
        dataset,
        split,
        options,
        group.devices,
        training=split == "train",
        shard=Shard(group.rank, group.size),
    )


def train_or_evaluate(family, datasets, open_images, args):
    """What a training script does when its flags are read: `train` the network that they describe, or `evaluate` one.

    Parameters
    ----------
    family : str
        Of `training.network_file.FAMILIES`: what is trained.
    datasets : iterable of str
        Those that the script knows.
    open_images : callable
        Returns the `data.dataset.Dataset` that ``args`` name.
    args : argparse.Namespace
        The flags of `training.flags`.

    Raises what these two and `join_group` raise, and UserError where the family has no network of --num-layers.
    """
    if not args.eval_only:
        check_depth(family, args.num_layers)
    with join_group(args) as group:
        trained = load_for_evaluation(args, group.devices, datasets) if args.eval_only else None
        dataset = group.main_process_first(functools.partial(open_images, args))
        if trained:
            evaluate(*trained, dataset, group, args)
            return
        description = describe(dataset, family, args.num_layers, **network_fields(args))
        new_net = functools.partial(make_net, description, args.last_gamma, args.no_wd)
        train(new_net, description, dataset, group, args)


def train(new_net, description, dataset, group, args):
    """Train a network on a data set as the flags say.

    Parameters
    ----------
    new_net : callable
        Returns the network, uninitialized.
    description : training.network_file.NetworkDescription
        Of that network.
    dataset : data.dataset.Dataset
    group : training.distributed.process_group.SingleProcess
    args : argparse.Namespace
        The flags of `training.flags`.

    Raises what `training.loop.fit` raises, and UserError where a flag does not suit the images.
    """
    check_mirroring(dataset, args.tta)
    if args.gradient_compression != "none" and group.size == 1:
        print("--gradient-compression is for several workers: one sums in float32", file=sys.stderr, flush=True)
    dataset = dataset._replace(erasing=make_erasing(args.cutout, args.random_erasing, dataset.size))
    loaders = make_loader(dataset, "train", group, args), make_loader(dataset, "test", group, args)
    check_same_images(group, loaders)
    steps = loaders[0].steps
    transform = TargetTransform(
        dataset.classes,
        alpha=args.alpha if args.mix_up else 0.0,
        cutmix_alpha=args.cutmix,
        mixup_epochs=args.epochs - args.mix_up_off_epochs,
        epsilon=args.epsilon,
        seed=args.seed,
    )
    new_net = FineTuning(new_net, None if args.resumed else args.init, args.freeze, description.classes)
    options = run_options(description, dataset.name, new_net.summary, args)
    with Run(options, group, steps, args.settings, args.resumed) as run:
        if run.finished:
            if group.is_main_process:
                print(run.finished)
            return
        learner_options = LearnerOptions(
            precision(args), args.memory_saving, args.accumulate, args.clip_grad, args.ema, args.tta
        )
        learner = Learner(new_net, group, optimizer_options(args), args.seed, learner_options)
        lr = args.lr * loaders[0].batch_size / args.lr_per if args.lr_per else args.lr
        falls = Falls(args.lr_steps, args.lr_factor)
        rates = learning_rates(args.lr_mode, lr, args.epochs, steps, args.warmup_epochs, falls)
        fit(learner, run, loaders, transform, rates, args.epochs)


def run_options(description, dataset_name, origin, args):
    """The `RunOptions` of a training's flags; ``origin`` says where its parameters come from, if anywhere."""
    return RunOptions(
        network=description,
        log_dir=args.log_dir,
        run_name=args.run_name,
        stem=f"{dataset_name}_{NETWORKS[args.unit]}{description.depth}",
        epochs=args.epochs,
        log_interval=args.log_interval,
        save_period=args.save_period,
        checkpoint_minutes=args.checkpoint_minutes,
        nan_action=args.nan_action,
        viz_period=args.viz_period,
        origin=origin,
    )


def make_erasing(cutout, probability, size):
    """What --cutout or --random-erasing hides of images of ``size``, or None.

    Raises UserError for a square that leaves nothing.
    """
    if not cutout:
        return RandomErasing(probability, size) if probability else None
    if cutout >= size:
        raise UserError(f"--cutout {cutout} leaves nothing of images of {size}x{size}")
    return Cutout(cutout, size)


def check_same_images(group, loaders):
    """Raise UserError unless the data sets of all workers have as many images."""
    counts = group.gather("images", np.array([[loader.num_images for loader in loaders]])).astype(int)
    others = counts[(counts != counts[0]).any(axis=1)]
    if len(others):
        first, other = (" and ".join(map(str, row)) for row in (counts[0], others[0]))
        raise UserError(f"the workers have different images in --data-dir: the first one {first}, another {other}")


def check_mirroring(dataset, tta):
    """Raise UserError for --tta where a mirrored image is another one."""
    if tta and not dataset.mirror:
        raise UserError(f"--tta: a mirrored image of {dataset.name} is another one")


def precision(args):
    """What the network computes in."""
    return "bfloat16" if args.bfloat16 else "float16" if args.float16 else "float32"


def load_for_evaluation(args, devices, datasets):
    """The network of --params and what to validate it on, as the network.json beside them says where no flag does.

    Parameters
    ----------
    args : argparse.Namespace
        --dataset becomes the network's where it is not given; so do --input-size and --crop-ratio, if there are any.
    devices : list of mxnet.Context
    datasets : iterable of str
        Those that the script knows.

    Returns
    -------
    (HybridBlock, training.network_file.NetworkDescription)

    Raises UserError as `training.network_file.load_network` does, and where a flag contradicts network.json.
    """
    net, description = load_network(args.params, devices)
    for flag, value in flags_of(description).items():
        if flag in args.given and getattr(args, flag) != value:
            said = f"is of {value}" if value else "has nothing of the kind"
            raise UserError(
                f"--{flag.replace('_', '-')} {getattr(args, flag)}: {args.params} {said}, as {NETWORK_FILE} says"
            )
    seen = {"dataset": description.dataset, "input_size": description.input_size, "crop_ratio": description.crop_ratio}
    for flag, value in seen.items():
        if flag in vars(args) and flag not in args.given:
            setattr(args, flag, value)
    if args.dataset not in datasets:
        raise UserError(
            f"{args.params} was trained on {args.dataset}: choose one of them with --dataset: {', '.join(datasets)}"
        )
    return net, description


def evaluate(net, description, dataset, group, args):
    """Validate a network with its parameters; print what was found, and draw it beside --params or into --out.

    Raises UserError where the data set has other classes or sizes than the network, and where a picture cannot be
    written.
    """
    check_classes(dataset, description)
    check_mirroring(dataset, args.tta)
    if not type(net).takes(dataset.size):
        raise UserError(f"{args.params} does not take images of {dataset.size}x{dataset.size}")
    dataset = dataset._replace(mean=description.mean, std=description.std)
    loader = make_loader(dataset, "test", group, args)
    check_same_images(group, [loader])
    net.cast(stored(precision(args)))
    hybridize(net, inference=True, bfloat16=args.bfloat16)
    findings = Findings(dataset)
    with ProgressBar(loader.steps, "validation", args.log_interval, shown=group.is_main_process) as bar:
        averaged = mirror_averaged(net) if args.tta else net
        means = validate(averaged, loader, precision(args), group, bar.step, findings.add)
    matrix = group.sum("confusion", findings.matrix).astype(int)
    if not group.is_main_process:
        return
    names = {"top5": "top-5"}
    figures = "  ".join(f"{names.get(name, name)} {mean:.4f}" for name, mean in means.items())
    print(f"{one_line(args.params)} at {dataset.size}x{dataset.size}: {figures}")
    print(class_table(matrix, description.classes))
    params = Path(args.params)
    for path in draw_findings(findings, matrix, description, Path(args.out or params.parent), params.stem):
        print(one_line(path))

"""What every training script does with its flags."""

import contextlib

import mxnet as mx

from base.errors import UserError
from data.loader import LoaderOptions, Shard, ShardedLoader
from data.mixup import TargetTransform
from model import units
from model.attention import AttentionVariant
from training.distributed import process_group
from training.learner import Learner, initialize, validate
from training.loop import fit
from training.optimizers import optimizer_options
from training.run.progress_bar import ProgressBar
from training.run.run import Run, RunOptions
from training.schedule import learning_rates

__all__ = ["attention_options", "evaluate", "join_group", "make_loader", "train"]


@contextlib.contextmanager
def join_group(args):
    """Enter the process group that --sync or the launcher names; all its processes get one seed, in ``args``.

    Raises UserError where the engine is not installed or no launcher started this process.
    """
    half, timeout = args.gradient_compression == "fp16", 60 * args.sync_timeout
    with process_group.start(args.sync, args.num_gpus, half, timeout) as group:
        seed = args.seed if group.is_main_process else 0
        args.seed = args.settings["seed"] = int(group.sum("seed", [seed])[0])
        yield group


def attention_options(args):
    """What the flags say of an attention network, as options of `model.get_attention_net` and get_attention_cifar."""
    variant = AttentionVariant(args.attention, args.learning, args.mask)
    return {"unit": units[args.unit], "modules": args.modules, "variant": variant}


def make_loader(dataset, split, group, args):
    """The `ShardedLoader` of a split, "train" or "test", for this process's devices."""
    return ShardedLoader(
        dataset,
        split,
        LoaderOptions(args.batch_size, seed=args.seed, threads=args.workers, limit=args.limit),
        group.devices,
        training=split == "train",
        shard=Shard(group.rank, group.size),
    )


def train(make_net, dataset, network, group, args):
    """Train a network on a data set as the flags say.

    Parameters
    ----------
    make_net : callable
        Returns the network, new and uninitialized.
    dataset : data.dataset.Dataset
    network : str
        What the network is called, without its depth.
    group : training.distributed.process_group.SingleProcess
    args : argparse.Namespace
        The flags of `training.flags`.

    Raises what `training.loop.fit` raises.
    """
    loaders = make_loader(dataset, "train", group, args), make_loader(dataset, "test", group, args)
    steps = loaders[0].steps
    mixup_epochs = args.epochs - args.mix_up_off_epochs if args.mix_up else 0
    transform = TargetTransform(dataset.classes, args.alpha, mixup_epochs, args.epsilon, args.seed)
    options = RunOptions(
        log_dir=args.log_dir,
        run_name=args.run_name,
        stem=f"{dataset.name}_{network}{args.num_layers}",
        epochs=args.epochs,
        log_interval=args.log_interval,
        save_period=args.save_period,
        checkpoint_minutes=args.checkpoint_minutes,
        nan_action=args.nan_action,
    )
    with Run(options, group, steps, args.settings, args.resumed) as run:
        if run.finished:
            if group.is_main_process:
                print(run.finished)
            return
        learner = Learner(make_net, group, optimizer_options(args), args.seed, precision(args), args.memory_saving)
        rates = learning_rates(args.lr_mode, args.lr, args.epochs, steps, args.warmup_epochs, args.lr_steps)
        fit(learner, run, loaders, transform, rates, args.epochs)


def precision(args):
    """The type of the network's numbers."""
    return "float16" if args.float16 else "float32"


def evaluate(net, dataset, group, args):
    """Load --params into an uninitialized network, validate it and print the figures in one line.

    Raises UserError for a file that cannot be read or is another network's.
    """
    loader = make_loader(dataset, "test", group, args)
    initialize(net, group.devices, mx.init.Zero(), precision(args), inference=True)
    load_parameters(net, args.params, group.devices)
    with ProgressBar(loader.steps, "validation", args.log_interval, shown=group.is_main_process) as bar:
        means = validate(net, loader, precision(args), group, bar.step)
    if group.is_main_process:
        names = {"accuracy": "top-1", "top5": "top-5"}
        figures = "  ".join(f"{names.get(name, name)} {mean:.4f}" for name, mean in means.items())
        print(f"{args.params} at {dataset.size}x{dataset.size}: {figures}")


def load_parameters(net, path, devices):
    """Load a .params file into an initialized network.

    Raises UserError for a file that cannot be read or is another network's.
    """
    try:
        open(path, "rb").close()  # MXNet's own message would name its source files
        net.load_parameters(path, ctx=devices, cast_dtype=True)
    except OSError as error:
        raise UserError(f"cannot read --params {path}: {error.strerror}") from None
    except mx.base.MXNetError as error:  # all but the end of its last line is of MXNet's source files
        reason = str(error).rpartition(": ")[2]
        raise UserError(f"cannot read --params {path}: {reason}") from None
    except (AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--params {path} are not of this network: {reason}") from None

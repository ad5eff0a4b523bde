"""The flags that every training script has. Imports nothing heavy: --help answers at once."""

import argparse
import os
import reprlib
import secrets
import sys

from base.errors import UserError
from base.flags import (
    HelpFormatter,
    OneLineParser,
    batch_size,
    bounded_float,
    bounded_int,
    file_name,
    fraction_above_zero,
    fraction_below_one,
    increasing_numbers,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    positive_ints,
)
from base.output import lasting_output
from base.text import has_controls
from training.distributed.launcher import launch_info
from training.optimizers import OPTIMIZERS
from training.run.files import DEFAULT_LOG_DIR
from training.trained import params_path

__all__ = [
    "DEPTHS",
    "DEPTH_HELP",
    "LEARNINGS",
    "NETWORKS",
    "RESNET",
    "UNITS",
    "add_evaluation_flags",
    "check_evaluation_flags",
    "parse_arguments",
    "residual_unit",
    "training_parser",
]

# The attention networks' depths, as `model.attention_net.attention_net_spec` has them with their modules.
DEPTHS = (56, 92, 128, 164, 236, 452)
DEPTH_HELP = f"depth: {', '.join(map(str, DEPTHS[:-1]))} or {DEPTHS[-1]}"

# Residual units by name, with what a network of them is called, as `model.units.units` has them with their classes,
# which import MXNet.
UNITS = {
    "bottleneck": "attention",
    "resnext": "attentionnext",
    "inception": "attentioninception",
    "se": "attentionsenext",
}

RESNET = "resnet"  # without attention modules
NETWORKS = {**UNITS, RESNET: RESNET}

# The attention modules' variants, as `model.attention` has them with their functions and classes, which import MXNet.
ATTENTIONS = ("mixed", "channel", "spatial")
LEARNINGS = ("residual", "naive")
MASKS = ("hourglass", "local", "none")

# What of a network may stay as it is, as the networks' ``beginnings`` have it.
FROZEN_PARTS = ("stem", "stages", "all-but-output")

# A checkpoint holds all flags but these, which say where the run is and what else to do, and not how it trains.
NOT_SETTINGS = ("resume", "run_name", "log_dir", "eval_only", "params", "out")

# A resumed run may have another value of these, and of no other.
MAY_CHANGE = (
    "epochs",
    "mix_up_off_epochs",
    "workers",
    "num_gpus",
    "memory_saving",
    "bfloat16",
    "log_interval",
    "save_period",
    "viz_period",
    "checkpoint_minutes",
    "nan_action",
    "sync",
    "sync_timeout",
    "data_dir",
    "log_dir",
)

EXIT_STATUSES = """exit status: 0 finished; 1 a fault of the program; 2 bad input, or a machine that lacks something (a
file, a GPU, disk space, another worker); 3 loss, gradient or parameters are not finite; 129 stopped by SIGHUP; 130 by
Ctrl-C; 143 by SIGTERM"""


RECIPE_HELP = "a set of values that the other flags have where they are not given, as this page then says"


def residual_unit(text):
    """A key of `NETWORKS`, by that name or by its network's."""
    for unit, network in NETWORKS.items():
        if text in (unit, network):
            return unit
    names = dict.fromkeys([*NETWORKS, *NETWORKS.values()])
    raise argparse.ArgumentTypeError(f"{reprlib.repr(text)}: choose one of {', '.join(names)}")


def training_parser(description, *, datasets, recipes=None, **defaults):
    """A parser with the shared flags, grouped.

    Parameters
    ----------
    description : str
    datasets : list of str
    recipes : dict, optional
        {name: {flag name: default}} of --recipe, whose choice on this process's command line the defaults are of; the
        first is the default.
    **defaults
        A script's own values by flag name.
    """
    parser = OneLineParser(
        description=description, epilog=EXIT_STATUSES, formatter_class=HelpFormatter, allow_abbrev=False
    )
    if recipes:
        choice = {"choices": list(recipes), "default": next(iter(recipes)), "help": RECIPE_HELP}
        parser.add_argument("--recipe", **choice)
        first = OneLineParser(add_help=False, allow_abbrev=False)
        first.add_argument("--recipe", **choice)
        defaults |= recipes[first.parse_known_args()[0].recipe]

    _add_data_flags(parser, datasets)
    _add_network_flags(parser)
    _add_workers_flags(parser)
    _add_optimization_flags(parser)
    _add_rate_flags(parser)
    _add_mixing_flags(parser)
    _add_log_flags(parser)
    parser.set_defaults(**defaults)
    return parser


def _add_data_flags(parser, datasets):
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=datasets, default=datasets[0], help="what to train on")
    group.add_argument(
        "--data-dir",
        default="./data/sets",
        help="folder of the data sets, where CIFAR is fetched if missing; of photographs, that of train.rec and "
        "val.rec or of train/ and val/",
    )
    group.add_argument(
        "--workers", "-j", type=bounded_int(256), default=2, help="CPU threads that decode images, for each device"
    )
    group.add_argument("--limit", type=positive_int, help="use LIMIT images of each split only, for trials")
    group.add_argument(
        "--cutout",
        type=non_negative_int,
        default=0,
        metavar="SIZE",
        help="hide a square of SIZE pixels of every training image; 0 is none",
    )
    group.add_argument(
        "--random-erasing",
        type=bounded_float(0, 1),
        metavar="P",
        help="hide a random rectangle of a training image with the probability P; 0 is none",
    )
    group.add_argument(
        "--label-noise",
        type=fraction_below_one,
        default=0.0,
        metavar="R",
        help="give the share R of the training images the label of another class, fixed by --seed",
    )


def _add_network_flags(parser):
    group = parser.add_argument_group("network and devices")
    group.add_argument("--num-layers", type=positive_int, default=56, help=DEPTH_HELP)
    group.add_argument(
        "--unit",
        "--model",
        type=residual_unit,
        default="bottleneck",
        help="residual unit, by its name or by that of a network of such units: "
        + ", ".join(map(" or ".join, UNITS.items()))
        + f"; or {RESNET}, bottlenecks without attention modules for 32x32 images, with --num-layers 164 or 9 n + 2",
    )
    group.add_argument(
        "--modules",
        type=positive_ints,
        metavar="M,M,M",
        help="attention modules in stages 1, 2 and 3 (default: the depth's own; the paper's for CIFAR has 2,2,2 at 92)",
    )
    group.add_argument(
        "--attention",
        choices=ATTENTIONS,
        default="mixed",
        help="the mask's function: sigmoid, L2 norm over channels, or norm over positions and sigmoid",
    )
    group.add_argument(
        "--learning", choices=LEARNINGS, default="residual", help="(1 + M) * T, or M * T, of mask and trunk"
    )
    group.add_argument(
        "--mask",
        choices=MASKS,
        default="hourglass",
        help="the mask branch: with sampling down and up, local convolutions without it, or no mask at all",
    )
    group.add_argument("--num-gpus", type=non_negative_int, default=0, help="GPUs to train on; 0 is the CPU")
    group.add_argument(
        "--float16",
        action="store_true",
        help="half precision on GPUs; batch normalization, loss and update stay in float32",
    )
    group.add_argument(
        "--bfloat16",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compute in bfloat16 on a CPU with AVX512-BF16 or AMX: in less memory, with coarser maps, and in training "
        "faster on AMD's only (docs/speed.md); parameters, statistics, loss and update stay in float32",
    )
    group.add_argument(
        "--init",
        type=params_path,
        metavar="FILE",
        help="a .params file to start from, or the name of a network that the repository holds: parameters that fit by "
        "name and shape are taken, the others start anew",
    )
    group.add_argument(
        "--freeze",
        choices=FROZEN_PARTS,
        help="a part of the network that stays as it is in --init, with batch normalization's statistics: the stem, "
        "the stages too, or all but the classifier",
    )
    group.add_argument(
        "--memory-saving",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compute again what the backward pass needs instead of keeping it: slower, with the same numbers",
    )


def _add_workers_flags(parser):
    group = parser.add_argument_group("several workers")
    group.add_argument(
        "--sync",
        choices=["none", "byteps", "horovod"],
        help="what adds up the gradients of workers that scripts/launch.py or horovodrun started, each with its own "
        "GPU or CPU (default: the launcher's)",
    )
    group.add_argument(
        "--gradient-compression",
        choices=["none", "fp16"],
        default="none",
        help="send gradients as they are, or in half precision",
    )
    group.add_argument(
        "--sync-timeout",
        type=positive_float,
        default=10,
        help="minutes after which a worker that does not answer is given up",
    )


def _add_optimization_flags(parser):
    group = parser.add_argument_group("optimization")
    group.add_argument("--epochs", type=positive_int, default=200, help="passes over the training images")
    group.add_argument("--batch-size", "-b", type=batch_size, default=64, help="images a step, for each device")
    group.add_argument(
        "--optimizer", choices=list(OPTIMIZERS), default="nag", help="SGD with Nesterov's or with plain momentum"
    )
    group.add_argument(
        "--accumulate",
        type=positive_int,
        default=1,
        metavar="N",
        help="batches a step, for each device: the gradients of N are added up before the update",
    )
    group.add_argument("--momentum", type=fraction_below_one, default=0.9, help="momentum of the updates")
    group.add_argument("--wd", "--weight-decay", type=non_negative_float, default=1e-4, help="weight decay")
    group.add_argument("--no-wd", action="store_true", help="no weight decay on biases, gammas and betas")
    group.add_argument("--wd-all", action="store_false", dest="no_wd", help="weight decay on everything: not --no-wd")
    group.add_argument(
        "--last-gamma",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="start every residual unit as its shortcut",
    )
    group.add_argument(
        "--clip-grad",
        type=positive_float,
        metavar="NORM",
        help="shorten a gradient of the mean loss that is longer than NORM, over all parameters",
    )
    group.add_argument(
        "--ema",
        type=fraction_below_one,
        metavar="DECAY",
        help="keep a moving average of the weights, which is validated and saved as well",
    )
    group.add_argument(
        "--tta", action="store_true", help="validate with the mean of the logits of each image and of its mirror image"
    )
    group.add_argument(
        "--nan-action",
        choices=["stop", "skip"],
        default="stop",
        help="what to do about a loss that is not finite: stop, or leave its step out (ten in a row stop as well)",
    )
    group.add_argument("--seed", type=non_negative_int, help="repeat a run; drawn and logged where not given")


def _add_rate_flags(parser):
    group = parser.add_argument_group("learning rate")
    group.add_argument("--lr", "--learning-rate", type=positive_float, default=0.1, help="full learning rate")
    group.add_argument(
        "--lr-per",
        type=positive_int,
        metavar="N",
        help="--lr is for N images a step and scaled with their number (default: it is for any number)",
    )
    group.add_argument(
        "--lr-mode",
        choices=["step", "cosine"],
        default="step",
        help="fall by --lr-factor at each of --lr-steps, or along a cosine to 0 at the last step",
    )
    group.add_argument(
        "--lr-steps", type=increasing_numbers, default="80,120", help="epochs at which mode step falls, with commas"
    )
    group.add_argument(
        "--lr-factor",
        type=fraction_above_zero,
        default=0.1,
        help="what the rate is multiplied by at each of --lr-steps",
    )
    group.add_argument(
        "--warmup-epochs",
        type=non_negative_float,
        default=0,
        help="epochs, parts of one too, in which the rate first rises from a hundredth of --lr",
    )


def _add_mixing_flags(parser):
    group = parser.add_argument_group("mixing")
    group.add_argument("--mix-up", type=int, choices=[0, 1], default=0, help="train on mixtures of two images")
    group.add_argument(
        "--alpha", type=positive_float, default=1.0, help="mixup's share is drawn from Beta(ALPHA, ALPHA)"
    )
    group.add_argument(
        "--cutmix",
        type=non_negative_float,
        default=0.0,
        metavar="A",
        help="train on images with a rectangle of another one, whose share is drawn from Beta(A, A); 0 is none. With "
        "--mix-up, each batch has one of both",
    )
    group.add_argument(
        "--mix-up-off-epochs",
        type=non_negative_int,
        help="last epochs without mixup and CutMix (default: a tenth of --epochs)",
    )
    group.add_argument(
        "--epsilon", type=fraction_below_one, default=0.0, help="label smoothing: the share of all other classes"
    )


def _add_log_flags(parser):
    group = parser.add_argument_group("logs and saved parameters")
    group.add_argument("--log-dir", default=DEFAULT_LOG_DIR, help="folder of board/, text/ and params/")
    group.add_argument("--run-name", type=file_name, help="name of the run (default: DATASET_NETWORKLAYERS_TIME)")
    group.add_argument(
        "--log-interval", type=positive_int, default=50, help="steps between lines where there is no progress bar"
    )
    group.add_argument(
        "--save-period",
        type=non_negative_int,
        default=50,
        help="epochs between epoch-NNNN.params, copies of the parameters that stay; they are no checkpoints; 0 is none",
    )
    group.add_argument(
        "--viz-period",
        type=non_negative_int,
        default=0,
        help="epochs between pictures of the attention masks in TensorBoard; 0 is none",
    )
    group.add_argument(
        "--checkpoint-minutes",
        type=non_negative_float,
        default=10,
        help="minutes between checkpoints, which --resume goes on from, within an epoch; each end of an epoch is one "
        "too, whatever --save-period is; 0 is after every step",
    )
    group.add_argument(
        "--resume",
        metavar="RUN|PATH|auto",
        help="go on with a run: by its name, by its folder LOG_DIR/params/RUN or a checkpoint in that, or with the "
        "newest of the same settings and --data-dir, if any. Flags that are not given are the run's own; these may "
        "change: " + ", ".join(map(_flag, MAY_CHANGE)),
    )


def add_evaluation_flags(parser):
    """Give a training script's parser the flags by which it evaluates instead; `check_evaluation_flags` checks them."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--eval-only",
        action="store_true",
        help="validate --params, as the network.json beside it says, and end",
    )
    group.add_argument(
        "--params",
        type=params_path,
        metavar="FILE",
        help="parameters for --eval-only, or the name of a network that the repository holds",
    )
    group.add_argument("--out", metavar="DIR", help="folder of --eval-only's pictures (default: that of --params)")


# What an evaluation cannot heed.
OF_TRAINING = {
    "cutout",
    "random_erasing",
    "label_noise",
    "init",
    "freeze",
    "memory_saving",
    "gradient_compression",
    "epochs",
    "optimizer",
    "accumulate",
    "lr",
    "lr_per",
    "momentum",
    "wd",
    "lr_mode",
    "lr_steps",
    "lr_factor",
    "warmup_epochs",
    "no_wd",
    "last_gamma",
    "clip_grad",
    "ema",
    "nan_action",
    "mix_up",
    "alpha",
    "cutmix",
    "mix_up_off_epochs",
    "epsilon",
    "run_name",
    "save_period",
    "viz_period",
    "checkpoint_minutes",
    "resume",
    "colour_jitter",
    "lighting",
}


def check_evaluation_flags(parser, args):
    """End with status 2 where the flags for an evaluation contradict each other."""
    useless = sorted(OF_TRAINING.intersection(args.given))
    if args.eval_only and useless:
        parser.error(f"--eval-only trains nothing: {_flag(useless[0])} is for that")
    if args.eval_only != (args.params is not None):
        parser.error("--eval-only and --params need each other")
    if args.out is not None and not args.eval_only:
        parser.error("--out is for the pictures of --eval-only")


def parse_arguments(parser, argv=None):
    """Parse the command line and check the flags against each other; a contradiction exits with status 2.

    Returns a namespace of all flags and, besides, ``settings``: those a checkpoint holds, as they were given;
    ``resumed``: the `training.run.resume.Resumed` that --resume names, or None; ``given``: the names of the flags on
    the command line; and ``may_write_data``: whether a data set may be written to --data-dir, which is not so where a
    checkpoint alone, perhaps a stranger's, names another folder than the default.

    Raises UserError where --resume names no run to go on with.
    """
    defaults = vars(parser.parse_args([]))
    given = _given(parser, sys.argv[1:] if argv is None else argv, defaults)
    if given.get("cutout") and "random_erasing" not in given:
        defaults["random_erasing"] = None  # not the recipe's
    flags, resumed = {**defaults, **given}, None
    if flags["resume"] is not None:
        flags, resumed = _resumed(parser, defaults, given)
    if flags["seed"] is None:
        flags["seed"] = secrets.randbelow(2**31)
    args = argparse.Namespace(**flags)
    if args.mix_up_off_epochs is None or (args.mix_up_off_epochs >= args.epochs and "mix_up_off_epochs" not in given):
        args.mix_up_off_epochs = args.epochs // 10  # a recipe's may be more than there are
    if args.warmup_epochs >= args.epochs:
        parser.error(f"--warmup-epochs {args.warmup_epochs:g} leaves nothing of --epochs {args.epochs}")
    _check_network(parser, args)
    if args.run_name == "auto":
        parser.error("--run-name auto: --resume auto means the newest run")
    if (args.mix_up or args.cutmix) and args.mix_up_off_epochs >= args.epochs:
        parser.error(f"--mix-up-off-epochs {args.mix_up_off_epochs} leaves nothing of --epochs {args.epochs}")
    if args.cutout and args.random_erasing:
        parser.error("--cutout and --random-erasing: choose one")
    if args.freeze is not None and args.init is None:
        parser.error("--freeze needs --init: a part that never learned anything would stay so")
    if args.float16 and args.num_gpus == 0:
        parser.error("--float16 needs --num-gpus: MXNet has no float16 matrix product on a CPU")
    if args.bfloat16 and args.num_gpus:
        parser.error("--bfloat16 is for the CPU, not for --num-gpus; --no-bfloat16 turns it off")
    args.settings = {name: value for name, value in flags.items() if name not in NOT_SETTINGS}
    for name, value in args.settings.items():
        if isinstance(value, str) and has_controls(value) and not flags.get("eval_only"):
            parser.error(f"{_flag(name)} {value}: a control character, with which no run could go on")
    args.resumed, args.given = resumed, sorted(given)
    if launch_info().rank == 0 and not flags.get("eval_only"):
        for name, reason in idle_flags(args).items():
            print(f"{_flag(name)} does nothing {reason}", file=sys.stderr, flush=True)
    args.may_write_data = resumed is None or "data_dir" in given or args.data_dir == defaults["data_dir"]
    return args


def idle_flags(args):
    """The flags that are given and that others leave without effect, {name: why}."""
    idle = {}
    if not (args.mix_up or args.cutmix):
        idle["mix_up_off_epochs"] = "without --mix-up 1 or --cutmix"
    if not args.mix_up and "mix_up" not in args.given:
        idle["alpha"] = "without --mix-up 1"
    if args.lr_mode != "step":
        idle["lr_steps"] = idle["lr_factor"] = f"with --lr-mode {args.lr_mode}"
    return {name: reason for name, reason in idle.items() if name in args.given}


def _check_network(parser, args):
    """Leave with status 2 where flags of the network contradict each other."""
    if args.modules is not None and len(args.modules) != 3:
        parser.error(f"--modules {','.join(map(str, args.modules))}: there are 3 stages")
    variants = [_flag(name) for name in ("attention", "learning") if getattr(args, name) != parser.get_default(name)]
    if args.mask == "none" and variants:
        parser.error(f"{variants[0]} is nothing without a mask: not with --mask none")
    if args.viz_period and (args.mask == "none" or args.unit == RESNET):
        parser.error("--viz-period shows masks, and this network has none")
    if args.unit == RESNET and (variants or args.mask != parser.get_default("mask") or args.modules is not None):
        parser.error(f"--attention, --learning, --mask and --modules are not for --model {RESNET}")


def _given(parser, argv, defaults):
    """The flags that a command line itself gives, {name: value}."""
    unset = object()
    flags = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, unset)))
    return {name: value for name, value in vars(flags).items() if value is not unset}


def _resumed(parser, defaults, given):
    """({name: value} of all flags of a run to go on with, the `Resumed` run).

    They are the defaults, then what the checkpoint saved, then what is given; None and no such run where --resume auto
    finds none.
    """
    from training.run.resume import find_newest, open_run  # which import numpy

    if "run_name" in given:
        parser.error("--run-name is for new runs: --resume keeps the run's own")
    flags = {**defaults, **given}
    if flags["resume"] == "auto":
        fixed = set(flags) - {*MAY_CHANGE, "resume", "run_name"} - ({"seed"} - set(given))

        def fits(checkpoint):
            saved = _saved(parser, defaults, checkpoint)
            there, here = (os.path.realpath(each["data_dir"]) for each in (saved, flags))
            return there == here and all(saved[name] == flags[name] for name in fixed)

        flags["resume"] = find_newest(flags["log_dir"], fits)
        if flags["resume"] is None:
            with lasting_output():
                print(f"no run in {flags['log_dir']} has these settings: this is a new one", flush=True)
            return flags, None
    resumed = open_run(flags["resume"], flags["log_dir"])
    saved = _saved(parser, defaults, resumed.checkpoint)
    for name, value in given.items():
        if name not in (*MAY_CHANGE, "resume") and value != saved[name]:
            parser.error(f"{_flag(name)} contradicts {resumed.checkpoint.path}: {value} here, {saved[name]} there")
    log_dir = resumed.files.log_dir
    if "log_dir" in given and os.path.realpath(given["log_dir"]) != os.path.realpath(log_dir):
        parser.error(f"--log-dir {given['log_dir']} contradicts --resume {flags['resume']}")
    return {**saved, **given, "log_dir": str(log_dir)}, resumed


def _saved(parser, defaults, checkpoint):
    """All flags as a checkpoint's run had them, {name: value}; those that it does not name are the defaults.

    Raises UserError where no command line of this script can have given them: the checkpoint may be a stranger's.
    """
    actions = {action.dest: action for action in parser._actions}
    without_recipe = vars(training_parser("", datasets=[""]).parse_args([]))
    may_be_none = {name for each in (defaults, without_recipe) for name, value in each.items() if value is None}
    settings = checkpoint.facts.get("settings")
    try:
        if not isinstance(settings, dict):
            raise ValueError("it names no flags")
        saved = dict(settings)
        if "model" in saved:  # as imagenet_train.py once called it
            saved["unit"] = residual_unit(saved.pop("model"))
        for name, value in saved.items():
            if name not in defaults:
                raise ValueError(f"there is no flag {reprlib.repr(_flag(name))}")
            if not (_takes(actions[name], value) if value is not None else name in may_be_none):
                raise ValueError(f"{_flag(name)} cannot be {reprlib.repr(value)}")
            if name in NOT_SETTINGS and value != defaults[name]:
                raise ValueError(f"{_flag(name)} is not for a checkpoint to say")
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{checkpoint.path} was not trained by this script: {error}") from None
    return {**defaults, **saved}


def _takes(action, value):
    """Whether a flag can have a JSON value, by its type and choices; control characters are for nobody's screen."""
    if action.nargs == 0:
        return isinstance(value, bool)
    try:
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        os.fsencode(text)
        typed = (action.type or str)(text)
    except (ValueError, RecursionError, argparse.ArgumentTypeError):
        return False
    return typed == value and typed in (action.choices or [typed]) and not has_controls(text)


def _flag(name):
    return f"--{name.replace('_', '-')}"

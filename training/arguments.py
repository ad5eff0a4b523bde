"""The flags that every training script has. Imports nothing heavy: --help answers at once."""

import argparse
import math
import re
import secrets

__all__ = ["parse_arguments", "training_parser"]


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, without the usage before it."""

    def error(self, message):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one to show."""

    def _get_help_string(self, action):
        if action.default in (None, False) or action.nargs == 0:
            return action.help
        return super()._get_help_string(action)


def training_parser(description, *, datasets, **defaults):
    """A parser with the shared flags, grouped; ``defaults`` are a script's own values by flag name."""
    parser = OneLineParser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=datasets, default=datasets[0], help="what to train on")
    group.add_argument(
        "--data-dir", default="./data/sets", help="folder of the data sets; CIFAR is fetched there if missing"
    )
    group.add_argument(
        "--workers", "-j", type=positive_int, default=2, help="CPU threads that decode images, for each device"
    )
    group.add_argument("--limit", type=positive_int, help="use the first LIMIT images of each split only, for trials")

    group = parser.add_argument_group("network and devices")
    group.add_argument("--num-layers", type=positive_int, default=56, help="depth: 56, 92, 128, 164, 236 or 452")
    group.add_argument("--num-gpus", type=non_negative_int, default=0, help="GPUs to train on; 0 is the CPU")
    group.add_argument(
        "--float16",
        action="store_true",
        help="half precision on GPUs; batch normalization, loss and update stay in float32",
    )

    group = parser.add_argument_group("optimization")
    group.add_argument("--epochs", type=positive_int, default=200, help="passes over the training images")
    group.add_argument("--batch-size", "-b", type=positive_int, default=64, help="images a step, for each device")
    group.add_argument(
        "--optimizer", choices=["nag", "sgd"], default="nag", help="SGD with Nesterov's or with plain momentum"
    )
    group.add_argument("--lr", "--learning-rate", type=positive_float, default=0.1, help="full learning rate")
    group.add_argument("--momentum", type=fraction, default=0.9, help="momentum of the updates")
    group.add_argument("--wd", "--weight-decay", type=non_negative_float, default=1e-4, help="weight decay")
    group.add_argument(
        "--lr-mode",
        choices=["step", "cosine"],
        default="step",
        help="fall to a tenth at each of --lr-steps, or along a cosine to 0 at the last step",
    )
    group.add_argument(
        "--lr-steps", type=increasing_numbers, default="80,120", help="epochs at which mode step falls, with commas"
    )
    group.add_argument(
        "--warmup-epochs",
        type=non_negative_float,
        default=0,
        help="epochs, parts of one too, in which the rate first rises from a hundredth of --lr",
    )
    group.add_argument("--seed", type=non_negative_int, help="repeat a run; drawn and logged where not given")

    group = parser.add_argument_group("mixing")
    group.add_argument("--mix-up", type=int, choices=[0, 1], default=0, help="train on mixtures of two images")
    group.add_argument(
        "--alpha", type=positive_float, default=1.0, help="mixup's share is drawn from Beta(ALPHA, ALPHA)"
    )
    group.add_argument(
        "--mix-up-off-epochs",
        type=non_negative_int,
        help="last epochs without mixup (default: a tenth of --epochs)",
    )
    group.add_argument("--epsilon", type=fraction, default=0.0, help="label smoothing: the share of all other classes")

    group = parser.add_argument_group("logs and saved parameters")
    group.add_argument("--log-dir", default="./log", help="folder of board/, text/ and params/")
    group.add_argument("--run-name", type=file_name, help="name of the run (default: DATASET_attentionLAYERS_TIME)")
    group.add_argument(
        "--log-interval", type=positive_int, default=50, help="steps between lines where there is no progress bar"
    )
    group.add_argument(
        "--save-period", type=non_negative_int, default=50, help="epochs between numbered parameter files; 0 is none"
    )

    parser.set_defaults(**defaults)
    return parser


def parse_arguments(parser, argv=None):
    """Parse the command line and check the flags against each other; a contradiction exits with status 2."""
    args = parser.parse_args(argv)
    if args.mix_up_off_epochs is None:
        args.mix_up_off_epochs = args.epochs // 10
    if args.seed is None:
        args.seed = secrets.randbelow(2**31)
    if args.warmup_epochs >= args.epochs:
        parser.error(f"--warmup-epochs {args.warmup_epochs:g} leaves nothing of --epochs {args.epochs}")
    if args.float16 and args.num_gpus == 0:
        parser.error("--float16 needs --num-gpus: MXNet has no float16 matrix product on a CPU")
    return args


def _number(text, convert, accepts, meaning):
    try:
        value = convert(text)
    except ValueError:
        value = None
    if value is None or not math.isfinite(value) or not accepts(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")
    return value


def positive_int(text):
    return _number(text, int, lambda value: value > 0, "a whole number above 0")


def non_negative_int(text):
    return _number(text, int, lambda value: 0 <= value < 2**31, "a whole number from 0 on")


def positive_float(text):
    return _number(text, float, lambda value: value > 0, "a number above 0")


def non_negative_float(text):
    return _number(text, float, lambda value: value >= 0, "a number from 0 on")


def fraction(text):
    return _number(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def positive_fraction(text):
    return _number(text, float, lambda value: 0 < value <= 1, "a number above 0, at most 1")


def increasing_numbers(text):
    """ "80,120" as [80.0, 120.0]; an empty text is no number at all."""
    numbers = [positive_float(part) for part in text.split(",")] if text else []
    if numbers != sorted(set(numbers)):
        raise argparse.ArgumentTypeError(f"{text!r} does not rise from number to number")
    return numbers


def file_name(text):
    """A name for files and folders: letters, digits and . _ + = - in it, the first no dot or dash."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no plain name (letters, digits, . _ + = -)")
    return text

"""Train what the paper compares, each with several seeds, and draw the test errors side by side.

python -m scripts.experiments learning --scale small --seeds 3
"""

import concurrent.futures
import contextlib
import csv
import io
import os
import queue
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, namedtuple
from pathlib import Path

from base.errors import Diverged, UserError, run_command, stop_signals
from base.files import open_regular, writing
from base.flags import OneLineParser, bounded_int
from base.runtime import prepare_mxnet, real_core_count
from training.flags import RESNET, parse_arguments, training_parser
from training.run.files import RunPaths

ROOT = Path(__file__).resolve().parent.parent
MOST = 1024  # seeds, GPUs of a machine, trainings side by side

Variant = namedtuple("Variant", ["name", "flags", "paper"], defaults=[None])
Variant.__doc__ = """What is trained.

name : str
    Unique in its experiment, and part of its runs' names.
flags : str
    Of cifar10_train.py.
paper : float, optional
    The paper's test error on CIFAR-10, percent (arXiv 1704.06904, section 4.1).
"""

LABEL_NOISE = {  # share of wrong labels: the paper's errors
    0.1: {"attention92": 5.15, "resnet164": 5.93},
    0.3: {"attention92": 5.79, "resnet164": 6.61},
    0.5: {"attention92": 7.27, "resnet164": 8.35},
    0.7: {"attention92": 15.75, "resnet164": 17.21},
}
LEARNING = {56: (5.52, 5.89), 92: (4.99, 5.35), 128: (4.44, 5.57), 164: (4.31, 7.18)}  # depth: residual, naive

ATTENTION_92 = "--num-layers 92 --modules 2,2,2"  # the paper's for CIFAR


def depth_flags(depth):
    return ATTENTION_92 if depth == 92 else f"--num-layers {depth}"


def learning_variants(depths):
    return [
        Variant(f"attention{depth}-{learning}", f"{depth_flags(depth)} --learning {learning}", error)
        for depth in depths
        for learning, error in zip(("residual", "naive"), LEARNING[depth])
    ]


def noise_variants(attention, shares):
    """Variants of an attention network, (name, flags), and of ResNet-164, with shares of wrong labels."""
    networks = attention, ("resnet164", "--model resnet --num-layers 164")
    return [
        Variant(f"{name}-noise{share:g}", f"{flags} --label-noise {share:g}", LABEL_NOISE.get(share, {}).get(name))
        for share in shares
        for name, flags in networks
    ]


ATTENTION = [
    Variant("mixed", "--attention mixed", 5.52),
    Variant("channel", "--attention channel", 6.24),
    Variant("spatial", "--attention spatial", 6.33),
]
MASK = [
    Variant("hourglass", "--mask hourglass", 5.52),
    Variant("local", "--mask local", 6.48),
    Variant("none", "--mask none"),
]
UNIT = [Variant(unit, f"--unit {unit}") for unit in ("bottleneck", "resnext", "inception", "se")]
DEPTH = [Variant(f"attention{depth}", depth_flags(depth), errors[0]) for depth, errors in LEARNING.items()]

# By name, the variants at full scale and at the small one.
EXPERIMENTS = {
    "attention": {"full": ATTENTION, "small": ATTENTION},
    "learning": {"full": learning_variants(LEARNING), "small": learning_variants([56])},
    "mask": {"full": MASK, "small": MASK},
    "label-noise": {
        "full": noise_variants(("attention92", ATTENTION_92), LABEL_NOISE),
        "small": noise_variants(("attention56", "--num-layers 56"), [0.0, 0.5]),
    },
    "depth": {
        "full": [
            *DEPTH,
            Variant("attention236", "--num-layers 236", 4.14),
            Variant("attention452", "--num-layers 452", 3.9),
        ],
        "small": DEPTH[:2],
    },
    "unit": {"full": UNIT, "small": UNIT},
}

# Full is the paper's recipe, the training script's default, on all images. Small is 10 epochs of the first 1,500
# training images, with the first 1,500 test images: too little for the paper's order to be certain to show.
SCALES = {
    "full": "--dataset cifar10 --save-period 0",
    "small": "--dataset cifar10 --save-period 0 --limit 1500 --epochs 10 --batch-size 32 --lr 0.05 --lr-mode cosine "
    "--warmup-epochs 1",
}
IMAGES = 50_000, 10_000  # of CIFAR-10

# A training of Attention-56 with one thread of an AMD EPYC with AVX-512 took 46 images a second, of 0.503 G
# multiply-adds each in the forward pass.
MULTIPLY_ADDS_A_SECOND = 23e9
BFLOAT16_GAIN = 1.8  # docs/speed.md
VALIDATION = 1 / 3  # of the time of a training image

Trial = namedtuple("Trial", ["run", "variant", "seed", "flags", "epochs"])
Trial.__doc__ = """A training of an experiment.

run : str
    Its name under the log folder.
variant : Variant
seed : int
flags : list of str
    All but where it is.
epochs : int
"""


def main():
    parser = OneLineParser(
        description=__doc__.split("\n")[0], epilog="The same command goes on with what was stopped.", allow_abbrev=False
    )
    parser.add_argument("name", choices=EXPERIMENTS, help="what is compared")
    parser.add_argument("--scale", choices=SCALES, default="small", help="the paper's recipe, or an hour of two cores")
    parser.add_argument("--seeds", type=bounded_int(MOST), default=3, help="trainings of each variant (default: 3)")
    parser.add_argument("--data-dir", default="./data/sets", help="folder of the data sets")
    parser.add_argument("--log-dir", default="./log/experiments", type=Path, help="folder of the runs and the results")
    parser.add_argument(
        "--num-gpus", type=bounded_int(MOST, least=0), default=0, help="trainings side by side, one on each GPU"
    )
    parser.add_argument(
        "--jobs",
        type=bounded_int(MOST),
        help="trainings side by side on a CPU (default: one for each core, of one thread)",
    )
    parser.add_argument("--bfloat16", action="store_true", help="the training script's flag of that name")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and the hours they will take")
    args = parser.parse_args()
    trials = plan(args.name, args.scale, args.seeds, args.bfloat16)
    if args.num_gpus and args.jobs:
        parser.error("--jobs is for the CPU: --num-gpus has a training on each GPU")
    if args.num_gpus and args.bfloat16:
        parser.error("--bfloat16 is for the CPU, not for --num-gpus")
    jobs = args.num_gpus or args.jobs or real_core_count()
    place = ["--data-dir", args.data_dir, "--log-dir", str(args.log_dir), "--num-gpus", str(min(args.num_gpus, 1))]
    if args.dry_run:
        print_plan(trials, place, jobs)
        return
    with StoppableTrainings() as trainings:
        diverged = train_all(trials, place, args.log_dir, jobs, args.num_gpus > 0, trainings)
    report(results_name(args.name, args.scale, args.bfloat16), args.scale, trials, diverged, args.log_dir)


def plan(name, scale, seeds, bfloat16=False):
    """The `Trial`s of an experiment. Seed after seed, so that a stopped one has something of every variant."""
    trials = []
    for seed in range(1, seeds + 1):
        for variant in EXPERIMENTS[name][scale]:
            flags = f"{SCALES[scale]} {variant.flags} --seed {seed} --{'' if bfloat16 else 'no-'}bfloat16".split()
            epochs = training_flags(flags).epochs
            run = f"{results_name(name, scale, bfloat16)}-{variant.name}-{seed}"
            trials.append(Trial(run, variant, seed, flags, epochs))
    return trials


def results_name(name, scale, bfloat16):
    """How the names of an experiment's runs and results begin: those of another precision are others."""
    return f"{name}-{scale}{'-bfloat16' * bfloat16}"


def training_flags(flags):
    """All flags of cifar10_train.py as a command line's ``flags`` make them."""
    return parse_arguments(training_parser("", datasets=["cifar10"]), flags)


def print_plan(trials, place, jobs):
    """Print the commands, and the hours that they take on a CPU."""
    prepare_mxnet(use_gpus=False)
    speed, hours = MULTIPLY_ADDS_A_SECOND * (BFLOAT16_GAIN if "--bfloat16" in trials[0].flags else 1), 0
    for trial in trials:
        print(shlex.join(["python3", "cifar10_train.py", "--run-name", trial.run, *trial.flags, *place]))
        hours += estimated_hours(trial, speed)
    print(
        f"{len(trials)} trainings: about {hours:.1f} hours of one thread, {hours / jobs:.1f} with {jobs} side by side, "
        f"at {speed / 1e9:.0f} G multiply-adds a second (AMD EPYC with AVX-512; no GPU was measured)"
    )


def estimated_hours(trial, speed):
    """Hours that a training takes one thread, by its network's multiply-adds and those of a second."""
    # imported late: MXNet
    from data.dataset import Dataset
    from model.summary import multiply_adds
    from training.commands import network_fields
    from training.network_file import describe, make_network

    args = training_flags(trial.flags)
    images = Dataset("cifar10", 10, {}, 32, (0.0,) * 3, (1.0,) * 3, mirror=True)
    family = "resnet" if args.unit == RESNET else "cifar"
    net = make_network(describe(images, family, args.num_layers, **network_fields(args)))
    train, test = (min(count, args.limit or count) for count in IMAGES)
    work = trial.epochs * (train + VALIDATION * test) * multiply_adds(net, (1, 3, 32, 32))
    return work / speed / 3600


class StoppableTrainings:
    """The processes of trainings, to be entered by the main thread: a signal that stops this process stops them first.

    Attributes
    ----------
    stopped : int or None
        The signal.
    """

    def __init__(self):
        self.stopped, self._running, self._handlers = None, set(), {}

    def __enter__(self):
        self._handlers = {number: signal.signal(number, self._stop) for number in stop_signals()}
        return self

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _stop(self, number, _):
        self.stopped = number
        for process in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def run(self, command, environment, output):
        """Run a command, its output into the file ``output``. Returns its status."""
        with open(output, "ab") as file:
            # a session of its own, so that Ctrl-C comes to it once, from here
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._running.add(process)
        if self.stopped:  # by a signal that came before it was among the running
            process.send_signal(self.stopped)
        try:
            return process.wait()
        finally:
            self._running.discard(process)


def train_all(trials, place, log_dir, jobs, on_gpus, trainings):
    """Train what is not finished yet, ``jobs`` at a time. Returns the list of `Trial`s whose loss is not finite.

    Raises UserError where a training fails, and SystemExit when a signal has stopped them.
    """
    environments = queue.SimpleQueue()
    threads = {"OMP_NUM_THREADS": str(max(1, real_core_count() // jobs))}
    for name in visible_gpus(jobs) if on_gpus else range(jobs):
        environments.put({**threads, **os.environ, **({"CUDA_VISIBLE_DEVICES": str(name)} if on_gpus else {})})
    failures, diverged = [], []

    def train(trial):
        if trainings.stopped or failures or finished(trial.run, trial.epochs, log_dir):
            return
        environment = environments.get()
        try:
            if not train_one(trial, absolute(place), environment, log_dir, trainings):
                diverged.append(trial)
        except BaseException:
            failures.append(trial)
            raise
        finally:
            environments.put(environment)

    with writing(log_dir):
        (log_dir / "output").mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(train, trial) for trial in trials]
        try:
            for future in concurrent.futures.as_completed(waiting):
                future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if jobs > 1:
                print(f"{error}; those that run beside it are waited for", flush=True)
            raise
    if trainings.stopped:
        print("stopped; the same command goes on", flush=True)
        raise SystemExit(128 + trainings.stopped)
    return diverged


def train_one(trial, place, environment, log_dir, trainings):
    """Begin a `Trial`, or go on with it. Returns whether its numbers stayed finite.

    Raises UserError where it fails otherwise, but for a signal.
    """
    from training.run.resume import begin_or_resume  # which imports numpy

    command = [sys.executable, "cifar10_train.py", *begin_or_resume(log_dir, trial.run), *trial.flags, *place]
    output, started = log_dir / "output" / f"{trial.run}.txt", time.monotonic()
    status = trainings.run(command, environment, output)
    if status == Diverged.status:
        print(f"{trial.run}: its numbers are not finite any more; the others go on", flush=True)
    elif status and not trainings.stopped:
        last = (output.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{trial.run} ended with status {status}: {last}")
    if not status:
        print(f"{trial.run}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    return status != Diverged.status


def visible_gpus(count):
    """The names of GPUs to take, as CUDA_VISIBLE_DEVICES has them where that is set. Raises UserError for too few."""
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return list(range(count))
    names = [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if len(names) < count:
        raise UserError(f"--num-gpus {count}: CUDA_VISIBLE_DEVICES leaves {len(names)}")
    return names[:count]


def absolute(place):
    """Flags of folders with these as seen from anywhere."""
    return [os.path.realpath(value) if before.endswith("-dir") else value for before, value in zip(["", *place], place)]


def finished(run, epochs, log_dir):
    """The rows of a run's CSV, {column: number} each, if it has so many epochs and ended well; else None."""
    if not ended_well(run, log_dir):
        return None
    try:
        with io.TextIOWrapper(open_regular(RunPaths(log_dir, run).csv), newline="") as file:
            rows = [{column: float(text) for column, text in row.items()} for row in csv.DictReader(file)]
        whole = rows and {"val_accuracy", "seconds"} <= set(rows[-1]) and rows[-1]["epoch"] >= epochs
        return rows if whole else None
    except (OSError, ValueError, TypeError, KeyError, csv.Error):
        return None


def ended_well(run, log_dir):
    """Whether a run, if it has all epochs, is finished: one that diverged in the last of them does not say so."""
    paths = RunPaths(log_dir, run)
    return not paths.log.exists() or paths.finished_line() is not None  # or there is a CSV alone


def report(name, scale, trials, diverged, log_dir):
    """Write a CSV, a table and a figure of what the trainings ended with, all but those that diverged; print the table.

    Parameters
    ----------
    name : str
        `results_name`, of the files.
    scale : str
    trials, diverged : list of Trial
        All, and those whose loss is not finite.
    log_dir : pathlib.Path

    Raises UserError where somebody has changed the rows of one.
    """
    results = []
    for trial in trials:
        if trial in diverged:
            continue
        rows = finished(trial.run, trial.epochs, log_dir)
        if rows is None:
            path = RunPaths(log_dir, trial.run).csv
            raise UserError(f"{path} does not have the rows of its finished training any more: mend it")
        errors = [100 * (1 - row["val_accuracy"]) for row in rows]
        hours = sum(row["seconds"] for row in rows) / 3600
        results.append((trial.variant.name, trial.seed, round(errors[-1], 3), round(min(errors), 3), round(hours, 3)))
    stem = log_dir / name
    with writing(log_dir), open(stem.with_suffix(".csv"), "w", newline="") as file:
        csv.writer(file).writerows([("variant", "seed", "error", "best_error", "hours"), *results])
    variants = list(dict.fromkeys(trial.variant for trial in trials))
    errors = {variant: [error for name, _, error, *_ in results if name == variant.name] for variant in variants}
    table = error_table(errors, Counter(trial.variant for trial in diverged))
    with writing(log_dir):
        stem.with_suffix(".md").write_text(table)
    draw_errors(
        {variant: values for variant, values in errors.items() if values},
        name,
        stem.with_suffix(".png"),
        with_paper=scale == "full",
    )
    print(table)
    for suffix in (".csv", ".md", ".png"):
        print(stem.with_suffix(suffix))


def error_table(errors, diverged):
    """A Markdown table of {Variant: test errors of its seeds, percent}, and {Variant: how many diverged}."""
    lines = ["| Variant | Runs | Test error, % | Paper, % |", "|---|---|---|---|"]
    for variant, values in errors.items():
        runs = f"{len(values)}, and {diverged[variant]} diverged" if diverged[variant] else len(values)
        mean = f"{statistics.mean(values):.2f}" if values else ""
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        paper = "" if variant.paper is None else f"{variant.paper:.2f}"
        lines.append(f"| {variant.name} | {runs} | {mean}{spread} | {paper} |")
    return "\n".join(lines) + "\n"


def draw_errors(errors, title, path, with_paper):
    """Draw {Variant: test errors} with their means and standard deviations, and with the paper's where told to."""
    # imported late: it takes a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 1.2 * len(errors), 4.2), layout="constrained")
    axes = figure.subplots()
    for place, values in enumerate(errors.values()):
        axes.plot(
            [place + 0.12] * len(values), values, "o", color="grey", markersize=4, label="a run" if not place else ""
        )
    means = [statistics.mean(values) for values in errors.values()]
    spreads = [statistics.stdev(values) if len(values) > 1 else 0 for values in errors.values()]
    axes.errorbar(range(len(means)), means, spreads, fmt="s", capsize=5, label="mean, standard deviation")
    known = [(place, variant.paper) for place, variant in enumerate(errors) if variant.paper is not None]
    if with_paper and known:
        axes.plot(*zip(*known), "x", color="black", label="the paper's")
    axes.set_xticks(range(len(errors)), [variant.name.replace("-", "\n") for variant in errors])
    axes.set_xlim(-0.5, len(errors) - 0.5)
    axes.set(ylabel="test error, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_command(main)

"""Whether everything holds on this machine's GPUs, or with --cpu on its CPU: a table, a line a check, and a report.

Each check is a process of its own, so that one that crashes is a line of the table like any other.
"""

import csv
import importlib.metadata
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

from base.errors import run_command
from base.files import file_digest, writing
from base.flags import HelpFormatter, OneLineParser
from base.text import one_line

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mxnet", "mxnet-cu112", "nvidia-dali-cuda110", "nvidia-cudnn-cu11", "numpy", "horovod", "byteps")

PASSED, FAILED, IMPOSSIBLE = "passed", "failed", "not possible here"
LONGEST = 400  # seconds of one process
EPOCHS = 12  # of digits where a GPU's speed is measured, 11 steps of 128 images each

# From Ampere on, cuDNN rounds what float32 convolutions read to TF32, as coarsely as float16. Where a GPU's numbers are
# compared with a CPU's, or those of other batches, it must not.
EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}

HOROVOD = (sys.executable, "-m", "scripts.horovodrun", "-np", 2, "--gloo")

DIGITS = ("--dataset", "digits", "--num-layers", 56, "--batch-size", 16, "--lr", 0.03, "--lr-mode", "cosine")
DIGITS += ("--warmup-epochs", 0.2, "--epsilon", 0.1, "--seed", 1, "--log-interval", 10)

# Settings whose worth a GPU must tell: {name: (environment, flags)}. The speed with each stands beside that without.
SETTINGS = {
    "as it is": ({}, ()),
    "CUDA graphs": ({"MXNET_ENABLE_CUDA_GRAPHS": "1"}, ()),
    "longer bulks": (
        {"MXNET_EXEC_BULK_EXEC_MAX_NODE_TRAIN_FWD": "999", "MXNET_EXEC_BULK_EXEC_MAX_NODE_TRAIN_BWD": "999"},
        (),
    ),
    "no fused operators": ({"MXNET_USE_FUSION": "0"}, ()),
    "--float16": ({}, ("--float16",)),
    "--workers 4": ({}, ("--workers", 4)),
}

# The same of two workers' exchange, by Horovod: {name: environment}.
EXCHANGES = {
    "as it is": {},
    "HOROVOD_CYCLE_TIME=0.1": {"HOROVOD_CYCLE_TIME": "0.1"},
    "HOROVOD_FUSION_THRESHOLD=67108864": {"HOROVOD_FUSION_THRESHOLD": "67108864"},
}

Check = namedtuple("Check", ["name", "result", "figure"])
Check.__doc__ = """A line of the table.

name, figure : str
result : str
    PASSED, FAILED or IMPOSSIBLE.
"""


class Failure(Exception):
    """A check that failed, with the figure or the line that says so."""


class Impossible(Exception):
    """A check that this machine cannot make, with the reason."""


class Machine:
    """What the checks run on.

    Parameters
    ----------
    gpus : list of str
        Their `base.gpus.bus_ids`; none is the CPU.
    folder : pathlib.Path
        For runs and data, which are removed in the end.

    Attributes
    ----------
    num_gpus : int
    gpus : list of str
    folder : pathlib.Path
    log : list of str
        What went wrong, for the report.
    """

    def __init__(self, gpus, folder):
        self.num_gpus, self.gpus, self.folder, self.log = len(gpus), gpus, folder, []

    def run(self, *command, **environ):
        """A command's standard output. Raises Failure, with its last line, where it fails."""
        try:
            done = subprocess.run(
                list(map(str, command)),
                cwd=ROOT,
                env={**os.environ, **environ},
                capture_output=True,
                text=True,
                timeout=LONGEST,
            )
        except subprocess.TimeoutExpired:
            raise Failure(f"no end after {LONGEST} s") from None
        if done.returncode:
            self.log += ["$ " + " ".join(map(str, command)), done.stdout[-4000:], done.stderr[-4000:]]
            lines = (done.stderr.strip() or done.stdout.strip() or "without a word").splitlines()
            raise Failure(f"exit status {done.returncode}: {one_line(lines[-1])[:150]}")
        return done.stdout

    def command(self, name, *flags):
        """The command that trains a run called ``name`` on digits."""
        run = ("--run-name", name, "--log-dir", self.folder, "--data-dir", self.folder / "sets")
        gpus = ("--num-gpus", min(self.num_gpus, 1))
        return [*map(str, (sys.executable, "cifar10_train.py", *DIGITS, *gpus, *run, *flags))]

    def train(self, name, *flags, **environ):
        """Train a run on digits. Returns the rows of its CSV."""
        self.run(*self.command(name, *flags), **environ)
        with open(self.folder / "text" / f"{name}.csv") as file:
            return list(csv.DictReader(file))


def check_versions(machine):
    installed = []
    for package in PACKAGES:
        try:
            installed.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"Python {platform.python_version()}, {', '.join(installed)}"


def check_devices(machine):
    code = "from base.runtime import prepare_mxnet; prepare_mxnet(use_gpus={}); import mxnet as mx; " + (
        "print(mx.context.num_gpus(), mx.nd.ones(3, ctx={}).sum().asscalar())"
    )
    gpus = machine.num_gpus > 0
    answer = machine.run(sys.executable, "-c", code.format(gpus, "mx.gpu(0)" if gpus else "mx.cpu()")).split()
    if answer[-1] != "3.0":
        raise Failure(f"1 + 1 + 1 = {answer[-1]}")
    if not gpus:
        return f"CPU, {len(os.sched_getaffinity(0))} threads"
    described = []
    if shutil.which("nvidia-smi"):
        query = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
        described = [machine.run(*query, f"--id={gpu}").strip() for gpu in machine.gpus]
    return f"{answer[0]} GPUs: {'; '.join(described) or 'no nvidia-smi to describe them'}"


def check_tests(machine, chosen):
    """The tests of tests/test_gpu.py with a name, on the machine's device."""
    device = "gpu" if machine.num_gpus else "cpu"
    command = (sys.executable, "-m", "pytest", "-q", "tests/test_gpu.py", "-k", chosen, "-p", "no:cacheprovider")
    printed = machine.run(*command, f"--basetemp={machine.folder / 'pytest'}", RAN_CHECK_DEVICE=device, **EXACT)
    return printed.strip().splitlines()[-1]


def check_operators(machine):
    return check_tests(machine, "operators")


def check_half_operators(machine):
    require_gpus(machine, 1)
    return check_tests(machine, "half")


def check_loader(machine):
    if machine.num_gpus == 0:
        raise Impossible("it is the CPU's batches that a GPU's are compared with")
    return check_tests(machine, "batches")


def require_gpus(machine, count):
    if machine.num_gpus == 0:
        raise Impossible("MXNet has no float16 matrix product on a CPU" if count == 1 else "no GPU")
    if machine.num_gpus < count:
        raise Impossible(f"{machine.num_gpus} GPU")


def learns(machine, name, *flags):
    """Train on digits as the demo does, for longer; on a CPU until it is well above chance."""
    flags, least = (("--epochs", 5, *flags), 0.97) if machine.num_gpus else (("--epochs", 1), 0.5)
    accuracy = max(float(row["val_accuracy"]) for row in machine.train(name, *flags))
    if accuracy < least:
        raise Failure(f"accuracy {accuracy:.4f}, below {least}")
    return f"accuracy {accuracy:.4f}, at least {least} wanted"


def check_learning(machine):
    return learns(machine, "float32")


def check_half_learning(machine):
    require_gpus(machine, 1)
    return learns(machine, "float16", "--float16")


def check_resuming(machine):
    """A run that is killed and resumed ends as one that was left alone: on a CPU to the bit, on a GPU with its rows."""
    from training.run.checkpoint import Checkpoints

    flags = ("--epochs", 2, "--limit", 64, "--checkpoint-minutes", 0)
    rows = machine.train("whole", *flags)
    process = subprocess.Popen(
        machine.command("killed", *flags), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoints, until = Checkpoints(machine.folder / "params" / "killed"), time.monotonic() + LONGEST
    try:
        while not any(path.name >= "checkpoint-000003" for path in checkpoints.paths()):
            if process.poll() is not None or time.monotonic() > until:
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise Failure("the training ended before it was killed")
    machine.run(sys.executable, "cifar10_train.py", "--resume", "killed", "--log-dir", machine.folder)
    digests = [file_digest(machine.folder / "params" / name / "last.params") for name in ("whole", "killed")]
    with open(machine.folder / "text" / "killed.csv") as file:
        resumed = list(csv.DictReader(file))
    if [row["epoch"] for row in resumed] != [row["epoch"] for row in rows]:
        raise Failure("rows of the CSV are missing or doubled")
    if machine.num_gpus == 0 and digests[0] != digests[1]:
        raise Failure("the parameters are not those of the run that was left alone")
    ratio = float(resumed[-1]["train_loss"]) / float(rows[-1]["train_loss"])
    if not 0.9 < ratio < 1.1:
        raise Failure(f"the loss is {ratio:.2f} times that of the run that was left alone")
    return f"killed at its second step; same rows, {'same' if digests[0] == digests[1] else 'other'} bits at the end"


def check_flags(machine):
    """Trainings with flags that have a path of their own, and an evaluation."""
    flags = ("--ema", 0.9, "--accumulate", 2, "--clip-grad", 1, "--mix-up", 1, "--cutout", 8, "--viz-period", 1)
    rows = machine.train("flags", "--epochs", 1, "--limit", 64, *flags)
    machine.train("memory-saving", "--epochs", 1, "--limit", 32, "--memory-saving")
    params = machine.folder / "params" / "flags" / "last-ema.params"
    where = ("--data-dir", machine.folder / "sets", "--num-gpus", min(machine.num_gpus, 1), "--limit", 64)
    printed = machine.run(sys.executable, "cifar10_train.py", "--eval-only", "--params", params, *where)
    found, expected = float(re.search(r"accuracy ([\d.]+)", printed)[1]), float(rows[-1]["val_ema_accuracy"])
    if abs(found - expected) > 1.5 / 64:  # one of the images may be at the border of two classes
        raise Failure(f"accuracy {found:.4f} of their average in --eval-only, {expected:.4f} in the training")
    return f"accuracy {found:.4f} of their average in --eval-only"


def check_photographs(machine):
    """A training on JPEGs of different sizes, which a GPU decodes, crops and colours."""
    from tests.drawn_images import draw_photographs

    for split in ("train", "val"):
        draw_photographs(machine.folder / "photographs" / split, 24)
    flags = ("--data-dir", machine.folder / "photographs", "--log-dir", machine.folder, "--run-name", "photographs")
    flags += ("--input-size", 64, "--batch-size", 8, "--epochs", 1, "--lr", 0.01, "--colour-jitter", 0.4)
    flags += ("--random-erasing", 0.5, "--num-gpus", min(machine.num_gpus, 1))
    lines = machine.run(sys.executable, "imagenet_train.py", *flags).splitlines()
    return lines[-1].partition(" (")[0]


def check_two_gpus(machine):
    require_gpus(machine, 2)
    figure = in_step(machine, "process", num_gpus=2)
    machine.train("two", "--epochs", 1, "--limit", 64, "--num-gpus", 2)
    resumed = ("--resume", "two", "--log-dir", machine.folder, "--num-gpus", 1, "--epochs", 2)
    machine.run(sys.executable, "cifar10_train.py", *resumed)
    return f"{figure}; Attention-56 trained, and resumed on one"


def check_horovod(machine):
    require_engine("horovod")
    if machine.num_gpus == 1:
        raise Impossible("one GPU alone")
    return in_step(machine, "horovod", HOROVOD)


def check_byteps(machine):
    require_gpus(machine, 2)
    require_engine("byteps")
    return in_step(machine, "byteps", [sys.executable, "scripts/launch.py", "--num-gpus", 2])


def require_engine(engine):
    try:
        importlib.metadata.version(engine)
    except importlib.metadata.PackageNotFoundError:
        raise Impossible(f"{engine} is not installed; scripts/install_{engine}.sh installs it") from None


def in_step(machine, how, launcher=(), num_gpus=1):
    """Two devices take the steps of one with all the images: those of workers that are launched, or of one process."""
    import numpy as np

    worker = [sys.executable, "tests/sync_worker.py", "steps"]
    parameters, environ = {}, {"OMP_NUM_THREADS": "1", **EXACT}
    for name, command, images, gpus in (("one", worker, 16, 1), ("two", [*launcher, *worker], 8, num_gpus)):
        folder = machine.folder / f"{how}-{name}"
        folder.mkdir()
        flags = ("--data-dir", machine.folder / "sets", "--batch-size", images)
        machine.run(*command, folder, *flags, "--num-gpus", min(machine.num_gpus, gpus), **environ)
        with np.load(folder / "0.npz") as file:
            parameters[name] = {key: value for key, value in file.items() if key.startswith("parameters/")}
    difference = max(np.abs(value - parameters["two"][key]).max() for key, value in parameters["one"].items())
    least = 1e-3 if machine.num_gpus else 1e-5
    if not difference <= least:
        raise Failure(f"after 20 steps parameters differ by {difference:.2g}")
    if launcher:  # the steps were a small network's, without masks and with batch normalization frozen
        machine.run(*launcher, *machine.command(f"{how}-attention56", "--epochs", 1, "--limit", 64), **environ)
    return f"after 20 steps parameters differ by {difference:.2g} at most"


def watched(machine, name, *flags, **environ):
    """(images/s of a run, the median of its later epochs, what nvidia-smi saw of it in words)."""
    seen, command = [], None
    if machine.num_gpus and shutil.which("nvidia-smi"):
        query = ("--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "--loop-ms=500")
        command = subprocess.Popen(["nvidia-smi", *query, f"--id={machine.gpus[0]}"], stdout=subprocess.PIPE, text=True)
    try:
        rows = machine.train(name, *flags, **environ)
    finally:
        if command:
            command.terminate()
            seen = [list(map(int, re.findall(r"\d+", line))) for line in command.communicate()[0].splitlines()]
    half = [pair for pair in seen[len(seen) // 2 :] if len(pair) == 2]
    words = ""
    if half:
        busy = sum(pair[0] for pair in half) / len(half)
        words = f", GPU {busy:.0f} % busy, {max(pair[1] for pair in half)} MB"
    return statistics.median(float(row["images_per_second"]) for row in rows[len(rows) // 2 :]), words


def speed(machine, layers, batch):
    flags = ("--num-layers", layers, "--batch-size", batch)
    flags += ("--epochs", EPOCHS) if machine.num_gpus else ("--epochs", 2, "--limit", 2 * batch)
    images, words = watched(machine, f"speed-{layers}-{batch}", *flags)
    return f"{images:.1f} images/s at batch {batch}{words}"


def check_speed_56(machine):
    return speed(machine, 56, 128 if machine.num_gpus else 32)


def check_speed_92(machine):
    return speed(machine, 92, 64 if machine.num_gpus else 16)


def check_settings(machine):
    """How fast a training is with each of SETTINGS, and those that make it at least 3 % faster."""
    if machine.num_gpus == 0:
        raise Impossible("these are settings for GPUs")
    found = {}
    for number, (name, (environ, flags)) in enumerate(SETTINGS.items()):
        try:
            images, _ = watched(
                machine, f"setting-{number}", "--epochs", EPOCHS, "--batch-size", 128, *flags, **environ
            )
        except Failure as failure:
            machine.log.append(f"{name}: {failure}")
            continue
        found[name] = images
    return recommended(found)


def check_exchange_settings(machine):
    """How fast two workers train with each of EXCHANGES, and those that make them at least 3 % faster."""
    require_gpus(machine, 2)
    require_engine("horovod")
    return recommended(measured_exchanges(machine, "--batch-size", 64))


def measured_exchanges(machine, *flags):
    """{name: images/s of two workers} with each of EXCHANGES that works."""
    worker = (sys.executable, "scripts/benchmark_sync.py", "--num-gpus", min(machine.num_gpus, 1), "--json", *flags)
    found = {}
    for name, environ in EXCHANGES.items():
        try:
            printed = machine.run(*HOROVOD, *worker, **environ)
        except Failure as failure:
            machine.log.append(f"{name}: {failure}")
            continue
        found[name] = float(re.search(r'"images_per_second": ([\d.]+)', printed)[1])
    return found


def recommended(found):
    """{name of a setting: images/s} in words, and which of them are worth it."""
    if "as it is" not in found:
        raise Failure("no training without a setting ended")
    better = [name for name, images in found.items() if images > 1.03 * found["as it is"]]
    figures = ", ".join(f"{name} {images:.0f}" for name, images in found.items())
    return f"images/s: {figures}; worth setting: {', '.join(better) or 'none'}"


CHECKS = {
    "versions": check_versions,
    "devices": check_devices,
    "operators against the CPU": check_operators,
    "operators in float16": check_half_operators,
    "DALI against the CPU": check_loader,
    "digits": check_learning,
    "digits in float16": check_half_learning,
    "a killed run resumed": check_resuming,
    "other flags": check_flags,
    "photographs": check_photographs,
    "two GPUs, one process": check_two_gpus,
    "Horovod, two workers": check_horovod,
    "BytePS, two workers": check_byteps,
    "Attention-56": check_speed_56,
    "Attention-92": check_speed_92,
    "settings": check_settings,
    "settings of Horovod": check_exchange_settings,
}


def checked(name, function, machine):
    """The `Check` that a function of CHECKS makes."""
    try:
        return Check(name, PASSED, function(machine))
    except Impossible as reason:
        return Check(name, IMPOSSIBLE, str(reason))
    except Failure as failure:
        return Check(name, FAILED, str(failure))
    except Exception as error:  # a file that should be there, a figure that is none: the others are checked yet
        return Check(name, FAILED, f"{type(error).__name__}: {one_line(error)}")


def visible_gpus():
    """`base.gpus.bus_ids` of the GPUs that CUDA_VISIBLE_DEVICES does not hide; none without a driver."""
    code = "import ctypes; from base.gpus import bus_ids; print(*bus_ids(ctypes.CDLL('libcuda.so.1')))"
    try:
        found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return []
    return found.stdout.split() if found.returncode == 0 else []


def parse_arguments():
    parser = OneLineParser(description=__doc__.split("\n")[0], formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("--cpu", action="store_true", help="check on the CPU all that can be checked there")
    parser.add_argument("--report", default="log/check_gpu.txt", help="file with the table and what went wrong")
    args = parser.parse_args()
    args.gpus = [] if args.cpu else visible_gpus()
    if not args.gpus and not args.cpu:
        parser.error("the driver shows no GPU here; --cpu checks what a CPU can")
    return args


def main():
    args = parse_arguments()
    lines, results, began = [], [], time.monotonic()
    report = Path(args.report)
    with writing(report):
        report.parent.mkdir(parents=True, exist_ok=True)
        open(report, "a").close()  # so that it is known at once whether it can be written
    with tempfile.TemporaryDirectory(prefix="check-gpu-") as folder:
        machine = Machine(args.gpus, Path(folder))
        for name, function in CHECKS.items():
            started = time.monotonic()
            check = checked(name, function, machine)
            results.append(check.result)
            line = f"{check.name:26} {check.result:18} {time.monotonic() - started:4.0f} s  {check.figure}"
            lines.append(line)
            print(line, flush=True)
        summary = ", ".join(f"{results.count(kind)} {kind}" for kind in (PASSED, FAILED, IMPOSSIBLE))
        lines.append(f"{summary}; {time.monotonic() - began:.0f} s")
        with writing(report):
            report.write_text("\n".join([*lines, "", *machine.log]) + "\n", errors="backslashreplace")
    print(f"{lines[-1]}; the report is {report}")
    sys.exit(1 if FAILED in results else 0)


if __name__ == "__main__":
    run_command(main)

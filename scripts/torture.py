"""Stop trainings on digits in every way there is, resume each, and compare it with one that was left alone.

python -m scripts.torture --minutes 30
"""

import contextlib
import dataclasses
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from base.errors import EXIT_INTERRUPTED, UserError, run_command
from base.flags import OneLineParser, non_negative_float, non_negative_int, positive_int
from training.run.checkpoint import Checkpoints
from training.run.files import ABANDONED, RunPaths

ROOT = Path(__file__).resolve().parent.parent
TIMINGS = 2  # columns at a CSV's end
LIMIT, BATCH_SIZE = 12, 2
SMALL = ("--model", "resnet", "--num-layers", 11)
DISK = {True: 800, False: 40}  # megabytes that two trainings need at most, by whether they are of Attention-56

# What a process is given to get through its life on a machine that is busy with other things.
PATIENCE = 600


@dataclasses.dataclass
class Plan:
    """How long to go on, and with what.

    Attributes
    ----------
    data_dir : pathlib.Path
        Folder of the data sets.
    minutes : float
    stops : int
        Both at least.
    epochs : int
        Of six steps, in each training.
    seed : int
        Of the moments, the stops and the edits.
    attention : bool
        Whether to train Attention-56 in place of a small network.
    """

    data_dir: Path
    minutes: float
    stops: int
    epochs: int
    seed: int
    attention: bool = False


def main():
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=non_negative_float, default=0, help="go on for so long at least")
    parser.add_argument("--stops", type=non_negative_int, default=25, help="stop at least so many processes")
    parser.add_argument("--epochs", type=positive_int, default=10, help="of six steps, in each training")
    parser.add_argument("--seed", type=non_negative_int, help="of the moments; drawn where not given")
    parser.add_argument("--attention", action="store_true", help="train Attention-56, not a small network: slower")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data" / "sets", help="folder of the data sets")
    args = parser.parse_args()
    seed = random.randrange(2**31) if args.seed is None else args.seed
    # where nohup or a script's background has signals ignored, the trainings would inherit that
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    plan = Plan(Path(os.path.realpath(args.data_dir)), args.minutes, args.stops, args.epochs, seed, args.attention)
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        torture(Path(folder), plan)


def torture(folder, plan):
    """Run trainings, and stop them until enough were, then compare.

    One training is left alone. Others, one after the other, are stopped at random moments of a process's life, in each
    of the ways of `STOPS` before one comes again, and resumed until they finish; in between, two times of three,
    somebody edits the run's files in one of the ways of `EDITS`.

    Raises UserError, with the seed, where a training does not end as the one that was left alone, or one of its
    processes not as it should.
    """
    began, draw = time.monotonic(), random.Random(plan.seed)
    lifetime = time.monotonic()
    _finish(start(folder / "straight", plan))
    lifetime = time.monotonic() - lifetime
    expected, stopped, edited = outcome(folder / "straight"), Counter(), Counter()
    with disk(folder / "disk", DISK[plan.attention]) as mounted:
        ways, edits = deck([way for way in STOPS if mounted or way is not fill_disk], draw), deck(EDITS, draw)
        for number in itertools.count(1):
            log_dir = folder / "disk" / f"{number}"
            most = draw.randint(3, 12)
            if not plan.minutes:
                most = min(most, plan.stops - sum(stopped.values()))
            try:
                one_training(Life(log_dir, plan, draw, lifetime), most, ways, edits, (stopped, edited))
                differences = compare(outcome(log_dir), expected)
            except (UserError, OSError) as error:
                raise UserError(f"seed {plan.seed}, training {number}: {error}") from None
            if differences:
                raise UserError(f"seed {plan.seed}, training {number} differs in: {', '.join(differences)}")
            shutil.rmtree(log_dir)
            print(f"training {number}: {_counts(stopped)}; edited: {_counts(edited)}; all equal", flush=True)
            if sum(stopped.values()) >= plan.stops and time.monotonic() - began >= 60 * plan.minutes:
                break


def one_training(life, most, ways, edits, counts):
    """Start a training, stop it some times, and let it end.

    Parameters
    ----------
    life : Life
    most : int
        Processes to stop; fewer where one is through before.
    ways, edits : iterator
        Of the functions of `STOPS` and `EDITS`.
    counts : 2 collections.Counter
        Of what came to pass, by name.

    Raises UserError where a process ends as it should not.
    """
    for _ in range(most):
        way = next(ways)
        life.begin()
        try:
            way(life)
        except BaseException:
            life.process.kill()
            raise
        status, errors = life.end()
        check_end(way, status, errors)
        if status == 0:
            return
        counts[0][way.__name__] += 1
        if life.draw.random() < 2 / 3 and life.can_be_edited():
            edit = next(edits)
            edit(life)
            counts[1][edit.__name__] += 1
    _finish(start(life.log_dir, life.plan))


class Life:
    """Processes, one after the other, of one training.

    Parameters
    ----------
    log_dir : pathlib.Path
    plan : Plan
    draw : random.Random
    lifetime : float
        Seconds that a process takes which nobody stops.

    Attributes
    ----------
    process : subprocess.Popen
        The last one begun.
    """

    def __init__(self, log_dir, plan, draw, lifetime):
        self.log_dir, self.plan, self.draw, self._lifetime = log_dir, plan, draw, lifetime
        self.process = None

    def begin(self):
        """Start the next process."""
        self.process = start(self.log_dir, self.plan)

    def pass_time(self, share=1.0):
        """Wait for some share of a life, or of what is left of the training, at most, or until the process has ended.

        Most of a life is loading, so three times of four the moment is one after so many more steps.
        """
        if self.draw.random() < 3 / 4:
            saved = self._saved()
            steps = self.draw.uniform(0, share * max(1, self.plan.epochs * LIMIT // BATCH_SIZE - saved))
            self._wait(lambda: self._saved() > saved + steps)
            moment = time.monotonic() + self.draw.uniform(0, 0.1)
        else:
            moment = time.monotonic() + self.draw.uniform(0, share * self._lifetime)
        self._wait(lambda: time.monotonic() > moment)

    def _saved(self):
        """How many checkpoints the training has written so far."""
        paths = [path for run in self.files("params/*") for path in Checkpoints(run).paths()]
        return max((int(path.name.rpartition("-")[2]) for path in paths), default=0)

    def _wait(self, condition):
        while self.process.poll() is None and not condition():
            time.sleep(0.005)

    def send(self, number):
        """Send a signal, unless the process has ended."""
        self.process.send_signal(number)

    def end(self):
        """(exit status, what was said on stderr), once the process has ended."""
        return ended(self.process)

    def can_be_edited(self):
        """Whether the run will go on from a checkpoint; nobody mends a finished one."""
        paths = [path for path in (self.log_dir / "params").glob("*") if Checkpoints(path).paths()]
        return bool(paths) and all(RunPaths(self.log_dir, path.name).finished_line() is None for path in paths)

    def files(self, pattern):
        """The training's files."""
        return sorted(self.log_dir.glob(pattern))


# Ways to stop a process, and what may be the exit status where it did: a signal's own before the script has begun.


def kill(life):
    life.pass_time()
    life.send(signal.SIGKILL)


def kill_in_writing(life):
    """SIGKILL while a checkpoint is written."""
    life.pass_time()
    while life.process.poll() is None and not life.files("params/*/*.new"):
        time.sleep(0.001)
    time.sleep(life.draw.uniform(0, 0.1))
    life.send(signal.SIGKILL)


def terminate(life):
    life.pass_time()
    life.send(signal.SIGTERM)


def hang_up(life):
    life.pass_time()
    life.send(signal.SIGHUP)


def interrupt(life):
    life.pass_time()
    life.send(signal.SIGINT)


def interrupt_twice(life):
    interrupt(life)
    time.sleep(life.draw.uniform(0, 0.3))
    life.send(signal.SIGINT)


def suspend(life):
    """SIGSTOP and SIGCONT, and then an end by SIGTERM."""
    life.pass_time(0.7)
    life.send(signal.SIGSTOP)
    time.sleep(0.2)
    life.send(signal.SIGCONT)
    life.pass_time(0.5)
    life.send(signal.SIGTERM)


def break_pipe(life):
    """Nobody reads its output any more, which stops nothing; then SIGTERM does."""
    life.pass_time(0.7)
    life.process.stdout.close()
    life.process.stdout = None
    life.pass_time(0.5)
    life.send(signal.SIGTERM)


def fill_disk(life):
    """The disk is full until the process has ended, and emptied then."""
    life.pass_time()
    ballast = life.log_dir.parent / "ballast"
    try:
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while life.process.poll() is None:
                file.write(bytes(1 << 20))
        with contextlib.suppress(OSError), open(ballast, "ab", buffering=0) as file:
            while life.process.poll() is None:
                file.write(bytes(1 << 12))
        with patience():
            life.process.wait(PATIENCE)
    finally:
        ballast.unlink(missing_ok=True)


STOPS = {
    kill: {-signal.SIGKILL},
    kill_in_writing: {-signal.SIGKILL},
    terminate: {143, -signal.SIGTERM},
    hang_up: {129, -signal.SIGHUP},
    interrupt: {EXIT_INTERRUPTED, -signal.SIGINT},
    interrupt_twice: {EXIT_INTERRUPTED, -signal.SIGINT},
    suspend: {143, -signal.SIGTERM},
    break_pipe: {143, -signal.SIGTERM},
    fill_disk: {2},
}


def check_end(way, status, errors):
    """Raise UserError unless a process that was stopped in a ``way`` ended as it should, with a line at most."""
    if status not in {0, *STOPS[way]}:
        raise UserError(f"{way.__name__}: a process ended with status {status}: {errors.strip()}")
    begun = status != -signal.SIGINT  # Python's own word on a Ctrl-C before the script's first line
    if begun and (errors.count("\n") > 1 or "Traceback" in errors):
        raise UserError(f"{way.__name__}: a process said: {errors.strip()}")
    if way is fill_disk and status and "No space left on device" not in errors:
        raise UserError(f"{way.__name__}: a process said: {errors.strip()}")


# What people do to a run's files while it is stopped. None of it may change what becomes of the run.


def put_a_line_before_the_rows(life):
    for path in life.files("text/*.csv"):
        path.write_bytes(b"# mine\n" + path.read_bytes())


def empty_the_csv(life):
    for path in life.files("text/*.csv"):
        path.write_bytes(b"")


def remove_the_csv(life):
    for path in life.files("text/*.csv"):
        path.unlink()


def change_a_byte_of_the_csv(life):
    for path in life.files("text/*.csv"):
        path.write_bytes(path.read_bytes().replace(b"1", b"7", 1))


def put_a_line_before_the_log(life):
    for path in life.files("text/*.log"):
        path.write_bytes(b"mine\n" + path.read_bytes())


def lengthen_the_files(life):
    for path in [*life.files("text/*"), *life.files("board/*/*")]:
        with open(path, "ab") as file:
            file.write(b"mine\n")


def take_checkpoints_names(life):
    for path in life.files("params/*"):
        for name, make in (("checkpoint-000900", Path.touch), ("checkpoint-000901", lambda link: link.symlink_to("/"))):
            if not os.path.lexists(path / name):
                make(path / name)


def damage_the_newest_checkpoint(life):
    for path in life.files("params/*"):
        newest, *others = Checkpoints(path).paths() or [None]
        if others:
            with open(newest / "arrays.bin", "r+b") as file:
                file.write(b"damaged")


EDITS = [
    put_a_line_before_the_rows,
    empty_the_csv,
    remove_the_csv,
    change_a_byte_of_the_csv,
    put_a_line_before_the_log,
    lengthen_the_files,
    take_checkpoints_names,
    damage_the_newest_checkpoint,
]


def deck(cards, draw):
    """All of some cards in a random order, again and again."""
    while True:
        yield from draw.sample(list(cards), len(cards))


@contextlib.contextmanager
def disk(folder, megabytes):
    """A folder, on a disk of its own where mounting is permitted. Gives whether it is."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    if not mounted:
        print("no disk is filled: mounting one is not permitted here", flush=True)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=False, capture_output=True)


def start(log_dir, plan):
    """Start, or go on with, the training under ``log_dir``; a checkpoint follows every step. Returns the process."""
    command = [sys.executable, "cifar10_train.py", "--dataset", "digits", "--resume", "auto", "--seed", 1]
    command += ["--epochs", plan.epochs, "--limit", LIMIT, "--batch-size", BATCH_SIZE, "--mix-up", 1, "--lr", 0.01]
    command += ["--checkpoint-minutes", 0, "--save-period", 1, "--log-dir", log_dir, "--data-dir", plan.data_dir]
    command += () if plan.attention else SMALL
    return subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def outcome(log_dir):
    """What a training under ``log_dir`` left, without the timings: parameters, rows, figures and files."""
    runs = [path for path in log_dir.glob("params/*") if Checkpoints(path).paths()]
    if len(runs) != 1:
        raise UserError(f"{len(runs)} trainings have checkpoints under {log_dir}")
    (params,) = runs
    checkpoint, damaged = Checkpoints(params).newest_whole()
    run = RunPaths(log_dir, params.name)
    lines = run.csv.read_text().splitlines()
    logs = [epochs_of(path) for path in run.log.parent.glob(f"{run.log.name}*")]  # those moved aside too
    events = sorted(run.board.iterdir())
    return {
        "state": {name: array.tobytes() for name, array in checkpoint.arrays().items()},
        "damaged checkpoints": damaged,
        "position": checkpoint.facts["position"],
        "exported parameters": {
            path.name: exported(path) for path in params.glob("*.params") if not path.name.startswith(ABANDONED)
        },
        "CSV": [line.split(",")[:-TIMINGS] for line in lines],
        "epochs in the text log": set().union(*logs),
        "epochs that are twice in a log": [epochs for epochs in logs if len(epochs) > len(set(epochs))],
        "TensorBoard's figures": sorted(figure for path in events for figure in figures(path)),
        "temporary files": [path.name for path in log_dir.rglob("*") if path.suffix in (".new", ".old")],
    }


def epochs_of(log):
    """A text log's lines of epochs, without the time and the speed."""
    return [re.search(r"epoch .*  train loss .* lr \S+", line)[0] for line in log.read_text().splitlines()
            if "  train loss " in line]  # fmt: skip


def exported(path):
    """The arrays of a .params file, as bytes."""
    import mxnet as mx

    return {name: array.asnumpy().tobytes() for name, array in mx.nd.load(str(path)).items()}


def figures(path):
    """(step, tag, value) of all scalars in an event file but the speed; (step, tag, 0) of all else."""
    from mxboard.proto.event_pb2 import Event

    content, offset = path.read_bytes(), 0
    while offset < len(content):
        size = int(np.frombuffer(content, "<u8", 1, offset)[0])
        event = Event.FromString(content[offset + 12 : offset + 12 + size])
        offset += 16 + size
        for value in event.summary.value:
            yield event.step, value.tag, 0.0 if value.tag == "images_per_second" else value.simple_value


def compare(found, expected):
    """The names of what differs."""
    return [name for name in expected if found[name] != expected[name]]


def _counts(counter):
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "nothing"


@contextlib.contextmanager
def patience():
    """Raises UserError where a process inside was waited for in vain."""
    try:
        yield
    except subprocess.TimeoutExpired:
        raise UserError(f"a training hung: it did not end within {PATIENCE} seconds") from None


def ended(process):
    """(exit status, what was said on stderr), once a process has ended; it is killed where that is not waited for."""
    try:
        with patience():
            _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, errors


def _finish(process):
    status, errors = ended(process)
    if status:
        raise UserError(f"a training ended with status {status}: {errors.strip()}")


if __name__ == "__main__":
    run_command(main)

"""Kill a training on digits again and again, resume it each time, and compare it with one that was left alone.

python -m scripts.torture --minutes 30
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from base.errors import UserError, run_command
from base.flags import OneLineParser, non_negative_float, non_negative_int, positive_int
from training.run.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parent.parent
TIMINGS = 2  # columns at a CSV's end
LIMIT, BATCH_SIZE = 12, 2

# What a process is given to get through its life on a machine that is busy with other things.
PATIENCE = 600


def main():
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=non_negative_float, default=0, help="go on killing for so long at least")
    parser.add_argument("--kills", type=non_negative_int, default=25, help="kill at least so many processes")
    parser.add_argument("--epochs", type=positive_int, default=3, help="of six steps, in each training")
    parser.add_argument("--seed", type=non_negative_int, help="of the moments; drawn where not given")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data" / "sets", help="folder of the data sets")
    args = parser.parse_args()
    seed = random.randrange(2**31) if args.seed is None else args.seed
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        torture(Path(folder), args.data_dir.resolve(), args.minutes, args.kills, args.epochs, seed)


def torture(folder, data_dir, minutes, kills, epochs, seed):
    """Run trainings and kill them until enough were, then compare.

    One training is left alone. Others, one after the other, are killed with SIGKILL at random moments of a process's
    life, every second time while it writes a checkpoint, and resumed until they finish.

    Raises UserError, with the seed, where a killed training does not end as the one that was left alone.
    """
    began, draw = time.monotonic(), random.Random(seed)
    straight = folder / "straight"
    lifetime = time.monotonic()
    _finish(start(straight, data_dir, epochs))
    lifetime = time.monotonic() - lifetime
    expected = outcome(straight)
    killed = writing = trainings = 0
    while killed < kills or time.monotonic() - began < 60 * minutes:
        trainings += 1
        log_dir = folder / f"killed-{trainings}"
        most = draw.randint(3, 12)  # kills of one training
        for attempt in range(most):
            process = start(log_dir, data_dir, epochs)
            if kill_at_random(process, log_dir, draw, lifetime, in_writing=attempt % 2 == 1):
                killed += 1
                writing += any(log_dir.glob("params/*/*.new")) or any(log_dir.glob("params/*/*.old"))
            if process.returncode == 0:
                break
            if process.returncode != -signal.SIGKILL:
                raise UserError(f"seed {seed}, kill {killed}: a training ended with status {process.returncode}")
        _finish(start(log_dir, data_dir, epochs))
        differences = compare(outcome(log_dir), expected)
        if differences:
            raise UserError(f"seed {seed}, training {trainings}, kill {killed}: {', '.join(differences)}")
        print(
            f"training {trainings}: {killed} kills so far, {writing} in the middle of a checkpoint; all equal",
            flush=True,
        )


def start(log_dir, data_dir, epochs):
    """Start, or go on with, the training under ``log_dir``; a checkpoint follows every step. Returns the process."""
    command = [sys.executable, "cifar10_train.py", "--dataset", "digits", "--resume", "auto", "--seed", 1]
    command += ["--epochs", epochs, "--limit", LIMIT, "--batch-size", BATCH_SIZE, "--mix-up", 1, "--lr", 0.01]
    command += ["--checkpoint-minutes", 0, "--save-period", 1, "--log-dir", log_dir, "--data-dir", data_dir]
    return subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def kill_at_random(process, log_dir, draw, lifetime, in_writing):
    """Send SIGKILL at some moment of the process's life. Returns whether it was still alive then."""
    moment = time.monotonic() + draw.uniform(0, lifetime)
    while time.monotonic() < moment and process.poll() is None:
        time.sleep(0.002)
    while in_writing and process.poll() is None and not any(log_dir.glob("params/*/*.new")):
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.1) if in_writing else 0)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def outcome(log_dir):
    """What a training under ``log_dir`` left, without the timings: parameters, rows, figures and files."""
    runs = [path for path in log_dir.glob("params/*") if Checkpoints(path).paths()]
    if len(runs) != 1:
        raise UserError(f"{len(runs)} trainings have checkpoints under {log_dir}")
    (params,) = runs
    checkpoint, damaged = Checkpoints(params).newest_whole()
    lines = (log_dir / "text" / f"{params.name}.csv").read_text().splitlines()
    events = sorted((log_dir / "board" / params.name).iterdir())
    return {
        "state": {name: array.tobytes() for name, array in checkpoint.arrays().items()},
        "damaged checkpoints": damaged,
        "position": checkpoint.facts["position"],
        "exported parameters": {path.name: exported(path) for path in params.glob("*.params")},
        "CSV": [line.split(",")[:-TIMINGS] for line in lines],
        "rows in the text log": (log_dir / "text" / f"{params.name}.log").read_text().count("  train loss "),
        "TensorBoard's figures": sorted(figure for path in events for figure in figures(path)),
        "temporary files": [path.name for path in log_dir.rglob("*") if path.suffix in (".new", ".old")],
    }


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


def _finish(process):
    _, errors = process.communicate(timeout=PATIENCE)
    if process.returncode:
        raise UserError(f"a training ended with status {process.returncode}: {errors.strip()}")


if __name__ == "__main__":
    run_command(main)

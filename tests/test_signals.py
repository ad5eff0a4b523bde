"""SIGTERM and Ctrl-C from the shell's side: what a training says, leaves and returns."""

import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from training.run.checkpoint import Checkpoints


@pytest.fixture
def training(tmp_path, digits):
    """A training as a process that has begun to take its steps."""
    sets = digits.records["train"].parents[2]
    command = [sys.executable, "cifar10_train.py", "--dataset", "digits", "--data-dir", sets, "--log-dir", tmp_path]
    command += ["--epochs", 1, "--limit", 60, "--batch-size", 4, "--seed", 1, "--run-name", "run", "--log-interval", 1]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "step 2/15" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(training, tmp_path, number, status):
    training.send_signal(number)
    printed, errors = training.communicate(timeout=60)
    assert (training.returncode, errors) == (status, "")
    last = printed.splitlines()[-1]
    assert last.startswith("stopped at epoch 1/1, step ")
    command = last.split("go on with: ")[1]
    assert command == f"python3 cifar10_train.py --resume run --log-dir {tmp_path}"
    words = [sys.executable, *shlex.split(command)[1:]]
    went_on = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert went_on.returncode == 0, went_on.stderr
    assert f"resumed at {last.split(';')[0].removeprefix('stopped at ')}" in went_on.stdout
    assert "Finished: " in went_on.stdout.splitlines()[-1]


def test_a_second_ctrl_c_stops_at_once(training, tmp_path):
    training.send_signal(signal.SIGINT)
    time.sleep(0.02)
    training.send_signal(signal.SIGINT)
    training.communicate(timeout=10)
    assert training.returncode in (-signal.SIGINT, 130)  # -2 is 130 in a shell
    Checkpoints(tmp_path / "params" / "run").newest_whole()


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_without_a_training_ends_with_the_same_status(number, status):
    code = "import os, time\nfrom base.errors import run_command\n"
    code += f"run_command(lambda: (os.kill(os.getpid(), {int(number)}), time.sleep(9)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == status

"""SIGTERM and Ctrl-C from the shell's side: what a training says, leaves and returns."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_until
from training.run.checkpoint import Checkpoints

STOPS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]


@pytest.fixture
def training(tmp_path, digits):
    """A training as a process that has begun to take its steps."""
    sets = digits.records["train"].parents[2]
    command = [sys.executable, "cifar10_train.py", "--dataset", "digits", "--data-dir", sets, "--log-dir", tmp_path]
    command += ["--epochs", 1, "--limit", 120, "--batch-size", 4, "--seed", 1, "--run-name", "run", "--log-interval", 1]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "step 2/30" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number, status", STOPS)
def test_a_signal_saves_and_says_how_to_go_on(training, tmp_path, number, status):
    training.send_signal(number)
    printed, errors = training.communicate(timeout=300)
    assert (training.returncode, errors) == (status, "")
    last = printed.splitlines()[-1]
    assert last.startswith("stopped at epoch 1/1, step ")
    command = last.split("go on with: ")[1]
    assert command == f"python3 cifar10_train.py --resume run --log-dir {tmp_path}"
    words = [sys.executable, *shlex.split(command)[1:]]
    went_on = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert went_on.returncode == 0, went_on.stderr
    assert f"resumed at {last.split(';')[0].removeprefix('stopped at ')}" in went_on.stdout
    assert "Finished: " in went_on.stdout.splitlines()[-1]


def catches(process, number):
    """Whether a process has a handler for a signal."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return bool(int(fields["SigCgt"], 16) >> number - 1 & 1)


def test_a_second_ctrl_c_leaves_a_whole_checkpoint(training, tmp_path):
    training.send_signal(signal.SIGINT)
    assert wait_until(lambda: training.poll() is not None or not catches(training, signal.SIGINT))
    training.send_signal(signal.SIGINT)
    training.communicate(timeout=300)
    assert training.returncode in (-signal.SIGINT, 130)  # the first one may have been quicker
    Checkpoints(tmp_path / "params" / "run").newest_whole()


LONG_STEP = """
import time
from training.run.signals import StopSignals
with StopSignals() as signals:
    print("begun", flush=True)
    while signals.number is None:
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(600)
"""


def test_a_second_ctrl_c_stops_in_the_middle_of_a_step():
    with subprocess.Popen([sys.executable, "-c", LONG_STEP], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in "begun\n", "noted\n":
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        assert process.wait(300) == -signal.SIGINT  # which is 130 in a shell


@pytest.mark.parametrize("number, status", STOPS)
def test_a_command_without_a_training_ends_with_the_same_status(number, status):
    code = "import os, time\nfrom base.errors import run_command\n"
    code += f"run_command(lambda: (os.kill(os.getpid(), {int(number)}), time.sleep(600)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == status


def test_a_hangup_that_nohup_ignores_stops_nothing():
    code = "import os, signal\nfrom base.errors import run_command\nfrom training.run.signals import StopSignals\n"
    code += "def main():\n    with StopSignals() as stops:\n        os.kill(os.getpid(), signal.SIGHUP)\n"
    code += "    os.kill(os.getpid(), signal.SIGHUP)\n    print(stops.number)\nrun_command(main)"
    command = ["nohup", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr


def test_the_tests_may_be_started_with_signals_ignored():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "without_a_training"]
    ignoring = ["sh", "-c", 'trap "" HUP INT QUIT TERM; exec "$@"', "sh"]
    done = subprocess.run([*ignoring, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout

"""Workers in step: what they sum, share and survive, with the real engines where these are installed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from data.loader import LoaderOptions, ShardedLoader
from tests import engines
from tests.conftest import ROOT, assert_refused, run_script
from tests.test_loop import small_net
from training.distributed.launcher import launch_info
from training.distributed.process_group import SingleProcess, SummingTrainer
from training.learner import validate
from training.run.checkpoint import Checkpoints

WORKER = [sys.executable, "tests/sync_worker.py"]
IMAGES = 16  # a step, over all workers


class Eight:
    """Eight workers that all have this one's gradients."""

    size = 8

    def __init__(self):
        self.sent = []

    def start_sum(self, array, name, priority=0):
        self.sent.append((name, array.dtype))
        array *= 8

    def wait(self, *arrays):
        pass


@pytest.mark.parametrize("half", [False, True])
def test_a_sum_of_gradients_is_divided_once_by_all_images(half):
    """Published figures of batch 1024 and lr 1.6 come of a second division, by the workers, which made it 0.2."""
    net = nn.Dense(1, in_units=1, use_bias=False)
    net.initialize(mx.init.Zero())
    eight = Eight()
    trainer = SummingTrainer(eight, half, net.collect_params(), "sgd", {"learning_rate": 2.0})
    images = mx.nd.ones((4, 1))
    with mx.autograd.record():
        losses = 3 * net(images)  # each image's gradient is 3
    losses.backward()
    trainer.allreduce_grads()
    trainer.update(4 * eight.size)
    assert net.weight.data().asscalar() == -2.0 * 3
    assert eight.sent == [("gradient_0", np.float16 if half else np.float32)]


def test_a_decay_beside_a_divided_gradient_is_a_larger_one():
    """Those figures' decay was not divided with their gradients: lr 1.6 and wd 0.0001 acted as 0.2 and 0.0008."""
    weights = []
    for divisor, lr, wd in ((8, 1.6, 1e-4), (1, 0.2, 8e-4)):
        optimizer = mx.optimizer.create("nag", learning_rate=lr, momentum=0.9, wd=wd, rescale_grad=1 / divisor)
        weight = mx.nd.array([3.0, -2.0])
        state = optimizer.create_state(0, weight)
        for _ in range(20):
            optimizer.update(0, weight, mx.nd.sin(weight), state)
        weights.append(weight.asnumpy())
    np.testing.assert_allclose(*weights, rtol=1e-5)


def test_one_process_is_a_worker_too():
    alone = SingleProcess([mx.cpu()])
    assert alone.sum("name", [1, 2.5]).tolist() == [1, 2.5]
    assert alone.gather("name", np.array([[1.0, 2.0]])).tolist() == [[1, 2]]
    assert alone.main_process_first(lambda: "result") == "result"


def test_launchers_are_told_by_their_variables():
    byteps = {"DMLC_ROLE": "worker", "DMLC_WORKER_ID": "1", "BYTEPS_LOCAL_SIZE": "8", "BYTEPS_LOCAL_RANK": "3"}
    assert launch_info(byteps) == ("byteps", 11, 8)
    assert launch_info({"HOROVOD_RANK": "2"}) == ("horovod", 2, 1)
    assert launch_info({"HOROVOD_RANK": "2", "HOROVOD_LOCAL_SIZE": "4"}) == ("horovod", 2, 4)
    assert launch_info({"DMLC_ROLE": "server"}) == launch_info({}) == ("none", 0, 1)


def test_what_no_launcher_started_is_refused_in_one_line(tmp_path):
    for engine, launcher in (("byteps", "scripts/launch.py"), ("horovod", "scripts.horovodrun")):
        process = run_script("cifar10_train.py", "--sync", engine, "--log-dir", tmp_path / "log")
        assert_refused(process, f"--sync {engine}", launcher)
    process = run_script("cifar10_train.py", env={**os.environ, "DMLC_ROLE": "worker"})
    assert_refused(process, "DMLC_WORKER_ID", "scripts/launch.py")
    assert not (tmp_path / "log").exists()


def run_horovod(processes, workers, *command):
    engines.require("horovod")
    horovodrun = [sys.executable, "-m", "scripts.horovodrun", "-np", workers, "--gloo"]
    return processes.start("job", [*horovodrun, *command], {**os.environ, "OMP_NUM_THREADS": "1"})


def launch(role, port, *words, worker=None):
    """A command of scripts/launch.py for one of two machines with one server."""
    flags = ["--workers", "2", "--servers", "1", "--scheduler", f"{engines.LOOPBACK}:{port}"]
    if worker is not None:
        flags += ["--worker-id", str(worker), "--num-gpus", "0"]
    return [sys.executable, "scripts/launch.py", "--role", role, *flags, *words]


def launch_byteps(processes, standin, *command, late=0):
    """Two workers, their server and scheduler, each by a launcher; the second worker comes ``late``, in seconds."""
    engines.require("byteps")
    port, environ = engines.free_port(), {**os.environ, "OMP_NUM_THREADS": "1", "LD_LIBRARY_PATH": str(standin)}
    for role in ("scheduler", "server"):
        processes.start(role, launch(role, port), environ)
    for worker in (0, 1):
        time.sleep(late * worker)
        mounted = engines.own_machine(launch("worker", port, *command, worker=worker))
        processes.start(f"worker {worker}", mounted, environ)


def parameters(folder, rank):
    with np.load(folder / f"{rank}.npz") as file:
        return dict(file)


def assert_in_step(folder, workers, alone):
    """All workers ended with the same numbers to the bit, and with those of one that took all images alone."""
    expected, first = parameters(alone, 0), parameters(folder, 0)
    assert first.keys() == expected.keys()
    for rank in range(workers):
        for name, value in parameters(folder, rank).items():
            assert value.tobytes() == first[name].tobytes(), (rank, name)
    for name, value in expected.items():
        rows = slice(None, 1) if name.startswith("statistics/") else ...
        np.testing.assert_allclose(first[name][rows], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def alone(new_folder, digits):
    """The folder of a single worker's parameters after its steps."""
    folder = new_folder("alone")
    flags = ["--data-dir", digits.records["train"].parents[2], "--batch-size", IMAGES]
    subprocess.run([*WORKER, "steps", *map(str, (folder, *flags))], cwd=ROOT, check=True)
    return folder


def steps(folder, digits, workers, *flags):
    sets = digits.records["train"].parents[2]
    return [*WORKER, "steps", folder, "--data-dir", sets, "--batch-size", IMAGES // workers, *flags]


@pytest.mark.parametrize("workers", [2, 4])
def test_horovods_workers_take_the_steps_of_one(processes, tmp_path, digits, alone, workers):
    run_horovod(processes, workers, *steps(tmp_path, digits, workers))
    assert processes.wait(engines.LONG) == {"job": 0}, processes.output("job")
    assert_in_step(tmp_path, workers, alone)


def test_bytepss_workers_take_the_steps_of_one_and_a_late_one_is_waited_for(processes, tmp_path, digits, alone):
    launch_byteps(processes, engines.cuda_standin(tmp_path), *steps(tmp_path, digits, 2), late=3)
    statuses = processes.wait(engines.LONG)
    assert set(statuses.values()) == {0}, {name: processes.output(name) for name in statuses}
    assert_in_step(tmp_path, 2, alone)


def test_gradients_in_half_precision_nearly_take_the_same_steps(processes, tmp_path, digits, alone):
    run_horovod(processes, 2, *steps(tmp_path, digits, 2, "--gradient-compression", "fp16"))
    assert processes.wait(engines.LONG) == {"job": 0}, processes.output("job")
    expected, halved = parameters(alone, 0), parameters(tmp_path, 0)
    weights = [name for name in expected if name.startswith("parameters/")]
    differences = [np.abs(halved[name] - expected[name]).max() for name in weights]
    assert 0 < max(differences) < 1e-2


@pytest.mark.skipif(os.path.realpath("/bin/sh").endswith("bash"), reason="Horovod would kill what bash starts at once")
def test_horovods_launcher_gives_a_worker_time_to_save(processes):
    slow = "trap 'sleep 7; echo saved; exit' TERM; echo ready; while :; do sleep 0.1; done"
    job = run_horovod(processes, 1, "bash", "-c", slow)
    wait_for(processes, "job", "ready")
    os.kill(job.pid, signal.SIGTERM)
    wait_for(processes, "job", "saved", seconds=60)


def fit(folder, digits, *flags, what="fit"):
    sets = digits.records["train"].parents[2]
    return [*WORKER, what, folder, "--data-dir", sets, "--batch-size", 8, "--log-interval", 1, *flags]


def rows(folder):
    """A run's CSV without its timings."""
    return [line.split(",")[:6] for line in (folder / "text" / "run.csv").read_text().splitlines()]


def test_only_the_first_worker_writes_and_a_stopped_run_goes_on_as_if_it_had_not(processes, tmp_path, digits):
    common = ("--epochs", 2, "--limit", 180, "--mix-up", 1, "--mix-up-off-epochs", 0)
    run_horovod(processes, 2, *fit(tmp_path / "whole", digits, *common, "--run-name", "run"))
    assert processes.wait(engines.LONG) == {"job": 0}, processes.output("job")
    assert processes.output("job").count("Finished: best") == 1
    assert len(list((tmp_path / "whole" / "board" / "run").iterdir())) == 1
    net = small_net()  # the sums of the two validations are those of one
    net.load_parameters(str(tmp_path / "whole/params/run/last.params"))
    images = ShardedLoader(digits, "test", LoaderOptions(16, seed=1, limit=180), [mx.cpu()], training=False)
    means = validate(net, images, "float32", SingleProcess([mx.cpu()]))
    expected = [means["loss"], means["accuracy"]]
    assert [float(figure) for figure in rows(tmp_path / "whole")[2][3:5]] == pytest.approx(expected, rel=1e-5)

    job = run_horovod(processes, 2, *fit(tmp_path / "parts", digits, *common, "--run-name", "run", what="fit-told"))
    wait_for(processes, "job", r"epoch 1/2  step 2/11")
    os.kill(job.pid, signal.SIGTERM)
    processes.wait(engines.LONG)
    assert re.search(r"stopped at epoch 1/2, step ", processes.output("job"))
    run_horovod(processes, 2, *fit(tmp_path / "parts", digits, "--resume", "run"))
    assert processes.wait(engines.LONG) == {"job": 0}, processes.output("job")
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    last = [mx.nd.load(str(tmp_path / name / "params/run/last.params")) for name in ("whole", "parts")]
    assert all((last[0][name] == last[1][name]).min().asscalar() for name in last[0])


def wait_for(processes, name, pattern, seconds=engines.LONG):
    """The match of a pattern in what a process prints, as soon as it does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if match := re.search(pattern, processes.output(name)):
            return match
        time.sleep(0.05)
    raise AssertionError(f"no {pattern!r} in:\n{processes.output(name)}")


def kill_worker(rank, folder):
    """SIGKILL for the worker that carries a rank's variable and writes to a folder; returns how many processes did."""
    killed = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            environ, command = (Path(entry, name).read_bytes().split(b"\0") for name in ("environ", "cmdline"))
        except OSError:
            continue
        if command[1:2] == [b"tests/sync_worker.py"] and os.fsencode(folder) in command and rank in environ:
            os.kill(int(entry.name), signal.SIGKILL)
            killed += 1
    return killed


LOST = r"error: worker 0 has lost the others: .*; epoch 1/9, step (\d+)/\d+ is saved as \S+, go on with: "


@pytest.mark.parametrize("engine, variable", [("horovod", b"HOROVOD_RANK=1"), ("byteps", b"DMLC_WORKER_ID=1")])
def test_when_a_worker_is_killed_the_first_one_saves_and_says_so(processes, tmp_path, digits, engine, variable):
    command = fit(tmp_path / "log", digits, "--run-name", "run", "--epochs", 9, "--sync-timeout", 2)
    if engine == "horovod":
        run_horovod(processes, 2, *command)
    else:
        launch_byteps(processes, engines.cuda_standin(tmp_path), *command)
    name = "job" if engine == "horovod" else "worker 0"
    wait_for(processes, name, "epoch 1/9  step 3/")
    assert kill_worker(variable, tmp_path / "log") == 1
    saved = wait_for(processes, name, LOST)
    checkpoint, damaged = Checkpoints(tmp_path / "log" / "params" / "run").newest_whole()
    assert not damaged and checkpoint.facts["position"]["step"] == int(saved[1]) >= 3
    if engine == "byteps":  # the launcher says which worker it was
        wait_for(processes, "worker 1", "error: rank 1 ended with SIGKILL")

"""How often a step makes the host wait, exchanges something between workers, and calls MXNet's operators.

MXNet's own functions are counted, whoever calls them. What holds here holds on a GPU, where waiting is what costs.
"""

import collections
import ctypes
import math
import threading
import time
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest

from base.errors import UserError, WorkerLost
from data.mixup import Example
from tests.test_loop import small_net
from training.distributed import process_group
from training.distributed.launcher import LaunchInfo
from training.distributed.process_group import ProcessGroup, SingleProcess
from training.learner import Learner, LearnerOptions

WAITS = ("MXNDArraySyncCopyToCPU", "MXNDArrayWaitToRead", "MXNDArrayWaitToWrite", "MXNDArrayWaitAll")
COUNTED = (*WAITS, "MXImperativeInvokeEx", "MXInvokeCachedOpEx")


class TwoWorkers(ProcessGroup):
    """One of two workers whose other one has the same images."""

    module = "mxnet"

    def __init__(self):
        self.exchanges = []
        super().__init__(num_gpus=0, half=False, timeout=60)

    def start_sum(self, array, name, priority=0):
        self.exchanges.append(name)
        array *= 2


@pytest.fixture
def engine(monkeypatch):
    """In the place of an engine's module: worker 0 of 2."""
    made = SimpleNamespace(
        init=lambda: None, rank=lambda: 0, size=lambda: 2, local_rank=lambda: 0, shutdown=lambda: None
    )
    monkeypatch.setattr(process_group.importlib, "import_module", lambda name: made)
    return made


@pytest.fixture
def calls(monkeypatch):
    """Counts calls of MXNet's C functions by name while the test runs."""
    counts = collections.Counter()

    class Library:
        def __getattr__(self, name):
            function = getattr(library, name)
            if name not in COUNTED:
                return function

            def counted(*arguments):
                counts[name] += 1
                return function(*arguments)

            return counted

    library = mx.base._LIB
    assert isinstance(library, ctypes.CDLL)
    for module in (mx.base, mx.ndarray.ndarray, mx._ctypes.ndarray, mx.ndarray, mx.autograd, mx.random):
        if getattr(module, "_LIB", None) is library:
            monkeypatch.setattr(module, "_LIB", Library())
    return counts


def test_a_worker_asks_for_the_gpu_of_its_number(engine, monkeypatch):
    asked = []
    monkeypatch.setattr(process_group, "contexts", lambda *count, **first: asked.append((count, first)) or [mx.cpu()])
    monkeypatch.setattr(engine, "local_rank", lambda: 3)
    assert TwoWorkers()._step_seconds == math.inf, "which only --sync-timeout ends"
    assert asked == [((0,), {"first": 3})]


def test_a_worker_has_one_gpu(engine):
    with pytest.raises(UserError, match="--num-gpus 2: a worker has one GPU"):
        ProcessGroup.__init__(object.__new__(TwoWorkers), 2, False, 60)


@pytest.mark.parametrize("rank, local_rank, barriers", [(0, 0, 0), (2, 0, 1), (1, 1, 2)])
def test_the_main_process_prepares_then_each_machines_first_then_the_others(rank, local_rank, barriers):
    group, events = SingleProcess([mx.cpu()]), []
    group.rank, group.local_rank = rank, local_rank
    group.barrier = lambda: events.append("barrier")
    assert group.main_process_first(lambda: events.append("call") or "data") == "data"
    assert events.index("call") == barriers and len(events) == 4


def test_other_workers_are_given_up_after_their_time(engine, monkeypatch):
    group, answered = TwoWorkers(), threading.Event()
    array = SimpleNamespace(wait_to_read=answered.wait)
    monkeypatch.setattr(process_group, "GRACE", 0.2)
    group.signals = SimpleNamespace(age=lambda: 9.0)  # seconds since the signal to stop
    with pytest.raises(WorkerLost, match=r"no answer for \d s"):  # not --sync-timeout's 60
        group.wait(array)
    answered.set()
    slow = SimpleNamespace(wait_to_read=lambda: time.sleep(1.2))
    group.wait(slow, usual=60)  # for which it is no loss
    group._timeout, group.signals = 0.3, SimpleNamespace(age=lambda: 0)
    with pytest.raises(WorkerLost, match="no answer"):
        group.wait(slow)


def test_workers_that_know_nothing_of_each_other_do_not_write_one_run(monkeypatch):
    for info, words in ((LaunchInfo("horovod", 1, 1), "horovod"), (LaunchInfo("byteps", 0, 2), "byteps")):
        monkeypatch.setattr(process_group, "launch_info", lambda info=info: info)
        with pytest.raises(UserError, match=f"--sync none: several workers .*--sync {words}"):
            process_group.start("none", 0)
    monkeypatch.setattr(process_group, "launch_info", lambda: LaunchInfo("horovod", 0, 1))
    assert process_group.start("none", 0).size == 1


def steps(group, calls, count=3, optimizer="nag", **options):
    """What `calls` counts in one step after others, and the learner, with `LearnerOptions`."""
    options = LearnerOptions(**options)
    learner = Learner(small_net, group, (optimizer, {"momentum": 0.9, "wd": 1e-4}), seed=1, options=options)
    draw = np.random.default_rng(0)
    examples = []
    for device in group.devices:
        targets = mx.nd.one_hot(mx.nd.array(draw.integers(0, 10, 4), ctx=device), 10)
        examples.append(Example(mx.nd.array(draw.normal(size=(4, 3, 8, 8)), ctx=device), targets, targets))
    for step in range(count):
        mx.nd.waitall()
        calls.clear()
        if isinstance(group, TwoWorkers):
            group.exchanges.clear()
        learner.step(examples, 0.1, 0, step)
    return learner


def waits(calls):
    return {name: calls[name] for name in WAITS if calls[name]}


@pytest.mark.parametrize("optimizer", ["nag", "sgd"])
@pytest.mark.parametrize("devices", [1, 2])
def test_one_process_waits_once_a_step(calls, devices, optimizer):
    learner = steps(SingleProcess([mx.cpu(device) for device in range(devices)]), calls, optimizer=optimizer)
    assert waits(calls) == {"MXNDArraySyncCopyToCPU": 1}
    assert calls["MXInvokeCachedOpEx"] == devices
    assert calls["MXImperativeInvokeEx"] <= 35 * devices  # whatever the number of parameters
    assert len(learner.trainer.trained) == 1


def test_an_average_of_the_weights_costs_one_operator_a_step(calls):
    counts = []
    for options in ({}, {"ema": 0.9}):
        steps(SingleProcess([mx.cpu()]), calls, **options)
        counts.append(calls["MXImperativeInvokeEx"])
    assert counts[1] == counts[0] + 1


def test_a_worker_waits_once_and_exchanges_one_array_besides_the_gradients(calls, engine):
    group = TwoWorkers()
    group.wishes = lambda: [0, 1, 0]
    steps(group, calls)
    assert group.exchanges[:-1] == ["gradient_0"] and group.exchanges[-1] == "step"
    assert waits(calls) == {"MXNDArrayWaitToRead": 1, "MXNDArraySyncCopyToCPU": 1}  # the latter reads what is there
    assert list(group.granted_wishes()) == [0, 2, 0] and group.exchanges[-1] == "step"
    group.granted_wishes()  # where no step has been
    assert group.exchanges[-1] == "wishes"

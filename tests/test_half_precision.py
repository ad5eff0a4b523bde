"""What of --float16 a CPU can run: casts, the optimizer's float32 copies, the scale of the loss."""

import sys
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from base.errors import UserError
from tests import engines
from tests.test_exports import DESCRIPTION
from tests.test_sync import parameters, run_horovod
from training.distributed.process_group import SingleProcess
from training.learner import Learner, LearnerOptions, initialize
from training.loss_scale import FIRST, GOOD_STEPS, LossScale
from training.optimizers import optimizer_options
from training.run.exports import Exports
from training.state import TrainingState


class Scaled(nn.HybridBlock):
    """Logits that are the input times a weight each: a network without products, which runs in float16 on a CPU."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.weight = self.params.get("weight", shape=(1, 10))

    def hybrid_forward(self, F, x, weight):
        return F.broadcast_mul(x, weight)


def learner(dtype="float16"):
    flags = SimpleNamespace(momentum=0.9, wd=0.0, optimizer="nag", float16=dtype == "float16")
    return Learner(Scaled, SingleProcess([mx.cpu()]), optimizer_options(flags), seed=1, options=LearnerOptions(dtype))


def example(size=1.0):
    draw = np.random.default_rng(0)
    targets = mx.nd.one_hot(mx.nd.array(draw.integers(0, 10, 64)), 10)
    return SimpleNamespace(images=mx.nd.array(size * draw.normal(size=(64, 10))), targets=targets, smoothed=targets)


def test_an_overflow_halves_the_scale_and_changes_nothing_else():
    half = learner()
    before = half.net.weight.data().asnumpy()
    assert half.step([example()], 0.1, 0, 0) == []  # 64 images' gradients times 65,536 are no float16
    assert half.state.loss_scale.to_json() == [FIRST / 2, 0]
    assert half.state.updates == 0
    np.testing.assert_array_equal(half.net.weight.data().asnumpy(), before)


def test_scaled_steps_in_half_precision_follow_those_in_float32():
    half, full = learner(), learner("float32")
    for step in range(40):
        overflowed = half.step([example()], 0.01, 0, step) == []
        if not overflowed:
            full.step([example()], 0.01, 0, step)
    assert half.state.updates == full.state.updates >= 20
    name = "optimizer/weight/1"  # the float32 copy
    master = half.state.gather({})[name]
    assert master.dtype == np.float32 and half.net.weight.data().dtype == np.float16
    np.testing.assert_allclose(master, full.net.weight.data().asnumpy(), atol=2e-3)
    assert np.abs(master - half.net.weight.data().astype("float32").asnumpy()).max() > 0


def test_a_loss_that_is_not_finite_is_no_matter_of_the_scale():
    from training.learner import NotFinite

    half = learner()
    with pytest.raises(NotFinite, match="the loss is nan"):
        half.step([example(np.nan)], 0.1, 0, 0)
    assert half.state.loss_scale.value == FIRST


def test_the_scale_doubles_after_good_steps_up_to_a_bound_and_ends_at_1():
    scale = LossScale()
    for _ in range(GOOD_STEPS - 1):
        scale.on_good_step()
    assert scale.value == FIRST
    scale.on_good_step()
    assert (scale.value, scale.good) == (2 * FIRST, 0)
    for _ in range(20 * GOOD_STEPS):
        scale.on_good_step()
    assert scale.value == 2.0**24
    assert [scale.on_overflow() for _ in range(25)] == [True] * 24 + [False]
    assert scale.value == 1


def test_the_scale_is_part_of_a_checkpoint_and_a_strangers_is_looked_at():
    scale, other = LossScale(), LossScale()
    scale.on_overflow()
    scale.on_good_step()
    other.restore(scale.to_json())
    assert (other.value, other.good) == (FIRST / 2, 1)
    for wrong in (None, [], [3.0, 1], [2.0**25, 0], [0.0, 0], [8.0, -1], [8.0, GOOD_STEPS], ["x", 1], [8.0], {}):
        with pytest.raises(UserError, match="scale of the loss"):
            other.restore(wrong)
    assert (other.value, other.good) == (FIRST / 2, 1)


def test_exported_parameters_load_into_a_network_that_nobody_cast(tmp_path):
    half = initialize(Scaled(), [mx.cpu()], mx.init.One(), "float16")
    Exports(tmp_path, 0, DESCRIPTION).save(half, 1, 1, None)
    net = Scaled()
    net.load_parameters(str(tmp_path / "best.params"))
    assert net.weight.data().dtype == np.float32 and (net.weight.data() == 1).min().asscalar() == 1


def test_float32_copies_are_made_of_the_first_process_parameters():
    class Second(SingleProcess):
        def broadcast(self, net):
            net.weight.data()[:] = 7

    group = Second([mx.cpu()])
    net = initialize(Scaled(), group.devices, mx.init.One(), "float16")
    state = TrainingState(
        net, group.trainer(net.collect_params(), "nag", {"multi_precision": True, "momentum": 0.9}), group
    )
    arrays = state.gather({})
    assert arrays["optimizer/weight/1"].dtype == np.float32
    assert (arrays["optimizer/weight/1"] == 7).all() and (arrays["parameters/weight"] == 7).all()


def test_workers_that_begin_differently_have_one_float32_copy(tmp_path):
    with engines.Processes(tmp_path) as processes:
        run_horovod(processes, 2, sys.executable, "tests/sync_worker.py", "masters", tmp_path)
        assert processes.wait(engines.LONG) == {"job": 0}, processes.output("job")
    first, second = (parameters(tmp_path, rank) for rank in range(2))
    assert first.keys() == second.keys() and any(value.dtype == np.float32 for value in first.values())
    for name, value in first.items():
        assert value.tobytes() == second[name].tobytes(), name

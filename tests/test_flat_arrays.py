"""Parameters in flat arrays: the same numbers as parameters that each have their own, and a few arrays instead."""

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from mxnet.gluon import nn

from model import get_attention_cifar
from tests.test_loop import examples, small_net
from training import flat_arrays
from training.distributed.process_group import SingleProcess
from training.flat_arrays import FlatTrainer, groups
from training.learner import initialize, train_step

OPTIONS = {
    "nag": {"momentum": 0.9, "wd": 1e-2, "learning_rate": 0.1},
    "sgd": {"momentum": 0.9, "wd": 1e-2, "learning_rate": 0.1},
    "adam": {"learning_rate": 0.1},
    "lamb": {"learning_rate": 0.1, "wd": 1e-2},  # whose step follows from the norms of whole parameters
}


def started(contexts, dtype="float32"):
    """The small network, the same each time, with two kinds of weight decay."""
    mx.random.seed(5)
    net = initialize(small_net(), contexts, mx.init.Xavier(), dtype)
    for parameter in net.collect_params(".*(gamma|beta|bias)").values():
        parameter.wd_mult = 0.0
    return net


def values(net, context):
    return [parameter.data(context).asnumpy() for parameter in net.collect_params().values()]


@pytest.mark.parametrize("contexts", [[mx.cpu()], [mx.cpu(0), mx.cpu(1)]], ids=["one", "two"])
@pytest.mark.parametrize("optimizer", OPTIONS)
def test_steps_have_the_bits_of_parameters_that_lie_apart(optimizer, contexts):
    images, targets = examples(12)
    share = 12 // len(contexts)
    shares = [
        tuple(part[number * share : (number + 1) * share].as_in_context(context) for part in (images, targets))
        for number, context in enumerate(contexts)
    ]
    flat, apart = started(contexts), started(contexts)
    group = SingleProcess(contexts)
    trainer = group.trainer(flat.collect_params(), optimizer, dict(OPTIONS[optimizer]))
    others = gluon.Trainer(apart.collect_params(), optimizer, dict(OPTIONS[optimizer]), update_on_kvstore=False)
    for each in (trainer, others):
        each.allreduce_grads()  # the first one writes the statistics too, which no engine orders after a backward pass
    for _ in range(4):
        train_step(flat, trainer, shares, group)
        with autograd.record():
            losses = [-(apart(images).log_softmax() * targets).sum(axis=1) for images, targets in shares]
        autograd.backward(losses)
        others.step(12)
        mx.nd.waitall()
    for context in contexts:
        for value, expected in zip(values(flat, context), values(apart, context)):
            assert value.tobytes() == expected.tobytes()


def test_a_network_is_in_few_arrays_in_its_own_order():
    net = get_attention_cifar(10, 56)
    net.initialize(mx.init.Zero())
    parameters = [parameter for parameter in net.collect_params().values() if parameter.grad_req != "null"]
    found = groups(parameters)
    assert len(found) == 4 and [parameter for group in found for parameter in group] == parameters
    sizes = [4 * sum(parameter.data().size for parameter in group) for group in found]
    assert all(size <= flat_arrays.LARGEST or len(group) == 1 for size, group in zip(sizes, found))
    assert len(groups(parameters, alone=True)) == len(parameters)


def test_what_differs_in_type_or_multipliers_is_apart():
    net = started([mx.cpu()], "float16")
    for group in groups(net.collect_params().values()):
        for name in ("dtype", "wd_mult", "lr_mult"):
            assert len({getattr(parameter, name) for parameter in group}) == 1
    assert len(groups(net.collect_params().values())) == 3  # weights; biases; normalization's, which stay float32


def test_what_is_written_to_a_parameter_is_in_the_flat_array():
    net = started([mx.cpu()])
    trainer = FlatTrainer(net.collect_params(), "nag", {"momentum": 0.9})
    for flat in [*trainer.trained, *trainer.statistics]:
        for parameter in flat.parameters:
            parameter.set_data(mx.nd.random.normal(shape=parameter.shape))
            assert (flat.part(flat.data[0], parameter) == parameter.data()).min().asscalar() == 1
            flat.data[0][:] = 3
            assert (parameter.data() == 3).min().asscalar() == 1


def test_a_parameter_with_other_arrays_is_noticed():
    net = nn.Dense(2, in_units=3)
    net.initialize()
    trainer = FlatTrainer(net.collect_params(), "sgd", {})
    net.weight.grad_req = "add"
    with autograd.record():
        loss = net(mx.nd.ones((1, 3))).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="other arrays"):
        trainer.step(1)


def test_zeros_between_the_parts_stay_zeros():
    net = started([mx.cpu()])
    trainer = FlatTrainer(net.collect_params(), "nag", OPTIONS["nag"])
    images, targets = examples(12)
    train_step(net, trainer, [(images, targets)], SingleProcess([mx.cpu()]))
    for flat in trainer.trained:
        assert np.count_nonzero(flat.data[0].asnumpy()) <= sum(p.data().size for p in flat.parameters)

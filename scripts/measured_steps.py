"""What `scripts.benchmark_sync` measures. Imports MXNet, which takes its thread count from the environment."""

import time

import mxnet as mx
from mxnet.gluon import nn

from scripts.measurements import input_shape, make_net
from training.learner import INITIALIZER, initialize, train_step
from training.optimizers import optimizer_options

__all__ = ["measure"]

WARM_UP = 2  # steps that do not count: memory is allocated and the engine learns the names of the arrays


def small_net():
    """A network of few arrays, as ``scripts.measurements.make_net`` gives others."""
    classes, net = 10, nn.HybridSequential()
    net.add(
        nn.Conv2D(256, 5, 2, 2, activation="relu", use_bias=False, in_channels=3),
        nn.Conv2D(256, 3, 2, 1, activation="relu", use_bias=False, in_channels=256),
        nn.Conv2D(256, 3, 1, 1, activation="relu", use_bias=False, in_channels=256),
        nn.GlobalAvgPool2D(),
        nn.Dense(classes, in_units=256),
    )
    return net, classes


def timed(spent, function, *arguments):
    """Call a function and append its seconds to ``spent``. Returns its result."""
    started = time.perf_counter()
    result = function(*arguments)
    spent.append(time.perf_counter() - started)
    return result


class MeasuredSteps:
    """Training steps on random images, timed as a whole and in parts.

    Parameters
    ----------
    group : training.distributed.process_group.SingleProcess
    args : argparse.Namespace
        The flags of scripts.benchmark_sync.

    Attributes
    ----------
    seconds : dict
        {what was timed: list}. A "step" is as the training takes it. "computation" and "communication" are the parts of
        one in which nothing is sent before the last process has all its gradients, so that neither contains the other.
        "one array" is the sum of an array of as many bytes as the gradients.
    """

    def __init__(self, group, args):
        net, classes = small_net() if args.net == "small" else make_net(args)
        self._group, self._net, self._shape = group, initialize(net, group.devices, INITIALIZER), input_shape(args)
        self._trainer = group.trainer(net.collect_params(), *optimizer_options(args))
        group.broadcast(net)
        group.wishes = lambda: [0, 0, 0, 0]  # as many as those of `training.run.run.Run`
        self._trainer.set_learning_rate(0.01)
        self._targets = (mx.nd.arange(args.batch_size) % classes).one_hot(classes)
        self.gradients = [flat.gradients[0] for flat in self._trainer.trained]
        self._together = mx.nd.zeros(sum(gradient.size for gradient in self.gradients), group.devices[0])
        self.seconds = {"step": [], "computation": [], "communication": []}

    def whole(self):
        timed(self.seconds["step"], self._step)

    def in_parts(self):
        trainer, group, spent = self._trainer, self._group, []
        allreduce_grads, agree = trainer.allreduce_grads, group.agree

        def allreduce_apart():
            mx.nd.waitall()
            group.barrier()
            spent.clear()
            timed(spent, allreduce_grads)
            timed(spent, mx.nd.waitall)  # several devices of one process do not wait by themselves

        def agree_apart(*arguments):
            mx.nd.waitall()
            return timed(spent, agree, *arguments)

        trainer.allreduce_grads, group.agree = allreduce_apart, agree_apart
        started = time.perf_counter()
        try:
            self._step()
        finally:
            trainer.allreduce_grads, group.agree = allreduce_grads, agree
        self.seconds["communication"].append(sum(spent))
        self.seconds["computation"].append(time.perf_counter() - started - sum(spent))

    def one_array(self):
        def add_up():
            self._group.start_sum(self._together, "together")
            self._group.wait(self._together)

        timed(self.seconds.setdefault("one array", []), add_up)

    def _step(self):
        """One as a training has it, and everything that follows from it."""
        images = [mx.nd.random.normal(shape=self._shape, ctx=device) for device in self._group.devices]
        shares = [(i, self._targets.as_in_context(i.context)) for i in images]
        train_step(self._net, self._trainer, shares, self._group)
        mx.nd.waitall()


def measure(group, args):
    """Time steps of random images on all processes.

    Returns {"workers", "images": of a step of all workers, "arrays" and "gradient_bytes": of one replica's gradients,
    "seconds": as `MeasuredSteps` has them, "one array" where there are other workers}.
    """
    steps = MeasuredSteps(group, args)
    for _ in range(WARM_UP + args.steps):
        group.barrier()
        steps.whole()
        steps.in_parts()
        if group.size > 1:
            group.barrier()
            steps.one_array()
    return {
        "workers": group.size,
        "images": group.size * len(group.devices) * args.batch_size,
        "arrays": len(steps.gradients),
        "gradient_bytes": 4 * sum(gradient.size for gradient in steps.gradients),
        "seconds": {name: values[WARM_UP:] for name, values in steps.seconds.items()},
    }

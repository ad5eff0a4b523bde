"""What trains: networks on their devices, the optimizer, one training step, one validation."""

import math

import mxnet as mx
from mxnet import autograd

from base.errors import WorkerLost
from data.randomness import generator
from model.onednn import forget_graph, hybridize
from training.averages import Averages
from training.metrics import TRAINING_METRICS, target_loss, validation_metrics
from training.recomputation import Recomputation
from training.state import TrainingState

__all__ = ["Learner", "NotFinite", "initialize", "train_step", "validate"]

GROUP = 100  # arrays in one call of an operator that has room for 200

# He et al.'s initialization, which the paper uses (section 4.1): variance 2 / fan-in
INITIALIZER = mx.init.MSRAPrelu(factor_type="in", slope=0)


class NotFinite(FloatingPointError):
    """A step whose loss or gradient is not finite, and which was not taken."""


class Learner:
    """A network that trains, its twin that is validated and saved, and the optimizer.

    Twins, because inference on a CPU changes the weights' layout in memory (`model.onednn.hybridize`).

    Parameters
    ----------
    make_net : callable
        Returns the network, a new uninitialized HybridBlock, (N, 3, size, size) -> (N, classes).
    group : training.distributed.process_group.SingleProcess
        Each of its devices gets a replica.
    optimizer : (str, dict)
        Name and options, as `training.optimizers.optimizer_options` gives them.
    seed : int
    dtype : str
        Of the network's numbers, "float32" or "float16".
    memory_saving : bool
        Whether the backward pass computes maps again (`training.recomputation`).

    Attributes
    ----------
    net, evaluation_net : HybridBlock
        The one that trains, and the one that is validated and saved.
    state : training.state.TrainingState
        All arrays that the training goes on from.
    """

    def __init__(self, make_net, group, optimizer, seed, dtype="float32", memory_saving=False):
        self.group, self._seed, self._dtype = group, seed, dtype
        mx.random.seed(seed)
        self.net = initialize(make_net(), group.devices, INITIALIZER, dtype, memory_saving)
        self.evaluation_net = initialize(
            make_net(), group.devices, mx.init.Zero(), dtype, memory_saving, inference=True
        )
        self._forward = Recomputation(self.net) if memory_saving else self.net
        self.trainer = group.trainer(self.net.collect_params(), *optimizer)
        self.state = TrainingState(self.net, self.trainer, group)
        group.broadcast(self.net)

    def step(self, examples, learning_rate, epoch, step):
        """One update from a `data.mixup.Example` on each device.

        Returns {name: NDArray (N,)} of what was found of the images, for each device.

        Raises NotFinite on every process, with nothing changed, where a loss or a gradient is not finite.
        """
        # MXNet's own draws, such as dropout's, are a function of where they are made like all others
        draw = generator(self._seed, "mxnet", epoch, step, self.group.rank)
        mx.random.seed(int(draw.integers(2**31)))
        self.trainer.set_learning_rate(learning_rate)
        shares = [(example.images.astype(self._dtype, copy=False), example.smoothed) for example in examples]
        try:
            outputs, losses = train_step(self._forward, self.trainer, shares, self.group)
        except NotFinite as error:
            raise NotFinite(f"{error}; {describe(shares)}; learning rate {learning_rate:g}") from None
        return [
            {"loss": loss, **{name: metric(output, example.targets) for name, metric in TRAINING_METRICS.items()}}
            for example, output, loss in zip(examples, outputs, losses)
        ]

    def update_evaluation_net(self):
        """Give the evaluation network the values of the one that trains, with the mean of all replicas' statistics."""
        self.state.average_statistics()
        copy_parameters(self.net, self.evaluation_net)

    def evaluate(self, loader, on_step):
        """`validate` the evaluation network."""
        return validate(self.evaluation_net, loader, self._dtype, self.group, on_step)


def initialize(net, devices, initializer, dtype="float32", memory_saving=False, inference=False):
    """Initialize a network on devices, for training or for inference, as one graph on each. Returns it."""
    net.initialize(initializer, ctx=devices)
    net.cast(dtype)  # Gluon keeps batch normalization in float32
    hybridize(net, static=not memory_saving, inference=inference)
    return net


def copy_parameters(net, evaluation_net):
    """Give a network for inference the values of one that trains."""
    mx.nd.waitall()  # batch normalization updates its statistics without the engine knowing: reads do not wait for it
    for source, target in zip(net.collect_params().values(), evaluation_net.collect_params().values()):
        target.set_data(source.data(source.list_ctx()[0]))
    forget_graph(evaluation_net)


def train_step(net, trainer, shares, group):
    """One update from one batch a device, of a network or its `Recomputation`.

    ``shares`` has for every device the images (N, C, H, W), in the network's precision, and the loss's targets
    (N, classes). Returns, for every device, the logits (N, classes) and the losses (N,), both float32; the gradient is
    that of the mean loss over all images of all processes' devices.

    Raises NotFinite on every process, with nothing changed, where a loss or a gradient is not finite. Both are looked
    at: after a NaN, ReLU gives zeros again, and the loss may well be finite while the gradient is not.
    """
    frozen = [parameter for parameter in trainer._params if parameter.grad_req == "null"]
    statistics = [value for parameter in frozen for value in parameter.list_data()]
    before = [value.copy() for value in statistics]
    with autograd.record():
        outputs = [net(images).astype("float32") for images, _ in shares]
        losses = [target_loss(output, targets) for output, (_, targets) in zip(outputs, shares)]
    mx.nd.waitall()  # for the copies: the engine does not know that the backward pass changes the statistics
    autograd.backward(losses)
    if isinstance(net, Recomputation):
        net.backward()
    images = group.size * sum(len(loss) for loss in losses)
    try:
        trainer.allreduce_grads()
        check_finite(trainer, losses, images, group)
    except (NotFinite, WorkerLost):
        for value, old in zip(statistics, before):
            value[:] = old
        raise
    trainer.update(images)
    return outputs, losses


def check_finite(trainer, losses, images, group):
    """Raise NotFinite unless the mean loss over all ``images`` and the summed gradients are finite."""
    (loss,) = group.sum("loss", [sum(float(loss.sum().asscalar()) for loss in losses)])
    norm = math.sqrt(squared_norm(trainer))
    if not math.isfinite(loss):
        raise NotFinite(f"the loss is {loss / images}")
    if not math.isfinite(norm):
        raise NotFinite(f"the gradient's norm is {norm}")


def squared_norm(trainer):
    """The sum of the squares of all gradients on all devices, which is finite only where they are."""
    alike = {}
    for parameter in trainer._params:
        if parameter.grad_req != "null":
            for gradient in parameter.list_grad():
                alike.setdefault((gradient.context, gradient.dtype), []).append(gradient)
    groups = [arrays[first : first + GROUP] for arrays in alike.values() for first in range(0, len(arrays), GROUP)]
    return sum(float(mx.nd.multi_sum_sq(*group, num_arrays=len(group)).sum().asscalar()) for group in groups)


def describe(shares):
    """The images of a step in a few numbers."""
    images = [images.astype("float32") for images, _ in shares]
    least, most = min(i.min().asscalar() for i in images), max(i.max().asscalar() for i in images)
    mean = sum(i.mean().asscalar() for i in images) / len(images)
    return f"its images go from {least:.4g} to {most:.4g}, mean {mean:.4g}"


def validate(net, loader, dtype, group, on_step=lambda images: None, on_output=lambda batch, output: None):
    """The means of `validation_metrics` over all processes' images, each counted once: {name: mean}.

    ``on_step`` is called after every step with the number of images, ``on_output`` with every `data.loader.Batch` and
    the logits (count, classes) of its images that count.
    """
    metrics = validation_metrics(loader.dataset)
    averages = Averages.of(metrics)
    for batches in loader.epoch(0):
        for batch in batches:
            output = net(batch.images.astype(dtype, copy=False)).astype("float32")[: batch.count]
            labels = batch.labels[: batch.count]
            if batch.count:
                on_output(batch, output)
                averages.add({name: metric(output, labels) for name, metric in metrics.items()})
        averages.collect(behind=len(batches))
        on_step(sum(batch.count for batch in batches))
    return averages.over(group, "validation").means()

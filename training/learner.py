"""What trains: networks on their devices, the optimizer, one training step, one validation."""

import dataclasses
import math
from collections import namedtuple

import mxnet as mx
from mxnet import autograd

from base.errors import WorkerLost
from data.randomness import generator
from model.constants import keep_matrices
from model.onednn import forget_graph, hybridize
from training.averages import Averages
from training.loss_scale import LossScale
from training.metrics import TRAINING_METRICS, target_loss, validation_metrics
from training.recomputation import Recomputation
from training.state import TrainingState
from training.weight_average import WeightAverage

__all__ = [
    "INITIALIZER",
    "GradientNotFinite",
    "Learner",
    "LearnerOptions",
    "NotFinite",
    "StepOptions",
    "initialize",
    "mirror_averaged",
    "stored",
    "take_step",
    "train_step",
    "validate",
]

GROUP = 100  # arrays in one call of an operator that has room for 200

# He et al.'s initialization, which the paper uses (section 4.1): variance 2 / fan-in
INITIALIZER = mx.init.MSRAPrelu(factor_type="in", slope=0)


class NotFinite(FloatingPointError):
    """A step whose loss or gradient is not finite, and which was not taken."""


class GradientNotFinite(NotFinite):
    """A step whose gradient is not finite though its loss is."""


@dataclasses.dataclass
class LearnerOptions:
    """How a network learns, and how it is validated.

    Attributes
    ----------
    dtype : str
        What the network computes in: "float32", "float16" or "bfloat16".
    memory_saving : bool
        Whether the backward pass computes maps again (`training.recomputation`).
    accumulate : int
        Batches a step of each device, whose gradients are added up.
    clip_grad : float or None
        The largest norm that the gradient of the mean loss may have; a longer one is shortened to it.
    ema : float or None
        Decay of the weights' average, if there is to be one.
    tta : bool
        Whether a validation takes the mean of the logits of an image and of its mirror image.
    """

    dtype: str = "float32"
    memory_saving: bool = False
    accumulate: int = 1
    clip_grad: float = None
    ema: float = None
    tta: bool = False


PLAIN_LEARNER = LearnerOptions()


class Learner:
    """A network that trains, its twin that is validated and saved, and the optimizer.

    Twins, because inference on a CPU changes the weights' layout in memory (`model.onednn.hybridize`). On a GPU they
    are one network. The average of the weights, if there is one, has a network of its own.

    Parameters
    ----------
    make_net : callable
        Returns the network, a new uninitialized HybridBlock, (N, 3, size, size) -> (N, classes).
    group : training.distributed.process_group.SingleProcess
        Each of its devices gets a replica.
    optimizer : (str, dict)
        Name and options, as `training.optimizers.optimizer_options` gives them.
    seed : int
    options : LearnerOptions

    Attributes
    ----------
    net, evaluation_net : HybridBlock
        The one that trains, and the one that is validated and saved.
    average_net : HybridBlock or None
        The one with the average of the weights, which is validated and saved as well.
    trainer : training.flat_arrays.FlatTrainer
    state : training.state.TrainingState
        All arrays that the training goes on from.
    group : training.distributed.process_group.SingleProcess
    """

    def __init__(self, make_net, group, optimizer, seed, options=PLAIN_LEARNER):
        self.group, self._seed, self._options = group, seed, options
        dtype, memory_saving = options.dtype, options.memory_saving

        def inference_net():
            return initialize(make_net(), group.devices, mx.init.Zero(), dtype, memory_saving, inference=True)

        mx.random.seed(seed)
        self.net = initialize(make_net(), group.devices, INITIALIZER, dtype, memory_saving)
        if options.accumulate > 1:
            add_gradients_up(self.net)
        self.evaluation_net = inference_net() if group.devices[0].device_type == "cpu" else self.net
        self._forward = Recomputation(self.net) if memory_saving else self.net
        self.trainer = group.trainer(self.net.collect_params(), *optimizer)
        loss_scale = LossScale() if "float16" in (dtype, group.gradient_dtype) else None
        self.state = TrainingState(self.net, self.trainer, group, loss_scale)
        self._average = self.average_net = None
        if options.ema is not None:
            self._average, self.average_net = WeightAverage(self.net, self.trainer, options.ema), inference_net()
            self.state.include("average", self._average.arrays)

    def step(self, examples, learning_rate, epoch, step, meanwhile=lambda: None):
        """One update from a `data.mixup.Example` on each device, and where gradients are added up then of their next.

        ``meanwhile`` is called as `StepOptions` say.

        Returns {name: (images, sum over them)} of what was found of the images, for each example; none where gradients
        overflowed, so that nothing was changed but the scale of the loss.

        Raises NotFinite on every process, with nothing changed, where a loss or a gradient is not finite.
        """
        # MXNet's own draws, such as dropout's, are a function of where they are made like all others
        draw = generator(self._seed, "mxnet", epoch, step, self.group.rank)
        mx.random.seed(int(draw.integers(2**31)))
        self.trainer.set_learning_rate(learning_rate)
        dtype = self._options.dtype
        shares = [(example.images.astype(stored(dtype), copy=False), example.smoothed) for example in examples]
        scale = self.state.loss_scale

        def sums(outputs, losses):
            figures = [
                {"loss": loss, **{name: metric(output, example.targets) for name, metric in TRAINING_METRICS.items()}}
                for example, output, loss in zip(examples, outputs, losses)
            ]
            return [values.sum() for found in figures for values in found.values()]

        try:
            options = StepOptions(scale.value if scale else 1.0, self._options.clip_grad, meanwhile)
            _, losses, numbers = take_step(self._forward, self.trainer, shares, self.group, options, sums)
        except NotFinite as error:
            if scale and isinstance(error, GradientNotFinite) and scale.on_overflow():
                return []
            raise NotFinite(f"{error}; {describe(shares)}; learning rate {learning_rate:g}") from None
        if scale:
            scale.on_good_step()
        if self._average:
            self._average.update(self.state.updates)
        names = ["loss", *TRAINING_METRICS]
        return [
            {name: (len(loss), number) for name, number in zip(names, numbers[len(names) * share :])}
            for share, loss in enumerate(losses)
        ]

    @property
    def evaluation_nets(self):
        """{what the names of its figures begin with: network} of all that are validated and saved."""
        nets = {"": self.evaluation_net}
        return {**nets, "ema_": self.average_net} if self._average else nets

    def update_evaluation_nets(self):
        """Give the evaluation network the values of the one that trains, with the mean of all replicas' statistics.

        The average's network gets those of the average.
        """
        self.state.average_statistics()
        if self.evaluation_net is not self.net:
            copy_parameters(self.net, self.evaluation_net)
        if self._average:
            self._average.broadcast_statistics(self.group)
            self._average.copy_to(self.average_net)
            if self.group.devices[0].device_type == "cpu":
                forget_graph(self.average_net)  # in which a CPU keeps the parameters that it first saw

    def evaluate(self, loader, on_step):
        """`validate` all evaluation networks: {name: mean}."""
        means = {}
        for prefix, net in self.evaluation_nets.items():
            net = mirror_averaged(net) if self._options.tta else net
            found = validate(net, loader, self._options.dtype, self.group, on_step)
            means.update((f"{prefix}{name}", mean) for name, mean in found.items())
        return means


def stored(dtype):
    """The type of the parameters, the images and the logits of a network that computes in ``dtype``."""
    return "float32" if dtype == "bfloat16" else dtype


def initialize(net, devices, initializer, dtype="float32", memory_saving=False, inference=False):
    """Initialize a network on devices, as one graph on each, for training or, without gradients, for inference.

    It computes in ``dtype``. Returns it.
    """
    if inference:
        net.collect_params().setattr("grad_req", "null")
    net.initialize(initializer, ctx=devices)
    net.cast(stored(dtype))  # Gluon keeps batch normalization in float32
    hybridize(net, static=not memory_saving, inference=inference, bfloat16=dtype == "bfloat16")
    if not memory_saving and not inference:
        keep_matrices(net)
    return net


def add_gradients_up(net):
    """Let the backward passes of an initialized network add to its gradients, which each step begins at zero."""
    for parameter in net.collect_params().values():
        if parameter.grad_req == "write":
            parameter.grad_req = "add"


def copy_parameters(net, evaluation_net):
    """Give a network for inference the values of one that trains."""
    mx.nd.waitall()  # batch normalization updates its statistics without the engine knowing: reads do not wait for it
    for source, target in zip(net.collect_params().values(), evaluation_net.collect_params().values()):
        target.set_data(source.data(source.list_ctx()[0]))
    forget_graph(evaluation_net)


def train_step(net, trainer, shares, group):
    """One update from one batch a device, of a network or its `Recomputation`.

    ``shares`` has for every device the images (N, C, H, W), in the network's precision, and the loss's targets
    (N, classes).

    Returns, for every device, the logits (N, classes) and the losses (N,), both float32; the gradient is that of the
    mean loss over all images of all processes' devices.

    Raises what `take_step` raises.
    """
    outputs, losses, _ = take_step(net, trainer, shares, group)
    return outputs, losses


StepOptions = namedtuple("StepOptions", ["scale", "clip_grad", "meanwhile"], defaults=[1.0, None, lambda: None])
StepOptions.__doc__ = """What happens to the gradients of a step, and beside them.

scale : float
    The loss is multiplied by it for the backward pass, and the update divides by it again.
clip_grad : float or None
    The largest norm that the gradient of the mean loss may have; a longer one is shortened to it.
meanwhile : callable
    What the host does before it waits, such as to fetch the next batch while the devices compute.
"""

PLAIN_STEP = StepOptions()


def take_step(net, trainer, shares, group, options=PLAIN_STEP, figures=lambda outputs, losses: []):
    """`train_step` with `StepOptions`, and of more shares than devices where gradients are added up.

    These are one share of each device, then the next one of each.

    The host waits once: for the loss and the gradients' norm, when all of the step but the update has been given to the
    engine, and for ``figures(outputs, losses)``, arrays of shape (1,). Returns their numbers too, as float32.

    Raises NotFinite on every process, with nothing changed, where a loss or a gradient is not finite. Both are looked
    at: after a NaN, ReLU gives zeros again, and the loss may well be finite while the gradient is not.
    """
    kept = KeptStatistics(trainer)
    outputs, losses = [], []
    trainer.zero_gradients()
    for first in range(0, len(shares), len(group.devices)):
        batch = shares[first : first + len(group.devices)]
        with autograd.record():
            outputs += [net(images).astype("float32") for images, _ in batch]
            losses += [target_loss(output, targets) for output, (_, targets) in zip(outputs[first:], batch)]
        autograd.backward(losses[first:], [kept.head_gradient(loss, options.scale) for loss in losses[first:]])
        if isinstance(net, Recomputation):
            net.backward()
    images = group.size * sum(len(loss) for loss in losses)
    try:
        trainer.allreduce_grads()
        loss = mx.nd.add_n(*(loss.sum().as_in_context(group.devices[0]) for loss in losses))
        found = [array.as_in_context(group.devices[0]) for array in figures(outputs, losses)]
        options.meanwhile()
        loss, (squares, *numbers) = group.agree(loss, [squared_norm(trainer), *found])
        norm = math.sqrt(squares)
        check_finite(loss / images, norm)
    except (NotFinite, WorkerLost):
        kept.restore()
        raise
    divisor = images * options.scale
    if options.clip_grad is not None:
        divisor = max(divisor, norm / options.clip_grad)
    trainer.update(divisor)
    return outputs, losses, numbers


class KeptStatistics:
    """Batch normalization's statistics as they are before a step.

    A CPU's backward pass changes them without the engine knowing. So that it begins after they have been copied, the
    gradient it begins with is made to depend on the copy; the host need not wait for that.

    Parameters
    ----------
    trainer : training.flat_arrays.FlatTrainer
    """

    def __init__(self, trainer):
        self._values = {value.context: value for flat in trainer.statistics for value in flat.data}
        self._copies = {context: value.copy() for context, value in self._values.items()}

    def head_gradient(self, loss, scale):
        """The gradient by losses (N,) to begin the backward pass with: ``scale`` for each."""
        if loss.context not in self._copies:
            return mx.nd.full(loss.shape, scale, loss.context)
        ones = mx.nd.ones_like(self._copies[loss.context][:1])
        return mx.nd.broadcast_like(scale * ones, loss)

    def restore(self):
        """Give the statistics the values that were kept."""
        for context, value in self._values.items():
            value[:] = self._copies[context]


def check_finite(loss, norm):
    """Raise NotFinite unless the mean loss and the norm of the gradients of a step are finite."""
    if not math.isfinite(loss):
        raise NotFinite(f"the loss is {loss}")
    if not math.isfinite(norm):
        raise GradientNotFinite(f"the gradient's norm is {norm}")


def squared_norm(trainer):
    """The sum of the squares of all summed gradients, (1,), which is finite only where they are.

    After `allreduce_grads` they are the same on every device: the first one's are looked at.
    """
    alike = {}
    for parameter in trainer._params:
        if parameter.grad_req != "null":
            gradient = parameter.list_grad()[0]
            alike.setdefault(gradient.dtype, []).append(gradient)
    groups = [arrays[first : first + GROUP] for arrays in alike.values() for first in range(0, len(arrays), GROUP)]
    return mx.nd.concat(*(mx.nd.multi_sum_sq(*group, num_arrays=len(group)) for group in groups), dim=0).sum()


def describe(shares):
    """The images of a step in a few numbers."""
    images = [images.astype("float32") for images, _ in shares]
    least, most = min(i.min().asscalar() for i in images), max(i.max().asscalar() for i in images)
    mean = sum(i.mean().asscalar() for i in images) / len(images)
    return f"its images go from {least:.4g} to {most:.4g}, mean {mean:.4g}"


def mirror_averaged(net):
    """A function of images (N, 3, H, W) that gives the mean of a network's logits of them and of their mirror images.

    Test-time augmentation in its simplest form; Krizhevsky et al. (2012, section 4.1) average probabilities instead.
    """
    return lambda images: (net(images) + net(images.flip(axis=3))) / 2


def validate(net, loader, dtype, group, on_step=lambda images: None, on_output=lambda batch, output: None):
    """The means of `validation_metrics` over all processes' images, each counted once: {name: mean}.

    The network computes in ``dtype``.
    ``on_step`` is called after every step with the number of images, ``on_output`` with every `data.loader.Batch` and
    the logits (count, classes) of its images that count.
    """
    metrics = validation_metrics(loader.dataset)
    averages = Averages.of(metrics)
    for batches in loader.epoch(0):
        for batch in batches:
            output = net(batch.images.astype(stored(dtype), copy=False)).astype("float32")[: batch.count]
            labels = batch.labels[: batch.count]
            if batch.count:
                on_output(batch, output)
                averages.add({name: metric(output, labels) for name, metric in metrics.items()})
        averages.collect(behind=len(batches))
        on_step(sum(batch.count for batch in batches))
    return averages.over(group, "validation").means()

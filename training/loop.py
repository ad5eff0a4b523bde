"""The training loop: fit, and what it is made of."""

import math
import time

import mxnet as mx
from mxnet import autograd, gluon

from data.randomness import generator
from model.fusion import fuse
from training.board import Board, Progress
from training.exports import Exports
from training.keeper import Keeper, aside
from training.position import Position, Totals
from training.recomputation import Recomputation
from training.runs import new_run
from training.schedule import learning_rates
from training.signals import StopSignals
from training.state import TrainingState

__all__ = ["average_statistics", "fit", "hand_over", "place", "train_epoch", "train_step", "validate"]

NOT_FLAGS = ("resume", "resumed", "settings")  # in the namespace that `parse_arguments` returns

GROUP = 100  # arrays in one call of an operator that has room for 200

loss_of_targets = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
loss_of_labels = gluon.loss.SoftmaxCrossEntropyLoss()


def fit(make_net, train, validation, mixing, contexts, args, run_stem):
    """Train a network as the flags say, from the beginning or from a checkpoint; after each epoch validate, log, save.

    Parameters
    ----------
    make_net : callable
        Returns the network, a new uninitialized HybridBlock, (N, 3, size, size) -> (N, classes).
    train, validation : data.loader.ShardedLoader
    mixing : data.mixing.Mixing
    contexts : list of mxnet.Context
        The loaders' devices; each gets a replica of the network.
    args : argparse.Namespace
        The flags of `training.arguments`.
    run_stem : str
        What a new run's name starts with.

    Raises UserError where the run's files cannot be written and where a checkpoint does not fit the network or the data
    set, Diverged where the training's numbers are finite no more, and SystemExit when a signal has stopped it.
    """
    resumed = args.resumed
    files = resumed.files if resumed else new_run(args.log_dir, args.run_name, run_stem)
    with files, StopSignals() as signals:
        position = resumed.position(train.steps) if resumed else Position(train.steps)
        if position.epoch == args.epochs and resumed.last_line():
            print(resumed.last_line())
            return
        board = Board(files, args.epochs)
        mx.random.seed(args.seed)
        dtype = precision(args)
        # He et al.'s initialization, which the paper uses (section 4.1): variance 2 / fan-in
        he = mx.init.MSRAPrelu(factor_type="in", slope=0)
        net = place(make_net(), contexts, dtype, he, args.memory_saving)
        evaluated = place(make_net(), contexts, dtype, mx.init.Zero(), args.memory_saving)
        trained = Recomputation(net) if args.memory_saving else net
        trainer = make_trainer(net, args)
        rates = learning_rates(args.lr_mode, args.lr, args.epochs, train.steps, args.warmup_epochs, args.lr_steps)
        exports = Exports(files.params, args.save_period)
        data = {"name": train.dataset.name, "classes": train.dataset.classes, "images": train.num_images}
        keeper = Keeper(files, board, TrainingState(net, trainer), position, data, signals, args)
        if resumed:
            keeper.restore(resumed)
            if position.epoch and position.step == 0:  # what follows an epoch's checkpoint may not have been written
                hand_over(net, evaluated)
                aside(exports.save, evaluated, position.epoch, position.best_epoch)
        else:
            flags = "  ".join(f"{name}={value}" for name, value in vars(args).items() if name not in NOT_FLAGS)
            board.info(f"run {files.name} on {', '.join(map(str, contexts))}: {flags}")
            first_batch, *_ = next(train.epoch(0))
            images, *_ = mixing(first_batch)
            board.images(images, train.dataset)
            keeper.save()
        for epoch in range(position.epoch, args.epochs):
            number = epoch + 1  # people count from 1
            keeper.attend()
            title = f"epoch {number}/{args.epochs}"
            with Progress(train.steps, title, args.log_interval, position.step) as progress:
                train_loss, train_metric = train_epoch(trained, trainer, train, mixing, rates, args, keeper, progress)
            average_statistics(net)
            hand_over(net, evaluated)
            started = time.monotonic()
            with Progress(validation.steps, "validation", args.log_interval) as progress:
                val_loss, val_accuracy, val_top5 = validate(evaluated, validation, dtype, progress, keeper.attend)
            row = {
                "epoch": number,
                "train_loss": train_loss,
                "train_metric": train_metric,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "lr": rates(number * train.steps - 1),
                "images_per_second": train.steps * train.batch_size / position.seconds,
                "seconds": position.seconds + time.monotonic() - started,
            }
            if train.dataset.top5:
                row["val_top5"] = val_top5
            aside(board.histograms, evaluated, number)
            board.epoch(row, mixing.metric_name(epoch))
            position.finish_epoch(val_accuracy)
            keeper.save()
            aside(exports.save, evaluated, number, position.best_epoch)
        accuracy = f"{position.best_accuracy:.4f} at epoch {position.best_epoch}"
        board.info(f"Finished: best validation accuracy {accuracy} ({files.csv})")


def place(net, contexts, dtype, initializer, memory_saving=False):
    """Initialize a network on devices, in a precision, as one graph on each. Returns it.

    The graph is static, which is faster, unless ``memory_saving``: a static one keeps its memory.
    """
    net.initialize(initializer, ctx=contexts)
    net.cast(dtype)  # Gluon keeps batch normalization in float32
    if contexts[0].device_type == "cpu":
        fuse(net)
    net.hybridize(static_alloc=not memory_saving, static_shape=not memory_saving)
    return net


def make_trainer(net, args):
    """The `gluon.Trainer` of the flags; with float16, it updates a float32 copy of every parameter."""
    optimizer = {"momentum": args.momentum, "wd": args.wd, "multi_precision": args.float16}
    # each replica is updated where it is, so that the optimizer's arrays are at hand to be saved
    return gluon.Trainer(net.collect_params(), args.optimizer, optimizer, update_on_kvstore=False)


def precision(args):
    """The type of the network's numbers."""
    return "float16" if args.float16 else "float32"


def hand_over(net, evaluated):
    """Give ``evaluated``, the network that is validated and saved, the values of ``net``, the one that trains.

    Two networks, because inference on a CPU changes the memory layout of the weights it uses at a moment of its own
    choosing, and training steps with them no longer repeat bit for bit.
    """
    mx.nd.waitall()  # batch normalization updates its statistics without the engine knowing: reads do not wait for it
    for source, target in zip(net.collect_params().values(), evaluated.collect_params().values()):
        target.set_data(source.data(source.list_ctx()[0]))


def train_epoch(net, trainer, train, mixing, learning_rate, args, keeper, progress):
    """What is left of a pass over the training images. Returns the mean loss and the mean of the metric `Mixing` names.

    ``net`` is the network or its `Recomputation`. ``keeper`` has the position and looks after the state between steps.
    """
    position = keeper.position
    started = time.monotonic() - position.seconds
    for batches in train.epoch(position.epoch, position.step):
        # MXNet's own draws, such as dropout's, are a function of the place like all others
        mx.random.seed(int(generator(args.seed, "mxnet", position.epoch, position.step).integers(2**31)))
        trainer.set_learning_rate(learning_rate(position.epoch * train.steps + position.step))
        examples = [mixing(batch) for batch in batches]
        shares = [(images.astype(precision(args), copy=False), aims) for images, _, aims in examples]
        try:
            outputs, losses = train_step(net, trainer, shares)
        except FloatingPointError as error:
            keeper.not_finite(f"{error}; {describe(shares)}; learning rate {trainer.learning_rate:g}")
        else:
            position.skipped = 0
            for (_, targets, _), output, loss in zip(examples, outputs, losses):
                # the probability that the target gives to the predicted class: 0 or 1 without mixup
                position.totals.add(len(loss), loss, mx.nd.pick(targets, output.argmax(axis=1)))
        position.totals.settle(behind=len(batches))
        position.step += 1
        position.seconds = time.monotonic() - started
        progress.step(train.batch_size, position.totals.means()[0])
        keeper.attend()
    position.totals.settle()
    loss, metric = position.totals.means()
    return (math.nan, math.nan) if loss is None else (loss, metric)  # where every step was left out


def describe(shares):
    """The images of a step in a few numbers."""
    images = [images.astype("float32") for images, _ in shares]
    least, most = min(i.min().asscalar() for i in images), max(i.max().asscalar() for i in images)
    mean = sum(i.mean().asscalar() for i in images) / len(images)
    return f"its images go from {least:.4g} to {most:.4g}, mean {mean:.4g}"


def train_step(net, trainer, shares):
    """One update from one batch a device, of a network or its `Recomputation`.

    ``shares`` has for every device the images (N, C, H, W), in the network's precision, and the loss's targets
    (N, classes). Returns, for every device, the logits (N, classes) and the losses (N,), both float32; the gradient is
    that of the mean loss over all devices' images.

    Raises FloatingPointError, with nothing changed, where a loss or a gradient is not finite. Both are looked at: after
    a NaN, ReLU gives zeros again, and the loss may well be finite while the gradient is not.
    """
    frozen = [parameter for parameter in trainer._params if parameter.grad_req == "null"]
    statistics = [value for parameter in frozen for value in parameter.list_data()]
    before = [value.copy() for value in statistics]
    with autograd.record():
        outputs = [net(images).astype("float32") for images, _ in shares]
        losses = [loss_of_targets(output, targets) for output, (_, targets) in zip(outputs, shares)]
    sums = [loss.sum().asscalar() for loss in losses]
    problem = None if all(map(math.isfinite, sums)) else f"the loss is {sum(sums) / sum(map(len, losses))}"
    if not problem:
        mx.nd.waitall()  # for the copies: the engine does not know that the backward pass changes the statistics
        autograd.backward(losses)
        if isinstance(net, Recomputation):
            net.backward()
        norm = math.sqrt(squared_norm(trainer))
        problem = None if math.isfinite(norm) else f"the gradient's norm is {norm}"
    if problem:
        for value, old in zip(statistics, before):
            value[:] = old
        raise FloatingPointError(problem)
    trainer.step(sum(len(loss) for loss in losses))
    return outputs, losses


def squared_norm(trainer):
    """The sum of the squares of all gradients on all devices, which is finite only where they are."""
    alike = {}
    for parameter in trainer._params:
        if parameter.grad_req != "null":
            for gradient in parameter.list_grad():
                alike.setdefault((gradient.context, gradient.dtype), []).append(gradient)
    groups = [arrays[first : first + GROUP] for arrays in alike.values() for first in range(0, len(arrays), GROUP)]
    return sum(float(mx.nd.multi_sum_sq(*group, num_arrays=len(group)).sum().asscalar()) for group in groups)


def validate(net, validation, dtype, progress, attend=lambda: None):
    """Mean cross-entropy, accuracy and top-5 accuracy over the validation images, each counted once.

    ``attend`` is called after every batch.
    """
    totals, top5 = Totals(), Totals()
    for batches in validation.epoch(0):
        for batch in batches:
            output = net(batch.images.astype(dtype, copy=False)).astype("float32")[: batch.count]
            labels = batch.labels[: batch.count]
            if batch.count:
                losses = loss_of_labels(output, labels)
                totals.add(batch.count, losses, output.argmax(axis=1) == labels)
                top5.add(batch.count, losses, among_first(output, labels, 5))
        totals.settle(behind=len(batches))
        top5.settle(behind=len(batches))
        progress.step(sum(batch.count for batch in batches))
        attend()
    totals.settle()
    top5.settle()
    return *totals.means(), top5.means()[1]


def among_first(output, labels, count):
    """Whether each label is among the ``count`` classes of the largest logits: 0 or 1, (N,)."""
    first = output.topk(k=min(count, output.shape[1]))
    return mx.nd.broadcast_equal(first, labels.expand_dims(1)).sum(axis=1)


def average_statistics(net):
    """Give all replicas the mean of their batch normalization statistics, so that they are one network again."""
    mx.nd.waitall()  # as in `hand_over`
    for parameter in net.collect_params().values():
        if parameter.grad_req == "null" and len(parameter.list_ctx()) > 1:
            first, *others = (value.as_in_context(mx.cpu()) for value in parameter.list_data())
            # by differences, so that doing it again, as a resumed run may, changes nothing
            parameter.set_data(first + sum(other - first for other in others) / (len(others) + 1))

"""The training loop: fit, and what it is made of."""

import contextlib
import math
import time
from collections import namedtuple

import mxnet as mx
from mxnet import autograd, gluon

from base.errors import WorkerLost
from data.randomness import generator
from model.onednn import forget_graph, hybridize
from training.recomputation import Recomputation
from training.run.checkpointer import Keeper, aside
from training.run.exports import Exports
from training.run.files import new_run
from training.run.logger import Board, Progress, SilentBoard
from training.run.progress import Position, Totals
from training.run.signals import StopSignals
from training.schedule import learning_rates
from training.state import TrainingState

__all__ = ["Validation", "fit", "hand_over", "make_trainer", "place", "train_epoch", "train_step", "validate"]

GROUP = 100  # arrays in one call of an operator that has room for 200

loss_of_targets = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
loss_of_labels = gluon.loss.SoftmaxCrossEntropyLoss()


def fit(make_net, train, validation, mixing, sync, args, run_stem):
    """Train a network as the flags say, from the beginning or from a checkpoint; after each epoch validate, log, save.

    Every worker calls this; the first one alone writes and prints.

    Parameters
    ----------
    make_net : callable
        Returns the network, a new uninitialized HybridBlock, (N, 3, size, size) -> (N, classes).
    train, validation : data.loader.ShardedLoader
    mixing : data.mixup.Mixing
    sync : training.distributed.process_group.OneProcess
        What keeps the workers in step. Each of its devices, the loaders' too, gets a replica of the network.
    args : argparse.Namespace
        The flags of `training.flags`.
    run_stem : str
        What a new run's name starts with.

    Raises UserError where the run's files cannot be written and where a checkpoint does not fit the network or the data
    set, Diverged where the training's numbers are finite no more, WorkerLost where the other workers do not answer, and
    SystemExit when a signal has stopped it.
    """
    resumed, leads = args.resumed, sync.rank == 0
    files = resumed.files if resumed else None
    if leads and not resumed:
        files = new_run(args.log_dir, args.run_name, run_stem)
    with files or contextlib.nullcontext(), StopSignals() as sync.signals:
        position = resumed.position(train.steps) if resumed else Position(train.steps)
        if position.epoch == args.epochs and resumed.last_line():
            if leads:
                print(resumed.last_line())
            return
        board = Board(files, args.epochs) if leads else SilentBoard()
        mx.random.seed(args.seed)
        dtype = precision(args)
        # He et al.'s initialization, which the paper uses (section 4.1): variance 2 / fan-in
        he = mx.init.MSRAPrelu(factor_type="in", slope=0)
        net = place(make_net(), sync.devices, dtype, he, args.memory_saving)
        evaluated = place(make_net(), sync.devices, dtype, mx.init.Zero(), args.memory_saving, inference=True)
        trained = Recomputation(net) if args.memory_saving else net
        trainer = make_trainer(net, sync, args)
        state = TrainingState(net, trainer, sync)
        sync.broadcast(net)
        rates = learning_rates(args.lr_mode, args.lr, args.epochs, train.steps, args.warmup_epochs, args.lr_steps)
        exports = Exports(files.params, args.save_period) if leads else None
        data = {"name": train.dataset.name, "classes": train.dataset.classes, "images": train.num_images}
        keeper = Keeper(files, board, state, position, data, sync, args)
        if resumed:
            keeper.restore(resumed)
            if position.epoch and position.step == 0:  # what follows an epoch's checkpoint may not have been written
                hand_over(net, evaluated)
                if leads:
                    aside(exports.save, evaluated, position.epoch, position.best_epoch)
        else:
            if leads:
                flags = "  ".join(f"{name}={value}" for name, value in args.settings.items())
                workers = f" in {sync.size} workers" if sync.size > 1 else ""
                board.info(f"run {files.name} on {', '.join(map(str, sync.devices))}{workers}: {flags}")
                first_batch, *_ = next(train.epoch(0))
                images, *_ = mixing(first_batch)
                board.images(images, train.dataset)
            keeper.save()
        try:
            for epoch in range(position.epoch, args.epochs):
                number = epoch + 1  # people count from 1
                keeper.attend()
                title = f"epoch {number}/{args.epochs}"
                with Progress(train.steps, title, args.log_interval, position.step, shown=leads) as progress:
                    train_loss, train_metric = train_epoch(
                        trained, trainer, train, mixing, rates, sync, args, keeper, progress
                    )
                state.average_statistics()
                hand_over(net, evaluated)
                started = time.monotonic()
                with Progress(validation.steps, "validation", args.log_interval, shown=leads) as progress:
                    found = validate(evaluated, validation, dtype, sync, progress, keeper.attend)
                row = {
                    "epoch": number,
                    "train_loss": train_loss,
                    "train_metric": train_metric,
                    "val_loss": found.loss,
                    "val_accuracy": found.accuracy,
                    "lr": rates(number * train.steps - 1),
                    "images_per_second": train.steps * train.batch_size / position.seconds,
                    "seconds": position.seconds + time.monotonic() - started,
                }
                if found.top5 is not None:
                    row["val_top5"] = found.top5
                aside(board.histograms, evaluated, number)
                board.epoch(row, mixing.metric_name(epoch))
                position.finish_epoch(found.accuracy)
                keeper.save()
                if leads:
                    aside(exports.save, evaluated, number, position.best_epoch)
        except WorkerLost as error:
            keeper.lost(error)
        accuracy = f"{position.best_accuracy:.4f} at epoch {position.best_epoch}"
        if leads:
            board.info(f"Finished: best validation accuracy {accuracy} ({files.csv})")


def place(net, contexts, dtype, initializer, memory_saving=False, inference=False):
    """Initialize a network on devices, in a precision, for training or for inference, as one graph on each. Returns it.

    The graph is static, which is faster, unless ``memory_saving``: a static one keeps its memory.
    """
    net.initialize(initializer, ctx=contexts)
    net.cast(dtype)  # Gluon keeps batch normalization in float32
    hybridize(net, static=not memory_saving, inference=inference)
    return net


def make_trainer(net, sync, args):
    """The `gluon.Trainer` of the flags; with float16, it updates a float32 copy of every parameter."""
    optimizer = {"momentum": args.momentum, "wd": args.wd, "multi_precision": args.float16}
    return sync.trainer(net.collect_params(), args.optimizer, optimizer)


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
    forget_graph(evaluated)


def train_epoch(net, trainer, train, mixing, learning_rate, sync, args, keeper, progress):
    """What is left of a pass over the training images. Returns the mean loss and the mean of the metric `Mixing` names.

    ``net`` is the network or its `Recomputation`. ``keeper`` has the position and looks after the state between steps.
    """
    position = keeper.position
    started = time.monotonic() - position.seconds
    for batches in train.epoch(position.epoch, position.step):
        # MXNet's own draws, such as dropout's, are a function of the place like all others
        draw = generator(args.seed, "mxnet", position.epoch, position.step, sync.rank)
        mx.random.seed(int(draw.integers(2**31)))
        trainer.set_learning_rate(learning_rate(position.epoch * train.steps + position.step))
        examples = [mixing(batch) for batch in batches]
        shares = [(images.astype(precision(args), copy=False), aims) for images, _, aims in examples]
        try:
            outputs, losses = train_step(net, trainer, shares, sync)
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
        loss, _ = position.totals.means()
        progress.step(train.batch_size, None if math.isnan(loss) else loss)
        keeper.attend()
    return Totals(*sync.sum("totals", position.totals.sums())).means()


def describe(shares):
    """The images of a step in a few numbers."""
    images = [images.astype("float32") for images, _ in shares]
    least, most = min(i.min().asscalar() for i in images), max(i.max().asscalar() for i in images)
    mean = sum(i.mean().asscalar() for i in images) / len(images)
    return f"its images go from {least:.4g} to {most:.4g}, mean {mean:.4g}"


def train_step(net, trainer, shares, sync):
    """One update from one batch a device, of a network or its `Recomputation`.

    ``shares`` has for every device the images (N, C, H, W), in the network's precision, and the loss's targets
    (N, classes). Returns, for every device, the logits (N, classes) and the losses (N,), both float32; the gradient is
    that of the mean loss over all images of all workers' devices.

    Raises FloatingPointError on every worker, with nothing changed, where a loss or a gradient is not finite. Both are
    looked at: after a NaN, ReLU gives zeros again, and the loss may well be finite while the gradient is not.
    """
    frozen = [parameter for parameter in trainer._params if parameter.grad_req == "null"]
    statistics = [value for parameter in frozen for value in parameter.list_data()]
    before = [value.copy() for value in statistics]
    with autograd.record():
        outputs = [net(images).astype("float32") for images, _ in shares]
        losses = [loss_of_targets(output, targets) for output, (_, targets) in zip(outputs, shares)]
    mx.nd.waitall()  # for the copies: the engine does not know that the backward pass changes the statistics
    autograd.backward(losses)
    if isinstance(net, Recomputation):
        net.backward()
    images = sync.size * sum(len(loss) for loss in losses)
    try:
        trainer.allreduce_grads()
        (loss,) = sync.sum("loss", [sum(float(loss.sum().asscalar()) for loss in losses)])
        norm = math.sqrt(squared_norm(trainer))
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss / images}")
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}")
    except (FloatingPointError, WorkerLost):
        for value, old in zip(statistics, before):
            value[:] = old
        raise
    trainer.update(images)
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


Validation = namedtuple("Validation", ["loss", "accuracy", "top5"])
Validation.__doc__ = (
    """Mean cross-entropy, accuracy, and top-5 accuracy or None where the data set does not ask for it."""
)


def validate(net, validation, dtype, sync, progress, attend=lambda: None):
    """The `Validation` over all workers' images, each counted once.

    ``attend`` is called after every batch.
    """
    top5 = validation.dataset.top5
    totals = Totals(0, *[0.0] * (2 + top5))
    for batches in validation.epoch(0):
        for batch in batches:
            output = net(batch.images.astype(dtype, copy=False)).astype("float32")[: batch.count]
            labels = batch.labels[: batch.count]
            if batch.count:
                found = [loss_of_labels(output, labels), output.argmax(axis=1) == labels]
                totals.add(batch.count, *found, *([among_first(output, labels, 5)] if top5 else []))
        totals.settle(behind=len(batches))
        progress.step(sum(batch.count for batch in batches))
        attend()
    means = Totals(*sync.sum("validation", totals.sums())).means()
    return Validation(*means) if top5 else Validation(*means, None)


def among_first(output, labels, count):
    """Whether each label is among the ``count`` classes of the largest logits: 0 or 1, (N,)."""
    first = output.topk(k=min(count, output.shape[1]))
    return mx.nd.broadcast_equal(first, labels.expand_dims(1)).sum(axis=1)

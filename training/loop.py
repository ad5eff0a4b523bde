"""The training loop: fit, and what it is made of."""

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import mxnet as mx
from mxnet import autograd, gluon

from training.board import Board, Progress, RunFiles
from training.checkpoint import Checkpoints
from training.schedule import learning_rates

__all__ = ["average_statistics", "fit", "hand_over", "place", "train_epoch", "train_step", "validate"]

loss_of_targets = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
loss_of_labels = gluon.loss.SoftmaxCrossEntropyLoss()


def fit(make_net, train, validation, mixing, contexts, args, run_stem):
    """Train a network as the flags say; after each epoch validate, log and save.

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
        What the run's name starts with.

    Raises UserError where the run's files cannot be made.
    """
    files = RunFiles(args.log_dir, args.run_name, run_stem)
    board = Board(files, args.epochs)
    checkpoints = Checkpoints(files.params, args.save_period)
    flags = "  ".join(f"{name}={value}" for name, value in vars(args).items())
    board.info(f"run {files.name} on {', '.join(map(str, contexts))}: {flags}")

    mx.random.seed(args.seed)
    dtype = "float16" if args.float16 else "float32"
    # He et al.'s initialization, which the paper uses (section 4.1): variance 2 / fan-in
    net = place(make_net(), contexts, dtype, mx.init.MSRAPrelu(factor_type="in", slope=0))
    evaluated = place(make_net(), contexts, dtype, mx.init.Zero())
    trainer = make_trainer(net, args)
    learning_rate = learning_rates(args.lr_mode, args.lr, args.epochs, train.steps, args.warmup_epochs, args.lr_steps)
    first_batch, *_ = next(train.epoch(0))
    images, *_ = mixing(first_batch)
    board.images(images, train.dataset)
    for epoch in range(args.epochs):
        number = epoch + 1  # people count from 1
        started = time.monotonic()
        with Progress(train.steps, f"epoch {number}/{args.epochs}", args.log_interval) as progress:
            train_loss, train_metric = train_epoch(net, trainer, train, epoch, mixing, learning_rate, dtype, progress)
        training_seconds = time.monotonic() - started
        hand_over(net, evaluated)
        with Progress(validation.steps, "validation", args.log_interval) as progress:
            val_loss, val_accuracy, val_top5 = validate(evaluated, validation, dtype, progress)
        row = {
            "epoch": number,
            "train_loss": train_loss,
            "train_metric": train_metric,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "lr": trainer.learning_rate,
            "images_per_second": train.steps * train.batch_size / training_seconds,
            "seconds": time.monotonic() - started,
        }
        if train.dataset.top5:
            row["val_top5"] = val_top5
        aside(checkpoints.save, evaluated, number, val_accuracy)
        aside(board.histograms, evaluated, number)
        board.epoch(row, mixing.metric_name(epoch))
    board.info(
        f"Finished: best validation accuracy {checkpoints.best_accuracy:.4f} "
        f"at epoch {checkpoints.best_epoch} ({files.csv})"
    )
    board.close()


def place(net, contexts, dtype, initializer):
    """Initialize a network on devices, in a precision, as one static graph on each. Returns it."""
    net.initialize(initializer, ctx=contexts)
    net.cast(dtype)  # Gluon keeps batch normalization in float32
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def make_trainer(net, args):
    """The `gluon.Trainer` of the flags; with float16, it updates a float32 copy of every parameter."""
    optimizer = {"momentum": args.momentum, "wd": args.wd, "multi_precision": args.float16}
    return gluon.Trainer(net.collect_params(), args.optimizer, optimizer)


def hand_over(net, evaluated):
    """Give ``evaluated``, the network that is validated and saved, the values of ``net``, the one that trains.

    Two networks, because inference on a CPU changes the memory layout of the weights it uses at a moment of its own
    choosing, and training steps with them no longer repeat bit for bit.
    """
    mx.nd.waitall()  # batch normalization updates its statistics without the engine knowing: reads do not wait for it
    average_statistics(net)
    for source, target in zip(net.collect_params().values(), evaluated.collect_params().values()):
        target.set_data(source.data(source.list_ctx()[0]))


def train_epoch(net, trainer, train, epoch, mixing, learning_rate, dtype, progress):
    """One pass over the training images. Returns the mean loss and the mean of the metric `Mixing` names."""
    totals = Totals()
    for step, batches in enumerate(train.epoch(epoch)):
        trainer.set_learning_rate(learning_rate(epoch * train.steps + step))
        examples = [mixing(batch) for batch in batches]
        outputs, losses = train_step(
            net, trainer, [(images.astype(dtype, copy=False), aims) for images, _, aims in examples]
        )
        for (_, targets, _), output, loss in zip(examples, outputs, losses):
            # the probability that the target gives to the predicted class: 0 or 1 without mixup
            totals.add(len(loss), loss, mx.nd.pick(targets, output.argmax(axis=1)))
        totals.settle(behind=len(batches))
        progress.step(train.batch_size, totals.means()[0])
    totals.settle()
    return totals.means()


def train_step(net, trainer, shares):
    """One update from one batch a device.

    ``shares`` has for every device the images (N, C, H, W), in the network's precision, and the loss's targets
    (N, classes). Returns, for every device, the logits (N, classes) and the losses (N,), both float32; the gradient is
    that of the mean loss over all devices' images.
    """
    with autograd.record():
        outputs = [net(images).astype("float32") for images, _ in shares]
        losses = [loss_of_targets(output, targets) for output, (_, targets) in zip(outputs, shares)]
    autograd.backward(losses)
    trainer.step(sum(len(loss) for loss in losses))
    return outputs, losses


def validate(net, validation, dtype, progress):
    """Mean cross-entropy, accuracy and top-5 accuracy over the validation images, each counted once."""
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
    totals.settle()
    top5.settle()
    return *totals.means(), top5.means()[1]


def among_first(output, labels, count):
    """Whether each label is among the ``count`` classes of the largest logits: 0 or 1, (N,)."""
    first = output.topk(k=min(count, output.shape[1]))
    return mx.nd.broadcast_equal(first, labels.expand_dims(1)).sum(axis=1)


def average_statistics(net):
    """Give all replicas the mean of their batch normalization statistics, so that they are one network again."""
    for parameter in net.collect_params().values():
        if parameter.grad_req == "null" and len(parameter.list_ctx()) > 1:
            values = [value.as_in_context(mx.cpu()) for value in parameter.list_data()]
            parameter.set_data(mx.nd.add_n(*values) / len(values))


def aside(function, *arguments):
    """Call a function that copies large arrays out of MXNet, in a thread that ends with it.

    Such a copy runs in parallel, and OpenMP keeps helpers for every thread that ever did so. Where there are more of
    them than cores, they wait for work asleep instead of awake, and a training step takes a quarter longer.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        executor.submit(function, *arguments).result()


class Totals:
    """Sums of losses and hits over an epoch, read from the devices late so that these need not stop for it."""

    def __init__(self):
        self._pending = deque()
        self._count, self._loss, self._hits = 0, 0.0, 0.0

    def add(self, count, losses, hits):
        """``losses`` and ``hits`` of ``count`` images, arrays (count,)."""
        self._pending.append((count, losses.sum(), hits.sum()))

    def settle(self, behind=0):
        """Wait for all that was added but the last ``behind`` additions."""
        while len(self._pending) > behind:
            count, loss, hits = self._pending.popleft()
            self._count += count
            self._loss += loss.asscalar()
            self._hits += hits.asscalar()

    def means(self):
        """(mean loss, mean hits) of what has settled; None before anything has."""
        if not self._count:
            return None, None
        return self._loss / self._count, self._hits / self._count

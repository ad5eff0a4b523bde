"""The training loop."""

import math
import time

from base.errors import WorkerLost
from training.averages import Averages
from training.learner import NotFinite
from training.metrics import TRAINING_METRICS

__all__ = ["Ahead", "fit", "train_epoch", "validate_epoch"]


def fit(learner, run, loaders, transform, learning_rate, epochs):
    """Train a network, from the beginning or from a checkpoint; after each epoch validate, log and save.

    Parameters
    ----------
    learner : training.learner.Learner
        What trains.
    run : training.run.run.Run
        What surrounds it, entered.
    loaders : 2 data.loader.ShardedLoader
        Of the training and of the validation images.
    transform : data.mixup.TargetTransform
        Applied to a step's images while the devices compute the step before it.
    learning_rate : callable
        From the step (0 is the first) to the rate.
    epochs : int
        In all.

    Raises UserError where the run's files cannot be written or its checkpoint does not fit, Diverged where numbers are
    finite no more, WorkerLost where the other processes do not answer, and SystemExit when a signal has stopped it.
    """
    train, validation = loaders
    run.start(learner, loaders, transform)
    try:
        for epoch in range(run.progress.epoch, epochs):
            run.on_step_end()
            train_means = train_epoch(learner, run, train, transform, learning_rate)
            learner.update_evaluation_nets()
            val_means, val_seconds = validate_epoch(learner, run, validation)
            figures = {
                "epoch": epoch + 1,  # people count from 1
                **{f"train_{name}": mean for name, mean in train_means.items()},
                **{f"val_{name}": mean for name, mean in val_means.items()},
                "lr": learning_rate(run.progress.global_step - 1),
                "images_per_second": train.steps * train.batch_size / run.progress.seconds,
                "seconds": run.progress.seconds + val_seconds,
            }
            run.on_epoch_end(learner, figures, transform.metric_name(epoch))
    except WorkerLost as error:
        run.on_worker_lost(error)
    run.on_training_end()


def train_epoch(learner, run, loader, transform, learning_rate):
    """What is left of a pass over the training images. Returns the epoch's means, {name: mean}.

    They are those of the loss and of `training.metrics.TRAINING_METRICS`.
    """
    progress = run.progress
    progress.averages = Averages.of(["loss", *TRAINING_METRICS], known=progress.averages)
    started = time.monotonic() - progress.seconds
    with run.progress_bar(loader.steps, done=progress.step) as bar:
        loaded = loader.epoch(progress.epoch, progress.step)
        ahead = Ahead([transform(batch) for batch in batches] for batches in loaded)
        for examples in ahead:
            rate = learning_rate(progress.global_step)
            try:
                found = learner.step(examples, rate, progress.epoch, progress.step, meanwhile=ahead.fetch)
            except NotFinite as error:
                run.on_not_finite(error)
            else:
                if found:
                    progress.skipped = 0
                else:
                    run.on_overflow(learner.state.loss_scale)
                for sums in found:
                    progress.averages.add_sums(sums)
            progress.step += 1
            progress.seconds = time.monotonic() - started
            loss = progress.averages.means()["loss"]
            bar.step(loader.batch_size, None if math.isnan(loss) else loss)
            run.on_step_end()
    return progress.averages.over(learner.group, "averages").means()


class Ahead:
    """An iterator whose next item may be fetched before it is asked for.

    What `fetch` finds, be it an error, is what is given or raised when it is asked for.
    """

    def __init__(self, items):
        self._items, self._fetched = iter(items), []

    def fetch(self):
        """Get the next item, if there is none at hand."""
        if not self._fetched:
            try:
                self._fetched = [next(self._items), None]
            except Exception as error:  # StopIteration too
                self._fetched = [None, error]

    def __iter__(self):
        return self

    def __next__(self):
        self.fetch()
        (item, error), self._fetched = self._fetched, []
        if error:
            raise error
        return item


def validate_epoch(learner, run, loader):
    """(The validation's means, {name: mean}; the seconds it took)."""
    started = time.monotonic()
    with run.progress_bar(loader.steps * len(learner.evaluation_nets), "validation") as bar:

        def on_step(images):
            bar.step(images)
            run.on_step_end()

        return learner.evaluate(loader, on_step), time.monotonic() - started

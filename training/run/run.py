"""What surrounds a training: its files, logs, checkpoints and signals."""

import contextlib
import dataclasses
import hashlib
import shlex
import signal
import sys
from typing import Optional

from base.devices import explaining_memory
from base.errors import Diverged, UserError, WorkerLost
from base.output import lasting_output
from base.runtime import thread_count
from training.network_file import NetworkDescription
from training.run.checkpointer import Checkpointer
from training.run.exports import Exports
from training.run.files import DEFAULT_LOG_DIR, FINISHED, new_run
from training.run.logger import RunLogger, SilentLogger
from training.run.progress import TrainingProgress
from training.run.progress_bar import ProgressBar
from training.run.resume import discard_unbegun
from training.run.signals import StopSignals

__all__ = ["Run", "RunOptions", "other_precision", "other_threads", "what_changes"]

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SKIPS_IN_A_ROW = 10  # as many losses in a row that are not finite are no accident of their images


@dataclasses.dataclass
class RunOptions:
    """What the flags of the same names say of a run, and what it trains.

    Attributes
    ----------
    network : training.network_file.NetworkDescription
    log_dir : str
    run_name : str or None
    stem : str
        What a new run's name starts with where it has none.
    epochs : int
    log_interval : int
        Steps between lines where there is no progress bar.
    save_period : int
        Epochs between numbered parameter files; 0 is none.
    checkpoint_minutes : float
        Between checkpoints within an epoch.
    nan_action : str
        "stop" or "skip".
    viz_period : int
        Epochs between pictures of the attention; 0 is none.
    origin : str, optional
        A line about where a new run's parameters come from.
    """

    network: NetworkDescription
    log_dir: str
    run_name: str
    stem: str
    epochs: int
    log_interval: int
    save_period: int
    checkpoint_minutes: float
    nan_action: str
    viz_period: int
    origin: Optional[str] = None


class Run:
    """A run on disk, new or gone on with, to be entered while it is written.

    All processes of a training have one and call its methods together; the main one alone writes and prints.

    Parameters
    ----------
    options : RunOptions
    group : training.distributed.process_group.SingleProcess
    steps : int
        Of an epoch.
    settings : dict
        The flags that a checkpoint holds, JSON values.
    resumed : training.run.resume.Resumed, optional
        What to go on with.

    Attributes
    ----------
    progress : training.run.progress.TrainingProgress
        The training keeps it up to date.
    finished : str or None
        The line that the run has finished with already.

    Raises UserError where the run's files cannot be written.
    """

    def __init__(self, options, group, steps, settings, resumed=None):
        self._options, self._group, self._settings, self._resumed = options, group, settings, resumed
        self.progress = resumed.progress(steps) if resumed else TrainingProgress(steps)
        self.finished = resumed.last_line() if resumed and self.progress.epoch == options.epochs else None
        self._files = resumed.files if resumed else None
        if group.is_main_process and not resumed:
            if options.run_name:
                discard_unbegun(options.log_dir, options.run_name)
            self._files = new_run(options.log_dir, options.run_name, options.stem)
        self._logger = SilentLogger()
        self._entered = contextlib.ExitStack()

    def __enter__(self):
        self._entered.enter_context(self._files or contextlib.nullcontext())
        self._entered.enter_context(lasting_output())
        self._group.signals = self._entered.enter_context(StopSignals())
        self._group.wishes = self._wishes
        return self

    def __exit__(self, *exception):
        return self._entered.__exit__(*exception)

    def start(self, learner, loaders, transform):
        """Restore the checkpoint to go on from, or write the first one.

        Parameters
        ----------
        learner : training.learner.Learner
        loaders : 2 data.loader.ShardedLoader
            Of the training and of the validation images.
        transform : data.mixup.TargetTransform

        Raises UserError where the checkpoint does not fit the network or the data set.
        """
        loader, self._validation = loaders
        dataset = loader.dataset
        data = {"name": dataset.name, "classes": dataset.classes, "images": loader.num_images}
        if dataset.class_names is not None:
            names = "\n".join(self._options.network.classes).encode(errors="surrogateescape")
            data["class names"] = hashlib.sha256(names).hexdigest()
        devices = {"workers": self._group.size, "devices": len(self._group.devices), "images": loader.batch_size}
        threads = thread_count() if self._group.devices[0].device_type == "cpu" else None
        facts = {"settings": self._settings, "data": data, "devices": devices, "threads": threads}
        self._checkpointer = Checkpointer(
            self._files, learner.state, self.progress, self._group, facts, self._options.checkpoint_minutes
        )
        if self._group.is_main_process:
            self._logger = RunLogger(self._files, self._options.epochs)
            self._exports = Exports(self._files.params, self._options.save_period, self._options.network)
        if self._resumed:
            self._restore(learner)
            then = self._resumed.checkpoint.facts
            changes = (
                what_changes(then.get("devices"), devices, self._settings.get("lr_per") is not None),
                other_threads(then.get("threads"), threads),
                other_precision(then["settings"].get("bfloat16", False), self._settings.get("bfloat16", False)),
            )
            for said in filter(None, changes):
                self._logger.info(said)
        else:
            self._begin(loader, transform, f" with threads={threads}" if threads else "")

    def _begin(self, loader, transform, threads):
        flags = "  ".join(f"{name}={value}" for name, value in self._settings.items())
        workers = f" in {self._group.size} workers" if self._group.size > 1 else ""
        if self._group.is_main_process:
            devices = ", ".join(map(str, self._group.devices))
            self._logger.info(f"run {self._files.name} on {devices}{workers}{threads}: {flags}")
            if self._options.origin is not None:
                self._logger.info(self._options.origin)
            first_batch, *_ = next(loader.epoch(0))
            self._logger.images(transform(first_batch).images, loader.dataset)
        self._checkpointer.save()

    def _restore(self, learner):
        then, progress = self._resumed.checkpoint.facts["position"], self.progress
        if progress.epoch + (progress.step > 0) > self._options.epochs:
            raise UserError(f"--epochs {self._options.epochs}: the run {self._files.name} is {self._done()}")
        for line in self._checkpointer.restore(self._resumed):
            self._logger.info(line)
        if self._group.is_main_process:
            for line in self._exports.set_aside_after(progress.epoch):
                self._logger.info(line)
        share = f" (step {then['step']}/{then['steps']} of then)" if then["steps"] != progress.steps else ""
        self._logger.info(f"resumed at {self.where()}{share}, from {self._resumed.checkpoint.path}")
        if progress.epoch and progress.step == 0:  # what follows an epoch's checkpoint may not have been written
            learner.update_evaluation_nets()
            self._export(learner)

    def progress_bar(self, steps, title=None, done=0):
        """A `ProgressBar` over so many steps, to be entered, which shows on the main process alone."""
        title = title or f"epoch {self.progress.epoch + 1}/{self._options.epochs}"
        return ProgressBar(steps, title, self._options.log_interval, done, shown=self._group.is_main_process)

    def on_step_end(self):
        """To be called between steps: save a checkpoint if it is time to.

        Raises SystemExit, with the state saved, where a signal has come to any process.
        """
        *stops, due = self._group.granted_wishes()
        if any(stops):
            self._save()
            if self._group.is_main_process:
                self._logger.info(f"stopped at {self.where()}; go on with: {self._resume_command()}")
            self._group.shutdown()
            raise SystemExit(128 + next(stop for stop, wish in zip(STOPS, stops) if wish))
        if due:
            self._save()

    def _wishes(self):
        """Whether this process was told to end, by which of `STOPS`, and whether it wants to save."""
        number = self._group.signals.number
        due = self._group.is_main_process and self._checkpointer.is_due()
        return [*(number == stop for stop in STOPS), due]

    def on_not_finite(self, error):
        """A step was not taken because of a `training.learner.NotFinite`: go on without it, or not.

        Raises Diverged, with the state before the step saved, where --nan-action or the steps before forbid it.
        """
        description = f"{self.where()}: {error}"
        if self._options.nan_action == "skip" and self.progress.skipped < SKIPS_IN_A_ROW - 1:
            self.progress.skipped += 1
            self._logger.info(f"left out {description}")
            return
        try:
            self._checkpointer.save()
        except Diverged as error:
            raise Diverged(f"{description}; {self.where()}: {error}") from None
        self._group.shutdown()
        if not self._group.is_main_process:
            raise SystemExit(Diverged.status)
        raise Diverged(
            f"{description}; the state before it is {self._checkpointer.path}; "
            "--nan-action skip may help, or a new run with a lower --lr (docs/resuming.md)"
        )

    def on_overflow(self, loss_scale):
        """A step was left out because gradients overflowed, which is no accident: say what the `LossScale` is."""
        self._logger.info(f"gradients overflowed at {self.where()}: the scale of the loss is {loss_scale.value:g} now")

    def on_worker_lost(self, error):
        """The other processes do not answer, as a WorkerLost says: save what this one knows, and raise it again."""
        if not self._group.is_main_process:
            raise error
        self._checkpointer.save_alone()
        raise WorkerLost(
            f"{error}; {self.where()} is saved as {self._checkpointer.path}, go on with: {self._resume_command()}"
        )

    def on_epoch_end(self, learner, figures, metric_name):
        """Log an epoch's figures, as `RunLogger.epoch` takes them; save its state and its parameters."""
        self._logger.histograms(learner.evaluation_net, figures["epoch"])
        self._logger.epoch(figures, metric_name)
        if self._options.viz_period and figures["epoch"] % self._options.viz_period == 0:
            self._picture_attention(learner.evaluation_net, figures["epoch"])
        # where there is an average of the weights, it is what decides which epoch is the best
        self.progress.finish_epoch(figures.get("val_ema_accuracy", figures["val_accuracy"]))
        self._save()
        self._export(learner)

    def _picture_attention(self, net, epoch):
        """Log what the network attends to in the first validation images, which are the same ones each time."""
        if not self._group.is_main_process:
            return
        # imported late: matplotlib takes a second
        from training.attention_pictures import picture_of_batch

        batch, *_ = next(self._validation.epoch(0))
        try:
            with explaining_memory():
                pixels = picture_of_batch(net, self._options.network, batch, self._validation.dataset)
        except UserError:
            self._logger.info("out of memory: no picture of the masks of this epoch")
            return
        self._logger.picture("attention_masks", pixels, epoch)

    def on_training_end(self):
        """Say how the training ended."""
        best = f"{self.progress.best_accuracy:.4f} at epoch {self.progress.best_epoch}"
        if self._group.is_main_process:
            self._logger.info(f"{FINISHED} best validation accuracy {best} ({self._files.csv})")

    def where(self):
        """How far the training is, for people, who count epochs from 1."""
        progress, epochs = self.progress, self._options.epochs
        if progress.epoch == epochs:
            return "the end"
        return f"epoch {progress.epoch + 1}/{epochs}, step {progress.step}/{progress.steps}"

    def _done(self):
        if self.progress.step:
            return f"in epoch {self.progress.epoch + 1}"
        return f"done with epoch {self.progress.epoch}"

    def _save(self):
        try:
            self._checkpointer.save()
        except Diverged as error:
            raise Diverged(f"{self.where()}: {error}") from None

    def _export(self, learner):
        progress = self.progress
        if not self._group.is_main_process:
            return
        accuracy = progress.accuracy if progress.accuracy >= 0 else None
        if learner.average_net is not None:
            self._exports.save(learner.average_net, progress.epoch, progress.best_epoch, accuracy, "-ema")
            accuracy = None  # that was the average's
        self._exports.save(learner.evaluation_net, progress.epoch, progress.best_epoch, accuracy)

    def _resume_command(self):
        """What to type to go on."""
        log_dir = str(self._options.log_dir)
        elsewhere = [] if log_dir == DEFAULT_LOG_DIR else ["--log-dir", log_dir]
        command = shlex.join(["python3", sys.argv[0], "--resume", self._files.name, *elsewhere])
        return command if self._group.size == 1 else f"{command} (by the same launcher)"


def other_threads(then, now):
    """A line about a run that goes on on a CPU with other threads than a checkpoint says, None for as many."""
    if type(then) is not int or now is None or then == now:
        return None
    return (
        f"threads: {now} instead of {then}; sums in another order end in other last bits than an undisturbed run's "
        f"(OMP_NUM_THREADS={then} keeps them)"
    )


def other_precision(then, now):
    """A line about a run that goes on with --bfloat16 and began without, or the other way; None for neither."""
    if then == now:
        return None
    before, after = ("in bfloat16" if flag else "in float32" for flag in (then, now))
    return f"computing {after}, and until here {before}: the numbers are others from here on"


def what_changes(then, now, rate_follows=False):
    """A line about a run that goes on with other devices, None where they are as many.

    Parameters
    ----------
    then, now : dict
        {"workers": processes, "devices": of each, "images": of a step of all}. ``then`` is a checkpoint's, which may
        be a stranger's or have none.
    rate_follows : bool
        Whether the learning rate is for a number of images a step (--lr-per).
    """
    if not isinstance(then, dict) or any(type(then.get(name)) is not int for name in now) or then == now:
        return None
    before, after = (f"{facts['workers']} x {facts['devices']}" for facts in (then, now))
    if then["images"] == now["images"]:
        return f"workers x devices: {after} instead of {before}; a step has {now['images']} images as before"
    return (
        f"workers x devices: {after} instead of {before}; a step has {now['images']} images instead of "
        f"{then['images']}, an epoch accordingly more or fewer steps, and the learning rate "
        + ("as many times as high" if rate_follows else "is the same")
    )

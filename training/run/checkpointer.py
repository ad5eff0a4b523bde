"""When a training's state goes to disk, and how it comes back."""

import time

import numpy as np

from base.devices import in_own_thread
from base.errors import Diverged, UserError
from training.averages import Averages
from training.run.checkpoint import Checkpoints

__all__ = ["Checkpointer"]


class Checkpointer:
    """Saves a training's state, and restores it. All processes of the training call the same methods together.

    Parameters
    ----------
    files : training.run.files.RunFiles or None
        The main process writes for all; a new run has none on the others.
    state : training.state.TrainingState
    progress : training.run.progress.TrainingProgress
        Kept up to date by the training.
    group : training.distributed.process_group.SingleProcess
    facts : dict
        What every checkpoint says of the training besides, JSON values: "settings", its flags, "data", what
        identifies its images, "devices", on how many it ran, and "threads", of the CPU it ran on.
    minutes : float
        Between the checkpoints within an epoch.

    Attributes
    ----------
    path : pathlib.Path or None
        The checkpoint last saved or gone on from, on the main process.
    """

    def __init__(self, files, state, progress, group, facts, minutes):
        self._files, self._state, self._progress, self._group = files, state, progress, group
        self._facts, self._period = facts, 60 * minutes
        self._checkpoints = Checkpoints(files.params) if group.is_main_process else None
        self.path = self._saved_at = self._restored_at = None  # the latter two: epoch and step
        self._when = time.monotonic()

    def restore(self, resumed):
        """Take over the arrays of a `training.run.resume.Resumed`; take away what was written after it.

        Returns lines that say what was found to be damaged or changed.

        Raises UserError where it does not fit the network or the images; nothing is touched then.
        """
        checkpoint, progress = resumed.checkpoint, self._progress
        then, now = checkpoint.facts.get("data"), dict(self._facts["data"])
        then = dict(then) if isinstance(then, dict) else {}
        names = then.pop("class names", None), now.pop("class names", None)  # which not all sets have
        if then != now:
            raise UserError(f"{checkpoint.path} was trained on {then}, and this is {now}")
        if None not in names and names[0] != names[1]:
            raise UserError(f"{checkpoint.path} was trained on classes of other names than {now['name']} has now")
        known = not resumed.chosen and checkpoint.facts.get("settings") == self._facts["settings"]
        steps = self._group.gather("progress", np.array([[progress.epoch, progress.step, known]]))
        if (steps[:, :2] != steps[0, :2]).any():
            raise UserError("the workers found different checkpoints: they need one --log-dir that all of them see")
        self._state.check(checkpoint.layout)
        if self._state.loss_scale and "loss_scale" in checkpoint.facts:
            self._state.loss_scale.restore(checkpoint.facts["loss_scale"])
        self._read(checkpoint, resumed.updates)
        self._restored_at = self._now()
        if steps[0, 2]:  # else a run goes on as this one does only by a checkpoint of its own
            self._saved_at = self._now()
        if not self._group.is_main_process:
            progress.averages = Averages.of(progress.averages.sums())  # the main process has those of all
            return []
        self._checkpoints.tidy()
        self.path = checkpoint.path
        strangers = [f"{path} is no checkpoint's folder: it is left alone" for path in self._checkpoints.strangers()]
        return [*resumed.damaged, *strangers, *self._files.restore(resumed.written)]

    def save(self):
        """Write a checkpoint, unless the last one is of this very step.

        Raises UserError where the disk refuses, and Diverged where a number is not finite.
        """
        if self._now() != self._saved_at:
            self._write(self._state.statistics, self._progress.averages.over(self._group, "averages"))
            self._saved_at = self._now()
        self._when = time.monotonic()

    def is_due(self):
        """Whether it is time for the next checkpoint within the epoch."""
        return time.monotonic() - self._when >= self._period

    def save_alone(self):
        """`save` what the main process knows when the others do not answer: its own statistics and averages."""
        if self._now() not in (self._saved_at, self._restored_at):
            self._write(self._state.own_statistics, self._progress.averages)

    @in_own_thread
    def _read(self, checkpoint, updates):
        self._state.restore(checkpoint.arrays(), updates)

    @in_own_thread
    def _write(self, statistics, averages):
        """Write a checkpoint with the statistics that ``statistics()`` gives and with ``averages``."""
        rows = statistics()
        if not self._group.is_main_process:
            return
        try:
            arrays = self._state.gather(rows)
        except Diverged as error:
            raise Diverged(f"{error}; the last good state is {self.path}") from None
        facts = {
            **self._facts,
            "position": {**self._progress.to_json(), "averages": averages.sums()},
            "updates": self._state.updates,
            **({"loss_scale": self._state.loss_scale.to_json()} if self._state.loss_scale else {}),
            **self._files.flush(),
        }
        self.path = self._checkpoints.save(arrays, facts, self.path)

    def _now(self):
        return self._progress.epoch, self._progress.step

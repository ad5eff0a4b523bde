"""When a training's state goes to disk, and when the training ends before its time."""

import shlex
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from base.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, Diverged, UserError, WorkerLost
from training.flags import DEFAULT_LOG_DIR
from training.run.checkpoint import Checkpoints
from training.run.progress import Totals

__all__ = ["Keeper", "aside"]

SKIPS_IN_A_ROW = 10  # as many losses in a row that are not finite are no accident of their images


class Keeper:
    """Saves a training's state every so many minutes and whenever it is told to; ends the training on a signal.

    Parameters
    ----------
    files : training.run.files.RunFiles or None
        None for all workers but the first, which writes for all.
    board : training.run.logger.Board or SilentBoard
    state : training.state.TrainingState
    position : training.run.progress.Position
        Kept up to date by the training.
    data : dict
        What identifies the images to train on, JSON values.
    sync : training.distributed.process_group.OneProcess
        Has ``signals``. All workers call `restore`, `save`, `attend` and `not_finite` at the same places.
    args : argparse.Namespace
        The flags of `training.flags`.
    """

    def __init__(self, files, board, state, position, data, sync, args):
        self._files, self._board, self._state, self.position = files, board, state, position
        self._data, self._sync, self._args = data, sync, args
        self._checkpoints = Checkpoints(files.params) if sync.rank == 0 else None
        self._path = self._saved = None  # the checkpoint last saved or gone on from, and where that was
        self._when = time.monotonic()

    def restore(self, resumed):
        """Take over a checkpoint's arrays; take away what was written after it.

        Raises UserError where it does not fit the network or the images; nothing is touched then.
        """
        checkpoint, position = resumed.checkpoint, self.position
        if checkpoint.facts.get("data") != self._data:
            raise UserError(
                f"{checkpoint.path} was trained on {checkpoint.facts.get('data')}, and this is {self._data}"
            )
        if position.epoch + (position.step > 0) > self._args.epochs:
            raise UserError(
                f"--epochs {self._args.epochs}: the run {self._files.name} is in epoch {position.epoch + 1}"
            )
        places = self._sync.gather("place", np.array([[position.epoch, position.step]]))
        if (places != places[0]).any():
            raise UserError("the workers found different checkpoints: they need one --log-dir that all of them see")
        self._state.check(checkpoint.layout)
        aside(lambda: self._state.restore(checkpoint.arrays(), resumed.updates))
        self._saved = self._place()
        if self._sync.rank != 0:
            position.totals = Totals(0, 0.0, 0.0)  # the first worker has those of all
            return
        self._checkpoints.tidy()
        shortened = self._files.cut_back(resumed.sizes)
        for line in [*resumed.damaged, *(f"lines of {name} are missing: it was changed" for name in shortened)]:
            self._board.info(line)
        self._path = checkpoint.path
        then = checkpoint.facts["position"]
        share = f" (step {then['step']}/{then['steps']} of then)" if then["steps"] != position.steps else ""
        self._board.info(f"resumed at {self.where()}{share}, from {checkpoint.path}")

    def save(self):
        """Write a checkpoint, unless the last one is of this very position."""
        if self._place() != self._saved:
            aside(self._write, self._state.statistics, self._sync.sum)
            self._saved = self._place()
        self._when = time.monotonic()

    def _write(self, statistics, add_up):
        """Write a checkpoint of what ``statistics()`` and ``add_up``, a `OneProcess.sum`, give."""
        position = self.position.to_json()
        images, *sums = add_up("totals", position["totals"])
        position["totals"] = [int(images), *map(float, sums)]
        rows = statistics()
        if self._sync.rank != 0:
            return
        facts = {
            "settings": self._args.settings,
            "data": self._data,
            "position": position,
            "updates": self._state.updates,
        }
        try:
            arrays = self._state.gather(rows)
        except Diverged as error:
            raise Diverged(f"{self.where()}: {error}; the last good state is {self._path}") from None
        self._path = self._checkpoints.save(arrays, {**facts, "sizes": self._files.settle()}, self._path)

    def attend(self):
        """To be called between steps: save if it is time to.

        Raises SystemExit, with the state saved, where a signal has come to any worker.
        """
        number = self._sync.signals.number
        due = time.monotonic() - self._when >= 60 * self._args.checkpoint_minutes
        wishes = [number == signal.SIGTERM, number == signal.SIGINT, due and self._sync.rank == 0]
        terminate, interrupt, due = self._sync.sum("wishes", wishes)
        if terminate or interrupt:
            self.save()
            if self._sync.rank == 0:
                self._board.info(f"stopped at {self.where()}; go on with: {self.resume_command()}")
            self._sync.shutdown()
            raise SystemExit(EXIT_TERMINATED if terminate else EXIT_INTERRUPTED)
        if due:
            self.save()

    def lost(self, error):
        """The other workers do not answer, as the WorkerLost says: save what this one knows, and raise it again.

        The state then has this worker's statistics only; the first worker alone can save it.
        """
        if self._sync.rank != 0:
            raise error
        if self._place() != self._saved:
            aside(self._write, self._state.own_statistics, lambda name, numbers: numbers)
        raise WorkerLost(f"{error}; {self.where()} is saved as {self._path}, go on with: {self.resume_command()}")

    def not_finite(self, description):
        """A step was not taken because its loss is not finite, as ``description`` says: go on without, or not.

        Raises Diverged, with the state before the step saved, where --nan-action or the steps before forbid it.
        """
        description = f"{self.where()}: {description}"
        if self._args.nan_action == "skip" and self.position.skipped < SKIPS_IN_A_ROW - 1:
            self.position.skipped += 1
            self._board.info(f"left out {description}")
            return
        try:
            self.save()
        except Diverged as error:
            raise Diverged(f"{description}; {error}") from None
        self._sync.shutdown()
        if self._sync.rank != 0:
            raise SystemExit(Diverged.status)
        raise Diverged(
            f"{description}; the state before it is {self._path}; --nan-action skip or a lower --lr may help"
        )

    def where(self):
        """The position for people, who count epochs from 1."""
        position = self.position
        if position.epoch == self._args.epochs:
            return "the end"
        return f"epoch {position.epoch + 1}/{self._args.epochs}, step {position.step}/{position.steps}"

    def resume_command(self):
        """What to type to go on."""
        log_dir = str(self._args.log_dir)
        elsewhere = [] if log_dir == DEFAULT_LOG_DIR else ["--log-dir", log_dir]
        command = shlex.join(["python3", sys.argv[0], "--resume", self._files.name, *elsewhere])
        return command if self._sync.size == 1 else f"{command} (by the same launcher)"

    def _place(self):
        return self.position.epoch, self.position.step


def aside(function, *arguments):
    """Call a function that copies large arrays out of MXNet, in a thread that ends with it.

    Such a copy runs in parallel, and OpenMP keeps helpers for every thread that ever did so. Where there are more of
    them than cores, they wait for work asleep instead of awake, and a training step takes a quarter longer.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        executor.submit(function, *arguments).result()

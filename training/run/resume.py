"""Which run to go on with. Imports nothing heavy."""

import contextlib
import shutil
from pathlib import Path

from base.errors import UserError
from base.files import writing
from training.distributed.launcher import launch_info
from training.run.checkpoint import NEW, Checkpoint, Checkpoints
from training.run.files import LOCK, RunFiles, RunPaths, Written
from training.run.progress import TrainingProgress

__all__ = ["Resumed", "begin_or_resume", "discard_unbegun", "find_newest", "open_run"]


class Resumed:
    """A run to go on with; from here on, no other process can.

    Parameters
    ----------
    files : training.run.files.RunFiles
    checkpoint_path : path, optional
        The checkpoint to go on from; the newest whole one by default.

    Attributes
    ----------
    files : training.run.files.RunFiles
    checkpoint : training.run.checkpoint.Checkpoint
        Whole.
    chosen : bool
        Whether it was named; the run may have newer ones.
    damaged : list of str
        A line for each newer checkpoint that is not.
    updates : int
        Of the optimizer.
    written : training.run.files.Written
        What the run's files held.

    Raises UserError where there is no whole checkpoint.
    """

    def __init__(self, files, checkpoint_path=None):
        self.files, self.chosen = files, checkpoint_path is not None
        if checkpoint_path is None:
            self.checkpoint, self.damaged = Checkpoints(files.params).newest_whole()
        else:
            try:
                self.checkpoint, self.damaged = Checkpoint(checkpoint_path), []
                self.checkpoint.verify()
            except ValueError as error:
                raise UserError(f"{checkpoint_path} is damaged: {error}") from None
        facts = self.checkpoint.facts
        try:
            self._progress = facts["position"]
            TrainingProgress.from_json(self._progress, 1)
            self.updates = facts["updates"]
            if type(self.updates) is not int or not 0 <= self.updates < 2**53:
                raise ValueError("no number of updates")
            self.written = Written.from_json(facts)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{self.checkpoint.path} says nothing one could go on from: {error}") from None

    def progress(self, steps):
        """The `training.run.progress.TrainingProgress`, in epochs of ``steps`` steps."""
        return TrainingProgress.from_json(self._progress, steps)

    def last_line(self):
        """The line that the run finished with; None where it has not."""
        return self.files.finished_line(self.written.sizes.get(self.files.log.name, 0))


def open_run(text, log_dir):
    """The `Resumed` of a RUN under ``log_dir``, of a path LOG_DIR/params/RUN or of a checkpoint's folder in that.

    Raises UserError where there is none.
    """
    checkpoint_path = None
    if "/" in text:
        path = folder = Path(text)
        if path.name.startswith("checkpoint-"):
            checkpoint_path, folder = path, path.parent
        if folder.parent.name != "params":  # the run's other files are found, and written, two levels up
            raise UserError(f"--resume {text} is not LOG_DIR/params/RUN, nor a checkpoint's folder in it")
        log_dir, text = folder.parent.parent, folder.name
    run = RunPaths(log_dir, text)
    if not run.params.is_dir():
        raise UserError(f"--resume: there is no run {run.params}")
    return Resumed(RunFiles(log_dir, text, to_write=launch_info().rank == 0), checkpoint_path)


def begin_or_resume(log_dir, name):
    """The flags by which the same command begins a run and goes on with it: --run-name NAME or --resume NAME."""
    return ["--resume" if Checkpoints(RunPaths(log_dir, name).params).paths() else "--run-name", name]


def discard_unbegun(log_dir, name):
    """Remove what a run has left that was killed before its first checkpoint, so that its name is free.

    Raises UserError where another process is at work on it, and where that cannot be removed.
    """
    run = RunPaths(log_dir, name)
    folder, log = run.params, run.log
    if folder.is_dir() and not Checkpoints(folder).paths():
        with RunFiles(log_dir, name) as files, writing(folder):
            left = {path.name for path in folder.iterdir()} - {LOCK}
            if not files.csv.exists() and all(name.endswith(NEW) for name in left):
                shutil.rmtree(files.board, ignore_errors=True)
                log.unlink(missing_ok=True)
                shutil.rmtree(folder)
    elif not folder.exists() and log.is_file() and not log.stat().st_size:  # made to claim the name
        with writing(log):
            log.unlink()


def find_newest(log_dir, fits):
    """The name of the run under ``log_dir`` that saved last of those whose settings ``fits`` accepts; None for none."""
    saved = []
    for folder in Path(log_dir, "params").glob("*/"):
        checkpoints = Checkpoints(folder)
        # killed while it wrote its first one: nobody else comes to clean up
        if not checkpoints.paths() and launch_info().rank == 0:
            with contextlib.suppress(UserError, OSError), RunFiles(log_dir, folder.name):
                checkpoints.tidy()
        for path in checkpoints.paths():
            with contextlib.suppress(ValueError, OSError, UserError):
                if fits(Checkpoint(path)):
                    saved.append((path.stat().st_mtime, folder.name))
                break  # the ones before it are the same run's
    return max(saved)[1] if saved else None

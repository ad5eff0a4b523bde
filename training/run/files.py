"""The files of a run, and the right to write them. Imports nothing heavy."""

import fcntl
import os
import time
import weakref
from pathlib import Path

from base.errors import UserError
from base.files import fsync, writing

__all__ = ["DEFAULT_LOG_DIR", "RunFiles", "new_run"]

DEFAULT_LOG_DIR = "./log"


class RunFiles:
    """Where a run writes: LOG_DIR/board/RUN/, text/RUN.log, text/RUN.csv and params/RUN/.

    Parameters
    ----------
    log_dir : path
    name : str
        RUN. Its folder params/RUN/ exists.
    to_write : bool
        Whether to write it, or, as all processes of a training do but the main one, to read only.

    Raises UserError where another process holds the run: one at a time may write it.
    """

    def __init__(self, log_dir, name, to_write=True):
        self.log_dir, self.name = Path(log_dir), name
        self.board = self.log_dir / "board" / name
        self.log = self.log_dir / "text" / f"{name}.log"
        self.csv = self.log_dir / "text" / f"{name}.csv"
        self.params = self.log_dir / "params" / name
        lock = os.open(self.params, os.O_RDONLY)
        self._release = weakref.finalize(self, os.close, lock)
        if not to_write:
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"the run {name} in {log_dir} is being written by another process") from None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        """Let others have the run."""
        self._release()

    def event_files(self):
        """TensorBoard's files of this run, oldest first."""
        return sorted(self.board.glob("events.out.tfevents.*"))

    def flush(self):
        """Wait until all is on the disk. Returns the sizes for `cut_back`."""
        present = [path for path in (self.log, self.csv) if path.exists()]
        for path in [*present, *self.event_files()]:
            fsync(path)
        return {path.name: path.stat().st_size for path in [*present, *self.event_files()]}

    def cut_back(self, sizes):
        """Take away what was written since `flush` gave ``sizes``.

        Returns the names of text files that have become shorter since, which no run does by itself.
        """
        present = [path for path in (self.log, self.csv, *self.event_files()) if path.exists()]
        for path in present:
            with writing(path):
                if path.name not in sizes:
                    path.unlink()
                elif sizes[path.name] < path.stat().st_size:
                    os.truncate(path, sizes[path.name])
        left = {path.name: path.stat().st_size for path in present if path.exists()}
        return [path.name for path in (self.log, self.csv) if left.get(path.name, 0) < sizes.get(path.name, 0)]


def new_run(log_dir, name, stem):
    """The `RunFiles` of a new run.

    Parameters
    ----------
    log_dir : path
    name : str, optional
        RUN; must not exist yet.
    stem : str
        What a name is made from where none is given: STEM_YYYYmmddHHMM, and _2, _3 ... when it is taken.

    Raises UserError for a name that is taken and a folder that cannot be written.
    """
    log_dir = Path(log_dir)
    stamped = f"{stem}_{time.strftime('%Y%m%d%H%M')}"
    candidates = [name] if name else [stamped, *(f"{stamped}_{i}" for i in range(2, 100))]
    try:
        for folder in ("board", "text", "params"):
            (log_dir / folder).mkdir(parents=True, exist_ok=True)
        chosen = next((name for name in candidates if _claim(log_dir, name)), None)
    except OSError as error:
        raise UserError(f"cannot write under --log-dir {log_dir}: {error.strerror or error}") from None
    if chosen is None:
        raise UserError(f"the run {candidates[0]} exists in {log_dir}: choose another --run-name")
    return RunFiles(log_dir, chosen)


def _claim(log_dir, name):
    """Take a name, for this process alone, by making its log; False where any file of it exists."""
    taken = (log_dir / "board" / name, log_dir / "text" / f"{name}.csv", log_dir / "params" / name)
    if any(path.exists() for path in taken):
        return False
    try:
        (log_dir / "text" / f"{name}.log").open("x").close()
    except FileExistsError:
        return False
    (log_dir / "params" / name).mkdir()
    return True

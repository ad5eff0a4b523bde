"""The files of a run, what they held at a checkpoint, and the right to write them. Imports nothing heavy."""

import contextlib
import dataclasses
import errno
import hashlib
import os
import re
import time
import weakref
from pathlib import Path

from base.errors import UserError
from base.files import append, free_name, fsync, open_regular, release_lock, take_lock, writing

__all__ = ["ABANDONED", "DEFAULT_LOG_DIR", "FINISHED", "LOCK", "RunFiles", "RunPaths", "Written", "new_run"]

DEFAULT_LOG_DIR = "./log"
EVENTS = "events.out.tfevents."
NO_CURVES = ("epoch", "seconds")  # columns of the CSV that are no curves
FINISHED = "Finished:"  # how a run's last line begins
ABANDONED = "abandoned-"  # how the names of .params files begin that a run has given up
LOCK = "lock"  # in params/RUN/ while a process writes the run, on whichever machine that shares the folder
CHUNK = 1 << 20  # bytes


@dataclasses.dataclass
class Written:
    """What a run's files held when a checkpoint was written.

    Attributes
    ----------
    sizes : dict
        {name of a file: bytes}.
    digests : dict
        {name of a file: SHA-256 of so many bytes, hexadecimal}. Older checkpoints have none.
    rows : list of str or None
        The CSV's lines, the first of them its header. Older checkpoints have None.
    """

    sizes: dict
    digests: dict
    rows: list

    @classmethod
    def from_json(cls, facts):
        """What a checkpoint's facts say. Raises ValueError where `RunFiles.flush` cannot have said it."""
        try:
            sizes = {str(name): max(0, int(size)) for name, size in facts["sizes"].items()}
            digests = {str(name): str(digest) for name, digest in facts.get("digests", {}).items()}
        except (AttributeError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"no sizes of files: {error}") from None
        rows = facts.get("rows")
        if rows is not None and not (isinstance(rows, list) and all(map(_is_row, rows))):
            raise ValueError("no rows of a CSV")
        return cls(sizes, digests, rows)


class RunPaths:
    """Where a run is, which need not exist: LOG_DIR/board/RUN/, text/RUN.log, text/RUN.csv and params/RUN/."""

    def __init__(self, log_dir, name):
        self.log_dir, self.name = Path(log_dir), name
        self.board, self.params = self.log_dir / "board" / name, self.log_dir / "params" / name
        self.log, self.csv = (self.log_dir / "text" / f"{name}{suffix}" for suffix in (".log", ".csv"))

    def finished_line(self, offset=0):
        """The line of the log, from so many bytes on, that the run finished with; None where it has not."""
        try:
            with open_regular(self.log) as log:
                log.seek(offset)
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return None
        return next((line[line.index(FINISHED) :] for line in lines if f" {FINISHED} " in line), None)


class RunFiles(RunPaths):
    """What a run writes.

    Parameters
    ----------
    log_dir : path
    name : str
        RUN. Its folder params/RUN/ exists.
    to_write : bool
        Whether to write it, or, as all processes of a training do but the main one, to read only.

    Raises UserError where another process holds the run, for one at a time may write it, or has removed it.
    """

    def __init__(self, log_dir, name, to_write=True):
        super().__init__(log_dir, name)
        self._rows = []  # of the CSV, whatever somebody makes of the file meanwhile
        self._digests = {}  # {path: (SHA-256 of its beginning, length of that)}
        lock = self._lock() if to_write else None
        self._release = weakref.finalize(self, _unlock, *lock) if lock else None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        """Let others have the run."""
        if self._release:
            self._release()

    def _lock(self):
        """Hold the run's lock. Returns the descriptor of its file and the path; None where nobody could write."""
        path = self.params / LOCK
        try:
            return take_lock(path, blocking=False), path
        except BlockingIOError:
            reason = "is being written by another process"
        except FileNotFoundError:
            reason = "was removed by another process, which begins it too"
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES):  # a finished run still says how it ended
                return None
            raise UserError(f"cannot lock {path}: {error.strerror}") from None
        raise UserError(f"the run {self.name} in {self.log_dir} {reason}")

    def event_files(self):
        """TensorBoard's files of this run, oldest first."""
        return sorted(self.board.glob(f"{EVENTS}*"))

    def add_row(self, figures):
        """Append {column: number} to the CSV; the columns' names stand above the first row."""
        rows = [] if self._rows else [",".join(figures)]
        rows.append(",".join(f"{value:.6g}" for value in figures.values()))
        append(self.csv, _text(rows))
        self._rows += rows

    def flush(self):
        """Wait until all is on the disk. Returns what `Written` has, as JSON values."""
        paths = [path for path in (self.log, self.csv, *self.event_files()) if path.is_file()]
        for path in paths:
            fsync(path)
        sizes = {path: path.stat().st_size for path in paths}
        return {
            "sizes": {path.name: size for path, size in sizes.items()},
            "digests": {path.name: self._digest(path, size) for path, size in sizes.items() if path != self.csv},
            "rows": list(self._rows),
        }

    def restore(self, written):
        """Bring the files back to a `Written`: what was written since is taken away, lost rows of the CSV come back.

        A file whose beginning is not what it was is moved aside, and a new one takes its place.

        Returns a line for each file that was changed or removed, which no run does by itself.
        """
        events = self.event_files()
        own = [name for name in written.sizes if name.startswith(EVENTS)]
        missing = [name for name in own if name not in {path.name for path in events}]
        lines = [f"{len(missing)} of TensorBoard's files are missing in {self.board}"] if missing else []
        if self.log.name in written.sizes and not self.log.exists():
            lines.append(f"{self.log} is missing: a new one goes on")
        for path in (self.log, *events):
            lines += self._cut_back(path, written)
        return lines + self._restore_csv(written)

    def _cut_back(self, path, written):
        """Take away what a file has more than it had; lines as of `restore`."""
        size = written.sizes.get(path.name)
        if not os.path.lexists(path):
            return []
        with writing(path):
            if size is None:
                path.unlink()
            elif self._is_as_it_was(path, size, written.digests.get(path.name)):
                os.truncate(path, size)
            else:
                self._digests.pop(path, None)
                return [f"{path} was changed: it is {_set_aside(path)} now, and a new one goes on"]
        return []

    def _restore_csv(self, written):
        """The same for the CSV, whose rows a checkpoint has."""
        if written.rows is None:
            lines = self._cut_back(self.csv, written)
            found = self.csv.read_text(errors="replace").splitlines() if self.csv.exists() else []
            self._rows = [row for row in found if _is_row(row)]
            return lines
        self._rows, expected = list(written.rows), _text(written.rows)
        with writing(self.csv):
            if not expected:
                self.csv.unlink(missing_ok=True)
            elif self.csv.is_file() and _beginning(self.csv, len(expected)) == expected:
                os.truncate(self.csv, len(expected))
            else:
                how = "is missing"
                if os.path.lexists(self.csv):
                    how = f"was changed: it is {_set_aside(self.csv)} now"
                append(self.csv, expected)
                return [f"{self.csv} {how}; its rows are written anew"]
        return []

    def _is_as_it_was(self, path, size, digest):
        """Whether a file begins with ``size`` bytes of that SHA-256; any bytes where there is None."""
        if not path.is_file() or path.stat().st_size < size:
            return False
        return digest is None or self._digest(path, size) == digest

    def _digest(self, path, size):
        """SHA-256 of a file's first ``size`` bytes, of which those that were looked at before are not read again."""
        digest, done = self._digests.get(path, (hashlib.sha256(), 0))
        if done > size:
            digest, done = hashlib.sha256(), 0
        with open(path, "rb") as file:
            file.seek(done)
            while done < size and (content := file.read(min(CHUNK, size - done))):
                digest.update(content)
                done += len(content)
        self._digests[path] = digest, done
        return digest.hexdigest()


def _unlock(descriptor, path):
    with contextlib.suppress(OSError):  # what is left of a lock keeps nobody out
        release_lock(descriptor, path)


def _is_row(value):
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.,+-]+", value) is not None


def _text(rows):
    """Lines of a CSV as its bytes."""
    return "".join(f"{row}\r\n" for row in rows).encode()


def _beginning(path, size):
    with open(path, "rb") as file:
        return file.read(size)


def _set_aside(path):
    """Rename a file. Returns the new name, by which neither a run nor TensorBoard takes it for its own."""
    aside = free_name(path.parent, path.name.replace(EVENTS, "events.out.") + ".changed")
    path.rename(path.with_name(aside))
    return aside


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
        if chosen is None:
            raise UserError(f"the run {candidates[0]} exists in {log_dir}: choose another --run-name")
        return RunFiles(log_dir, chosen)
    except OSError as error:
        raise UserError(f"cannot write under --log-dir {log_dir}: {error.strerror or error}") from None


def _claim(log_dir, name):
    """Take a name, for this process alone, by making its log; False where any file of it exists."""
    run = RunPaths(log_dir, name)
    if any(path.exists() for path in (run.board, run.csv, run.params)):
        return False
    try:
        run.log.open("x").close()
    except FileExistsError:
        return False
    run.params.mkdir()
    return True

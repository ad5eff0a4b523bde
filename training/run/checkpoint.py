"""States of a training on disk: folders that are whole or absent, and found out where they are damaged.

A checkpoint is a folder params/RUN/checkpoint-NUMBER/ of two files: arrays.bin, the bytes of all arrays one after the
other, and manifest.json, which says what they are, has their checksum, one of itself, and holds all else. Reading one
runs no code from it, whoever made it. Imports nothing heavy.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil

import numpy as np

from base.errors import UserError
from base.files import file_digest, fsync, open_regular, writing

__all__ = ["NEW", "Checkpoint", "Checkpoints"]

FORMAT_VERSION = 1
ARRAYS, MANIFEST = "arrays.bin", "manifest.json"
# What the system says of a path that leads to no regular file; EINVAL is `open_regular`'s.
NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL}
NEW, OLD = ".new", ".old"  # of a checkpoint that is being written, or removed
DTYPES = ("float16", "float32")


class Checkpoint:
    """One checkpoint's manifest.

    Parameters
    ----------
    path : pathlib.Path

    Attributes
    ----------
    facts : dict
        What it was saved with.
    layout : dict
        {array's name: (dtype's name, shape)}, in the order of the file.

    Raises ValueError, with the reason, for a damaged manifest. `verify` and `arrays` look at the rest.
    """

    def __init__(self, path):
        self.path = path
        try:
            with open_regular(path / MANIFEST) as file:
                manifest = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{MANIFEST} cannot be read: {error}") from None
        except OSError as error:
            raise _unreadable(path / MANIFEST, error) from None
        if not isinstance(manifest, dict) or manifest.get("sha256") != _own_digest(manifest):
            raise ValueError(f"{MANIFEST} does not have its checksum")
        if manifest.get("format") != FORMAT_VERSION:
            raise ValueError(f"{MANIFEST} is of format {manifest.get('format')}, not {FORMAT_VERSION}")
        try:
            self.facts = dict(manifest["facts"])
            self._digest = str(manifest["files"][ARRAYS])
            self.layout = {str(name): (str(dtype), tuple(shape)) for name, dtype, shape in manifest["arrays"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{MANIFEST} lacks something: {error}") from None
        for dtype, shape in self.layout.values():
            if dtype not in DTYPES or not all(type(size) is int and 0 < size < 2**31 for size in shape):
                raise ValueError(f"{MANIFEST} describes no array by {dtype} {shape}")

    def verify(self):
        """Raise ValueError, with the reason, unless the arrays are those that were saved."""
        expected = sum(math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in self.layout.values())
        try:
            if (self.path / ARRAYS).stat().st_size != expected:
                raise ValueError(f"{ARRAYS} does not have {expected} bytes")
            if file_digest(self.path / ARRAYS) != self._digest:
                raise ValueError(f"{ARRAYS} does not have its checksum")
        except OSError as error:
            raise _unreadable(self.path / ARRAYS, error) from None

    def arrays(self):
        """All arrays, {name: numpy array}."""
        with open(self.path / ARRAYS, "rb") as file:
            return {
                name: np.fromfile(file, dtype, math.prod(shape)).reshape(shape)
                for name, (dtype, shape) in self.layout.items()
            }


def _unreadable(path, error):
    """The exception for a file that could not be read: ValueError for one that is none, and is damaged for good.

    Else the disk or the network may be what is ill: a checkpoint would be removed that is whole.
    """
    if error.errno in NO_FILE:
        return ValueError(f"{path.name} cannot be read: {error.strerror}")
    return UserError(f"cannot read {path}: {error.strerror}")


class Checkpoints:
    """A run's checkpoints: the newest, and the one before it.

    Parameters
    ----------
    folder : pathlib.Path
        params/RUN/.
    """

    def __init__(self, folder):
        self._folder = folder

    def paths(self):
        """All checkpoints' folders, newest first."""
        return [path for path in self._named() if path.is_dir() and not path.is_symlink()]

    def strangers(self):
        """What has a checkpoint's name and is no folder. It is left alone, and the name is not used."""
        return [path for path in self._named() if path.is_symlink() or not path.is_dir()]

    def _named(self):
        """All paths with a checkpoint's name, newest first."""
        numbered = [(_number(path), path) for path in self._folder.glob("checkpoint-*")]
        return [path for number, path in sorted(numbered, reverse=True) if number]

    def newest_whole(self):
        """(`Checkpoint`, the damaged ones that are newer, a line each).

        Raises UserError where no checkpoint is whole, and where the disk does not give one that may be.
        """
        damaged, paths = [], self.paths()
        for path, before in zip(paths, [*paths[1:], None]):
            try:
                checkpoint = Checkpoint(path)
                checkpoint.verify()
                return checkpoint, damaged
            except ValueError as error:
                damaged.append(f"{path} is damaged: {error}")
            except UserError as error:
                raise UserError(f"{error}; --resume {before} is the one before" if before else error) from None
        reason = f": {'; '.join(damaged)}" if damaged else ""
        raise UserError(f"{self._folder} holds no checkpoint to go on from{reason}")

    def save(self, arrays, facts, before):
        """Write a checkpoint; when it is safe, remove all others but ``before``.

        Parameters
        ----------
        arrays : dict
            {name: numpy array}.
        facts : dict
            JSON values.
        before : path or None
            The checkpoint that the training went on from or saved last.

        Returns its path. Raises UserError where it cannot be written; what was there then still is.
        """
        others = self.paths()
        path = self._free_path(_number(others[0]) + 1 if others else 1)
        new = path.with_name(path.name + NEW)
        try:
            with writing(new):
                new.mkdir()
                digest = _write_arrays(new / ARRAYS, arrays)
                manifest = {
                    "format": FORMAT_VERSION,
                    "facts": facts,
                    "arrays": [(name, array.dtype.name, array.shape) for name, array in arrays.items()],
                    "files": {ARRAYS: digest},
                }
                manifest["sha256"] = _own_digest(manifest)
                (new / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
                for written in (new / ARRAYS, new / MANIFEST, new):
                    fsync(written)
                new.rename(path)
                fsync(self._folder)
        except UserError:
            shutil.rmtree(new, ignore_errors=True)
            raise
        for other in others:
            if other != before:
                _remove(other)
        return path

    def _free_path(self, number):
        """The first path from a number on that nothing has yet, not under the names for writing and removing either."""
        while True:
            path = self._folder / f"checkpoint-{number:06d}"
            if not any(os.path.lexists(f"{path}{suffix}") for suffix in ("", NEW, OLD)):
                return path
            number += 1

    def tidy(self):
        """Remove what a process that was killed while it wrote to the folder has left."""
        for suffix in (NEW, OLD):
            for path in self._folder.glob(f"checkpoint-*{suffix}"):
                shutil.rmtree(path, ignore_errors=True)
        for pattern in ("*.params*.new", "*.json*.new"):
            for path in self._folder.glob(pattern):
                path.unlink()


def _number(path):
    """A checkpoint's number, from 1 on; 0 for any other path."""
    match = re.fullmatch(r"checkpoint-([0-9]{6,})", path.name)
    return int(match[1]) if match else 0


def _remove(path):
    """Remove a checkpoint under another name: killed half-way, this leaves no half checkpoint."""
    with writing(path):
        old = path.rename(path.with_name(path.name + OLD))
        shutil.rmtree(old)


def _write_arrays(path, arrays):
    """Write arrays one after the other. Returns the SHA-256 of the file."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for array in arrays.values():
            data = np.ascontiguousarray(array).data.cast("B")
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def _own_digest(manifest):
    """SHA-256 of a manifest without that very value."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

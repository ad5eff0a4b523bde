"""Writing that succeeds or says in one line why it did not, and reading that waits for nobody."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import shutil
import stat

from base.errors import UserError

__all__ = [
    "append",
    "file_digest",
    "free_name",
    "fsync",
    "open_regular",
    "reading",
    "release_lock",
    "take_lock",
    "write_whole",
    "writing",
]


@contextlib.contextmanager
def writing(path):
    """What the disk refuses inside becomes a `UserError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def reading(path):
    """What cannot be read inside becomes a `UserError` that names the file of the error, or else ``path``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}") from None


def append(path, data):
    """Add bytes to the end of a file."""
    with writing(path), open(path, "ab") as file:
        file.write(data)


def write_whole(path, source):
    """Write a binary file object's rest under another name, then rename: ``path`` holds the old bytes or all new ones.

    What a process that was killed leaves is PATH.NUMBER.new. Raises UserError where the disk refuses.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")  # others may write the same file at the same time
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                shutil.copyfileobj(source, file)
            fsync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def free_name(folder, stem, suffix=""):
    """STEM SUFFIX, or where a folder has that, STEM-2 SUFFIX and so on."""
    names = (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}" for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(folder / name))


def fsync(path):
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def take_lock(path, blocking=True):
    """Hold the lock file ``path``, a pathlib.Path, which is made. Returns its descriptor, for `release_lock`.

    A folder's own descriptor would need no file, but network file systems lock only what is open for writing.

    Raises OSError where it cannot be made or locked: BlockingIOError where another process holds it, unless
    ``blocking``, which waits for that one.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):  # or it was that of a process which has ended since, and is no other's lock
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def release_lock(descriptor, path):
    """Give a lock back, and remove its file, unless that is another one by now, which another process may hold."""
    try:
        if _is_at(descriptor, path):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_at(descriptor, path):
    """Whether an open file is still the one that has a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def open_regular(path):
    """A file, opened to read its bytes. Raises OSError for a pipe, which would be waited for, and for a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return open(descriptor, "rb")


def file_digest(path, algorithm="sha256"):
    """A checksum of a file's bytes, in hexadecimal. Raises OSError as `open_regular` does."""
    digest = hashlib.new(algorithm, usedforsecurity=False)  # which a machine for secrets would refuse MD5 to
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

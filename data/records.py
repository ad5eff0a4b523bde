"""RecordIO pairs (NAME.rec and NAME.idx): written once from images, read by position from then on.

The format is MXNet's own, as its im2rec writes it: every record is a header with the label and an encoded image.
"""

import contextlib
import glob
import json
import os
import shutil
import stat
import struct
import tempfile
import warnings
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from base.errors import UserError
from base.files import file_digest, open_regular, reading, release_lock, take_lock
from base.text import one_line

__all__ = [
    "LARGEST_IMAGE",
    "Records",
    "Unwritten",
    "ensure_records",
    "locked",
    "replacement",
    "write_encoded",
    "write_records",
]

FORMAT_VERSION = 1  # of what `ensure_records` writes; raising it makes older folders stale
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"  # a file in a folder that is being written

# RecordIO: a magic word; a word of 3 bits that say whether the record is whole or a part, and 29 bits of length; the
# payload, padded to whole words. MXNet's payload: number of extra labels, label, two ids of 8 bytes, extra labels,
# image.
MAGIC = 0xCED7230A
LENGTH_BITS = 29
WHOLE, FIRST_PART, MIDDLE_PART, LAST_PART = range(4)
FRAME = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
LABEL = struct.Struct("<f")
LARGEST_IMAGE = (1 << LENGTH_BITS) - 1 - HEADER.size  # bytes
LARGEST_PARTS = 2 << LENGTH_BITS  # of a record in parts, with what stands between them


class Unwritten(UserError):
    """A data set that would have to be written where nothing may be.

    Parameters
    ----------
    folder : path
        Where it is missing.
    """

    def __init__(self, folder):
        super().__init__(
            f"{folder} is missing or not up to date, and only a checkpoint names that place: "
            "give --data-dir to have it written there"
        )


class Records:
    """The encoded images and labels of one RecordIO pair, addressed by their position in the index.

    Opening reads the index alone, whatever the file's size. Records are read when they are asked for, not mapped: where
    the file has been cut short since, that is an error and not the end of the process.

    Parameters
    ----------
    path : path
        The .rec file; the .idx file stands beside it.
    limit : int, optional
        Only the first so many records exist.

    Raises UserError for files that are missing, do not fit together or, when read, are no RecordIO.
    """

    def __init__(self, path, limit=None):
        self.path = Path(path)
        try:
            for file in (self.path, self.path.with_suffix(".idx")):
                if not stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for
                    raise ValueError(f"{file} is no regular file")
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115
            size = os.fstat(self._file.fileno()).st_size
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the one about an empty file: it is refused below
                offsets = np.loadtxt(self.path.with_suffix(".idx"), dtype=np.int64, usecols=1, ndmin=1, delimiter="\t")
        except (OSError, ValueError, IndexError) as error:
            raise UserError(f"cannot read the records {self.path} and their .idx file: {error}") from None
        if len(offsets) == 0 or offsets.min() < 0 or offsets.max() > size - FRAME.size - HEADER.size:
            raise UserError(f"{self.path} and its .idx file do not fit together")
        ends = np.append(np.unique(offsets), size)
        ends = ends[np.searchsorted(ends, offsets, side="right")]  # where the next record starts
        self._offsets, self._ends = offsets[:limit].tolist(), ends[:limit].tolist()

    def __len__(self):
        return len(self._offsets)

    def labels(self, positions):
        """Labels at ``positions`` (int array of any length n): float32 array of (n,)."""
        return np.array([self._label(self._offsets[position]) for position in positions], np.float32)

    def encoded(self, positions):
        """Encoded images at ``positions`` (int array): a list of 1-d uint8 arrays."""
        return [self._image(self._offsets[position], self._ends[position]) for position in positions]

    def name(self, position):
        """What to call the record at a position in a message."""
        return f"record {position} of {self.path}"

    def _label(self, offset):
        content = self._read(offset, FRAME.size + HEADER.size + LABEL.size)
        extra, label, *_ = HEADER.unpack_from(content, FRAME.size)
        if extra:  # then the header's own label is unused
            if len(content) < FRAME.size + HEADER.size + LABEL.size:
                raise UserError(f"{self.path} ends inside the record at byte {offset}")
            (label,) = LABEL.unpack_from(content, FRAME.size + HEADER.size)
        return label

    def _image(self, offset, end):
        # the next record of the index may be far: somebody may have shortened it
        magic, word = FRAME.unpack_from(self._read(offset, FRAME.size + HEADER.size))
        if magic == MAGIC and word >> LENGTH_BITS == WHOLE:
            first, stop = FRAME.size, FRAME.size + word
            content = self._read(offset, min(max(stop, FRAME.size + HEADER.size), end - offset))
        else:
            content = self._joined(self._read(offset, min(LARGEST_PARTS, end - offset)), offset)
            first, stop = 0, len(content)
        if stop > len(content):
            raise UserError(f"{self.path} ends inside the record at byte {offset}")
        if stop - first < HEADER.size:
            raise UserError(f"{self.path} is damaged: no image in the record at byte {offset}")
        extra = HEADER.unpack_from(content, first)[0]
        return np.frombuffer(content[:stop], np.uint8)[first + HEADER.size + LABEL.size * extra :]

    def _joined(self, content, offset):
        """The payload of a record in parts, as which it is written where it contains the magic word.

        That word is dropped between the parts.
        """
        parts, start = [], 0
        while True:
            if start + FRAME.size > len(content) or FRAME.unpack_from(content, start)[0] != MAGIC:
                raise UserError(f"{self.path} is damaged: no record at byte {offset + start}")
            word = FRAME.unpack_from(content, start)[1]
            size = word & (1 << LENGTH_BITS) - 1
            start += FRAME.size
            if start + size > len(content):
                raise UserError(f"{self.path} ends inside the record at byte {offset}")
            parts.append(content[start : start + size])
            if word >> LENGTH_BITS in (WHOLE, LAST_PART):
                return MAGIC.to_bytes(4, "little").join(parts)
            start += -(-size // 4) * 4

    def _read(self, offset, size):
        """Bytes of the file, fewer only where it ends."""
        with reading(self.path):
            content = os.pread(self._file.fileno(), size, offset)
        if len(content) < FRAME.size + HEADER.size:
            raise UserError(f"{self.path} ends inside the record at byte {offset}: it was cut short")
        return content


def write_records(path, samples, total=None):
    """Write (image, label) pairs as lossless PNG records; images are uint8 RGB arrays of (H, W, 3).

    The rest is as with `write_encoded`.
    """

    def png(image):
        return cv2.imencode(".png", image[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()

    write_encoded(path, ((png(image), label) for image, label in samples), total)


def write_encoded(path, samples, total=None):
    """Write (encoded image, label) pairs, bytes and int, to ``path`` (.rec) and its .idx file. Returns their number.

    ``total`` is for the progress bar. Not atomic by itself: `replacement` is. The bytes are those of MXNet's writer,
    which takes no path but one in UTF-8 and does not say when the disk is full. An image has `LARGEST_IMAGE` bytes at
    most.
    """
    path = Path(path)
    bar = tqdm(samples, total=total, desc=f"writing {path.name}", unit=" images", leave=False, disable=None)
    written = 0
    with open(path, "wb") as records, open(path.with_suffix(".idx"), "w", encoding="ascii") as index:
        for encoded, label in bar:
            index.write(f"{written}\t{records.tell()}\n")
            records.writelines(_framed(HEADER.pack(0, label, written, 0) + encoded))
            written += 1
    return written


def _framed(payload):
    """The pieces that a payload is in a file: parts, each after its frame, that end where the magic word would be."""
    magic, start, kind = FRAME.pack(MAGIC, 0)[:4], 0, FIRST_PART
    place = payload.find(magic)
    while place >= 0:
        if place % 4 == 0:  # only whole words are taken for it
            yield FRAME.pack(MAGIC, kind << LENGTH_BITS | place - start)
            yield payload[start:place]
            start, kind = place + 4, MIDDLE_PART
        place = payload.find(magic, max(start, place + 1))
    yield FRAME.pack(MAGIC, (LAST_PART if start else WHOLE) << LENGTH_BITS | len(payload) - start)
    yield payload[start:]
    yield bytes(-len(payload) % 4)


def ensure_records(folder, source, splits, may_write=True):
    """Paths of a data set's records, {split: .rec path}, written unless they are there, whole and up to date.

    Parameters
    ----------
    folder : path
        Where the records belong; replaced as a whole or not at all, by one process at a time.
    source : dict
        What the records are made from, JSON values (versions, checksums). Records of another source are stale.
    splits : dict
        {split: function that returns (iterable of (image, label), number of images)}, called only to write.
    may_write : bool
        Whether to touch the disk at all.

    Raises UserError where the folder cannot, and `Unwritten` where it may not, be written.
    """
    folder = Path(folder)
    try:
        if not _is_current(folder, source):
            if not may_write:
                raise Unwritten(folder)
            with locked(folder):
                if not _is_current(folder, source):  # nor has another process written them meanwhile
                    _write_folder(folder, source, splits)
    except OSError as error:
        raise UserError(f"cannot write the records in {folder}: {error.strerror or error}") from None
    return {split: folder / f"{split}.rec" for split in splits}


def _is_current(folder, source):
    try:
        with open_regular(folder / MANIFEST) as file:
            manifest = json.loads(file.read())
        return (
            manifest["format"] == FORMAT_VERSION
            and manifest["source"] == source
            and all(file_digest(folder / name) == digest for name, digest in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False  # absent or damaged: both are mended by writing anew


def _write_folder(folder, source, splits):
    names = sorted(f"{split}{suffix}" for split in splits for suffix in (".idx", ".rec"))
    with replacement(folder, [*names, *_listed_files(folder), MANIFEST]) as new:
        for split, samples in splits.items():
            pairs, total = samples()
            write_records(new / f"{split}.rec", pairs, total)
        files = {name: file_digest(new / name) for name in names}
        manifest = {"format": FORMAT_VERSION, "source": source, "files": files}
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _listed_files(folder):
    """The names of what a folder's manifest, of any version, says that it wrote; none where it is damaged."""
    try:
        with open_regular(folder / MANIFEST) as file:
            return [name for name in json.loads(file.read())["files"] if isinstance(name, str)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


@contextlib.contextmanager
def replacement(folder, own=()):
    """A new folder that takes the place of ``folder`` when all went well, and vanishes when not.

    Only for whoever has ``folder`` `locked`: those that killed processes have left behind vanish first.

    Raises UserError where ``folder`` is a mount point, and where it holds, now or in the end, more than files of the
    names ``own``: somebody else's would be lost.
    """
    folder = Path(os.path.realpath(folder))  # of a symbolic link, what it leads to
    if os.path.ismount(folder):
        raise UserError(f"{folder} is a mount point: name a folder in it")
    _check_own(folder, own)
    for stale in folder.parent.glob(glob.escape(folder.name) + ".new-" + "[a-z0-9_]" * 8):
        if (stale / UNFINISHED).exists():
            shutil.rmtree(stale, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=folder.name + ".new-", dir=folder.parent))
    try:
        (new / UNFINISHED).touch()
        yield new
        new.chmod(0o755)  # mkdtemp's folders are private
        _check_own(folder, own)
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
        (folder / UNFINISHED).unlink()  # as the last thing: whoever is killed before leaves what the next one removes
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _check_own(folder, own):
    strange = sorted(set(os.listdir(folder)) - {*own, UNFINISHED}) if folder.is_dir() else []
    if strange:
        raise UserError(f"{folder} holds {one_line(strange[0])}, which is none of its own: move it away")


@contextlib.contextmanager
def locked(path):
    """Hold ``path``'s lock file, PATH.lock, so that several processes prepare the same data one after the other.

    Whoever holds it removes it at the end.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.parent / (path.name + ".lock")
    descriptor = take_lock(name)
    try:
        yield
    finally:
        release_lock(descriptor, name)

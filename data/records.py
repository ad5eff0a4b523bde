"""RecordIO pairs (NAME.rec and NAME.idx): written once from images, read by position from then on.

The format is MXNet's own, as its im2rec writes it: every record is a header with the label and an encoded image.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from training.errors import UserError

__all__ = ["Records", "ensure_records", "file_digest", "locked", "replacement", "write_encoded", "write_records"]

FORMAT_VERSION = 1  # of what `ensure_records` writes; raising it makes older folders stale
MANIFEST = "manifest.json"

# RecordIO: a magic word; a word of 3 bits that say whether the record is whole or a part, and 29 bits of length; the
# payload, padded to whole words. MXNet's payload: number of extra labels, label, two ids of 8 bytes, extra labels,
# image.
MAGIC = 0xCED7230A
LENGTH_BITS = 29
WHOLE, LAST_PART = 0, 3
FRAME_WORDS = 2
HEADER_WORDS = 6


class Records:
    """The encoded images and labels of one RecordIO pair, addressed by their position in the index.

    The file is mapped: opening it reads the index alone, whatever its size.

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
            # np.asarray: slicing memmap's own type costs ten times as much
            self._words = np.asarray(np.memmap(self.path, np.dtype("<u4"), mode="r"))
            offsets = np.loadtxt(self.path.with_suffix(".idx"), dtype=np.int64, usecols=1, ndmin=1, delimiter="\t")
        except (OSError, ValueError, IndexError) as error:
            raise UserError(f"cannot read the records {self.path} and their .idx file: {error}") from None
        last = (len(self._words) - FRAME_WORDS - HEADER_WORDS) * 4
        if len(offsets) == 0 or (offsets % 4).any() or offsets.min() < 0 or offsets.max() > last:
            raise UserError(f"{self.path} and its .idx file do not fit together")
        self._bytes = self._words.view(np.uint8)
        self._frames = offsets[:limit] // 4

    def __len__(self):
        return len(self._frames)

    def labels(self, positions):
        """Labels at ``positions`` (int array of any length n): float32 array of (n,)."""
        frames = self._frames[positions]
        has_extra = self._words[frames + FRAME_WORDS] > 0  # then the header's own label is unused
        return self._words[frames + FRAME_WORDS + np.where(has_extra, HEADER_WORDS, 1)].view("<f4")

    def encoded(self, positions):
        """Encoded images at ``positions`` (int array): a list of 1-d uint8 arrays, most of them views of the file."""
        frames = self._frames[positions]
        sizes = self._words[frames + 1]
        starts = 4 * (frames + FRAME_WORDS + HEADER_WORDS + self._words[frames + FRAME_WORDS])
        stops = 4 * (frames + FRAME_WORDS) + sizes
        whole = (self._words[frames] == MAGIC) & (sizes >> LENGTH_BITS == WHOLE) & (stops <= 4 * len(self._words))
        if whole.all():
            return [self._bytes[start:stop] for start, stop in zip(starts.tolist(), stops.tolist())]
        offsets = (starts - 4 * (frames + FRAME_WORDS)).tolist()
        return [self._payload(frame)[offset:] for frame, offset in zip(frames.tolist(), offsets)]

    def _payload(self, frame):
        """The bytes of the record that starts at word ``frame``.

        A record is in parts where its payload contains the magic word, which is then dropped between them.
        """
        parts = []
        while True:
            if frame + FRAME_WORDS > len(self._words) or self._words[frame] != MAGIC:
                raise UserError(f"{self.path} is damaged: no record at byte {4 * frame}")
            word = int(self._words[frame + 1])
            size = word & (1 << LENGTH_BITS) - 1
            start = 4 * (frame + FRAME_WORDS)
            if start + size > len(self._bytes):
                raise UserError(f"{self.path} ends inside the record at byte {4 * frame}")
            parts.append(self._bytes[start : start + size])
            if word >> LENGTH_BITS in (WHOLE, LAST_PART):
                return np.concatenate(parts)
            parts.append(np.array([MAGIC], "<u4").view(np.uint8))
            frame += FRAME_WORDS + -(-size // 4)


def write_records(path, samples, total=None):
    """Write (image, label) pairs as lossless PNG records; images are uint8 RGB arrays of (H, W, 3).

    The rest is as with `write_encoded`.
    """

    def png(image):
        return cv2.imencode(".png", image[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()

    write_encoded(path, ((png(image), label) for image, label in samples), total)


def write_encoded(path, samples, total=None):
    """Write (encoded image, label) pairs, bytes and int, to ``path`` (.rec) and its .idx file.

    ``total`` is for the progress bar. Not atomic by itself: `replacement` is.
    """
    import mxnet as mx  # late: a command of this package can call prepare_mxnet first

    path = Path(path)
    writer = mx.recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")
    with contextlib.closing(writer):
        bar = tqdm(samples, total=total, desc=f"writing {path.name}", unit=" images", leave=False, disable=None)
        for position, (encoded, label) in enumerate(bar):
            writer.write_idx(position, mx.recordio.pack(mx.recordio.IRHeader(0, label, position, 0), encoded))


def ensure_records(folder, source, splits):
    """Paths of a data set's records, {split: .rec path}, written unless they are there, whole and up to date.

    Parameters
    ----------
    folder : path
        Where the records belong; replaced as a whole or not at all, by one process at a time.
    source : dict
        What the records are made from, JSON values (versions, checksums). Records of another source are stale.
    splits : dict
        {split: function that returns (iterable of (image, label), number of images)}, called only to write.

    Raises UserError where the folder cannot be written.
    """
    folder = Path(folder)
    try:
        with locked(folder):
            if not _is_current(folder, source):
                _write_folder(folder, source, splits)
    except OSError as error:
        raise UserError(f"cannot write the records in {folder}: {error.strerror or error}") from None
    return {split: folder / f"{split}.rec" for split in splits}


def _is_current(folder, source):
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return (
            manifest["format"] == FORMAT_VERSION
            and manifest["source"] == source
            and all(file_digest(folder / name) == digest for name, digest in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # absent or damaged: both are mended by writing anew


def _write_folder(folder, source, splits):
    with replacement(folder) as new:
        for split, samples in splits.items():
            pairs, total = samples()
            write_records(new / f"{split}.rec", pairs, total)
        files = {file.name: file_digest(file) for file in sorted(new.iterdir())}
        manifest = {"format": FORMAT_VERSION, "source": source, "files": files}
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


@contextlib.contextmanager
def replacement(folder):
    """A new folder that takes the place of ``folder`` when all went well, and vanishes when not."""
    folder = Path(folder)
    new = Path(tempfile.mkdtemp(prefix=folder.name + ".new-", dir=folder.parent))
    try:
        yield new
        new.chmod(0o755)  # mkdtemp's folders are private
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def locked(path):
    """Hold ``path``'s lock file, PATH.lock, so that several processes prepare the same data one after the other."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / (path.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def file_digest(path):
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

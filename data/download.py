"""Fetch a file over HTTP until its checksum is right, and take single files out of a .tar.gz."""

import gzip
import os
import shutil
import tarfile
import time
import zlib

import requests
import tqdm
import urllib3

from base.errors import UserError
from base.files import file_digest, fsync

__all__ = ["download", "unpack"]

TIMEOUT = 10, 60  # seconds to connect, and between two arriving pieces
ATTEMPTS = 5  # at most, while each gets further than the one before
FRUITLESS = 2  # attempts in a row that bring nothing: the network or the server is down
BACKOFF = 1.0  # seconds before the second attempt; a little longer before each one after it
CHUNK = 1 << 16  # bytes


def download(url, path, md5):
    """Fetch `url` to `path` (a pathlib.Path) unless a file with the checksum `md5` (hex) is there already.

    What has arrived is kept in `path.name + ".part"`, and the next attempt or call goes on from its end.
    `path` is only ever replaced by a whole, verified file.

    Raises UserError when the server refuses or cannot be reached, the checksum is wrong, or a file cannot be
    written.
    """
    part = path.with_name(path.name + ".part")
    try:
        if path.exists() and file_digest(path, "md5") == md5:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part)
        found = file_digest(part, "md5")
        if found != md5:
            part.unlink()  # nobody knows which bytes are wrong, so none is worth resuming from
            raise UserError(f"{url} has the MD5 checksum {found} instead of {md5}: damaged or changed")
        fsync(part)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"Cannot fetch {url} to {path}: {_cause(error)}") from error


def unpack(archive, names, folder):
    """Write the regular files `names` of the .tar.gz `archive` to `folder / name`.

    Only a name asked for is ever written, and only as a file: links, devices and paths out of `folder` stay
    in the archive. Files already there are replaced once all of `names` are on disk and the archive is sound.

    Raises UserError when a name is missing or not a regular file, the archive is damaged, or a file cannot be
    written.
    """
    names = set(names)
    written = {}
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if member.name not in names:
                    continue
                if not member.isreg():
                    raise UserError(f"Cannot unpack {archive}: {member.name} is not a regular file in it")
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(target.name + ".part")
                with part.open("wb") as file:
                    written[target] = part
                    shutil.copyfileobj(tar.extractfile(member), file)
                    file.flush()
                    os.fsync(file.fileno())
            while stream.read(CHUNK):  # gzip's own checksum comes last, behind what tarfile reads
                pass
        missing = sorted(name for name in names if folder / name not in written)
        if missing:
            raise UserError(f"Cannot unpack {archive}: it does not contain {', '.join(missing)}")
        for target, part in written.items():
            os.replace(part, target)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"Cannot unpack {archive} to {folder}: {_cause(error)}") from error
    finally:
        for part in written.values():
            part.unlink(missing_ok=True)


def _fetch(url, part):
    """Complete `part`, over several connections if they break; raises UserError, and the disk's OSError."""
    fruitless = 0
    for attempt in range(1, ATTEMPTS + 1):
        before = _size(part)
        try:
            return _continue(url, part)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            fruitless = 0 if _size(part) > before else fruitless + 1
            refused = isinstance(error, requests.HTTPError) and error.response.status_code < 500
            if refused or fruitless == FRUITLESS or attempt == ATTEMPTS:
                raise UserError(f"Cannot fetch {url}: {_cause(error)}") from error
        time.sleep(BACKOFF * attempt)


def _continue(url, part):
    """Append what `part` lacks over one connection; raises the errors of requests, urllib3 and the disk."""
    start = _size(part)
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        status, content_range = response.status_code, response.headers.get("Content-Range", "")
        if start and status == 416 and content_range == f"bytes */{start}":
            return  # it was whole already
        if start and (status == 416 or (status == 206 and not content_range.startswith(f"bytes {start}-"))):
            part.unlink()  # too long, or continued from elsewhere: begin anew, which asks for no range
            return _continue(url, part)
        response.raise_for_status()
        if status != 206:
            start = 0  # the server sends the whole file, whatever was asked for
        left = response.raw.length_remaining  # None where the server does not say
        total = None if left is None else start + left
        with (
            part.open("ab" if start else "wb") as file,
            tqdm.tqdm(desc=part.stem, initial=start, total=total, unit="B", unit_scale=True, disable=None) as bar,
        ):
            # Not decoded: some servers call a .gz file gzip-encoded, and it is the .gz file that is wanted.
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _cause(error):
    """What went wrong, without the retries that requests wraps around it."""
    cause = error.args[0] if error.args else error
    return " ".join(str(getattr(cause, "reason", None) or error).split())

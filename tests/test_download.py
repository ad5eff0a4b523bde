"""Downloads resume, verify and fail in one line; unpacking takes the files asked for and nothing else."""

import gzip
import hashlib
import http.server
import io
import random
import socket
import tarfile
import threading

import pytest

import data.download
from base.errors import UserError
from data.download import download, unpack

CONTENT = random.Random(0).randbytes(300_001)
MD5 = hashlib.md5(CONTENT).hexdigest()
NAMES = ["set/one.bin", "set/two.bin"]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT under every path; its server says how badly, and remembers the Range headers."""

    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        server.ranges.append(asked)
        status = server.statuses.pop(0) if server.statuses else None
        start = int(asked[len("bytes=") : -1]) if asked and server.knows_range else 0
        if status is None:
            status = 416 if start >= len(CONTENT) else 206 if start else 200
        body = CONTENT[start:] if status < 400 else b"an error page"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            first = start + server.range_shift
            self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if status == 416:
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
        for header in server.extra_headers.items():
            self.send_header(*header)
        self.end_headers()
        # A cut answer ends early: the connection is closed with less sent than was promised.
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(data.download, "BACKOFF", 0.01)
    for variable in "no_proxy", "NO_PROXY":
        monkeypatch.setenv(variable, "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_port}/set.tar.gz"
    server.ranges, server.cuts, server.statuses, server.extra_headers = [], [], [], {}
    server.knows_range, server.range_shift = True, 0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sets" / "set.tar.gz"


def part_of(path):
    return path.with_name(path.name + ".part")


def write_part(path, content):
    path.parent.mkdir()
    part_of(path).write_bytes(content)


def assert_only(path, content=CONTENT):
    """`path` holds `content`, and nothing else is in its folder."""
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def one_line(raised):
    message = str(raised.value)
    assert message and len(message.splitlines()) == 1
    return message


def test_a_download_is_whole_and_quiet_without_a_terminal(server, path, capsys):
    download(server.url, path, MD5)
    assert_only(path)
    assert server.ranges == [None]
    assert capsys.readouterr().err == ""


def test_a_broken_connection_is_continued_where_it_broke(server, path):
    server.cuts = [150_000, 70_001]
    download(server.url, path, MD5)
    assert_only(path)
    assert server.ranges == [None, "bytes=150000-", "bytes=220001-"]


def test_a_second_call_continues_the_first(server, path):
    server.cuts = [100_000, 0, 0]
    with pytest.raises(UserError) as raised:
        download(server.url, path, MD5)
    assert server.url in one_line(raised)
    assert part_of(path).read_bytes() == CONTENT[:100_000] and not path.exists()
    assert server.ranges == [None, "bytes=100000-", "bytes=100000-"]  # two without progress are enough
    server.ranges.clear()
    download(server.url, path, MD5)
    assert_only(path)
    assert server.ranges == ["bytes=100000-"]


def test_attempts_are_bounded_even_with_progress(server, path):
    server.cuts = [1000] * 100
    with pytest.raises(UserError):
        download(server.url, path, MD5)
    assert len(server.ranges) == data.download.ATTEMPTS
    assert part_of(path).read_bytes() == CONTENT[: 1000 * data.download.ATTEMPTS]


def test_a_server_that_ignores_range_starts_over(server, path):
    server.knows_range = False
    server.cuts = [150_000]
    download(server.url, path, MD5)
    assert_only(path)
    assert server.ranges == [None, "bytes=150000-"]


def test_a_server_that_sends_another_range_starts_over(server, path):
    server.range_shift = 1
    write_part(path, CONTENT[:1000])
    download(server.url, path, MD5)
    assert_only(path)
    assert server.ranges == ["bytes=1000-", None]


def test_a_part_that_is_too_long_starts_over(server, path):
    write_part(path, CONTENT + b"more")
    download(server.url, path, MD5)
    assert_only(path)
    assert server.ranges == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_part_that_is_whole_is_not_fetched_again(server, path):
    write_part(path, CONTENT)
    download(server.url, path, MD5)
    assert_only(path)
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_an_archive_called_gzip_encoded_is_kept_as_it_is(server, path):
    server.extra_headers = {"Content-Encoding": "x-gzip"}
    download(server.url, path, MD5)
    assert_only(path)


def test_a_wrong_checksum_is_told_and_nothing_kept(server, path):
    wrong = "0" * 32
    with pytest.raises(UserError) as raised:
        download(server.url, path, wrong)
    message = one_line(raised)
    assert server.url in message and wrong in message and MD5 in message
    assert list(path.parent.iterdir()) == []


def test_a_missing_page_is_told_at_once_and_the_part_kept(server, path):
    write_part(path, CONTENT[:1000])
    server.statuses = [404]
    with pytest.raises(UserError) as raised:
        download(server.url, path, MD5)
    message = one_line(raised)
    assert "404" in message and server.url in message
    assert len(server.ranges) == 1
    assert part_of(path).read_bytes() == CONTENT[:1000]


def test_a_server_in_trouble_is_asked_again(server, path):
    server.statuses = [503]
    download(server.url, path, MD5)
    assert_only(path)


def test_no_network_is_told_and_the_part_kept(server, path):
    write_part(path, CONTENT[:1000])
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening, so that nobody else answers there
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/set.tar.gz"
        with pytest.raises(UserError) as raised:
            download(url, path, MD5)
    message = one_line(raised)
    assert url in message and "refused" in message
    assert part_of(path).read_bytes() == CONTENT[:1000]


def test_a_good_file_is_not_fetched_again(server, path):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    download(server.url, path, MD5)
    assert_only(path)
    assert server.ranges == []


def test_a_damaged_file_is_fetched_anew(server, path):
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    server.statuses = [404]
    with pytest.raises(UserError):
        download(server.url, path, MD5)
    assert_only(path, b"damaged")  # replaced by a verified file or not at all
    download(server.url, path, MD5)
    assert_only(path)


def test_a_full_disk_is_told_with_the_path(server, path):
    path.parent.mkdir()
    part_of(path).symlink_to("/dev/full")
    with pytest.raises(UserError) as raised:
        download(server.url, path, MD5)
    message = one_line(raised)
    assert str(path) in message and "No space left" in message


def test_a_folder_that_cannot_be_made_is_told_with_the_path(server, path):
    path.parent.write_bytes(b"a file where the folder should be")
    with pytest.raises(UserError) as raised:
        download(server.url, path, MD5)
    assert str(path) in one_line(raised)
    assert server.ranges == []


def member(name, content=CONTENT, **kind):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in kind.items():
        setattr(info, field, value)
    return info, io.BytesIO(content)


@pytest.fixture
def archive(tmp_path):
    """A function that writes a .tar.gz of members, by default of NAMES, and gives its path."""

    def write(*members):
        with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as tar:
            for info, content in members or map(member, NAMES):
                tar.addfile(info, content)
        return tmp_path / "set.tar.gz"

    return write


@pytest.fixture
def folder(tmp_path):
    """A folder in which the first of NAMES is there already, with other contents."""
    (tmp_path / "out" / "set").mkdir(parents=True)
    (tmp_path / "out" / NAMES[0]).write_bytes(b"old")
    return tmp_path / "out"


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_unpack_writes_the_files_asked_for(archive, folder):
    unpack(archive(member("set/readme", b"unwanted"), *map(member, NAMES)), NAMES, folder)
    assert files(folder) == dict.fromkeys(NAMES, CONTENT)


def test_unpack_ignores_members_that_would_escape(archive, folder, tmp_path):
    absolute = tmp_path / "absolute"
    evil = archive(
        member("../escape"),
        member(str(absolute)),
        member("set/link", b"", type=tarfile.SYMTYPE, linkname="/"),
        member("set/link/deep"),
        *map(member, NAMES),
    )
    before = set(tmp_path.iterdir())
    unpack(evil, NAMES, folder)
    assert files(folder) == dict.fromkeys(NAMES, CONTENT)
    assert set(tmp_path.iterdir()) == before and not absolute.exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_unpack_refuses_a_wanted_name_that_is_no_file(archive, folder, kind):
    evil = archive(member(NAMES[0]), member(NAMES[1], b"", type=kind, linkname="/etc/passwd"))
    with pytest.raises(UserError) as raised:
        unpack(evil, NAMES, folder)
    assert NAMES[1] in one_line(raised)
    assert files(folder) == {NAMES[0]: b"old"}


def test_unpack_names_what_is_missing(archive, folder):
    with pytest.raises(UserError) as raised:
        unpack(archive(member(NAMES[0])), NAMES, folder)
    assert NAMES[1] in one_line(raised)
    assert files(folder) == {NAMES[0]: b"old"}


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"<html>not an archive</html>",
        lambda content: content[:100],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: flipped(content, len(content) // 2),
        lambda content: gzip.compress(gzip.decompress(content)[:200_000]),
        lambda content: gzip.compress(b"not a tar file" * 100),
    ],
    ids=["empty", "no gzip", "cut early", "cut half-way", "cut at the end", "one bit", "cut inside", "no tar"],
)
def test_unpack_tells_a_damaged_archive_and_replaces_nothing(archive, folder, damage):
    path = archive()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as raised:
        unpack(path, NAMES, folder)
    assert str(path) in one_line(raised)
    assert files(folder) == {NAMES[0]: b"old"}


def test_unpack_tells_a_missing_archive_and_a_folder_it_cannot_write(archive, folder, tmp_path):
    with pytest.raises(UserError) as raised:
        unpack(tmp_path / "nothing.tar.gz", NAMES, folder)
    assert "nothing.tar.gz" in one_line(raised)
    with pytest.raises(UserError) as raised:
        unpack(archive(), NAMES, folder / NAMES[0])
    assert str(folder / NAMES[0]) in one_line(raised)
    assert files(folder) == {NAMES[0]: b"old"}

"""A checkpoint is whole or absent, found out where it is damaged, and never runs anything."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from base.errors import UserError
from training.run.checkpoint import Checkpoint, Checkpoints, _own_digest

ARRAYS = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "rows": np.ones((1, 4), np.float16)}


def save_some(folder, count):
    """Save ``count`` checkpoints that say which they are."""
    checkpoints, before = Checkpoints(folder), None
    for number in range(1, count + 1):
        before = checkpoints.save({**ARRAYS, "weight": ARRAYS["weight"] * number}, {"number": number}, before)
    return checkpoints


def test_a_checkpoint_comes_back_to_the_bit(tmp_path):
    arrays = {"odd": np.array([np.pi, -0.0, 1e-45], np.float32), "scalar": np.array(0.1, np.float32)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(arrays, {"share": 0.1 + 0.2, "steps": [1, None]}, None)
    checkpoint, damaged = checkpoints.newest_whole()
    assert (checkpoint.facts, damaged) == ({"share": 0.1 + 0.2, "steps": [1, None]}, [])
    read = checkpoint.arrays()
    assert {name: (a.tobytes(), a.shape) for name, a in read.items()} == {
        name: (a.tobytes(), a.shape) for name, a in arrays.items()
    }


def test_the_newest_two_are_kept(tmp_path):
    assert save_some(tmp_path, 4).newest_whole()[0].facts == {"number": 4}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000003", "checkpoint-000004"]


@pytest.mark.parametrize("stranger", ["checkpoint-000003", "checkpoint-000003.new", "checkpoint-000003.old"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_a_name_that_something_else_has_is_stepped_over(tmp_path, stranger, kind):
    checkpoints = save_some(tmp_path, 2)
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / stranger
    if kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to("elsewhere" if kind == "link" else "nowhere")
    for number in (3, 4):
        checkpoint, damaged = checkpoints.newest_whole()
        assert (checkpoint.facts["number"], damaged) == (number - 1, [])
        checkpoints.save(ARRAYS, {"number": number}, checkpoint.path)
    kept = ["checkpoint-000004", "checkpoint-000005", "elsewhere", stranger]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    assert not any((tmp_path / "elsewhere").iterdir())
    named = [path] if path.suffix == "" else []
    assert checkpoints.strangers() == named


def damage(path, how):
    arrays, manifest = path / "arrays.bin", path / "manifest.json"
    if how == "flipped byte":
        content = bytearray(arrays.read_bytes())
        content[7] ^= 1
        arrays.write_bytes(content)
    elif how == "truncated arrays":
        arrays.write_bytes(arrays.read_bytes()[:-1])
    elif how == "no arrays":
        arrays.unlink()
    elif how == "truncated manifest":
        manifest.write_bytes(manifest.read_bytes()[:-9])
    elif how == "changed manifest":
        manifest.write_text(manifest.read_text().replace('"number": 3', '"number": 4'))
    else:
        manifest.unlink()


@pytest.mark.parametrize(
    "how",
    ["flipped byte", "truncated arrays", "no arrays", "truncated manifest", "changed manifest", "no manifest"],
)
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(tmp_path, how):
    checkpoints = save_some(tmp_path, 3)
    damage(tmp_path / "checkpoint-000003", how)
    checkpoint, (line,) = checkpoints.newest_whole()
    assert checkpoint.facts == {"number": 2}
    assert "checkpoint-000003 is damaged" in line and "\n" not in line
    saved = checkpoints.save(ARRAYS, {"number": 5}, checkpoint.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000002", saved.name]


def test_where_none_is_whole_all_are_named(tmp_path):
    checkpoints = save_some(tmp_path, 2)
    for path in checkpoints.paths():
        damage(path, "flipped byte")
    with pytest.raises(UserError, match=r"checkpoint-000002 is damaged.*checkpoint-000001 is damaged"):
        checkpoints.newest_whole()


def test_a_failed_write_leaves_what_was_there(tmp_path):
    checkpoints = save_some(tmp_path, 2)
    before = sorted(path.name for path in tmp_path.iterdir())

    class Unwritable(dict):
        def values(self):
            yield from super().values()
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        checkpoints.save(Unwritable(ARRAYS), {}, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_a_killed_process_left_is_tidied_away(tmp_path):
    checkpoints = save_some(tmp_path, 1)
    for name in ("checkpoint-000002.new", "checkpoint-000000.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "arrays.bin").write_text("a part")
    (tmp_path / "last.params.123.new").write_text("a part")
    (tmp_path / "last.params").write_text("whole")
    checkpoints.tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000001", "last.params"]


def test_objects_are_no_arrays(tmp_path):
    path = save_some(tmp_path, 1).paths()[0]
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["arrays"][0][1] = "object"
    manifest["sha256"] = _own_digest(manifest)  # by someone who knows how
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="object"):
        Checkpoint(path)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, Path.rename

    def flushed(file):
        done.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        fsync(file)

    def renamed(path, to):
        done.append("renamed")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    save_some(tmp_path, 1)
    assert done == ["arrays.bin", "manifest.json", "checkpoint-000001.new", "renamed", tmp_path.name]


@pytest.mark.parametrize("name", ["manifest.json", "arrays.bin"])
def test_a_disk_that_does_not_answer_is_no_damage(tmp_path, monkeypatch, name):
    checkpoints, opened = save_some(tmp_path, 2), os.open

    def refuse(path, *arguments, **options):
        if str(path).endswith(f"checkpoint-000002/{name}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        UserError, match=f"cannot read .*000002/{name}: Input/output error; --resume .*000001 is the one before"
    ):
        checkpoints.newest_whole()
    monkeypatch.undo()
    assert checkpoints.newest_whole()[0].facts == {"number": 2}

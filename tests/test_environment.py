"""Full and read-only disks, vanished data: a training ends in one line, with its last checkpoint intact."""

import os
import shutil
import subprocess
import sys

import pytest

from base.errors import UserError
from tests.conftest import ROOT
from tests.test_resume import FLAGS, kill_at, results, snapshot, stop_at, train
from tests.test_training import assert_refused, train_on_digits
from training.run.checkpoint import Checkpoints
from training.run.files import RunFiles, new_run
from training.run.logger import RunLogger


@pytest.fixture
def disk(tmp_path):
    """A folder, and a function that mounts a disk there, or mounts it anew, with such options as its size."""

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            assert not os.environ.get("RAN_REQUIRE_DISK"), done.stderr
            pytest.skip(f"no disk to fill: mounting is not permitted here ({done.stderr.strip()})")

    folder = tmp_path / "disk"
    folder.mkdir()
    yield folder, mount
    subprocess.run(["umount", "-l", folder], check=False, capture_output=True)


@pytest.fixture(scope="module")
def undisturbed(new_folder, digits):
    """The results of a run that nothing happened to."""
    folder = new_folder("undisturbed")
    train(folder, digits, *FLAGS, "--run-name", "run")
    return results(folder, "run")


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_with_more_room(disk, digits):
    folder, mount = disk
    mount("size=100m")  # room for one checkpoint of Attention-56 and no second one
    flags = ("--epochs", 1, "--run-name", "run")
    assert_refused(train_on_digits(folder, digits, *flags), "No space left on device", "checkpoint-000002")
    checkpoints = Checkpoints(folder / "params" / "run")
    assert [path.name for path in checkpoints.paths()] == ["checkpoint-000001"]
    checkpoints.newest_whole()
    assert {path.name for path in (folder / "params" / "run").iterdir()} == {"checkpoint-000001"}
    mount("remount,size=300m")
    process = train_on_digits(folder, digits, "--resume", "run")
    assert process.returncode == 0, process.stderr
    assert len((folder / "text" / "run.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("kilobytes", [8, 24, 40, 56, 72, 88, 104])
def test_wherever_the_disk_is_full_the_run_can_go_on(disk, digits, kilobytes, undisturbed):
    folder, mount = disk
    mount(f"size={kilobytes}k")
    with pytest.raises(UserError, match="No space left on device") as raised:
        train(folder, digits, *FLAGS, "--run-name", "run")
    assert "\n" not in str(raised.value)
    mount("remount,size=10m")
    if Checkpoints(folder / "params" / "run").paths():
        train(folder, digits, "--resume", "run")
        assert results(folder, "run") == undisturbed


def test_the_text_log_says_when_it_cannot_be_written(disk, capsys):
    folder, mount = disk
    mount("size=40k")
    logger = RunLogger(new_run(folder, "run", "stem"), 1)
    with pytest.raises(UserError, match=r"run\.log: No space left on device"):
        for _ in range(1000):
            logger.info("x" * 100)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_shows_any_name_in_its_own_way(encoding):
    code = "from base.errors import UserError, run_command\ndef main():\n  print('\u0416', os.fsdecode(b'\\xff'))\n"
    code = f"import os\n{code}  raise UserError('no\\nfile \u0416')\nrun_command(main)"
    environ = {**os.environ, "PYTHONIOENCODING": encoding}
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True)
    letter = b"\xd0\x96" if encoding == "utf-8" else b"\\u0416"
    assert (shown.returncode, shown.stdout) == (2, letter + b" \\udcff\n")
    assert shown.stderr == b"error: no\\nfile " + letter + b"\n"


def test_the_text_log_takes_any_name_on_one_line(tmp_path, capsys):
    sys.stdout.reconfigure(errors="backslashreplace")  # as run_command does
    files = new_run(tmp_path, "run", "stem")
    RunLogger(files, 1).info(os.fsdecode(b"a\xff\nb"))
    assert files.log.read_bytes().endswith(b" a\xff\\nb\n")


def test_a_read_only_log_folder_is_named(disk, digits):
    folder, mount = disk
    mount("size=10m")
    with pytest.raises(SystemExit):
        train(folder, digits, *FLAGS, "--run-name", "run", interrupt=stop_at((1, 1)))
    before = snapshot(folder)
    mount("remount,ro,size=10m")
    for flags in (("--resume", "run"), ("--run-name", "other", *FLAGS)):
        with pytest.raises(UserError, match="Read-only file system"):
            train(folder, digits, *flags)
    assert snapshot(folder) == before
    mount("remount,rw,size=10m")
    train(folder, digits, "--resume", "run")


def test_data_that_vanish_under_a_training_end_it_in_one_line(tmp_path, digits, undisturbed):
    shutil.copytree(digits.records["train"].parent, tmp_path / "records")
    records = {split: tmp_path / "records" / path.name for split, path in digits.records.items()}

    def cut_short(epoch, step):
        if (epoch, step) == (1, 1):
            with open(records["train"], "r+b") as file:
                file.truncate(50)

    with pytest.raises(UserError, match=r"train\.rec ends inside the record") as raised:
        train(tmp_path, digits._replace(records=records), *FLAGS, "--run-name", "run", interrupt=cut_short)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"cannot read the records|do not fit together"):
        records["train"].unlink()
        train(tmp_path, digits._replace(records=records), "--resume", "run")
    train(tmp_path, digits, "--resume", "run")
    assert results(tmp_path, "run") == undisturbed


CHANGES = {
    "a line in front": lambda path: path.write_bytes(b"# mine\n" + path.read_bytes()),
    "a byte": lambda path: path.write_bytes(path.read_bytes().replace(b"e", b"E", 1)),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture(scope="module")
def stopped(new_folder, digits):
    """The log folder of a run that was stopped in its third epoch."""
    folder = new_folder("stopped")
    with pytest.raises(SystemExit):
        train(folder, digits, *FLAGS, "--run-name", "run", interrupt=stop_at((2, 1)))
    return folder


def test_what_only_has_a_checkpoints_name_is_said_and_stepped_over(stopped, tmp_path, digits, undisturbed, capsys):
    folder = tmp_path / "log"
    shutil.copytree(stopped, folder)
    stranger = folder / "params" / "run" / "checkpoint-000099"
    stranger.write_text("mine")
    train(folder, digits, "--resume", "run")
    assert f"{stranger} is no checkpoint's folder: it is left alone" in capsys.readouterr().out.splitlines()
    assert results(folder, "run") == undisturbed and stranger.read_text() == "mine"


@pytest.mark.parametrize("change", CHANGES)
def test_files_of_a_run_that_somebody_changed_are_named_and_no_row_is_lost(
    stopped, tmp_path, digits, undisturbed, change, capsys
):
    folder = tmp_path / "log"
    shutil.copytree(stopped, folder)
    with RunFiles(folder, "run") as files:
        changed = [files.csv, files.log, *files.event_files()]
    for path in changed:
        CHANGES[change](path)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train(folder, digits, "--resume", "run", interrupt=stop_at((2, 3)))
    lines = [line for line in capsys.readouterr().out.splitlines() if " changed" in line or " missing" in line]
    assert len(lines) == 3 and all("run" in line for line in lines)
    aside = sorted(path.name.partition(".")[0] for path in folder.rglob("*.changed"))
    assert aside == ([] if change == "removed" else ["events", "run", "run"])
    train(folder, digits, "--resume", "run")  # what is new is nobody's change
    said = capsys.readouterr().out
    assert " changed" not in said and " missing" not in said
    assert results(folder, "run") == undisturbed


def test_a_checkpoint_from_before_files_had_checksums_goes_on(stopped, tmp_path, digits, undisturbed):
    folder = tmp_path / "log"
    shutil.copytree(stopped, folder)
    checkpoints = Checkpoints(folder / "params" / "run")
    checkpoint, _ = checkpoints.newest_whole()
    facts = {name: fact for name, fact in checkpoint.facts.items() if name not in ("digests", "rows")}
    checkpoints.save(checkpoint.arrays(), facts, checkpoint.path)
    train(folder, digits, "--resume", "run")
    assert results(folder, "run") == undisturbed and not list(folder.rglob("*.changed"))


def test_a_run_that_was_killed_before_its_first_checkpoint_is_no_run_to_resume(tmp_path, digits):
    new_run(tmp_path, "run", "stem")
    with pytest.raises(UserError, match="holds no checkpoint"):
        train(tmp_path, digits, "--resume", "run", interrupt=kill_at(0, 0))

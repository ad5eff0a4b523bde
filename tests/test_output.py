"""A training outlives its output; other commands end as they should where theirs fails."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, assert_refused, run_script
from tests.test_resume import FLAGS, results, train

# A training as to its output: lines on stdout within a Run, a bar on stderr.
TRAINING = """
import sys, time
from base.errors import run_command
from base.output import lasting_output
def main():
    with lasting_output():
        for number in range(3):
            print("line", number, flush=True)
            print("bar", number, file=sys.stderr, flush=True)
            time.sleep(0.1)
run_command(main)
"""
COMMAND = """
from base.errors import run_command
run_command(lambda: print("a result"))
"""
WRONG = """
from base.errors import UserError, run_command
def main():
    raise UserError("wrong")
run_command(main)
"""


def shell(code, redirection):
    """Run Python code in a shell with redirections; its PIPESTATUS is the exit status."""
    command = f'"$0" -c "$1" {redirection}; exit ${{PIPESTATUS[0]}}'
    words = ["bash", "-c", command, sys.executable, code]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "redirection, stdout, stderr",
    [
        ("| head -1", "line 0\n", "stdout cannot be written any more (Broken pipe)"),
        (">/dev/full", "", "stdout cannot be written any more (No space left on device)"),
        ("2>/dev/full", "stderr cannot be written any more (No space left on device)", ""),
        (">/dev/full 2>/dev/full", "", ""),
        (">&-", "", "bar 2\n"),
        ("2>&-", "line 0\nline 1\nline 2\n", ""),
        ("<&- >&- 2>&-", "", ""),
    ],
)
def test_a_training_goes_on_whatever_becomes_of_its_output(redirection, stdout, stderr):
    # head has to have ended before the last line is written
    done = shell(TRAINING.replace("0.1", "1") if "head" in redirection else TRAINING, redirection)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr and done.stderr.count("cannot be written") <= 1
    for expected, found in ((stdout, done.stdout), (stderr, done.stderr)):
        assert expected in found if expected else not found


@pytest.mark.parametrize(
    "code, redirection, status, lines",
    [
        (COMMAND, ">/dev/full", 2, ["error: [Errno 28] No space left on device"]),
        (COMMAND, ">&-", 0, []),
        (WRONG.replace("UserError", "Diverged"), "", 3, ["error: wrong"]),
        (WRONG, "2>/dev/full", 2, []),
        (WRONG, "2>&-", 2, []),
        (WRONG, ">&-", 2, ["error: wrong"]),
    ],
)
def test_a_command_says_in_one_line_what_it_can_and_has_the_right_status(code, redirection, status, lines):
    done = shell(code, redirection)
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (status, "", lines)


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    code = (
        f"from base.errors import run_command\nimport os\ndef main():\n    with open({str(tmp_path / 'file')!r}, 'w') "
    )
    code += "as file:\n        os.write(1, b'printed')\n        os.write(2, b'said')\nrun_command(main)"
    assert shell(code, ">&- 2>&-").returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_a_run_has_the_lines_that_nobody_took(tmp_path, digits, monkeypatch):
    train(tmp_path / "straight", digits, *FLAGS, "--run-name", "run")
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        train(tmp_path / "run", digits, *FLAGS, "--run-name", "run")
        monkeypatch.undo()
    assert results(tmp_path / "run", "run") == results(tmp_path / "straight", "run")
    logs = [(tmp_path / name / "text" / "run.log").read_text() for name in ("run", "straight")]
    assert [log.count("\n") for log in logs] == [5, 5] and "Finished: " in logs[0]


def test_what_is_missing_or_too_large_is_one_line():
    command = "from base.errors import run_command\ndef main():\n    {}\nrun_command(main)"
    for code, words in (("import nowhere", "nowhere is not installed in"), ("bytes(1 << 60)", "out of memory")):
        assert_refused(run_script("-c", command.format(code)), words)
    process = run_script("-c", command.format("import base.nowhere"))
    assert process.returncode == 1 and "Traceback" in process.stderr

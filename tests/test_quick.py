"""What scripts/test.sh --quick leaves out exists, and scripts/test.sh hands on its arguments."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, SLOW


@pytest.mark.parametrize("name", sorted(SLOW))
def test_what_is_slow_exists(name):
    file, _, function = name.partition("::")
    assert re.search(rf"^def {function}\(" if function else "^def test_", Path(ROOT, "tests", file).read_text(), re.M)


@pytest.mark.parametrize(
    "arguments, expected", [(["-k", "a b"], ["-k", "a b"]), (["--quick", "-x"], ["-m", "not slow", "-x"]), ([], [])]
)
def test_arguments_go_to_pytest(tmp_path, arguments, expected):
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "test.sh"
    script.write_bytes((ROOT / "scripts" / "test.sh").read_bytes())
    for tool in "scripts/setup.sh", ".venv/bin/ruff", ".venv/bin/python":
        path = tmp_path / tool
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\nprintf '%s|' {path.name} \"$@\"\necho\n")
        path.chmod(0o755)
    done = subprocess.run(["bash", script, *arguments], capture_output=True, text=True)
    steps = [
        ["setup.sh"],
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["python", "-m", "pytest", *expected],
    ]
    assert (done.returncode, done.stdout) == (0, "".join("|".join(step) + "|\n" for step in steps))

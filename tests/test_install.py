"""The scripts that set up and install say in one line, with exit status 2, what a machine lacks."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, assert_refused

TOOLS = ["bash", "cat", "cut", "dirname", "flock", "getconf", "grep", "mkdir", "sh", "sha256sum", "tar"]
SETUP_TOOLS = ["bash", "cat", "cut", "dirname", "flock", "grep", "rm", "sha256sum", "timeout", "uname"]
ENGINES = ["byteps", "horovod"]

# The .venv's Python, with an MXNet and no engine installed, and a pip that fails.
PYTHON = """#!/bin/sh
case "$1" in
    -) cat >/dev/null; echo "cpython-311 {mxnet} none" ;;
    -m) echo "Could not connect"; exit 1 ;;
    *) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a .venv, and beside it the folder bin/ of all tools that the scripts use, a compiler too."""
    shutil.copytree(ROOT / "scripts", tmp_path / "checkout" / "scripts")
    shutil.copytree(ROOT / "base", tmp_path / "checkout" / "base")
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, tmp_path / "checkout")
    write_python(tmp_path / "checkout")
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    write_compiler(tmp_path)
    write_script(tmp_path / "bin" / "make", "#!/bin/sh\n")
    return tmp_path / "checkout"


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def write_python(checkout, mxnet="mxnet==1.9.1"):
    write_script(checkout / ".venv" / "bin" / "python", PYTHON.format(mxnet=mxnet, python=shlex.quote(sys.executable)))


def write_compiler(tmp_path, without="nothing"):
    write_script(tmp_path / "bin" / "g++", f'#!/bin/sh\ncase "$*" in *{without}*) exit 1 ;; esac\n')


def install(checkout, engine, *arguments, **environ):
    """Run install_ENGINE.sh with no tools but those of bin/; returns the finished process."""
    unset = ("CXX", "CUDA_HOME", "RAN_WHEELS")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        ["bash", checkout / "scripts" / f"install_{engine}.sh", *arguments],
        env={**inherited, "PATH": str(checkout.parent / "bin"), **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_without_a_venv_or_mxnet_setup_is_named(checkout, engine):
    write_python(checkout, mxnet="none")
    assert_refused(install(checkout, engine), f"install_{engine}.sh: there is no MXNet", "scripts/setup.sh")
    shutil.rmtree(checkout / ".venv")
    assert_refused(install(checkout, engine), f"install_{engine}.sh: there is no .venv", "scripts/setup.sh")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tool", ["g++", "make", "tar"])
def test_a_missing_tool_is_named_with_its_package(checkout, engine, tool):
    (checkout.parent / "bin" / tool).unlink()
    assert_refused(install(checkout, engine), f"needs {tool}:", f"apt-get install {tool}")


def test_a_compiler_of_ones_own_is_named_where_it_is_missing(checkout):
    assert_refused(install(checkout, "byteps", CXX="no-such-compiler"), "needs no-such-compiler:")


@pytest.mark.parametrize("header, package", [("numa.h", "libnuma-dev"), ("Python.h", "python3-dev")])
def test_a_missing_header_is_named_with_its_package(checkout, header, package):
    write_compiler(checkout.parent, without=header)
    assert_refused(install(checkout, "byteps"), f"needs the header {header}:", f"apt-get install {package}")


def test_horovod_for_gpus_needs_the_cuda_compiler(checkout, tmp_path):
    write_python(checkout, mxnet="mxnet-cu112==1.9.1")
    header = tmp_path / "cuda" / "include" / "cuda_runtime_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define CUDART_VERSION  11080\n")
    assert_refused(install(checkout, "horovod", CUDA_HOME=str(tmp_path / "cuda")), "CUDA 11", "nvcc", "CUDA_HOME")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_folder_for_wheels_that_cannot_be_made_is_named(checkout, tmp_path, engine):
    (tmp_path / "file").write_text("")
    assert_refused(install(checkout, engine, tmp_path / "file"), "cannot write", str(tmp_path / "file"))
    assert_refused(install(checkout, engine, RAN_WHEELS=str(tmp_path / "file")), "cannot write")


@pytest.mark.parametrize("engine", ENGINES)
def test_without_a_network_pips_messages_and_what_was_wanted_are_shown(checkout, engine):
    process = install(checkout, engine)
    assert process.returncode == 2
    message, last = process.stderr.splitlines()
    assert message == "Could not connect"
    assert last.startswith(f"install_{engine}.sh: pip could not install ")


@pytest.mark.parametrize("chosen, said", [("tpu", "must be cpu or gpu"), ("cpu", "found no Python 3.9, 3.10 or 3.11")])
def test_setup_names_what_is_wrong_in_one_line(tmp_path, chosen, said):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in SETUP_TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    environ = {**os.environ, "PATH": str(tmp_path / "bin"), "RAN_REQUIREMENTS": chosen}
    done = subprocess.run(["bash", tmp_path / "scripts/setup.sh"], env=environ, capture_output=True, text=True)
    assert_refused(done, "setup.sh: ", said)

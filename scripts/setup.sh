#!/usr/bin/env bash
# Makes .venv in the repository root and installs what training needs:
# requirements.txt where an NVIDIA driver answers, requirements-cpu.txt elsewhere, and requirements-dev.txt.
# RAN_REQUIREMENTS=cpu or RAN_REQUIREMENTS=gpu overrides that choice.
#
# .venv either carries the stamp of exactly these requirements or is built anew: an interrupted installation,
# a removed Python and a moved repository all repair themselves. Exit status 2: this machine lacks something.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"

driver_answers() {
    if timeout 20 nvidia-smi -L 2>/dev/null | grep "^GPU" >/dev/null; then return 0; fi
    [[ -e /dev/nvidiactl && "$(PATH="$PATH:/usr/sbin:/sbin" ldconfig -p 2>/dev/null)" == *libcuda.so.1* ]]
}

# Prints the real path of the Python that command $1 starts, if there are wheels for it. The real path matters
# where $1 belongs to an activated .venv, which is about to be removed. Even Python 2.7 has to parse this.
supported_python() {
    "$1" -c '
import os, struct, sys
wheels = (3, 9) <= sys.version_info[:2] <= (3, 11) and struct.calcsize("P") == 8
if wheels and sys.implementation.name == "cpython":
    print(os.path.realpath(sys.executable))' 2>/dev/null </dev/null || true
}

# Makes an empty .venv with the first of these that works: a Python's own venv module (a package of its own on
# Debian, so it may be missing), virtualenv, uv (which may have to download a Python).
make_venv() {
    local name candidate python supported=()
    for name in python3.11 python3.10 python3.9 python3 python; do
        while read -r candidate; do  # all of them on PATH: a pyenv shim may come first and refuse to run
            python=$(supported_python "$candidate")
            if [[ -n $python && $python != "$PWD/.venv/"* ]]; then supported+=("$python"); fi
        done < <(type -aP "$name" || true)
    done
    for python in ${supported[@]+"${supported[@]}"}; do
        if "$python" -c "import ensurepip, venv" 2>/dev/null; then
            rm -rf .venv
            if "$python" -m venv .venv >/dev/null 2>&1; then return 0; fi
        fi
    done
    for python in ${supported[@]+"${supported[@]}"}; do
        rm -rf .venv
        if "$python" -m virtualenv --quiet .venv >/dev/null 2>&1; then return 0; fi
        if virtualenv --quiet --python "$python" .venv >/dev/null 2>&1; then return 0; fi
    done
    rm -rf .venv
    uv venv --quiet --seed --python ">=3.9,<3.12" .venv >/dev/null 2>&1
}

# The state in which .venv needs nothing done; empty if its Python does not run.
stamp_of_now() {
    .venv/bin/python -c 'import sys; print(sys.version)' 2>/dev/null || return 0
    echo "$PWD $requirements"
    cat requirements-common.txt "$requirements" requirements-dev.txt requirements-export.txt | sha256sum
}

(($# == 0)) || fail "it takes no arguments, but RAN_REQUIREMENTS=cpu or gpu in the environment"
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

[[ "$(uname -sm)" == "Linux x86_64" ]] || fail "MXNet has wheels for x86_64 Linux only, not for $(uname -sm)"

case "${RAN_REQUIREMENTS:-}" in
    cpu) requirements=requirements-cpu.txt ;;
    gpu) requirements=requirements.txt ;;
    "")
        requirements=requirements-cpu.txt
        if driver_answers; then requirements=requirements.txt; fi
        ;;
    *) fail "RAN_REQUIREMENTS must be cpu or gpu, not \"$RAN_REQUIREMENTS\"" ;;
esac
if [[ $requirements == requirements.txt ]]; then kind=GPU; else kind=CPU; fi

lock_checkout

stamp=.venv/setup-stamp
now=$(stamp_of_now)
if [[ -z $now || ! -f $stamp || "$(<"$stamp")" != "$now" ]]; then
    make_venv || fail "found no Python 3.9, 3.10 or 3.11 (64-bit) that can make a virtual environment, \
nor a uv that can provide one; on Debian 12, apt-get install python3-venv brings it"
    python=.venv/bin/python
    "$python" -c "import ctypes; ctypes.CDLL('libgomp.so.1')" 2>/dev/null ||
        fail "MXNet needs the system library libgomp.so.1: on Debian or Ubuntu, apt-get install libgomp1"

    echo "Installing $requirements and requirements-dev.txt into .venv; this takes a few minutes."
    if "$python" -c "import pip, sys; sys.exit(int(pip.__version__.split('.')[0]) >= 21)"; then
        run_pip install pip==23.3.2  # an older one does not know the tags of some of these wheels
    fi
    run_pip install -r "$requirements" -r requirements-dev.txt

    # opencv-python needs libGL, which servers and containers often lack. Its headless twin has the same files
    # without that need; installed over it, pip's records still hold.
    if ! "$python" -c "import cv2" 2>/dev/null; then
        twin=$(sed -n 's/^opencv-python==\([^ ]*\).*/opencv-python-headless==\1/p' requirements-common.txt)
        run_pip install --no-deps --only-binary :all: "$twin"
    fi

    # A GPU set may be installed where there is no driver yet, as in the build of a container image.
    if [[ $kind == CPU ]] || driver_answers; then
        import="from base.runtime import prepare_mxnet; prepare_mxnet(); import mxnet"
        messages=$("$python" -c "$import" 2>&1) ||
            fail "MXNet is installed but does not import: ${messages##*$'\n'}"
    fi
    stamp_of_now >"$stamp.new"
    mv "$stamp.new" "$stamp"
fi

version=$(.venv/bin/python -c "import platform; print(platform.python_version())")
echo ".venv is ready (Python $version, $kind)"

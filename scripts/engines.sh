# What install_horovod.sh and install_byteps.sh share: an engine's wheel is built here against the MXNet in .venv,
# kept, and installed. Sourced by them, between the definitions of
#     package, version, sha256    its source package on PyPI
#     check                       Python code that fails where the installed engine does not work
#     require_tools               fails where the machine cannot build it
#     install_needs               installs what it needs in .venv, at run time and to be built
#     build                       builds the package unpacked in $source, with `make_wheel`
# and the call of install_engine.

source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"

# need TOOL PACKAGE: fails where there is no command TOOL.
need() {
    command -v "$1" >/dev/null || fail "building $package needs $1: on Debian or Ubuntu, apt-get install $2"
}

# need_header HEADER PACKAGE [FOLDER]: fails where the compiler does not find HEADER, in FOLDER or where it looks anyway.
need_header() {
    "$CXX" -E -x c++ ${3:+-I"$3"} -include "$1" /dev/null >/dev/null 2>&1 ||
        fail "building $package needs the header $1: on Debian or Ubuntu, apt-get install $2"
}

# Prints the folder of an installed CUDA 11 toolkit, nothing where there is none. MXNet is a build for CUDA 11, and
# one process cannot hold two releases of the CUDA runtime.
cuda_11_toolkit() {
    local nvcc folder
    nvcc=$(command -v nvcc || true)
    for folder in "${CUDA_HOME:-}" "${nvcc%/bin/nvcc}" /usr/local/cuda /usr/local/cuda-11*; do
        if grep -qs "^#define CUDART_VERSION *11" "$folder/include/cuda_runtime_api.h"; then
            echo "$folder"
            return
        fi
    done
}

# Makes $work/lib and $work/include out of pip's CUDA runtime and NCCL, which the engine will be run with, for compilers
# and linkers to find. The build imports MXNet without base/runtime.py; a CUDA MXNet then needs LD_LIBRARY_PATH.
link_cuda() {
    nvidia=$(.venv/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/nvidia
    mkdir "$work/lib"
    ln -s "$nvidia/cuda_runtime/lib/libcudart.so.11.0" "$work/lib/libcudart.so"
    ln -s "$nvidia/nccl/lib/libnccl.so.2" "$work/lib/libnccl.so"
    ln -s "$nvidia/nccl/include" "$work/include"
    LD_LIBRARY_PATH=$(printf "%s:" "$nvidia"/*/lib)${LD_LIBRARY_PATH:-$work/lib}
    export LD_LIBRARY_PATH
}

# Makes the wheel of the unpacked package $source in $work/wheel. Its thousands of lines go to .venv/PACKAGE-build.log.
make_wheel() {
    local log=.venv/$package-build.log
    if ! .venv/bin/python -m pip --disable-pip-version-check --no-input --verbose wheel \
        --no-deps --no-build-isolation --no-cache-dir --wheel-dir "$work/wheel" "$source" >"$log" 2>&1 </dev/null; then
        grep -E "(error|Error|ERROR|not found)\b" "$log" | head -n 20 >&2 || true
        fail "$package $version could not be built (its errors are above, all of its messages in $PWD/$log)"
    fi
}

# Ends the script with its good news.
ready() {
    echo "$package $version is ready for $mxnet"
    exit 0
}

install_engine() {
    local facts tag installed messages folder wheel wheels=${1:-${RAN_WHEELS:-}}
    [[ $# -le 1 && $wheels != -* ]] || fail "its only argument is a folder for wheels"
    if [[ -n $wheels && $wheels != /* ]]; then wheels=$PWD/$wheels; fi
    cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
    [[ -x .venv/bin/python ]] || fail "there is no .venv to install $package into: run scripts/setup.sh first"
    lock_checkout
    facts=$(.venv/bin/python - "$package" <<'PYTHON'
import sys
from importlib.metadata import distributions

installed = {d.metadata["Name"]: d.version for d in distributions()}
mxnet = next((f"{name}=={installed[name]}" for name in ("mxnet-cu112", "mxnet") if name in installed), "none")
print(sys.implementation.cache_tag, mxnet, installed.get(sys.argv[1], "none"))
PYTHON
    ) || fail ".venv is broken: run scripts/setup.sh"
    read -r tag mxnet installed <<<"$facts"
    [[ $mxnet != none ]] || fail "there is no MXNet in .venv: run scripts/setup.sh"
    if [[ $installed == "$version" ]] && .venv/bin/python -c "$check" >/dev/null 2>&1; then ready; fi

    # All that the wheel depends on. Another C library is another system, with other libraries to link against.
    folder=${wheels:+$wheels/$package-$({
        echo "$tag $mxnet $(getconf GNU_LIBC_VERSION)"
        cat "scripts/install_$package.sh" scripts/engines.sh requirements.txt requirements-common.txt
    } | sha256sum | cut -c1-16)}
    wheel=$(compgen -G "${folder:-/nowhere}/$package-*.whl" || true)
    if [[ -z $wheel ]]; then
        if [[ -n $folder ]]; then
            mkdir -p "$folder" 2>/dev/null && [[ -w $folder ]] || fail "cannot write to the folder for wheels, $folder"
        fi
        CXX=${CXX:-g++}
        need "$CXX" g++
        need make make
        need tar tar
        require_tools
        echo "Building $package $version against $mxnet; this takes a few minutes."
        install_needs
        messages=$(.venv/bin/python -c "from base.runtime import prepare_mxnet; prepare_mxnet(); import mxnet" 2>&1) ||
            fail "$package is built against MXNet, which does not import: ${messages##*$'\n'}"
        work=$(mktemp -d)
        trap 'rm -rf "$work"' EXIT
        echo "$package==$version --hash=sha256:$sha256" >"$work/requirement"
        run_pip download --no-deps --no-build-isolation --require-hashes --dest "$work" -r "$work/requirement"
        tar -xzf "$work/$package-$version.tar.gz" -C "$work"
        source=$work/$package-$version
        export CXX MAKEFLAGS="-j$(nproc)"
        build
        wheel=$(echo "$work/wheel/$package"-*.whl)
        if [[ -n $folder ]]; then  # whole or absent, whatever interrupts this
            rm -f "$folder"/.new-*
            cp "$wheel" "$folder/.new-$$"
            mv "$folder/.new-$$" "$folder/${wheel##*/}"
        fi
    else
        install_needs
    fi

    run_pip install --no-deps --force-reinstall "$wheel"
    messages=$(.venv/bin/python -c "$check" 2>&1) ||
        fail "$package $version is installed but does not work: ${messages##*$'\n'}"
    ready
}

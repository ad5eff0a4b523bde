#!/usr/bin/env bash
# Builds BytePS from its source package against the MXNet in .venv and installs it there, with the CUDA runtime and NCCL
# that it loads: on a machine without a GPU too, where a scheduler or a server may run. The headers of CUDA come from
# a CUDA 11 toolkit (CUDA_HOME, nvcc on PATH, /usr/local/cuda) or else from PyPI. RAN_WHEELS or the first argument names
# a folder in which the wheel is kept and looked for.
#
# scripts/setup.sh, where it makes .venv anew, loses what this has installed. Exit status 2: this machine lacks something.
set -euo pipefail

package=byteps
version=0.2.5.post15
sha256=9d6a3c5be4c4b5a172739744bb32725c433f9a9f63794e1885e7376ff4eea99f
cuda_compiler=nvidia-cuda-nvcc-cu11==11.8.89  # of which the headers crt/ are wanted
# byteps.server is not imported but its library loaded, since the import runs a server. No process is made for both
# libraries: they export the same names, and free the same things at the end.
check="
from base.runtime import prepare_mxnet
prepare_mxnet()
import ctypes, glob, os
import byteps
server = glob.glob(os.path.join(os.path.dirname(byteps.__file__), 'server', 'c_lib.*'))[0]
ctypes.CDLL(server).byteps_server
import byteps.mxnet
os._exit(0)"

source "$(dirname "${BASH_SOURCE[0]}")/engines.sh"

require_tools() {
    need_header numa.h libnuma-dev
    need_header Python.h python3-dev "$(.venv/bin/python -c "import sysconfig; print(sysconfig.get_path('include'))")"
}

# What it loads at run time: of the GPU requirements, which .venv may have been made without.
install_needs() {
    local pins
    mapfile -t pins < <(grep -E "^nvidia-(cuda-runtime|nccl)-cu11==" requirements.txt)
    run_pip install --no-deps --only-binary :all: "${pins[@]}"
}

build() {
    link_cuda
    local toolkit
    toolkit=$(cuda_11_toolkit)
    if [[ -z $toolkit ]]; then
        run_pip install --no-deps --only-binary :all: --target "$work/compiler" "$cuda_compiler"
        toolkit=$work/compiler/nvidia/cuda_nvcc
    fi
    CPATH=$toolkit/include$(printf ":%s" "$nvidia"/*/include)
    export CPATH

    export BYTEPS_WITH_MXNET=1 BYTEPS_WITHOUT_TENSORFLOW=1 BYTEPS_WITHOUT_PYTORCH=1
    export BYTEPS_CUDA_HOME=$work BYTEPS_NCCL_HOME=$work BYTEPS_NCCL_LINK=SHARED
    # ps-lite's makefile would fetch ZeroMQ from GitHub; the package carries the file.
    export WGET=cp ZMQ_URL="$source/zeromq-4.1.4.tar.gz ."
    # Headers that its sources use without including them: newer compilers want them named.
    export CXXFLAGS="-include memory -include string -include functional -include cstdint" ADD_CFLAGS
    ADD_CFLAGS=$CXXFLAGS
    # CI=true leaves the number of processes to MAKEFLAGS.
    export CI=true
    # A wheel for one kind of CPU would not do on the next machine; these extensions every one has had since 2013.
    sed -i "s/'-march=native', '-mno-avx512f'/'-mavx', '-mf16c', '-mfma'/" "$source/setup.py"
    # The libraries are found relative to the installed package: no LD_LIBRARY_PATH, and any .venv will do.
    local origin="\$ORIGIN/../.."
    local run_path=$origin/nvidia/cuda_runtime/lib:$origin/nvidia/nccl/lib:$origin/mxnet
    export LDSHARED="$CXX -pthread -shared -Wl,--no-as-needed -L$work/lib -lcudart -Wl,-rpath,$run_path"
    export LDCXXSHARED=$LDSHARED
    make_wheel
}

install_engine "$@"

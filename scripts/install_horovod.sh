#!/usr/bin/env bash
# Builds Horovod from its source package against the MXNet in .venv and installs it there: gloo with MXNet for the CPU,
# NCCL with MXNet for CUDA. RAN_WHEELS or the first argument names a folder in which the wheel is kept and looked for.
#
# scripts/setup.sh, where it makes .venv anew, loses what this has installed. Exit status 2: this machine lacks something.
set -euo pipefail

package=horovod
version=0.28.1
sha256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0
cmake=cmake==3.31.10  # where the system's is too old for Horovod or, from 4 on, too new for the gloo within it
check="
from base.runtime import prepare_mxnet
prepare_mxnet()
import horovod.mxnet as hvd
assert hvd.gloo_built(), 'it was built without gloo'
hvd.init()
assert hvd.size() >= 1"

source "$(dirname "${BASH_SOURCE[0]}")/engines.sh"

require_tools() {
    if [[ $mxnet == mxnet-cu112* ]]; then
        toolkit=$(cuda_11_toolkit)
        [[ -n $toolkit && -x $toolkit/bin/nvcc ]] || fail "building Horovod for GPUs needs the CUDA 11 toolkit with nvcc: install it and \
set CUDA_HOME (NVIDIA's packages on PyPI bring no nvcc)"
    fi
}

install_needs() {
    run_pip install -r requirements-engines.txt
}

build() {
    case "$(cmake --version 2>/dev/null)" in
        *" version 3.1"[3-9].* | *" version 3."[2-9][0-9].*) ;;
        *)
            run_pip install --no-deps --only-binary :all: --target "$work/cmake" "$cmake"
            export HOROVOD_CMAKE=$work/cmake/cmake/data/bin/cmake
            ;;
    esac
    export HOROVOD_WITH_MXNET=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1
    export HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_CPU_OPERATIONS=GLOO
    if [[ $mxnet == mxnet-cu112* ]]; then
        link_cuda
        export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_CUDA_HOME=$toolkit
        export HOROVOD_NCCL_HOME=$work HOROVOD_NCCL_LINK=SHARED
    fi
    make_wheel
}

install_engine "$@"

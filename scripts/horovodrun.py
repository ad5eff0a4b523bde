"""Horovod's launcher, for any MXNet: python -m scripts.horovodrun -np 2 --gloo COMMAND...

horovodrun imports MXNet to see what Horovod was built for, and takes one that does not import for a Horovod without
gloo. So the CUDA libraries that pip installed are loaded first. Workers told to stop have 30 seconds to save, not 5,
where /bin/sh is not bash; to what that starts, Horovod sends no SIGTERM. All flags are horovodrun's own.
"""

import os
import sys

from base.errors import UserError, report
from base.runtime import prepare_mxnet

PATIENCE = 30  # seconds between SIGTERM and SIGKILL for a worker that saves a checkpoint; Horovod's own are 5


def main():
    try:
        prepare_mxnet(dict(os.environ), use_gpus=False)  # a copy: the workers choose their threads themselves
        run_commandline = horovods_own()
    except UserError as error:
        sys.exit(report(error))
    run_commandline()


def horovods_own():
    """What horovodrun calls. Raises UserError where Horovod is not installed."""
    try:
        from horovod.runner.launch import run_commandline
    except ImportError as error:
        raise UserError(f"Horovod is missing ({error}): bash scripts/install_horovod.sh installs it") from None
    return run_commandline


def wait_for_checkpoints():
    """Have Horovod kill workers after `PATIENCE` only."""
    from horovod.runner.common.util import safe_shell_exec

    safe_shell_exec.GRACEFUL_TERMINATION_TIME_S = PATIENCE


if __name__ == "__mp_main__":  # in the process that Horovod starts for each worker, which is the one that kills it
    wait_for_checkpoints()
if __name__ == "__main__":
    main()

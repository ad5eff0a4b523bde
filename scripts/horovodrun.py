"""Horovod's launcher, for any MXNet: python -m scripts.horovodrun -np 2 --gloo COMMAND...

horovodrun imports MXNet to see what Horovod was built for, and takes one that does not import for a Horovod without
gloo. So the CUDA libraries that pip installed are loaded first. All flags are horovodrun's own.
"""

import os
import sys

from base.errors import UserError, report
from base.runtime import prepare_mxnet


def main():
    try:
        prepare_mxnet(dict(os.environ), use_gpus=False)  # a copy: the workers choose their threads themselves
    except UserError as error:
        sys.exit(report(error))
    from horovod.runner.launch import run_commandline

    run_commandline()


if __name__ == "__main__":
    main()

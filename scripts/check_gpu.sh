#!/usr/bin/env bash
# Tells whether everything holds on this machine's GPUs, without a data set, in some ten minutes (which nobody could
# time yet): a table, a line a check, a report to attach to an issue, and exit status 0 where nothing failed, else 1.
# scripts/check_gpu.sh --cpu checks on the CPU all that can be checked there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ -x .venv/bin/python ]] || scripts/setup.sh
exec .venv/bin/python -m scripts.check_gpu "$@"

#!/usr/bin/env bash
# Sets up .venv, checks format and lint, and runs the tests. With --quick as the first argument it runs only those that
# take less than a minute together, after each edit. Other arguments go to pytest, e.g. scripts/test.sh -k loader
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

chosen=()
if [[ ${1:-} == --quick ]]; then
    chosen=(-m "not slow")
    shift
fi

scripts/setup.sh # which does nothing where .venv is ready
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/python -m pytest ${chosen[@]+"${chosen[@]}"} "$@"

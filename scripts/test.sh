#!/usr/bin/env bash
# Sets up .venv, checks format and lint, and runs the tests. Arguments go to pytest, e.g. scripts/test.sh -k loader
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/python -m pytest "$@"

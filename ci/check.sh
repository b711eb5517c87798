#!/usr/bin/env bash
# Lint, types, tests in a fresh virtual environment. Used by .ci/run and by the workflow template.
# Pages are tested in Chromium where one is installed (Debian: apt-get install chromium), else these tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export VENV="$scratch/venv"
PYTHON=${PYTHON:-$(command -v python3.11 || command -v python3)}
export PYTHON
make setup
make lint
make types
make test

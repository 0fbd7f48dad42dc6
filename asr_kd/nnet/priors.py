"""Priors of the HMM states: how often each occurs in the training alignment."""

from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import write_text

# Log prior of a state that no frame has: beyond every beam at any acoustic scale, small enough for float32 sums.
NEVER = 1e4


def count_pdfs(pdf: np.ndarray, num_pdfs: int) -> np.ndarray:
    """Frames of each state, (num_pdfs,) int64; unlabelled frames (-1) do not count."""
    return np.bincount(pdf[pdf >= 0], minlength=num_pdfs)


def write_counts(path: str | Path, counts: np.ndarray) -> None:
    """Write counts as Kaldi's `ali_train_pdf.counts`: a text vector in brackets."""
    write_text(path, f" [ {' '.join(str(int(count)) for count in counts)} ]\n")


def read_log_priors(path: str | Path, floor: float) -> np.ndarray:
    """Log priors (num_pdfs,) float32 from a counts file, each prior at least `floor`.

    Raises AsrKdError if the file is not a vector of counts, or the floor is not above 0.
    """
    return _log_priors(read_counts(path), floor)


def read_decoding_priors(path: str | Path, floor: float, num_pdfs: int) -> np.ndarray:
    """The same to subtract from log posteriors before decoding: states that were never seen are never found.

    A net knows nothing of them, so that what it gives them, however little, would weigh much over a tiny prior: words
    of noise that no training transcript has would be heard. Kaldi's PdfPrior disables them likewise.

    Raises AsrKdError also where they are not of `num_pdfs` states.
    """
    counts = read_counts(path)
    if len(counts) != num_pdfs:
        raise AsrKdError(f"{path}: counts of {len(counts)} states, but the nets and the graph have {num_pdfs}")
    return np.where(counts > 0, _log_priors(counts, floor), NEVER).astype(np.float32)


def read_counts(path: str | Path) -> np.ndarray:
    """The counts (num_pdfs,) float64 of a file; raises AsrKdError if it is not a vector of counts."""
    try:
        counts = np.array(Path(path).read_text().strip().strip("[]").split(), dtype=np.float64)
    except (OSError, ValueError) as error:
        raise AsrKdError(f"{path}: not a vector of counts ({error})") from error
    if not len(counts) or (counts < 0).any() or not np.isfinite(counts).all() or counts.sum() == 0:
        raise AsrKdError(f"{path}: not a vector of counts")
    return counts


def _log_priors(counts: np.ndarray, floor: float) -> np.ndarray:
    if not 0 < floor < 1:
        raise AsrKdError(f"prior_floor {floor:g}: must be above 0 and below 1: a state never seen has it as its prior")
    priors = np.maximum(counts / counts.sum(), floor)
    return np.log(priors / priors.sum()).astype(np.float32)

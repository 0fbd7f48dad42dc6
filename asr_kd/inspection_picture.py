"""A picture of an utterance: its features over time, and its alignment beneath."""

from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.store.ali import FAILED, AliReader, require_fit
from asr_kd.store.atomic import atomic_path
from asr_kd.store.feats import FeatsReader
from asr_kd.store.kaldi_ark import read_matrices

FORMATS = (".png", ".svg", ".pdf")
# A phone has one colour wherever it is; the palette is light, for black letters on it.
_PHONE_COLOURS = "Pastel1"
_INCHES_PER_SECOND = 1.6
_MAX_INCHES = 40.0


def _runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(first frame, frame after the last, label) of each run of equal labels (num_frames,)."""
    bounds = np.flatnonzero(np.diff(labels)) + 1
    starts, ends = np.concatenate([[0], bounds]), np.concatenate([bounds, [len(labels)]])
    return [(int(start), int(end), int(labels[start])) for start, end in zip(starts, ends, strict=True)]


def _draw_phones(axes, ali: AliReader, rows: slice, seconds_per_frame: float) -> None:
    from matplotlib import colormaps

    colours = colormaps[_PHONE_COLOURS].colors
    for start, end, phone in _runs(ali.phone[rows]):
        if phone == FAILED:
            continue
        left, right = start * seconds_per_frame, end * seconds_per_frame
        axes.axvspan(left, right, facecolor=colours[phone % len(colours)], edgecolor="white", linewidth=1.0)
        axes.text((left + right) / 2, 0.5, ali.phones[phone], ha="center", va="center", fontsize=7, clip_on=True)
    axes.set_yticks([])
    axes.set_ylabel("phone", rotation=0, ha="right", va="center")


def _draw_states(axes, ali: AliReader, rows: slice, seconds_per_frame: float) -> None:
    pdf = np.where(ali.pdf[rows] == FAILED, np.nan, ali.pdf[rows])
    edges = np.arange(len(pdf) + 1) * seconds_per_frame
    axes.stairs(pdf, edges, baseline=None, color="black", linewidth=0.9)
    axes.set_ylim(-1, ali.num_pdfs)
    axes.set_ylabel("state")


def draw(feats: FeatsReader, utt_id: str, out: str | Path, ali: AliReader | None = None) -> None:
    """Draw the features of an utterance, and its phones and states if there is an alignment, into .png, .svg or .pdf.

    Time is in seconds from the start of the first window. Raises AsrKdError for an unknown utterance, an alignment
    that does not fit, or another kind of file.
    """
    if ali is not None:
        require_fit(ali.layout, feats.layout, (str(ali.path), str(feats.path)))
    seconds_per_frame = feats.layout.frame_shift_ms / 1000
    _draw(feats[utt_id], utt_id, out, feats.attrs["kind"], seconds_per_frame, ali, feats.layout.rows(utt_id))


def draw_matrix(rspecifier: str, utt_id: str | None, out: str | Path) -> str:
    """Draw a matrix of one of Kaldi's tables, the first one for None, over its frames; the id of what was drawn.

    Raises AsrKdError for an id that is not there, a table that is not of matrices, or another kind of picture.
    """
    for key, values in read_matrices(rspecifier):
        if utt_id in (None, key):
            _draw(values, key, out, "matrix", None)
            return key
    raise AsrKdError(f"{rspecifier}: " + ("holds nothing" if utt_id is None else f"has no utterance {utt_id!r}"))


def _draw(
    values: np.ndarray,
    utt_id: str,
    out: str | Path,
    kind: str,
    seconds_per_frame: float | None,
    ali: AliReader | None = None,
    rows: slice | None = None,
) -> None:
    """Draw values (num_frames, dim), and `rows` of an alignment; in frames where seconds are not known."""
    from matplotlib.figure import Figure

    out = Path(out)
    if out.suffix not in FORMATS:
        raise AsrKdError(f"{out}: pictures are drawn as {', '.join(FORMATS)}")
    duration = len(values) * (seconds_per_frame or 1)
    shown_s = len(values) * (seconds_per_frame or 0.01)
    heights = [3.0] + ([0.3] if ali is not None and ali.phone is not None else []) + ([1.0] if ali is not None else [])
    width = min(max(6.0, 1.5 + shown_s * _INCHES_PER_SECOND), _MAX_INCHES)
    figure = Figure(figsize=(width, 1.0 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    image = panels[0].imshow(
        values.T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0.0, duration, -0.5, values.shape[1] - 0.5),
        cmap="magma",
    )
    figure.colorbar(image, ax=panels[0], pad=0.01)
    panels[0].set_ylabel("mel bin" if kind == "fbank" else "dimension")
    panels[0].set_title(f"{utt_id} ({kind}, {len(values)} frames)", loc="left", fontsize=10)
    if len(panels) == 3:
        _draw_phones(panels[1], ali, rows, seconds_per_frame)
    if ali is not None:
        _draw_states(panels[-1], ali, rows, seconds_per_frame)
    panels[-1].set_xlabel("seconds" if seconds_per_frame else "frame")
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format=out.suffix[1:], dpi=120)

"""One utterance as the systems see it: its spectrogram, and under it words, phones and states on the same axis."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asr_kd.scoring.svg import INK, RULE, SERIES, drawing, to_svg
from asr_kd.scoring.word_times import Span

_RIGHT, _WRONG = SERIES[1], SERIES[2]
_SHADES = (0.18, 0.42)


@dataclass(frozen=True)
class Picture:
    """Brightness by time and frequency: values (num_bins, num_columns), columns every `step_s` seconds.

    `edges` (low, high) and `unit` label the frequency axis; scale: what brightness means.
    """

    values: np.ndarray
    step_s: float
    edges: tuple[float, float]
    unit: str
    scale: str


@dataclass(frozen=True)
class Tier:
    """A row under the spectrogram: spans of frames. wrong: which of them differ from the reference; None: no colour."""

    name: str
    spans: Sequence[Span]
    wrong: Sequence[bool] | None = None


@dataclass(frozen=True)
class UtteranceView:
    """What is drawn of an utterance, and the words about it."""

    utt_id: str
    system: str
    frame_shift_s: float
    num_frames: int
    picture: Picture
    tiers: Sequence[Tier]
    notes: Sequence[str] = field(default_factory=tuple)


def audio_picture(samples: np.ndarray, sample_rate: int) -> Picture:
    """Spectrogram in decibels below the maximum, with librosa: 25 ms Hann windows every 5 ms, 80 dB deep."""
    import librosa

    hop = max(1, sample_rate // 200)
    window = sample_rate // 40
    spectrum = librosa.stft(samples / 32768.0, n_fft=512, win_length=min(window, 512), hop_length=hop, center=True)
    decibels = librosa.amplitude_to_db(np.abs(spectrum), ref=np.max, top_db=80.0)
    return Picture(decibels, hop / sample_rate, (0.0, sample_rate / 2000.0), "kHz", "decibels")


def mel_picture(feats: np.ndarray, frame_shift_s: float) -> Picture:
    """The stored log-mel features (num_frames, num_mel_bins) themselves, where there is no audio or no librosa."""
    return Picture(feats.T, frame_shift_s, (0.0, float(feats.shape[1])), "mel filter", "log mel energy")


def differing(spans: Sequence[Span], labels: np.ndarray, names: Sequence[str]) -> list[bool]:
    """Whether most frames of each span have another label in `labels`, (num_frames,) indexes of `names`."""
    wrong = []
    for span in spans:
        inside = labels[span.start : span.stop]
        inside = inside[inside >= 0]
        wrong.append(not len(inside) or names[np.bincount(inside).argmax()] != span.label)
    return wrong


def utterance_plot(view: UtteranceView) -> str:
    """The view as an SVG; the spectrogram is a PNG within it."""
    seconds = view.num_frames * view.frame_shift_s
    with drawing():
        heights = [2.4, *(0.34 for _ in view.tiers)]
        width = float(np.clip(2.2 * seconds, 9.5, 24.0))
        figure = Figure(figsize=(width, 0.9 + sum(heights)), layout="constrained")
        figure.get_layout_engine().set(hspace=0.01, h_pad=0.02)
        top, *rows = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        _draw_picture(top, view.picture)
        for axes, tier in zip(rows, view.tiers, strict=True):
            _draw_tier(axes, tier, view.frame_shift_s, width / max(seconds, 1e-3))
        top.set_xlim(0, seconds)
        rows[-1].set_xlabel("seconds")
        rows[-1].tick_params(axis="x", bottom=True, labelbottom=True)
        return to_svg(figure, "utterance", f"Spectrogram of {view.utt_id} with words, phones and states")


def _draw_picture(axes: Axes, picture: Picture) -> None:
    num_columns = picture.values.shape[1]
    axes.imshow(
        picture.values,
        origin="lower",
        aspect="auto",
        cmap="Greys",
        interpolation="nearest",
        # A third of the picture is taken for background, however loud it is.
        vmin=np.percentile(picture.values, 33),
        extent=(0, num_columns * picture.step_s, *picture.edges),
    )
    axes.set_ylabel(picture.unit)
    axes.grid(visible=False)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)


def _draw_tier(axes: Axes, tier: Tier, frame_shift_s: float, inches_per_second: float) -> None:
    for i, span in enumerate(tier.spans):
        start, stop = span.start * frame_shift_s, span.stop * frame_shift_s
        wrong = tier.wrong is not None and tier.wrong[i]
        colour = RULE if tier.wrong is None else _WRONG if wrong else _RIGHT
        alpha = 1.0 if tier.wrong is None else _SHADES[i % 2] + (0.3 if wrong else 0.0)
        axes.axvspan(start, stop, ymin=0.06, ymax=0.94, facecolor=colour, alpha=alpha, edgecolor="none", linewidth=0)
        axes.axvline(start, color=INK, linewidth=0.4, alpha=0.5)
        # About 0.075 inch a letter at this size: what does not fit is left to the reader's eye.
        if span.label and (stop - start) * inches_per_second > 0.075 * len(span.label) + 0.03:
            axes.text((start + stop) / 2, 0.5, span.label, ha="center", va="center", fontsize=8, clip_on=True)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_ylabel(tier.name, rotation=0, ha="right", va="center", fontsize=8)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)

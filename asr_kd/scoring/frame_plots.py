"""The report's figures of single phones and of calibration."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from asr_kd.scoring.svg import DASHES, INK, SERIES, drawing, shared_legend, to_svg

# More phones than this are no longer read; those with the most frames are drawn.
MAX_PHONES = 60
MARKERS = "os^D"


def reliability_plot(calibrations: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    """Accuracy against confidence for each system, and where its frames lie (Guo et al. 2017, figure 4).

    calibrations: `calibration` of results.json by name of the system; colours: of SERIES, by name.
    """
    with drawing():
        figure = Figure(figsize=(8.4, 4.0), layout="constrained")
        curves, shares = figure.subplots(1, 2, width_ratios=[1.15, 1])
        curves.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=DASHES[2])
        curves.annotate("as sure as right", (70, 70), (66, 74), rotation=45, rotation_mode="anchor", fontsize=8)
        for i, (name, calibration) in enumerate(calibrations.items()):
            bins = {key: np.array(values) for key, values in calibration["bins"].items()}
            # Bins of a handful of frames are noise, not calibration.
            some = bins["num_frames"] >= max(10, 1e-4 * bins["num_frames"].sum())
            label = f"{name}: ECE {calibration['ece']:.2f} points"
            x, y = 100 * bins["confidence"][some], 100 * bins["accuracy"][some]
            curves.plot(x, y, color=colours[name], marker=MARKERS[i % len(MARKERS)], markersize=4, label=label)
            share = 100 * bins["num_frames"] / max(bins["num_frames"].sum(), 1)
            shares.stairs(
                share, 100 * bins["edges"], linewidth=1.4, color=colours[name], linestyle=DASHES[i % len(DASHES)]
            )
        curves.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence (%)", aspect="equal")
        curves.set_title("Accuracy (%) by confidence")
        shares.set(xlim=(0, 100), xlabel="confidence (%)")
        shares.set_title("Share of frames (%)")
        shared_legend(figure, columns=2)
        return to_svg(figure, "reliability", "Reliability diagram: accuracy by confidence")


def phone_gains_plot(per_phone: Sequence[Mapping[str, Any]], reference: str, colours: Mapping[str, str]) -> str:
    """Gain of each system over the reference in each phone, sorted by the first system's, with intervals and counts.

    per_phone: as in results.json; colours: of SERIES, by name of the systems that are drawn.
    """
    names = list(colours)
    rows = sorted(per_phone, key=lambda row: -row["num_frames"])[:MAX_PHONES]
    rows = sorted(rows, key=lambda row: -row["gain"][names[0]]["difference"])
    with drawing():
        figure = Figure(figsize=(8.4, 1.3 + 0.21 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8)
        step = 0.5 / len(names)
        for i, name in enumerate(names):
            y = np.arange(len(rows)) + (i - (len(names) - 1) / 2) * step
            gains = [row["gain"][name] for row in rows]
            axes.hlines(y, *np.transpose([gain["ci95"] for gain in gains]), color=colours[name], linewidth=1.1)
            marker, middles = MARKERS[i % len(MARKERS)], [gain["difference"] for gain in gains]
            axes.plot(middles, y, marker, markersize=4, color=colours[name], label=name)
        axes.set_yticks(range(len(rows)), [row["phone"] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"Gain over {reference} (points), largest first; right: frames")
        counts = axes.secondary_yaxis("right")
        counts.set_yticks(range(len(rows)), [f"{row['num_frames']:,}".replace(",", " ") for row in rows], fontsize=7.5)
        counts.tick_params(length=0)
        counts.spines["right"].set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        shared_legend(figure)
        return to_svg(figure, "phones", f"Gain over {reference} by phone")


def series_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each of some systems without roles, in turn."""
    return {name: SERIES[i % len(SERIES)] for i, name in enumerate(names)}


def phone_matrix_svg(matrix: Mapping[str, Any], name: str, cell: int = 17) -> str:
    """Heat map of phone confusions: rows are true phones, columns the phones of predicted states.

    matrix: `phone_matrix` of results.json. What is right (the diagonal) is drawn apart, so that the shades serve the
    errors; a cell tells its figures when it is pointed at.
    """
    phones, percent = matrix["phones"], np.array(matrix["percent"], dtype=float)
    wrong = percent - np.diag(np.diag(percent))
    darkest = max(float(wrong.max(initial=0.0)), 1e-9)
    left, top = 8 + 7 * max(map(len, phones)), 14 + 7 * max(map(len, phones))
    size = cell * len(phones)
    parts = []
    for r, c in np.argwhere(percent >= 0.25).tolist():
        box = f'x="{left + c * cell}" y="{top + r * cell}" width="{cell - 1}" height="{cell - 1}"'
        if r == c:
            fill = 'fill="none" stroke="currentColor" stroke-opacity="0.35"'
        else:
            fill = f'fill="var(--series-2)" fill-opacity="{max(0.06, (percent[r, c] / darkest) ** 0.6):.2f}"'
        title = f"{phones[r]} taken for {phones[c]}: {percent[r, c]:.1f} % of its frames"
        title = title if r != c else f"{phones[r]}: right phone in {percent[r, c]:.1f} % of its frames"
        parts.append(f"<rect {box} {fill}><title>{escape(title)}</title></rect>")
    for i, phone in enumerate(map(escape, phones)):
        middle = i * cell + cell * 0.72
        parts.append(f'<text x="{left - 4}" y="{top + middle:.0f}" text-anchor="end">{phone}</text>')
        x = left + middle
        parts.append(f'<text x="{x:.0f}" y="{top - 4}" transform="rotate(-90 {x:.0f} {top - 4})">{phone}</text>')
    width, height = left + size + 4, top + size + 4
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" class="natural" '
        f'aria-label="Confusions among phones, {escape(name)}" font-size="10.5" fill="currentColor" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )

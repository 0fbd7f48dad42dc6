"""The report's figures of systems as a whole: scores, learning curves, sweep."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from asr_kd.scoring.svg import DASHES, INK, NUM_SERIES, ROLE_COLOURS, SERIES, drawing, shared_legend, to_svg


def systems_plot(systems: Sequence[Mapping[str, Any]]) -> str:
    """Frame accuracy and WER of every system: mean over seeds with its interval, and a ring for each seed."""
    with drawing():
        figure = Figure(figsize=(10.5, 0.7 + 0.34 * len(systems)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, metric, title in zip(
            panels, ("frame_accuracy", "wer"), ("Frame accuracy (%)", "Word error rate (%)"), strict=True
        ):
            for y, system in enumerate(systems):
                score, colour = system[metric], ROLE_COLOURS[system["role"]]
                axes.plot(score["ci95"], [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
                if len(score["per_seed"]) > 1:
                    seeds = score["per_seed"]
                    axes.plot(seeds, [y] * len(seeds), "o", markersize=6.5, markerfacecolor="none", color=colour)
                axes.plot([score["value"]], [y], "o", color=colour, markersize=4.5)
            axes.set_title(title)
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        panels[0].set_yticks(range(len(systems)), [system["name"] for system in systems])
        panels[0].set_ylim(len(systems) - 0.5, -0.5)
        return to_svg(figure, "systems", "Frame accuracy and word error rate of every system with intervals")


def curve_group(net_name: str) -> str:
    """What nets that differ in seed or number share: `member-3` → member, `baseline seed 2` → baseline."""
    return re.sub(r"([\s._/-]*(seed)?[\s._-]*\d+)+$", "", net_name) or net_name


def curves_plot(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Dev frame accuracy, dev cross-entropy and training loss by epoch; nets of one group share a colour."""
    styles = _group_styles(list(dict.fromkeys(map(curve_group, curves))))
    panels = [
        (("dev_frame_acc",), "Frame accuracy on dev (%)"),
        (("dev_loss", "dev_xent"), "Cross-entropy on dev (nats)"),
        (("train_loss",), "Training loss"),
    ]
    with drawing():
        figure = Figure(figsize=(10.5, 3.3), layout="constrained")
        for axes, (keys, title) in zip(figure.subplots(1, 3), panels, strict=True):
            for name, rows in curves.items():
                group = curve_group(name)
                _plot_curve(axes, rows, keys, group, styles[group])
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        shared_legend(figure)
        return to_svg(figure, "curves", "Learning curves")


def _group_styles(groups: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """(colour, dashes) of each group: that of its role; variants of a role (`baseline-long`) differ in their dashes."""
    roles: dict[str | None, list[str]] = {}
    for group in groups:
        role = next((role for role in ROLE_COLOURS if re.match(rf"{role}([\W_]|$)", group)), None)
        roles.setdefault(role, []).append(group)
    free = [colour for role, colour in ROLE_COLOURS.items() if role not in roles] or SERIES
    styles = {}
    for role, members in roles.items():
        for i, group in enumerate(members):
            colour = ROLE_COLOURS[role] if role else free[i % len(free)]
            dashes = i if role else i // len(free)
            styles[group] = (colour, DASHES[dashes % len(DASHES)])
    return styles


def _plot_curve(
    axes: Axes, rows: Sequence[Mapping[str, float]], keys: Sequence[str], group: str, style: tuple[str, Any]
) -> None:
    key = next((key for key in keys if rows and key in rows[0]), None)
    if key is None:
        return
    axes.plot(
        [row["epoch"] for row in rows],
        [row[key] for row in rows],
        color=style[0],
        linestyle=style[1],
        linewidth=1.2,
        marker="." if len(rows) == 1 else None,
        label=group,
    )


def sweep_plot(sweep: Sequence[Mapping[str, Any]]) -> str:
    """Dev frame accuracy and cross-entropy against temperature, a line for each mean and weight, the best marked."""
    lines: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in sorted(sweep, key=lambda row: row["temperature"]):
        lines.setdefault((sweep_mean(row), row["soft_weight"]), []).append(row)
    metrics = [("dev_frame_acc", "Frame accuracy on dev (%)", max), ("dev_xent", "Cross-entropy on dev (nats)", min)]
    metrics = [metric for metric in metrics if all(row.get(metric[0]) is not None for row in sweep)]
    with drawing():
        figure = Figure(figsize=(10.5 if len(metrics) > 1 else 5.5, 3.1), layout="constrained")
        for axes, (key, title, better) in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            for i, ((mean, weight), rows) in enumerate(lines.items()):
                axes.plot(
                    [row["temperature"] for row in rows],
                    [row[key] for row in rows],
                    "o",
                    linestyle=DASHES[i // NUM_SERIES % len(DASHES)],
                    markersize=4,
                    color=SERIES[i % NUM_SERIES],
                    label=f"{mean + ' mean, ' if mean else ''}soft weight {weight:g}",
                )
            best = better(sweep, key=lambda row, key=key: row[key])
            axes.plot([best["temperature"]], [best[key]], "o", markersize=11, markerfacecolor="none", color=INK)
            axes.set_title(title)
            _temperature_axis(axes, sorted({row["temperature"] for row in sweep}))
        shared_legend(figure)
        return to_svg(figure, "sweep", "Dev scores of students by temperature and soft weight")


def sweep_mean(row: Mapping[str, Any]) -> str:
    """Which mean of the teachers a row of the sweep used: its key is `mean` or, as in the options, `combination`."""
    return str(row.get("mean") or row.get("combination") or "")


def _temperature_axis(axes: Axes, temperatures: Sequence[float]) -> None:
    axes.set_xlabel("temperature")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(temperatures))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.margins(x=0.08, y=0.14)

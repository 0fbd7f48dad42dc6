"""The report of score-frames: scores.json, tables, and a self-contained page of the same parts as an experiment's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from asr_kd.scoring import report_tables
from asr_kd.scoring.frame_detail import FrameDetail
from asr_kd.scoring.frame_plots import phone_gains_plot, phone_matrix_svg, reliability_plot, series_colours
from asr_kd.scoring.report import write_page
from asr_kd.scoring.tables import NBSP, write_tables


def write_frame_report(
    out_dir: str | Path, results: Mapping[str, Any], details: Mapping[str, FrameDetail], command: str
) -> None:
    """Write out_dir/scores.json, out_dir/tables/ and out_dir/index.html, which loads nothing.

    results: of build_frame_results, with `run`; details: by name of the system; command: what made it.
    """
    names = [system["name"] for system in results["systems"]]
    tables = {
        "systems": report_tables.frame_systems_table(results),
        "comparisons": report_tables.comparisons_table(results),
        "phones": report_tables.phones_table(results, names[0]),
    }
    confusions = {name: _confusion_tables(name, results["confusions"][name]) for name in names}
    states = report_tables.states_table(details)
    every = [*tables.values(), *(table for both in confusions.values() for table in both), states]
    write_tables(Path(out_dir) / "tables", every)
    write_page(out_dir, "frame_report.html.j2", results, command, **_parts(results, tables, confusions))


def _confusion_tables(name: str, confusions: Mapping[str, Any]) -> list[report_tables.Table]:
    return [
        report_tables.phone_confusions_table(name, confusions),
        report_tables.state_confusions_table(name, confusions),
    ]


def _parts(
    results: Mapping[str, Any],
    tables: Mapping[str, report_tables.Table],
    confusions: Mapping[str, list[report_tables.Table]],
) -> dict[str, Any]:
    colours = series_colours(list(confusions))
    first, *others = colours
    last = [first, *others][-1]
    matrix = results["confusions"][last]["phone_matrix"]
    calibrations = {system["name"]: system["calibration"] for system in results["systems"]}
    gains = None
    if others and results["per_phone"]:
        gains = phone_gains_plot(results["per_phone"], first, {name: colours[name] for name in others})
    return {
        "headline": headline(results),
        "tables": tables,
        "reliability_svg": Markup(reliability_plot(calibrations, colours)),
        "phones_svg": gains and Markup(gains),
        "confusion_tables": confusions[last],
        "matrix_svg": Markup(phone_matrix_svg(matrix, last)) if matrix else None,
        "matrix_name": last,
        "undercount": results["confusions"][last]["max_undercount"],
    }


def headline(results: Mapping[str, Any]) -> str:
    """One sentence: the accuracy of a single system, or which of several is best and how sure that is."""

    def claim(names: Sequence[str], value: float) -> str:
        verb = "classify" if len(names) > 1 else "classifies"
        return f"{report_tables.joined(names)} {verb} {value:.2f}{NBSP}% of the frames correctly"

    return report_tables.best_sentence(results, "frame_accuracy", claim, "there is no difference in accuracy")


def results_text(results: Mapping[str, Any]) -> str:
    """The scores and comparisons as lines for a terminal."""
    lines = []
    for table in (report_tables.frame_systems_table(results), report_tables.comparisons_table(results)):
        if not table.rows:
            continue
        cells = [[column.header for column in table.columns]]
        cells += [[" ".join(filter(None, cell)) for cell in table.cells(row)] for row in table.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        lines.append("")
    return "\n".join(line.rstrip() for line in lines)

"""The tables of a report, made from results.json (or from the results of score-frames)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from asr_kd.scoring.frame_detail import FrameDetail
from asr_kd.scoring.tables import (
    NBSP,
    Column,
    Row,
    Table,
    equal_or_less,
    format_count,
    format_mean_count,
    format_number,
    format_p_value,
    format_points,
    format_share,
)

ROLE_ORDER = ("baseline", "ensemble", "student", "specialists", "control", "member")
METRIC_NAMES = {
    "frame_accuracy": "frame accuracy",
    "frame_accuracy_nonsil": "frame accuracy without silence",
    "frame_accuracy_top5": "top-5 frame accuracy",
    "cross_entropy": "cross-entropy",
    "wer": "word error rate",
    "per": "phone error rate",
}
# Of results that count letters as their phones (results["per_unit"]).
_LETTER_NAMES = {"per": "letter error rate"}
_PERCENT, _NATS = format_number(2), format_number(3)
_FRAME_COLUMNS = (
    Column("frame_accuracy", "Frame accuracy %", _PERCENT, interval=True),
    Column("frame_accuracy_nonsil", "without silence %", _PERCENT, interval=True),
    Column("frame_accuracy_top5", "top-5 %", _PERCENT, interval=True),
)


def metric_names(results: Mapping[str, Any]) -> Mapping[str, str]:
    """What the metrics of these results are called."""
    return METRIC_NAMES | (_LETTER_NAMES if results.get("per_unit") == "letter" else {})


def _per_column(results: Mapping[str, Any]) -> Column:
    return Column("per", f"{metric_names(results)['per'][0].upper()}ER %", _PERCENT, interval=True)


def _oov_sentence(results: Mapping[str, Any]) -> str:
    """How many words of the references no system can recognise; empty where that is not known."""
    oov = results.get("oov")
    if oov is None:
        return ""
    return f" {100 * oov['share']:.1f} % of the words are not in the recogniser’s vocabulary and can only be wrong."


def format_seconds(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def with_values(table: Table) -> Table:
    """The table without the columns that no row has a value for."""
    kept = [c for c in table.columns if any(row.cells.get(c.key) is not None for row in table.rows)]
    return Table(table.name, table.caption, kept, table.rows)


def systems_table(results: Mapping[str, Any]) -> Table:
    """Every system with its scores; headline systems are set off."""
    columns = (
        Column("name", "System", text=True),
        Column("role", "Role", text=True),
        *_FRAME_COLUMNS,
        Column("cross_entropy", "Cross-entropy", _NATS),
        Column("ece", "ECE, points", _PERCENT),
        Column("wer", "WER %", _PERCENT, interval=True),
        Column("errors", "ins / del / sub"),
        _per_column(results),
    )
    rows = []
    for system in _by_role(results):
        cells = {column.key: system.get(column.key) for column in columns}
        cells["errors"] = " / ".join(map(format_mean_count, system["wer"]["mean"].values()))
        cells["ece"] = system["calibration"]["ece"] if system.get("calibration") else None
        rows.append(Row(cells, _system_note(system), system["name"] in results["headline"].values()))
    caption = (
        f"{results['recipe']} ({results['preset']}), {results['split']} set: scores, means over seeds, with 95 % "
        f"intervals for {scope_of_tests(results)}. Cross-entropy in nats per frame; ECE: expected calibration error; "
        f"insertions, deletions and substitutions are means over seeds, too.{_oov_sentence(results)}"
    )
    return with_values(Table("systems", caption, columns, rows))


def cost_table(results: Mapping[str, Any]) -> Table:
    """Size of every system, and the time that its training and its decoding take."""
    columns = (
        Column("name", "System", text=True),
        Column("num_members", "Nets", format_count),
        Column("num_seeds", "Seeds", format_count),
        Column("parameters_m", "Parameters, M", format_number(2)),
        Column("decode_rtf", "Decoding RTF", format_number(3)),
        Column("train_frames_per_second", "Training frames/s", format_count),
        Column("train_seconds", "Training time", format_seconds),
    )
    rows = []
    for system in _by_role(results):
        cells = {"parameters_m": system["num_parameters"] / 1e6, "num_seeds": len(system["seeds"])}
        rows.append(Row({**system, **cells}, marked=system["name"] in results["headline"].values()))
    caption = (
        "What systems cost. Parameters: of all nets that answer together; RTF: seconds of decoding for a second of "
        "speech, forward pass included; training: of one net a second, and of all nets of a seed."
    )
    return Table("cost", caption, columns, rows)


def _by_role(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(results["systems"], key=lambda system: ROLE_ORDER.index(system["role"]))


def summary_table(results: Mapping[str, Any]) -> Table:
    """Baseline, ensemble and student, in as few columns as a paper has room for."""
    columns = (
        Column("role", "", text=True),
        Column("name", "System", text=True),
        Column("num_members", "Nets", format_count),
        Column("parameters_m", "Parameters, M", format_number(2)),
        Column("frame_accuracy", "Frame accuracy %", _PERCENT, interval=True),
        Column("cross_entropy", "Cross-entropy", _NATS),
        Column("wer", "WER %", _PERCENT, interval=True),
        *([_per_column(results)] if all(system["per"] for system in headline_systems(results)) else []),
        Column("share", "Share of gain kept", format_share, interval=True),
    )
    by_name = {system["name"]: system for system in results["systems"]}
    gain = results["gain_recovered"]["frame_accuracy"]
    rows = []
    for role, name in results["headline"].items():
        cells = {**by_name[name], "role": role, "parameters_m": by_name[name]["num_parameters"] / 1e6}
        kept = role == "student" and gain["value"] is not None
        rows.append(Row({**cells, "share": gain if kept else None}))
    caption = (
        f"{results['recipe']} ({results['preset']}), {results['split']} set: baseline, ensemble and student with 95 % "
        f"intervals for {scope_of_tests(results)}; the share is of the gain in frame accuracy, its interval for "
        f"{scope_of_share(results)}.{_oov_sentence(results)}"
    )
    return Table("summary", caption, columns, rows)


def _system_note(system: Mapping[str, Any]) -> str:
    notes = []
    if system["num_members"] > 1:
        notes.append(f"{system['num_members']} nets")
        notes += [system["combination"]] if system["combination"] else []
    if len(system["seeds"]) > 1:
        notes.append(f"{len(system['seeds'])} seeds")
    return ", ".join(notes)


def seeds_table(results: Mapping[str, Any]) -> Table:
    """Frame accuracy and WER of each seed of the systems that have several."""
    columns = (
        Column("name", "System", text=True),
        Column("seed", "Seed"),
        Column("frame_accuracy", "Frame accuracy %", _PERCENT),
        Column("wer", "WER %", _PERCENT),
    )
    rows = [
        Row({"name": s["name"], "seed": seed, **{m: s[m]["per_seed"][i] for m in ("frame_accuracy", "wer")}})
        for s in results["systems"]
        if len(s["seeds"]) > 1
        for i, seed in enumerate(s["seeds"])
    ]
    return Table("seeds", "Scores of each seed.", columns, rows)


def scope_of_tests(results: Mapping[str, Any]) -> str:
    """What intervals and p values of scores and of their differences speak of."""
    return f"other {results['resampling_unit']}s and these seeds"


def scope_of_share(results: Mapping[str, Any]) -> str:
    """What intervals of the share kept, and of the gain that it is a share of, speak of."""
    seeds = {len(system["seeds"]) for system in headline_systems(results)} - {1}
    if not seeds:
        return scope_of_tests(results)
    known = f", whose variance rests on {min(seeds)} seeds" if min(seeds) < 3 else ""
    return f"other {results['resampling_unit']}s and other seeds{known}"


def headline_systems(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Entries of baseline, ensemble and student."""
    by_name = {system["name"]: system for system in results["systems"]}
    return [by_name[name] for name in results["headline"].values()]


def joined(names: Sequence[str]) -> str:
    """Names as they stand in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def find_test(results: Mapping[str, Any], a: str, b: str, metric: str) -> Mapping[str, Any] | None:
    """The bootstrap test of two systems, whichever comes first; None where there was none."""
    for test in results["comparisons"]:
        if {test["a"], test["b"]} == {a, b} and (test["metric"], test["test"]) == (metric, "paired bootstrap"):
            return test
    return None


def best_sentence(
    results: Mapping[str, Any], metric: str, claim: Callable[[Sequence[str], float], str], no_difference: str
) -> str:
    """The score of a single system, or which of several is best and how sure that is.

    metric: "frame_accuracy", or "wer", of which less is better. claim: that systems of these names have a score, in
    percent, without a full stop; no_difference: what is said where all systems have the same.
    """
    sign, more = (-1, "more") if metric == "frame_accuracy" else (1, "less")
    systems = sorted(results["systems"], key=lambda system: sign * system[metric]["value"])
    best = systems[0][metric]
    level = [system["name"] for system in systems if abs(system[metric]["value"] - best["value"]) < 1e-6]
    text = claim(level, best["value"])
    if len(level) == len(systems):
        if len(systems) == 1 and best["ci95"]:
            return text + f" (95{NBSP}% interval {best['ci95'][0]:.2f} to {best['ci95'][1]:.2f})."
        return text + (f": {no_difference}." if len(systems) > 1 else ".")
    second = systems[len(level)]
    text += f", {abs(second[metric]['value'] - best['value']):.2f} points {more} than {second['name']}"
    test = find_test(results, level[0], second["name"], metric)
    return text + (f" (paired bootstrap, p{NBSP}{equal_or_less(test['p_value'])})." if test else ".")


def gain_table(results: Mapping[str, Any], share_claimed: float) -> Table:
    """Share of the ensemble's gain that the student keeps."""
    columns = (
        Column("metric", "Metric", text=True),
        Column("ensemble_minus_baseline", "Ensemble − baseline, points", format_points, interval=True),
        Column("share", "Share kept", format_share, interval=True),
        Column("p", f"p of “at least {format_share(share_claimed)}”", format_p_value),
        Column("shortfall", "Student short of the ensemble, points", format_points),
    )
    rows = []
    for metric, gain in results["gain_recovered"].items():
        share = None if gain["value"] is None else {"value": gain["value"], "ci95": gain["ci95"]}
        cells = {"metric": METRIC_NAMES[metric], "share": share, "p": gain["p_at_least_086"]}
        cells |= {"shortfall": gain["shortfall_points"], "ensemble_minus_baseline": gain["ensemble_minus_baseline"]}
        rows.append(Row(cells, gain["reason"] or ""))
    caption = (
        "Share of the ensemble’s gain over the baseline that the student keeps. 95 % intervals (of the share by "
        f"Fieller) for {scope_of_share(results)}."
    )
    return Table("gain", caption, columns, rows)


def comparisons_table(results: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Table:
    """Every test, those that were refused last; `names` are those of the metrics, if not the usual ones."""
    names = names or metric_names(results)
    columns = (
        Column("a", "System", text=True),
        Column("b", "minus", text=True),
        Column("metric", "Metric", text=True),
        Column("difference", "Difference", format_points, interval=True),
        Column("p_value", "p", format_p_value),
        Column("test", "Test", text=True),
        Column("n", "on", format_count),
        Column("unit", "", text=True),
    )
    rows = []
    for test in [*results["comparisons"], *results.get("refused_tests", [])]:
        cells = {**test, "metric": names[test["metric"]]}
        cells["unit"] = "segments" if test["test"] == "MAPSSWE" else f"{results['resampling_unit']}s"
        cells["difference"] = {"difference": test["difference"], "ci95": test["ci95"]}
        if test["metric"] == "cross_entropy":
            cells["metric"] += " (nats)"
        significant = test["p_value"] is not None and test["p_value"] < 0.05
        rows.append(Row(cells, test.get("reason", ""), significant))
    caption = (
        "Differences between systems in points; 95 % intervals and two-sided p values, not corrected for their number, "
        f"for {scope_of_tests(results)}."
    )
    return Table("comparisons", caption, columns, rows)


def sweep_table(sweep: Sequence[Mapping[str, Any]]) -> Table:
    """Settings of the student tried on dev, the best first."""
    columns = (
        Column("mean", "Mean", text=True),
        Column("temperature", "Temperature", format_number(1)),
        Column("soft_weight", "Soft weight", format_number(2)),
        Column("dev_frame_acc", "Dev frame accuracy %", _PERCENT),
        Column("dev_xent", "Dev cross-entropy", format_number(4)),
    )
    ordered = sorted(sweep, key=lambda row: -row["dev_frame_acc"])
    rows = [Row({**row, "mean": row.get("mean") or row.get("combination")}) for row in ordered]
    return with_values(Table("sweep", "Students tried on dev, by frame accuracy, means over seeds.", columns, rows))


def phones_table(results: Mapping[str, Any], reference: str) -> Table:
    """Accuracy by phone and the gains over `reference`, the largest gain of the first other system first."""
    phones = results.get("per_phone", [])
    names = [name for name in (phones[0]["accuracy"] if phones else {}) if name != reference]
    columns = [
        Column("phone", "Phone", text=True),
        Column("num_frames", "Frames", format_count),
        *(Column(f"accuracy {name}", f"{name} %", _PERCENT) for name in (reference, *names)),
        *(Column(f"gain {name}", f"{name} less {reference}", format_points, interval=True) for name in names),
    ]
    ordered = sorted(phones, key=lambda row: -row["gain"][names[0]]["difference"]) if names else phones
    rows = [
        Row(
            {"phone": row["phone"], "num_frames": row["num_frames"]}
            | {f"accuracy {name}": value for name, value in row["accuracy"].items()}
            | {f"gain {name}": value for name, value in row["gain"].items()}
        )
        for row in ordered
    ]
    caption = "Share of each phone’s frames whose state is right, and gains in points with 95 % intervals."
    return Table("phones", caption, columns, rows)


def state_confusions_table(name: str, confusions: Mapping[str, Any]) -> Table:
    """The most frequent confusions among states of the system called `name`."""
    columns = (
        Column("label", "State", text=True),
        Column("label_phone", "Phone", text=True),
        Column("predicted", "taken for state", text=True),
        Column("predicted_phone", "Phone", text=True),
        Column("num_frames", "Frames", format_count),
        Column("share", "% of the state", _PERCENT),
    )
    rows = [Row(row) for row in confusions["states"]]
    caption = f"Most frequent confusions among states, {name}."
    return with_values(Table(f"confusions-states-{name}", caption, columns, rows))


def phone_confusions_table(name: str, confusions: Mapping[str, Any]) -> Table:
    """The most frequent confusions among phones of the system called `name`."""
    columns = (
        Column("label", "Phone", text=True),
        Column("predicted", "taken for", text=True),
        Column("num_frames", "Frames", format_count),
        Column("share", "% of the phone", _PERCENT),
    )
    caption = f"Most frequent confusions among phones, by the phone of the predicted state, {name}."
    return Table(f"confusions-phones-{name}", caption, columns, [Row(row) for row in confusions["phones"]])


def frame_systems_table(results: Mapping[str, Any]) -> Table:
    """Systems of score-frames."""
    columns = (
        Column("name", "System", text=True),
        *_FRAME_COLUMNS,
        Column("cross_entropy", "Cross-entropy", _NATS, interval=True),
        Column("ece", "ECE", _PERCENT),
        Column("ece_equal_mass", "ECE, equal mass", _PERCENT),
        Column("max_error", "Largest error", _PERCENT),
        Column("mean_confidence", "Mean confidence %", _PERCENT),
    )
    rows = []
    for system in results["systems"]:
        note = f"{system['num_seeds']} seeds" if system["num_seeds"] > 1 else ""
        rows.append(Row({**system, **system["calibration"]}, note))
    caption = (
        "Frame scores with 95 % intervals. Cross-entropy in nats per frame; calibration errors (ECE: expected "
        "calibration error) in points."
    )
    return Table("systems", caption, columns, rows)


def states_table(details: Mapping[str, FrameDetail]) -> Table:
    """Every state: its phone, frames, and the accuracy of each system; long, so for its CSV only."""
    first = next(iter(details.values()))
    columns = [
        Column("state", "State"),
        Column("phone", "Phone", text=True),
        Column("num_frames", "Frames", format_count),
        *(Column(name, f"{name} %", _PERCENT) for name in details),
    ]
    accuracies = {name: detail.state_accuracy for name, detail in details.items()}
    rows = []
    for state, num_frames in enumerate(first.state_frames.tolist()):
        phone = first.state_phone[state]
        cells = {"state": state, "phone": first.phones[phone] if phone >= 0 else None, "num_frames": num_frames}
        cells |= {
            name: None if np.isnan(values[state]) else float(values[state]) for name, values in accuracies.items()
        }
        rows.append(Row(cells))
    return Table("states", "Accuracy of every state.", columns, rows)

"""The report of an experiment: results.json for programs; a self-contained HTML page, tables and RESULTS.md rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from asr_kd.scoring import report_tables
from asr_kd.scoring.frame_detail import FrameDetail
from asr_kd.scoring.frame_plots import phone_gains_plot, phone_matrix_svg, reliability_plot
from asr_kd.scoring.plots import curves_plot, sweep_plot, systems_plot
from asr_kd.scoring.report_tables import METRIC_NAMES, ROLE_ORDER
from asr_kd.scoring.results import check_results
from asr_kd.scoring.schema import HEADLINE
from asr_kd.scoring.significance import SHARE_CLAIMED
from asr_kd.scoring.svg import ROLE_COLOURS
from asr_kd.scoring.tables import NBSP, Table, equal_or_less, format_count, format_points, format_share, write_tables
from asr_kd.scoring.utterance_plot import UtteranceView, utterance_plot
from asr_kd.store.atomic import write_json, write_text

RESULTS_HEADER = (
    "| recipe | system | nets | parameters | frame accuracy % | WER % | cross-entropy | share of the gain kept |\n"
    "|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class ReportContext:
    """What a report shows beside the results; everything may be left out.

    curves: net name → rows with epoch, train_loss, dev_loss (or dev_xent), dev_frame_acc in percent, learning_rate.
    sweep: rows with temperature, soft_weight, mean (or combination), dev_frame_acc in percent, dev_xent.
    config, run_info: shown as they are; commands: the lines that made the results, in order.
    details: of the headline systems by name, for the table of states; utterance: the one to draw.
    """

    curves: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    sweep: Sequence[Mapping[str, Any]] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    run_info: Mapping[str, Any] = field(default_factory=dict)
    commands: Sequence[str] = ()
    details: Mapping[str, FrameDetail] = field(default_factory=dict)
    utterance: UtteranceView | None = None


def write_report(out_dir: str | Path, results: Mapping[str, Any], context: ReportContext) -> None:
    """Write out_dir/results.json, out_dir/tables/ (CSV and LaTeX) and out_dir/index.html, which loads nothing.

    Raises AsrKdError where `results` does not follow the schema, or the folder cannot be written.
    """
    check_results(results)
    tables = _tables(results, context)
    confusions = _confusion_tables(results)
    page = render("report.html.j2", **_page(results, context, tables, confusions))
    write_json(Path(out_dir) / "results.json", results)
    states = [report_tables.states_table(context.details)] if context.details else []
    write_tables(Path(out_dir) / "tables", [*tables.values(), *confusions, *states])
    write_text(Path(out_dir) / "index.html", page)


def _tables(results: Mapping[str, Any], context: ReportContext) -> dict[str, Table]:
    return {
        "summary": report_tables.summary_table(results),
        "systems": report_tables.systems_table(results),
        "cost": report_tables.cost_table(results),
        "seeds": report_tables.seeds_table(results),
        "gain": report_tables.gain_table(results, SHARE_CLAIMED),
        "comparisons": report_tables.comparisons_table(results),
        "sweep": report_tables.sweep_table(context.sweep),
        "phones": report_tables.phones_table(results, results["headline"]["baseline"]),
    }


def _confusion_tables(results: Mapping[str, Any]) -> list[Table]:
    """Those of the student, then of the baseline."""
    tables = []
    for role in ("student", "baseline"):
        name = results["headline"][role]
        if name in results.get("confusions", {}):
            tables.append(report_tables.phone_confusions_table(name, results["confusions"][name]))
            tables.append(report_tables.state_confusions_table(name, results["confusions"][name]))
    return tables


def _page(
    results: Mapping[str, Any], context: ReportContext, tables: Mapping[str, Table], confusions: Sequence[Table]
) -> dict[str, Any]:
    """What the template of the page asks for."""
    systems = sorted(results["systems"], key=lambda system: ROLE_ORDER.index(system["role"]))
    trio = {name: role for role, name in results["headline"].items()}
    calibrations = {s["name"]: s["calibration"] for s in systems if s["name"] in trio and s.get("calibration")}
    per_phone, baseline = results.get("per_phone", []), results["headline"]["baseline"]
    compared = {results["headline"][role]: ROLE_COLOURS[role] for role in ("ensemble", "student")}
    compared.pop(baseline, None)
    student = results["headline"]["student"]
    of_student = results.get("confusions", {}).get(student, {})
    matrix = of_student.get("phone_matrix")
    return {
        "results": results,
        "headline": headline_sentences(results),
        "tables": tables,
        "share_claimed": SHARE_CLAIMED,
        "scope_of_tests": report_tables.scope_of_tests(results),
        "scope_of_share": report_tables.scope_of_share(results),
        "seeds_of": {system["name"]: len(system["seeds"]) for system in report_tables.headline_systems(results)},
        "systems_svg": Markup(systems_plot(systems)),
        "curves_svg": Markup(curves_plot(context.curves)) if context.curves else None,
        "sweep_svg": Markup(sweep_plot(context.sweep)) if context.sweep else None,
        "phones_svg": Markup(phone_gains_plot(per_phone, baseline, compared)) if per_phone and compared else None,
        "reliability_svg": (
            Markup(reliability_plot(calibrations, {name: ROLE_COLOURS[trio[name]] for name in calibrations}))
            if calibrations
            else None
        ),
        # The baseline's confusions are in tables/ only: beside the student's they would be read as a comparison.
        "confusion_tables": [t for t in confusions if t.name.endswith(f"-{student}")],
        "matrix_svg": Markup(phone_matrix_svg(matrix, student)) if matrix else None,
        "matrix_name": student,
        "undercount": of_student.get("max_undercount", 0),
        "has_states": bool(context.details),
        "utterance": _utterance(context.utterance),
        "config": dump_config(context.config),
        "run_info": {key: value for key, value in context.run_info.items() if value is not None},
        "commands": context.commands,
    }


def _utterance(view: UtteranceView | None) -> dict[str, Any] | None:
    if view is None:
        return None
    words = next((tier for tier in view.tiers if tier.name == "recognised" and tier.wrong is not None), None)
    return {
        "utt_id": view.utt_id,
        "system": view.system,
        "svg": Markup(utterance_plot(view)),
        "has_error": words is None or any(words.wrong),
        "scale": view.picture.scale,
        "notes": view.notes,
    }


def dump_config(config: Mapping[str, Any]) -> str:
    """A configuration as people read it; empty if it is."""
    plain = json.loads(json.dumps(config, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True) if plain else ""


def write_page(out_dir: str | Path, template: str, results: Mapping[str, Any], command: str, **values: Any) -> None:
    """Write out_dir/scores.json and the page that shows it, out_dir/index.html, which loads nothing.

    results: what is scored, with `run`; command: what made it; values: what else the template asks for.
    """
    page = render(
        template,
        results=results,
        scope_of_tests=report_tables.scope_of_tests(results),
        run_info={key: value for key, value in results.get("run", {}).items() if value is not None},
        commands=[command],
        **values,
    )
    write_json(Path(out_dir) / "scores.json", results)
    write_text(Path(out_dir) / "index.html", page)


def render(template: str, **values: Any) -> str:
    """A page from one of the templates beside this module."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("asr_kd.scoring", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"share": format_share, "count": format_count}
    return environment.get_template(template).render(**values).lstrip()


def headline_sentences(results: Mapping[str, Any]) -> list[str]:
    """What was found, in words: the share kept and how sure it is, for frame accuracy and then WER; then the scores."""
    by_name = {system["name"]: system for system in results["systems"]}
    scores = []
    for metric in ("frame_accuracy", "wer"):
        values = [f"{role} {by_name[results['headline'][role]][metric]['value']:.2f}{NBSP}%" for role in HEADLINE]
        scores.append(f"{METRIC_NAMES[metric].capitalize()}: {', '.join(values)}.")
    sentences = [
        _share_sentence("frame_accuracy", results),
        _verdict(results["gain_recovered"]["frame_accuracy"]["p_at_least_086"]),
        _share_sentence("wer", results),
        " ".join(scores),
    ]
    if by_name[results["headline"]["student"]]["role"] == "control":
        sentences.append(
            "The distilled net is a control: it has learnt from speech that the baseline cannot use, so that shares "
            "are of what the ensemble and that speech do together."
        )
    return [sentence for sentence in sentences if sentence]


def _share_sentence(metric: str, results: Mapping[str, Any]) -> str:
    name, gain, scope = METRIC_NAMES[metric], results["gain_recovered"][metric], report_tables.scope_of_share(results)
    if gain["value"] is None:
        test = gain["ensemble_minus_baseline"]
        low, high = map(format_points, test["ci95"])
        return (
            f"What the distilled net keeps of the ensemble’s gain in {name} is undefined: {gain['reason']} (ensemble "
            f"minus baseline: {format_points(test['difference'])} points, 95{NBSP}% interval {low} to {high} for "
            f"{scope}{'; a gain is below 0' if metric == 'wer' else ''})."
        )
    low, high = map(format_share, gain["ci95"])
    return (
        f"The distilled net keeps {format_share(gain['value'])} of the ensemble’s gain in {name} "
        f"(95{NBSP}% interval {low} to {high} for {scope})."
    )


def _verdict(p_at_least: float | None) -> str | None:
    """How the claim of the paper's share fares for frame accuracy; None where the share is undefined."""
    if p_at_least is None:
        return None
    claim = f"that at least {format_share(SHARE_CLAIMED)} of the gain in frame accuracy is kept"
    if p_at_least < 0.05:
        return f"The claim {claim} is rejected (one-sided p{NBSP}{equal_or_less(p_at_least)})."
    if p_at_least > 0.95:
        return (
            f"The claim {claim} is shown (its opposite is rejected, one-sided p{NBSP}{equal_or_less(1 - p_at_least)})."
        )
    return f"The claim {claim} is neither shown nor rejected (one-sided p = {p_at_least:.2f})."


def results_row(results: Mapping[str, Any]) -> str:
    """Rows for RESULTS.md under `RESULTS_HEADER`: baseline, ensemble and student, joined by newlines."""
    by_name = {system["name"]: system for system in results["systems"]}
    shares = {"baseline": "", "ensemble": "", "student": _share_cell(results["gain_recovered"]["frame_accuracy"])}
    rows = []
    for role in HEADLINE:
        system = by_name[results["headline"][role]]
        cells = [
            f"{results['recipe']} ({results['preset']}, {results['split']})",
            f"{system['name']} × {len(system['seeds'])} seeds" if len(system["seeds"]) > 1 else system["name"],
            str(system["num_members"]),
            f"{system['num_parameters'] / 1e6:.2f} M",
            _estimate_cell(system["frame_accuracy"]),
            _estimate_cell(system["wer"]),
            f"{system['cross_entropy']:.3f}",
            shares[role],
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _estimate_cell(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["ci95"]
    return f"{estimate['value']:.2f} [{low:.2f}, {high:.2f}]"


def _share_cell(gain: Mapping[str, Any]) -> str:
    if gain["value"] is None:
        return f"undefined ({gain['reason']})"
    low, high = map(format_share, gain["ci95"])
    return f"{format_share(gain['value'])} [{low}, {high}]"

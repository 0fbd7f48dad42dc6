"""The report of an experiment: results.json for programs; a self-contained HTML page and RESULTS.md rows for people."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from asr_kd.scoring.plots import curves_plot, sweep_mean, sweep_plot, systems_plot
from asr_kd.scoring.results import check_results
from asr_kd.scoring.schema import HEADLINE
from asr_kd.scoring.significance import SHARE_CLAIMED
from asr_kd.store.atomic import write_json, write_text

RESULTS_HEADER = (
    "| recipe | system | nets | parameters | frame accuracy % | WER % | cross-entropy | share of the gain kept |\n"
    "|---|---|---|---|---|---|---|---|"
)

_METRIC_NAMES = {"frame_accuracy": "frame accuracy", "wer": "word error rate", "per": "phone error rate"}
_NBSP = "\u00a0"
_ROLE_ORDER = ("baseline", "ensemble", "student", "specialists", "control", "member")


def write_report(
    out_dir: str | Path,
    results: Mapping[str, Any],
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    sweep: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    run_info: Mapping[str, Any],
    commands: Sequence[str],
) -> None:
    """Write out_dir/results.json and out_dir/index.html, a page that loads nothing from elsewhere.

    `curves`: net name → rows with epoch, train_loss, dev_loss (or dev_xent), dev_frame_acc in percent, learning_rate.
    `sweep`: rows with temperature, soft_weight, mean (or combination), dev_frame_acc in percent, dev_xent.
    `config`, `run_info`: shown as they are; `commands`: the lines that made the results, in order.

    Raises AsrKdError where `results` does not follow the schema, or the folder cannot be written.
    """
    check_results(results)
    systems = sorted(results["systems"], key=lambda system: _ROLE_ORDER.index(system["role"]))
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            results=results,
            systems=systems,
            headline=headline_sentences(results),
            metric_names=_METRIC_NAMES,
            systems_svg=Markup(systems_plot(systems)),
            curves_svg=Markup(curves_plot(curves)) if curves else None,
            sweep_svg=Markup(sweep_plot(sweep)) if sweep else None,
            sweep=sorted(sweep, key=lambda row: -row["dev_frame_acc"]),
            sweep_mean=sweep_mean,
            share_claimed=SHARE_CLAIMED,
            config=yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, allow_unicode=True),
            run_info={key: value for key, value in run_info.items() if value is not None},
            commands=commands,
        )
    )
    write_json(Path(out_dir) / "results.json", results)
    write_text(Path(out_dir) / "index.html", page)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("asr_kd.scoring", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "p_value": format_p_value,
        "share": format_share,
        "seconds": format_seconds,
        "count": lambda count: f"{count:,}".replace(",", "\u202f"),
        "points": lambda value: f"{value:+.2f}".replace("-", "−"),
    }
    return environment


def format_p_value(p: float) -> str:
    """Four decimals, or "< 0.0001"."""
    return f"{p:.4f}" if p >= 0.00005 else "< 0.0001"


def format_share(share: float) -> str:
    """A fraction as whole percent."""
    return f"{100 * share:.0f}{_NBSP}%".replace("-", "−")


def format_seconds(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def headline_sentences(results: Mapping[str, Any]) -> list[str]:
    """What was found, in words: the share kept and how sure it is, for frame accuracy and then WER; then the scores."""
    by_name = {system["name"]: system for system in results["systems"]}
    gains = results["gain_recovered"]
    scores = []
    for metric in ("frame_accuracy", "wer"):
        values = [f"{role} {by_name[results['headline'][role]][metric]['value']:.2f}{_NBSP}%" for role in HEADLINE]
        scores.append(f"{_METRIC_NAMES[metric].capitalize()}: {', '.join(values)}.")
    sentences = [
        _share_sentence("frame_accuracy", gains["frame_accuracy"]),
        _verdict(gains["frame_accuracy"]["p_at_least_086"]),
        _share_sentence("wer", gains["wer"]),
        " ".join(scores),
    ]
    return [sentence for sentence in sentences if sentence]


def _share_sentence(metric: str, gain: Mapping[str, Any]) -> str:
    name = _METRIC_NAMES[metric]
    if gain["value"] is None:
        return f"What the distilled net keeps of the ensemble’s gain in {name} is undefined: {gain['reason']} (points)."
    low, high = map(format_share, gain["ci95"])
    return (
        f"The distilled net keeps {format_share(gain['value'])} of the ensemble’s gain in {name} "
        f"(95{_NBSP}% interval {low} to {high})."
    )


def _verdict(p_at_least: float | None) -> str | None:
    """How the claim of the paper's share fares for frame accuracy; None where the share is undefined."""
    if p_at_least is None:
        return None
    claim = f"that at least {format_share(SHARE_CLAIMED)} of the gain in frame accuracy is kept"
    if p_at_least < 0.05:
        return f"The claim {claim} is rejected (one-sided p = {format_p_value(p_at_least)})."
    if p_at_least > 0.95:
        return f"The claim {claim} is shown (its opposite is rejected, one-sided p = {format_p_value(1 - p_at_least)})."
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

"""The report of score-words: scores.json, tables, and a self-contained page of the same parts as an experiment's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asr_kd.scoring import report_tables
from asr_kd.scoring.report import render
from asr_kd.scoring.tables import NBSP, equal_or_less, write_tables
from asr_kd.scoring.wer import WordScores
from asr_kd.scoring.word_comparison import WordSystem, systems_table
from asr_kd.scoring.word_tables import alignment_text, confusion_table
from asr_kd.store.atomic import write_json, write_text

# What a page shows of each system; the files beside it hold all.
NUM_WORST, NUM_CONFUSIONS = 5, 15
UNIT_NAMES = {"word": "word error rate", "char": "character error rate", "phone": "phone error rate"}


def write_word_report(
    out_dir: str | Path, results: Mapping[str, Any], systems: Sequence[WordSystem], command: str
) -> None:
    """Write out_dir/scores.json, systems and comparisons (.csv, .tex) and out_dir/index.html, which loads nothing.

    results: of `compare_systems`, with what was scored and how; systems: the same, for excerpts of their first seeds.
    """
    names = {"wer": UNIT_NAMES[results["unit"]]}
    tables = {"systems": systems_table(results), "comparisons": report_tables.comparisons_table(results, names)}
    excerpts = [_excerpt(system) for system in systems]
    page = render(
        "word_report.html.j2",
        results=results,
        rate=UNIT_NAMES[results["unit"]],
        headline=headline(results),
        scope_of_tests=report_tables.scope_of_tests(results),
        tables=tables,
        excerpts=excerpts,
        run_info={key: value for key, value in results.get("run", {}).items() if value is not None},
        commands=[command],
    )
    write_tables(out_dir, [table for table in tables.values() if table.rows])
    write_json(Path(out_dir) / "scores.json", results)
    write_text(Path(out_dir) / "index.html", page)


def _excerpt(system: WordSystem) -> dict[str, Any]:
    first = system.seeds[0]
    utts = worst_utterances(first, NUM_WORST)
    confusions = confusion_table(first, NUM_CONFUSIONS)
    return {
        "name": system.name,
        "folder": f"{system.name}/" if len(system.seeds) == 1 else f"{system.name}/seed1/",
        "alignment": alignment_text(first, utts=utts) if utts else None,
        "confusions": confusions if confusions.rows else None,
    }


def worst_utterances(scores: WordScores, number: int) -> list[int]:
    """Indices of the utterances with the most errors, at most `number`, those without any left out."""
    errors = scores.errors.sum(axis=1)
    worst = np.argsort(-errors, kind="stable")[:number]
    return [int(u) for u in worst if errors[u]]


def headline(results: Mapping[str, Any]) -> str:
    """One sentence: the error rate of a single system, or which of several makes fewest errors and how sure that is."""
    rate = UNIT_NAMES[results["unit"]]
    systems = sorted(results["systems"], key=lambda system: system["wer"]["value"])
    best = systems[0]["wer"]
    level = [system["name"] for system in systems if system["wer"]["value"] - best["value"] < 1e-6]
    text = f"{report_tables.joined(level)} {'have' if len(level) > 1 else 'has'} a {rate} of {best['value']:.2f}{NBSP}%"
    if len(level) == len(systems):
        if len(systems) == 1 and best["ci95"]:
            return text + f" (95{NBSP}% interval {best['ci95'][0]:.2f} to {best['ci95'][1]:.2f})."
        return text + (": there is no difference." if len(systems) > 1 else ".")
    second = systems[len(level)]
    text += f", {second['wer']['value'] - best['value']:.2f} points less than {second['name']}"
    test = report_tables.find_test(results, level[0], second["name"], "wer")
    return text + (f" (paired bootstrap, p{NBSP}{equal_or_less(test['p_value'])})." if test else ".")

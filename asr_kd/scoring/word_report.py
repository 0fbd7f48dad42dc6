"""The report of score-words: scores.json, tables, and a self-contained page of the same parts as an experiment's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asr_kd.scoring import report_tables
from asr_kd.scoring.report import write_page
from asr_kd.scoring.tables import NBSP, write_tables
from asr_kd.scoring.wer import WordScores
from asr_kd.scoring.word_comparison import RATES, WordSystem, systems_table
from asr_kd.scoring.word_tables import alignment_text, confusion_table

# What a page shows of each system; the files beside it hold all.
NUM_WORST, NUM_CONFUSIONS = 5, 15


def write_word_report(
    out_dir: str | Path, results: Mapping[str, Any], systems: Sequence[WordSystem], command: str
) -> None:
    """Write out_dir/scores.json, systems and comparisons (.csv, .tex) and out_dir/index.html, which loads nothing.

    results: of `compare_systems`, with what was scored and how; systems: the same, for excerpts of their first seeds.
    """
    rate = RATES[results["unit"]][1]
    tables = {"systems": systems_table(results), "comparisons": report_tables.comparisons_table(results, {"wer": rate})}
    excerpts = [_excerpt(system) for system in systems]
    write_tables(out_dir, list(tables.values()))
    parts = {"rate": rate, "headline": headline(results), "tables": tables, "excerpts": excerpts}
    write_page(out_dir, "word_report.html.j2", results, command, **parts)


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

    def claim(names: Sequence[str], value: float) -> str:
        verb = "have" if len(names) > 1 else "has"
        return f"{report_tables.joined(names)} {verb} a {RATES[results['unit']][1]} of {value:.2f}{NBSP}%"

    return report_tables.best_sentence(results, "wer", claim, "there is no difference")

"""Tables as data: one definition of columns and rows gives the table on the page, the CSV and the LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asr_kd.store.atomic import write_text

NBSP = "\u00a0"
_MINUS = "\u2212"
_DASH = "–"


def format_p_value(p: float) -> str:
    """Four decimals, or "< 0.0001"."""
    return f"{p:.4f}" if p >= 0.00005 else "< 0.0001"


def equal_or_less(p: float) -> str:
    """The same after "p" in a sentence: "= 0.0123" or "< 0.0001"."""
    text = format_p_value(p)
    return text if text.startswith("<") else f"= {text}"


def format_share(share: float) -> str:
    """A fraction as whole percent."""
    return f"{100 * share:.0f}{NBSP}%".replace("-", _MINUS)


def format_count(count: float) -> str:
    """A whole number in groups of three digits."""
    return f"{round(count):,}".replace(",", "\u202f")


def format_mean_count(count: float) -> str:
    """A count as it is, a mean of counts with one decimal; of a program's int and float."""
    return str(count) if isinstance(count, int) else f"{count:.1f}"


def format_points(value: float) -> str:
    """A signed difference; one that is rounded to 0 has no sign."""
    text = f"{value:+.2f}".replace("-", _MINUS)
    return text if text.strip(f"+{_MINUS}0.") else "0.00"


def format_number(digits: int) -> Callable[[float], str]:
    """Numbers with so many decimals."""
    return lambda value: f"{value:.{digits}f}".replace("-", _MINUS)


@dataclass(frozen=True)
class Column:
    """One column: its key in the rows and the CSV, its header, and how a value is written for people.

    `interval`: the rows hold {"value" or "difference": …, "ci95": [low, high] or None}; the CSV then has the columns
    key, key_low and key_high, and people read the interval beside or under the value. Values may be None.
    """

    key: str
    header: str
    format: Callable[[Any], str] = str
    text: bool = False
    interval: bool = False


@dataclass(frozen=True)
class Row:
    """Cells by the keys of the columns; `note` stands under the first cell on the page, `marked` sets the row off."""

    cells: Mapping[str, Any]
    note: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """`name` is that of its files and its LaTeX label; `caption` says what it holds, units included."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row] = field(default_factory=list)

    def cells(self, row: Row) -> list[tuple[str, str]]:
        """What people read of a row: (value, interval) for each column, both without markup."""
        return [_split(column, row.cells.get(column.key)) for column in self.columns]

    def csv(self) -> str:
        """Comma-separated values of full precision, with a header; what is not there is left empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([name for column in self.columns for name in _csv_names(column)])
        for row in self.rows:
            writer.writerow([v for column in self.columns for v in _csv_values(column, row.cells.get(column.key))])
        return out.getvalue()

    def latex(self) -> str:
        """A LaTeX table with booktabs' rules; `\\usepackage{booktabs}` is all that it needs."""
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(self.caption)}}}",
            rf"\label{{tab:{re.sub('[^A-Za-z0-9-]', '-', self.name)}}}",
            rf"\begin{{tabular}}{{{''.join('l' if column.text else 'r' for column in self.columns)}}}",
            r"\toprule",
            _latex_row([escape_latex(column.header) for column in self.columns]),
            r"\midrule",
        ]
        for row in self.rows:
            cells = [
                escape_latex(value) + (rf" {{\footnotesize {escape_latex(interval)}}}" if interval else "")
                for value, interval in self.cells(row)
            ]
            lines.append(_latex_row(cells))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    """A row of escaped cells. A bracket or star at its start would be an argument of the command that ends the last."""
    row = " & ".join(cells) + r" \\"
    return "{}" + row if row.startswith(("[", "*")) else row


def _split(column: Column, value: Any) -> tuple[str, str]:
    if value is None:
        return _DASH, ""
    if not column.interval:
        return column.format(value), ""
    interval = value.get("ci95")
    text = f"[{column.format(interval[0])}, {column.format(interval[1])}]" if interval else ""
    return column.format(_centre(value)), text


def _centre(value: Mapping[str, Any]) -> float:
    return value["value"] if "value" in value else value["difference"]


def _csv_names(column: Column) -> list[str]:
    return [column.key, f"{column.key}_low", f"{column.key}_high"] if column.interval else [column.key]


def _csv_values(column: Column, value: Any) -> list[Any]:
    if not column.interval:
        return ["" if value is None else value]
    return ["", "", ""] if value is None else [_centre(value), *(value.get("ci95") or ("", ""))]


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "\u00a0": "~",
    "\u202f": r"\,",
    "\u2212": r"$-$",
    "×": r"$\times$",
    "≥": r"$\ge$",
    "–": "--",
    "’": "'",
    "“": "``",
    "”": "''",
}


def escape_latex(text: str) -> str:
    """Text with everything that LaTeX would take for a command made to stand for itself; one line."""
    return "".join(_LATEX.get(character, character) for character in text.replace("\n", " "))


def write_tables(folder: str | Path, tables: Sequence[Table]) -> None:
    """Write NAME.csv and NAME.tex of each table into `folder`; of one without rows, remove those of an earlier run."""
    for table in tables:
        for suffix, text in ((".csv", table.csv), (".tex", table.latex)):
            path = Path(folder) / f"{table.name}{suffix}"
            write_text(path, text()) if table.rows else path.unlink(missing_ok=True)

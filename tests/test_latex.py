"""The LaTeX of all tables compiles; skipped where there is no LaTeX, which is too large to ask of every machine."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from made_up_systems import HEADLINE, make_systems

from asr_kd.cli import main
from asr_kd.scoring.report import ReportContext, write_report
from asr_kd.scoring.results import build_results
from asr_kd.scoring.tables import Column, Row, Table, format_number, write_tables
from asr_kd.store.ali import write_ali
from asr_kd.store.hdf5 import Layout
from asr_kd.store.kaldi_ark import write_matrices

DOCUMENT = r"""\documentclass{{article}}
\usepackage{{booktabs}}
\begin{{document}}
{}
\end{{document}}
"""


def has_booktabs() -> bool:
    if not shutil.which("pdflatex") or not shutil.which("kpsewhich"):
        return False
    return subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not has_booktabs(), reason="pdflatex with booktabs is not installed")


def compile_tables(folder: Path) -> int:
    """Compile every table below `folder` in one document; how many there were."""
    tables = sorted(folder.rglob("*.tex"))
    document = folder / "all.tex"
    document.write_text(DOCUMENT.format("\n\\clearpage\n".join(table.read_text() for table in tables)))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", document.name],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout.decode("utf-8", "replace")[-2000:]
    assert "Missing character" not in (folder / "all.log").read_text(errors="replace")
    return len(tables)


def test_names_that_mean_something_to_latex(tmp_path):
    columns = (Column("name", "[50 % & more]", text=True), Column("x", "a_b^c ≥ 1", format_number(2), interval=True))
    names = ("[noise]", "*", "a_b", "50%", "$x", "\\end{table}", "~^", "{", "#1 & <s>", "“é” – ‘ü’…", "x\ny", "−1 × 2")
    rows = [Row({"name": name, "x": {"value": 1.0, "ci95": [0.5, -1.5]}}) for name in names]
    write_tables(tmp_path, [Table("odd_name 1", "A caption: 100 %, {braces} & more.", columns, [*rows, Row({})])])
    assert compile_tables(tmp_path) == 1


def test_tables_of_score_words(tmp_path):
    (tmp_path / "ref").write_text("a_1 [noise] fünf *x 50%\na_2 {a} b\\c\n_b_ ~ ^ #\n")
    (tmp_path / "hyp").write_text("a_1 [noise] funf *y 50%\na_2 {a} b\\c & $\n_b_ ~ #\n")
    (tmp_path / "utt2spk").write_text("a_1 [a]\na_2 [a]\n_b_ *b\n")
    hyps = ("--hyp", f"x_1={tmp_path / 'hyp'}", "--hyp", f"y^2={tmp_path / 'hyp'}", "--hyp", f"z={tmp_path / 'ref'}")
    files = ("--ref", tmp_path / "ref", "--utt2spk", tmp_path / "utt2spk", "--out", tmp_path / "out")
    assert main(["score-words", *map(str, files), *hyps, "--num-resamples", "50"]) == 0
    assert compile_tables(tmp_path / "out") > 8


def test_tables_of_a_report(tmp_path):
    results = build_results("m_1", "quick", "test", make_systems(), HEADLINE, "utterance", num_resamples=100)
    write_report(tmp_path, results, ReportContext())
    assert compile_tables(tmp_path) > 3


def test_tables_of_score_frames(tmp_path):
    rng = np.random.default_rng(0)
    layout = Layout.from_lengths(["a_1", "b%2"], [40, 60])
    phones, pdf = ["SIL", "[NSN]", "a_B"], rng.integers(0, 6, 100)
    about = {"num_pdfs": 6, "model_digest": "0", "sil_pdfs": [0], "phone": pdf // 2, "phones": phones}
    write_ali(tmp_path / "ali.h5", layout, pdf, **about)
    options = []
    for name in ("x_1", "y"):
        prob = rng.dirichlet(np.ones(6), 100).astype(np.float32)
        utts = ((utt_id, prob[layout.rows(utt_id)]) for utt_id in layout.utt_ids)
        write_matrices(f"ark:{tmp_path}/{name}.ark", utts)
        options += ["--posteriors", f"{name}={tmp_path}/{name}.ark"]
    assert main(["score-frames", *options, "--ali", f"{tmp_path}/ali.h5", "--out", f"{tmp_path}/out"]) == 0
    assert compile_tables(tmp_path / "out") > 3

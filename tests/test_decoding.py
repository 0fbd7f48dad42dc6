"""From net to words to scores, without the wheels where they are not needed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from made_up_lattices import word_graph
from made_up_nets import make_net
from made_up_systems import make_systems

from asr_kd.cli import main
from asr_kd.config import DecodeConfig, resolve
from asr_kd.errors import AsrKdError
from asr_kd.nnet.priors import NEVER, count_pdfs, read_decoding_priors, read_log_priors, write_counts
from asr_kd.scoring.decoding import SetDecoder, read_hyps, write_hyps
from asr_kd.scoring.set_posteriors import KeptMatrices, SetPosteriors, kept_if_small
from asr_kd.scoring.system_list import read_systems
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import Layout


def test_priors_are_relative_counts_with_a_floor(tmp_path):
    counts = count_pdfs(np.array([0, 0, 0, 2, -1, -1]), 4)
    assert counts.tolist() == [3, 0, 1, 0]
    write_counts(tmp_path / "counts", counts)
    assert (tmp_path / "counts").read_text() == " [ 3 0 1 0 ]\n"
    priors = np.exp(read_log_priors(tmp_path / "counts", 0.01))
    np.testing.assert_allclose(priors, np.array([0.75, 0.01, 0.25, 0.01]) / 1.02, rtol=1e-5)
    to_subtract = read_decoding_priors(tmp_path / "counts", 0.01, 4)
    np.testing.assert_allclose(np.exp(to_subtract[[0, 2]]), np.array([0.75, 0.25]) / 1.02, rtol=1e-5)
    assert (to_subtract[[1, 3]] == NEVER).all()


@pytest.mark.parametrize("text", ["", "[ ]", "[ 1 -2 ]", "[ a b ]", "[ 0 0 ]", "[ nan 1 ]"])
def test_what_is_no_vector_of_counts_is_refused(tmp_path, text):
    (tmp_path / "counts").write_text(text)
    with pytest.raises(AsrKdError, match="not a vector of counts"):
        read_log_priors(tmp_path / "counts", 1e-5)


@pytest.mark.parametrize("floor", [0, -1, 1, float("inf"), float("nan")])
def test_a_floor_is_a_prior(tmp_path, floor):
    write_counts(tmp_path / "counts", np.array([1, 2]))
    with pytest.raises(AsrKdError, match="must be above 0 and below 1"):
        read_decoding_priors(tmp_path / "counts", floor, 2)


def test_hyps_survive_a_round_trip_and_bad_lines_are_named(tmp_path):
    hyps = {"b-1": "", "a-1": "one two"}
    write_hyps(tmp_path / "text", hyps)
    assert (tmp_path / "text").read_text() == "a-1 one two\nb-1\n"
    assert read_hyps(tmp_path / "text") == hyps
    (tmp_path / "text").write_text("a-1 one\na-1 two\n")
    with pytest.raises(AsrKdError, match="text:2: a-1 is there twice"):
        read_hyps(tmp_path / "text")


GOOD = "- {name: a, role: baseline, nets: [[x/seed1], [x/seed2]]}\n"


def test_systems_are_read_with_paths_relative_to_their_file(tmp_path):
    (tmp_path / "systems.yaml").write_text(
        GOOD + "- {name: e, role: ensemble, combination: geometric, nets: [[x, y]]}\n"
    )
    a, e = read_systems(tmp_path / "systems.yaml")
    assert a.nets == ((tmp_path / "x/seed1",), (tmp_path / "x/seed2",))
    assert (e.combination, len(e.nets[0])) == ("geometric", 2)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "list of systems"),
        ("a: [", "not valid YAML"),
        ("- {name: a}", "needs name, role and nets"),
        ("- {name: a/b, role: baseline, nets: [[x]]}", "its name"),
        ("- {name: a, role: boss, nets: [[x]]}", "role must be"),
        ("- {name: a, role: student, nets: [x]}", "list of lists"),
        ("- {name: a, role: ensemble, nets: [[x, y]]}", "combination must be"),
        ("- {name: a, role: student, nets: [[x]], colour: red}", "unknown key colour"),
        (GOOD + GOOD, "share a name"),
        ("- {name: a, role: member, nets: [[x], [y], [./x]]}", "two of its seeds are the same nets"),
        ("- {name: a, role: member, nets: [[1e3]]}", "put them in quotes"),
        ("- {name: a, role: ensemble, nets: [[x, y/../x]], combination: arithmetic}", "in one list twice"),
        *((f"- {{name: {name}, role: member, nets: [[x]]}}", "is that of a folder") for name in (".", "..")),
        *(
            (f"- {{name: {name}, role: member, nets: [[x]]}}", "put it in quotes")
            for name in ("null", "1.5", "2024-01-01")
        ),
    ],
)
def test_a_wrong_list_of_systems_is_explained(tmp_path, text, complaint):
    (tmp_path / "systems.yaml").write_text(text)
    with pytest.raises(AsrKdError, match=complaint):
        read_systems(tmp_path / "systems.yaml")


TWO = KeptMatrices(Layout.from_lengths(["a", "b"], [2, 2]), {"a": np.zeros((2, 3)), "b": np.zeros((2, 3))})


def test_scales_are_chosen_by_errors_and_ties_go_to_the_first(monkeypatch):
    config = resolve(DecodeConfig, {"acwts": [0.1, 0.2, 0.3], "insertion_penalties": [-1, 0, 1]})
    errors = {(0.1, 0.0): 1, (0.2, 0.0): 0, (0.3, 0.0): 0, (0.2, -1.0): 0, (0.2, 1.0): 1}

    def decode(self, log_post, acwt, penalty, utt_ids):
        hyps = {"a": "x" if errors[acwt, penalty] else "one", "b": "two"}
        return {utt_id: hyps[utt_id] for utt_id in utt_ids}

    class Graph:
        num_pdfs = 3

    monkeypatch.setattr(SetDecoder, "decode", decode)
    scales = SetDecoder(Graph(), np.zeros(3), config).tune(TWO, {"a": "one", "b": "two"})
    # Penalties -1 and 0 tie; the smaller one in size is the simpler system.
    assert (scales.acwt, scales.insertion_penalty) == (0.2, 0.0)
    assert len(scales.tried) == 5
    of_one = resolve(DecodeConfig, {"acwts": [0.1], "insertion_penalties": [0], "tuning_utts": 1})
    [row] = SetDecoder(Graph(), np.zeros(3), of_one).tune(TWO, {"a": "one", "b": "two"}).tried
    assert row["wer"] == 100.0  # of a alone
    with pytest.raises(AsrKdError, match="priors of 2 states do not fit a graph of 3"):
        SetDecoder(Graph(), np.zeros(2), config)


def test_what_is_asked_for_again_and_again_is_kept_unless_it_is_large(monkeypatch):
    class Source:
        layout, asked = TWO.layout, 0

        def of(self, utt_ids):
            self.asked += 1
            return TWO.of(utt_ids)

    source = Source()
    kept = kept_if_small(source, ["b"], 3)
    for _ in range(2):
        [(utt_id, matrix)] = kept.of(["b"])
        assert (utt_id, matrix.shape) == ("b", (2, 3))
    assert source.asked == 1
    monkeypatch.setattr("asr_kd.scoring.set_posteriors.MAX_KEPT", 5)
    assert kept_if_small(source, ["b"], 3) is source


@pytest.mark.parametrize(
    ("max_kept", "tuning_utts", "passes"),
    [(1e9, 0, 1), (1e9, 2, 1), (300, 2, 2), (0, 2, 4), (0, 0, 4)],
)
def test_nets_answer_once_for_what_can_be_kept(toy, tmp_path, monkeypatch, capsys, max_kept, tuning_utts, passes):
    """Three settings are tried on dev, or on two of its utterances, 300 numbers at most; then it is decoded."""
    asked, of = [], SetPosteriors.of
    monkeypatch.setattr(
        SetPosteriors, "of", lambda self, utt_ids: asked.append(Path(self.reader.path)) or of(self, utt_ids)
    )
    monkeypatch.setattr("asr_kd.scoring.set_posteriors.MAX_KEPT", max_kept)
    for seed in (1, 2):
        make_net(tmp_path / f"seed{seed}", toy, seed, num_pdfs=2)
    (tmp_path / "systems.yaml").write_text("- {name: a, role: baseline, nets: [[seed1], [seed2]]}\n")
    replace(word_graph(), model_digest="toy").save(tmp_path / "graph")
    write_counts(tmp_path / "counts", np.array([3, 4]))
    argv = ["decode", "--systems", tmp_path / "systems.yaml", "--graph", tmp_path / "graph", "--device", "cpu"]
    argv += ["--counts", tmp_path / "counts", "--out", tmp_path / "out", "--tuning-utts", tuning_utts]
    argv += ["--acwts", "0.1,0.2", "--insertion-penalties", "0,1"]
    for name, feats in (("dev", toy["dev_feats"]), ("test", toy["feats"])):
        (tmp_path / name).mkdir()
        write_hyps(tmp_path / name / "text", dict.fromkeys(FeatsReader(feats).layout.utt_ids, "a b"))
        argv += [f"--{name}-feats", feats, f"--{name}-data", tmp_path / name]
    assert run(*argv) == 0
    # And once for dev of the second seed, and for test of both.
    assert (asked.count(toy["dev_feats"]), asked.count(toy["feats"])) == (passes + 1, 2)
    assert ("are more than is kept" in capsys.readouterr().err) == (max_kept == 0)


def test_a_report_needs_every_headline_role(tmp_path, capsys):
    (tmp_path / "systems.yaml").write_text(GOOD)
    argv = ["report", "--systems", tmp_path / "systems.yaml", "--scores", tmp_path, "--dev-scores", tmp_path]
    argv += ["--recipe", "x", "--preset", "y", "--out", tmp_path / "out"]
    assert main([str(arg) for arg in argv]) == 1
    assert "a.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_report_refuses_scores_of_another_set(tmp_path, capsys):
    """Dev and test exchanged would choose the headline on test."""
    for scores in make_systems():
        replace(scores, split="dev").save(tmp_path / f"{scores.name}.json")
    specs = [f"- {{name: {s.name}, role: {s.role}, nets: [[n]]}}\n" for s in make_systems()]
    (tmp_path / "systems.yaml").write_text("".join(specs))
    argv = ["report", "--systems", tmp_path / "systems.yaml", "--scores", tmp_path, "--dev-scores", tmp_path]
    argv += ["--recipe", "x", "--preset", "y", "--out", tmp_path / "out"]
    assert main([str(arg) for arg in argv]) == 1
    assert "are of the set dev, not of test (--split)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_repository_names_no_machine_path():
    root = Path(__file__).parents[1]
    for path in [*root.glob("asr_kd/**/*.py"), *root.glob("recipes/**/*"), *root.glob("*.md")]:
        if path.is_file():
            assert str(root) not in path.read_text(encoding="utf-8")

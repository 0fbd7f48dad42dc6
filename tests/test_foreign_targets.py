"""Targets of foreign teachers: the same as ours would be, laid out as the features, or refused."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import error_of, run
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from asr_kd.distill.foreign_targets import in_order, sparse_targets
from asr_kd.errors import AsrKdError
from asr_kd.store.ali import AliReader
from asr_kd.store.hdf5 import Layout
from asr_kd.store.kaldi_ark import read_matrices, write_matrices
from asr_kd.store.kaldi_posterior import write_posteriors
from asr_kd.store.kaldi_posterior_reader import read_posteriors
from asr_kd.store.targets import TargetsReader

NUM_PDFS = 6  # of the toy set


def teacher(layout: Layout, seed: int) -> dict[str, np.ndarray]:
    """Logits of every utterance."""
    rng = np.random.default_rng(seed)
    return {u: rng.normal(scale=3, size=(n, NUM_PDFS)) for u, n in zip(layout.utt_ids, layout.lengths, strict=True)}


@pytest.fixture(scope="module")
def teachers(toy, tmp_path_factory) -> tuple[list[dict[str, np.ndarray]], list[Path]]:
    """Two teachers' logits, and their log posteriors as archives, the second in another order and with one more."""
    folder, layout = tmp_path_factory.mktemp("teachers"), AliReader(toy["ali"]).layout
    logits = [teacher(layout, seed) for seed in (1, 2)]
    paths = [folder / f"t{seed}.ark" for seed in (1, 2)]
    log_posts = [{u: log_softmax(z, axis=1) for u, z in of_teacher.items()} for of_teacher in logits]
    write_matrices(f"ark:{paths[0]}", log_posts[0].items())
    backwards = [*reversed(log_posts[1].items()), ("zz-more", log_posts[1][layout.utt_ids[0]])]
    write_matrices(f"ark:{paths[1]}", backwards)
    return logits, paths


def argv(toy, out: Path) -> list[object]:
    return ["import-targets", "--feats", toy["feats"], "--ali", toy["ali"], "--out", out]


@pytest.mark.parametrize("combination", ["arithmetic", "geometric"])
@pytest.mark.parametrize("temperature", [1, 3])
def test_dense_targets_are_the_mean_of_the_teachers(toy, teachers, tmp_path, combination, temperature):
    logits, paths = teachers
    how = ("--combination", combination, "--temperature", temperature, "--posteriors", *paths)
    assert run(*argv(toy, tmp_path / "t.h5"), *how) == 0
    found, ali = TargetsReader(tmp_path / "t.h5"), AliReader(toy["ali"])
    for utt_id in ali.layout.utt_ids:
        scaled = np.stack([z[utt_id] for z in logits]) / temperature
        wanted = softmax(scaled.mean(0), axis=1) if combination == "geometric" else softmax(scaled, axis=2).mean(0)
        np.testing.assert_allclose(found.prob[ali.layout.rows(utt_id)], wanted, atol=1e-3)
    assert (found.temperature, found.combination, len(found.members)) == (temperature, combination, 2)
    assert (found.num_pdfs, found.model_digest) == (ali.num_pdfs, ali.model_digest)


@pytest.mark.parametrize("form", ["flat", "by utterance"])
def test_hdf5_holds_what_an_archive_does(toy, teachers, tmp_path, form):
    """Both forms of docs/kaldi.md, taken by the command."""
    layout, h5 = AliReader(toy["ali"]).layout, tmp_path / "teacher.h5"
    log_posts = dict(read_matrices(f"ark:{teachers[1][0]}"))
    with h5py.File(h5, "w") as file:
        if form == "flat":
            file["log_post"] = np.concatenate([log_posts[utt_id] for utt_id in layout.utt_ids])
            file["utt/id"] = list(layout.utt_ids)
            file["utt/offset"] = np.concatenate([[0], np.cumsum(layout.lengths)])
        else:
            for utt_id, log_post in log_posts.items():
                file[utt_id] = log_post
    for source in (h5, teachers[1][0]):
        assert run(*argv(toy, tmp_path / f"{source.suffix}.h5"), "--posteriors", source, "--temperature", 1) == 0
    found, wanted = (TargetsReader(tmp_path / f"{suffix}.h5") for suffix in (".h5", ".ark"))
    np.testing.assert_array_equal(found.prob, wanted.prob)


def test_a_student_learns_from_foreign_targets(toy, teachers, tmp_path):
    assert run(*argv(toy, tmp_path / "t.h5"), "--posteriors", teachers[1][0], "--temperature", 2, "--top-k", 3) == 0
    sets = ("--feats", toy["feats"], "--ali", toy["ali"], "--dev-feats", toy["dev_feats"], "--dev-ali", toy["dev_ali"])
    shape = ("--device", "cpu", "--hidden-dim", 8, "--num-hidden-layers", 1, "--student-epochs", 1)
    assert run("distill", *sets, *shape, "--targets", tmp_path / "t.h5", "--out", tmp_path / "student") == 0


def post_text(layout: Layout, frame: str = "[ 2 0.5 4 0.25 ] ", **others: str) -> str:
    return "".join(f"{u} {others.get(u, frame * n)}\n" for u, n in zip(layout.utt_ids, layout.lengths, strict=True))


def test_sparse_targets_keep_what_is_named_and_the_rest(toy, tmp_path, capsys):
    layout = AliReader(toy["ali"]).layout
    (tmp_path / "post.ark").write_text(post_text(layout, "[ 4 0.25 2 0.25 2 0.25 0 0.125 ] "))
    sparse = ("--sparse", f"ark:{tmp_path}/post.ark")
    assert run(*argv(toy, tmp_path / "t.h5"), *sparse, "--temperature", 1, "--top-k", 2) == 0
    found = TargetsReader(tmp_path / "t.h5")
    assert found.pdf.tolist() == [[2, 4]] * layout.num_frames
    assert found.prob.tolist() == [[0.5, 0.25]] * layout.num_frames
    assert found.tail.tolist() == [0.25] * layout.num_frames
    assert "cannot be brought to it" in error_of(capsys, *argv(toy, tmp_path / "u.h5"), *sparse, "--temperature", 2)
    assert not (tmp_path / "u.h5").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("[ 2 0.5 4 0.25 ] ", "", 1), "targets for"),
        (lambda text: text.replace("[ 2 0.5", "[ 6 0.5", 1), "has state 6, but the alignment has 6"),
        (lambda text: text.replace("[ 2 0.5", "[ -2 0.5", 1), "negative id -2"),
        (lambda text: text.replace("[ 2 0.5", "[ 2 -0.5", 1), "negative weight -0.5"),
        (lambda text: text.replace("[ 2 0.5", "[ 2 1.5", 1), "sum to 1.75"),
        (lambda text: text.replace("[ 2 0.5", "[ 2 nan", 1), "not finite"),
        (lambda text: text.replace("[ 2 0.5 4 0.25 ]", "[ ]", 1), "sum to 0"),
        (lambda text: text.replace("[ 2 0.5 4", "[ 2 0.5", 1), "belongs"),
        (lambda text: text.split("\n", 1)[1], "lacks utterance"),
        (lambda text: text.split("\n", 1)[0] + "\n" + text, "comes twice"),
    ],
)
def test_posteriors_that_do_not_fit_are_refused(toy, tmp_path, capsys, change, message):
    text = post_text(AliReader(toy["ali"]).layout)
    (tmp_path / "post.ark").write_text(change(text))
    found = error_of(capsys, *argv(toy, tmp_path / "t.h5"), "--sparse", f"ark:{tmp_path}/post.ark", "--temperature", 1)
    assert message in found
    assert "post.ark" in found
    assert not (tmp_path / "t.h5").exists()


def test_a_stored_temperature_is_a_number(toy, tmp_path, capsys):
    for temperature in ("inf", "nan", "0"):
        given = ("--posteriors", "ark:none.ark", "--stored-temperature", temperature)
        assert "must be above 0, and finite" in error_of(capsys, *argv(toy, tmp_path / "t.h5"), *given)


@pytest.mark.parametrize("kind", ["ark", "ark,t"])
def test_a_posterior_table_is_not_one_of_matrices(toy, tmp_path, capsys, kind):
    (tmp_path / "text.ark").write_text(post_text(AliReader(toy["ali"]).layout))
    write_posteriors(f"{kind}:{tmp_path}/post.ark", read_posteriors(f"ark:{tmp_path}/text.ark"))
    found = error_of(capsys, *argv(toy, tmp_path / "t.h5"), "--posteriors", f"ark:{tmp_path}/post.ark")
    assert "post.ark: is a Posterior table, not one of matrices; give it as --sparse" in found
    assert not (tmp_path / "t.h5").exists()


def test_matrices_that_do_not_fit_are_refused(toy, tmp_path, capsys):
    layout = AliReader(toy["ali"]).layout
    for name, matrix, message in [
        ("wide", lambda z: np.pad(softmax(z, axis=1), ((0, 0), (0, 1))), "7 columns, but the alignment has 6"),
        ("short", lambda z: softmax(z, axis=1)[:-1], "targets for"),
        ("third", lambda z: softmax(z, axis=1)[::3], "of chain models"),
        ("loose", lambda z: z, "--logits"),
    ]:
        write_matrices(f"ark:{tmp_path}/{name}.ark", [(u, matrix(z)) for u, z in teacher(layout, 1).items()])
        found = error_of(capsys, *argv(toy, tmp_path / "t.h5"), "--posteriors", tmp_path / f"{name}.ark")
        assert message in found


def binary(frames: list[list[tuple[int, float]]]) -> bytes:
    def number(value: int) -> bytes:
        return b"\x04" + value.to_bytes(4, "little")

    out = b"\0B" + number(len(frames))
    for entries in frames:
        out += number(len(entries))
        out += b"".join(number(pdf) + b"\x04" + np.float32(weight).tobytes() for pdf, weight in entries)
    return out


ENTRY = st.tuples(st.integers(0, 2**31 - 1), st.floats(0, 1, width=32))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ENTRY, max_size=4), max_size=6))
def test_posteriors_are_read_as_kaldi_writes_them(tmp_path_factory, frames):
    path = tmp_path_factory.getbasetemp() / "p.ark"
    text = "".join(f"[ {''.join(f'{pdf} {weight:.9g} ' for pdf, weight in entries)}] " for entries in frames)
    for content in (b"x " + binary(frames), f"x {text}\n".encode()):
        path.write_bytes(content)
        ((key, post),) = read_posteriors(f"ark:{path}")
        assert key == "x"
        assert np.diff(post.offset).tolist() == [len(entries) for entries in frames]
        assert post.pdf.tolist() == [pdf for entries in frames for pdf, _ in entries]
        assert post.weight.tolist() == [weight for entries in frames for _, weight in entries]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 8), st.floats(0.01, 1)), min_size=1, max_size=6), min_size=1, max_size=9)
)
def test_normalised_weights_sum_to_one_and_the_tail_takes_what_is_cut(tmp_path_factory, frames):
    path, layout = tmp_path_factory.getbasetemp() / "q.ark", Layout.from_lengths(["x"], [len(frames)])
    path.write_bytes(b"x " + binary(frames))
    ((rows, arrays),) = sparse_targets(f"ark:{path}", layout, 9, 3, normalize=True)
    assert rows == slice(0, len(frames))
    for t, entries in enumerate(frames):
        dense = np.zeros(9)
        for pdf, weight in entries:
            dense[pdf] += weight
        dense /= dense.sum()
        wanted = np.sort(dense)[::-1][:3]
        np.testing.assert_allclose(arrays["prob"][t], wanted, rtol=1e-5, atol=1e-6)
        named = arrays["prob"][t] > 0
        np.testing.assert_allclose(dense[arrays["pdf"][t][named]], arrays["prob"][t][named], rtol=1e-5)
        assert arrays["tail"][t] == pytest.approx(1 - wanted.sum(), abs=2e-3)


def test_what_waits_for_its_turn_is_bounded(monkeypatch):
    layout = Layout.from_lengths(["a", "b", "c"], [1, 1, 1])
    items = [(u, np.zeros((1, 10))) for u in ("c", "b", "a")]
    assert len(list(in_order(items, layout, "t"))) == 3
    monkeypatch.setattr("asr_kd.distill.foreign_targets.MAX_WAITING_BYTES", 100)
    with pytest.raises(AsrKdError, match="in another order"):
        list(in_order(items, layout, "t"))

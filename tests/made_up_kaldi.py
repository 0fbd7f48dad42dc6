"""A system as Kaldi's recipes leave it: data directories with feats.scp, alignment folders, lang and graph.

The data directories have no wav.scp and no spk2utt: where there are features, nothing needs them.
Its features are Gaussian around a mean for each state, its alignments random walks through the words' phones.
"""

import struct
from pathlib import Path

import numpy as np
from made_up_speech import LEXICON

from asr_kd.features.cmvn import accumulate
from asr_kd.hmm import wheels
from asr_kd.hmm.gaussians import Gmm
from asr_kd.hmm.graph import make_graph
from asr_kd.hmm.kaldi_model import parse_model
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.mdl import format_mdl
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.topology import topology_text
from asr_kd.hmm.transitions import Transitions
from asr_kd.store.kaldi_ark import write_int_vectors, write_matrices

FEAT_DIM = 12
SPARE_WORDS = ["#0", "<s>", "</s>"]


def _int(value: int) -> bytes:
    return b"\x04" + struct.pack("<i", value)


def _ints(values: list[int]) -> bytes:
    return b"\x04" + struct.pack(f"<i{len(values)}i", len(values), *values)


def binary_transitions(transitions: Transitions, *, with_tuples: bool = False) -> bytes:
    """Kaldi's binary TransitionModel, in the form with <Triples>, or in the later one with <Tuples>."""
    states = transitions.topology.states
    entries = list(dict.fromkeys(states.values()))
    phone2entry = [entries.index(states[phone]) if phone in states else -1 for phone in range(max(states) + 1)]
    out = b"\0B<TransitionModel> <Topology> " + _ints(sorted(states)) + _ints(phone2entry)
    out += (_int(-1) if with_tuples else b"") + _int(len(entries))
    for entry in entries:
        out += _int(len(entry))
        for state in entry:
            out += _int(state.pdf_class) + (_int(state.loop_class) if with_tuples else b"") + _int(len(state.arcs))
            for to, probability in state.arcs:
                out += _int(to) + b"\x04" + struct.pack("<f", probability)
    name = b"Tuples" if with_tuples else b"Triples"
    out += b"</Topology> <" + name + b"> " + _int(len(transitions.tuples))
    for row in transitions.tuples.tolist():
        out += b"".join(_int(value) for value in (row if with_tuples else row[:3]))
    probs = _int(len(transitions.log_probs)) + transitions.log_probs.astype("<f4").tobytes()
    return out + b"</" + name + b"> <LogProbs> FV " + probs + b"</LogProbs> </TransitionModel> "


def binary_gmms(gmms: list[Gmm]) -> bytes:
    """Kaldi's binary AmDiagGmm."""

    def vector(values: np.ndarray) -> bytes:
        return b"FV " + _int(len(values)) + values.astype("<f4").tobytes()

    def matrix(values: np.ndarray) -> bytes:
        return b"FM " + _int(values.shape[0]) + _int(values.shape[1]) + values.astype("<f4").tobytes()

    out = b"<DIMENSION> " + _int(gmms[0].inv_vars.shape[1]) + b"<NUMPDFS> " + _int(len(gmms))
    for gmm in gmms:
        out += b"<DiagGMM> <GCONSTS> " + vector(gmm.gconsts) + b"<WEIGHTS> " + vector(gmm.weights)
        out += b"<MEANS_INVVARS> " + matrix(gmm.means_invvars) + b"<INV_VARS> " + matrix(gmm.inv_vars) + b"</DiagGMM> "
    return out


def untrained_model() -> HmmModel:
    """Position-dependent monophones; silence of five states. Needs the wheels."""
    khg, lang = wheels.kaldi().khg, Lang(LEXICON, position_dependent=True)
    silence_ids = [lang.phone_id[phone] for phone in lang.silence_phones]
    text = topology_text(len(lang.phones), "3state", silence_ids, "5state")
    topology = khg.HmmTopology()
    topology.read(text)
    tree = khg.monophone_context_dependency_shared(
        phone_classes=[[lang.phone_id[phone] for phone in root] for root in lang.phone_roots],
        phone2num_pdf_classes=topology.get_phone_to_num_pdf_classes(),
    )
    gmm = Gmm.from_moments(np.ones(1), np.zeros((1, 4)), np.ones((1, 4)))
    return HmmModel.untrained(lang, text, np.array(tree.__getstate__()[0], np.int8).tobytes(), gmm, {})


def random_walk(transitions: Transitions, phone: int, rng: np.random.Generator) -> list[int]:
    """Transition-ids of a phone, as graphs made with reorder have them: the arc that leaves a state, then its loops."""
    tids, state = [], 0
    while state < len(transitions.topology.states[phone]) - 1:
        here = (transitions.t2phone_id == phone) & (transitions.t2hmm_state == state)
        tid = int(rng.choice(np.flatnonzero(here & ~transitions.is_self_loop)))
        loops = np.flatnonzero(here & transitions.is_self_loop)
        tids += [tid, *[int(loops[0])] * int(rng.integers(1, 4))]
        state = int(transitions.t2target[tid])
    return tids


def _utterance(model: HmmModel, transitions: Transitions, rng: np.random.Generator) -> tuple[list[str], list[int]]:
    lang, words = model.lang, rng.choice(LEXICON.words, size=3).tolist()
    silence = lang.phone_id["SIL"]
    tids = random_walk(transitions, silence, rng)
    for word in words:
        for phone in lang.positioned(LEXICON.entries[word][0]):
            tids += random_walk(transitions, lang.phone_id[phone], rng)
        tids += random_walk(transitions, silence, rng) if rng.random() < 0.5 else []
    return words, tids


def write_kaldi_system(folder: Path, sizes: dict[str, int], *, text_model: bool = False) -> HmmModel:
    """data/SET, exp/tri3_ali_SET for each set of so many utterances, data/lang, exp/tri3/graph."""
    model = untrained_model()
    transitions = parse_model(format_mdl(model).encode(), "final.mdl").transitions
    mdl = format_mdl(model).encode() if text_model else binary_transitions(transitions) + binary_gmms(model.gmms)
    means = np.random.default_rng(7).normal(size=(model.num_pdfs, FEAT_DIM))
    for number, (name, size) in enumerate(sizes.items()):
        rng = np.random.default_rng(number)
        utts = {f"s{u % 2}-{name}{u:02d}": _utterance(model, transitions, rng) for u in range(size)}
        feats = {
            utt_id: (means[transitions.t2pdf[tids]] + rng.normal(scale=0.7, size=(len(tids), FEAT_DIM))).astype("f")
            for utt_id, (_, tids) in sorted(utts.items())
        }
        _write_data(folder / "data" / name, utts, feats)
        ali = folder / f"exp/tri3_ali_{name}"
        _write_model(ali, mdl, model)
        (ali / "num_jobs").write_text("2\n")
        (ali / "cmvn_opts").write_text("--norm-means=true --norm-vars=true\n")
        for job in (1, 2):
            part = sorted(utts.items())[job - 1 :: 2]
            write_int_vectors(f"ark:{ali}/ali.{job}.gz", [(utt_id, np.array(tids)) for utt_id, (_, tids) in part])
    _write_graph(folder, mdl, model)
    return model


def _write_data(folder: Path, utts: dict, feats: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    write_matrices(f"ark,scp:{folder}/feats.ark,{folder}/feats.scp", feats.items())
    (folder / "utt2spk").write_text("".join(f"{utt_id} {utt_id[:2]}\n" for utt_id in feats))
    (folder / "text").write_text(
        "".join(f"{utt_id} {' '.join(words)}\n" for utt_id, (words, _) in sorted(utts.items()))
    )
    stats = {
        spk: sum(accumulate(feats[u]) for u in feats if u.startswith(spk)) for spk in sorted({u[:2] for u in feats})
    }
    write_matrices(f"ark,scp:{folder}/cmvn.ark,{folder}/cmvn.scp", stats.items())


def _write_model(folder: Path, mdl: bytes, model: HmmModel) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "final.mdl").write_bytes(mdl)
    (folder / "tree").write_bytes(b"\0B" + model.tree)
    (folder / "phones.txt").write_text(model.lang.phones_txt())


def _write_graph(folder: Path, mdl: bytes, model: HmmModel) -> None:
    lang, graph = model.lang, folder / "exp/tri3/graph"
    _write_model(folder / "exp/tri3", mdl, model)
    phones = folder / "data/lang/phones"
    phones.mkdir(parents=True)
    (graph / "phones").mkdir(parents=True)
    k = wheels.kaldi()
    hclg = make_graph(model, lang, None).arcs.to_fst()
    assert k.fst.StdConstFst(hclg).write(str(graph / "HCLG.fst"))
    words = ["<eps>", *lang.words, *SPARE_WORDS]
    (graph / "words.txt").write_text("".join(f"{word} {number}\n" for number, word in enumerate(words)))
    (graph / "num_pdfs").write_text(f"{model.num_pdfs}\n")
    (folder / "data/lang/phones.txt").write_text(lang.phones_txt())
    (phones / "silence.csl").write_text(":".join(str(lang.phone_id[phone]) for phone in lang.silence_phones) + "\n")
    (phones / "optional_silence.txt").write_text("SIL\n")
    lines = ["<eps> <eps> SIL"]
    lines += [f"{word} {word} {' '.join(lang.positioned(p))}" for word in lang.words for p in LEXICON.entries[word]]
    (phones / "align_lexicon.txt").write_text("\n".join(lines) + "\n")

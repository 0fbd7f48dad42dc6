"""Every reader of strangers' files, registered for fuzz.py: one `register` for each kind of file."""

import gzip
import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import soundfile
import yaml
from fuzz import register
from made_up_files import (
    KALDI_WORDS,
    TOPOLOGY_TRANSITIONS,
    made_up_gmms,
    text_mdl,
    text_tree,
    tiny_fst,
    tiny_net,
)
from made_up_kaldi import binary_gmms, binary_transitions, untrained_model
from made_up_systems import make_system

from asr_kd.config import load_yaml
from asr_kd.corpus.datadir import read_data_dir
from asr_kd.corpus.lexicon import read_lexicon
from asr_kd.corpus.librispeech import read_genders, read_subset
from asr_kd.corpus.mboshi import read_corpus as read_mboshi
from asr_kd.corpus.mnist import read_idx
from asr_kd.corpus.symbols import read_symbols
from asr_kd.corpus.tables import read_table
from asr_kd.distill.foreign_targets import sparse_targets, widest_frame
from asr_kd.distill.transfer import read_utt2uniq, read_utt_list
from asr_kd.errors import AsrKdError
from asr_kd.features.audio import read_audio
from asr_kd.features.kaldi_conf import read_cmvn_options, read_front_end
from asr_kd.features.options import FbankOptions
from asr_kd.features.wav_list import read_wav_list
from asr_kd.hmm.boundaries import read_truth
from asr_kd.hmm.const_fst import read_graph_fst
from asr_kd.hmm.graph import Graph, GraphArcs, make_graph
from asr_kd.hmm.import_kaldi import read_alignments
from asr_kd.hmm.imported import ImportedHmm
from asr_kd.hmm.kaldi_lang import read_lang
from asr_kd.hmm.kaldi_model import KaldiModel, read_mdl
from asr_kd.hmm.lattice import Lattice
from asr_kd.hmm.lattice_table import read_lattices, write_lattices
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.tree import PDF_CLASS, ContextTree, Leaf, Split, Table
from asr_kd.lm.arpa import read_arpa
from asr_kd.lm.text import read_text, read_vocabulary
from asr_kd.model_card import scores_of
from asr_kd.model_dir import Scales, export_model, load_model
from asr_kd.nnet.model import FrameClassifier
from asr_kd.nnet.net_dir import load_net, save_net
from asr_kd.nnet.priors import read_counts
from asr_kd.scoring.posteriors import open_posteriors
from asr_kd.scoring.system_list import read_systems
from asr_kd.scoring.systems import SystemScores
from asr_kd.scoring.transcripts import read_ctm, read_stm, read_transcripts, read_trn
from asr_kd.store.ali import AliReader, digest_of, write_ali
from asr_kd.store.feats import FeatsReader
from asr_kd.store.feats_writer import FeatsWriter
from asr_kd.store.hdf5 import Layout
from asr_kd.store.kaldi_ark import (
    read_int_vectors,
    read_matrices,
    read_vectors,
    write_int_vectors,
    write_matrices,
    write_vectors,
)
from asr_kd.store.kaldi_object import read_file
from asr_kd.store.kaldi_posterior_reader import read_posteriors
from asr_kd.store.targets import TargetsReader, write_targets

LAYOUT = Layout.from_lengths(["a-1", "a-2", "b-1"], [9, 7, 8])
RNG = np.random.default_rng(5)


def holding(content: bytes | str, name: str = "file"):
    """How to make a file of this content."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / name

    return make


# --- Kaldi's models, trees, graphs, symbols


def a_model(path: Path) -> str:
    model = read_mdl(path)
    t = model.transitions
    assert isinstance(model, KaldiModel)
    assert len(t.t2pdf) == len(t.log_probs) == len(t.t2phone_id) == len(t.is_self_loop)
    assert t.t2pdf[1:].min() >= 0
    assert t.t2pdf.max() < t.num_pdfs
    assert model.gmms is None or len(model.gmms) == t.num_pdfs
    return t.digest


MODEL = binary_transitions(TOPOLOGY_TRANSITIONS) + binary_gmms(made_up_gmms(TOPOLOGY_TRANSITIONS.num_pdfs))
register("mdl-binary", holding(MODEL, "final.mdl"), a_model)
register("mdl-tuples", holding(binary_transitions(TOPOLOGY_TRANSITIONS, with_tuples=True), "final.mdl"), a_model)
register("mdl-text", holding(text_mdl(TOPOLOGY_TRANSITIONS), "final.mdl"), a_model)

TREE = ContextTree(
    Table(1, (None, Table(-1, (Leaf(0), Leaf(1))), Split(0, (0, 2), Leaf(2), Split(2, (1,), Leaf(3), Leaf(4)))))
)


def a_tree(path: Path) -> ContextTree:
    tree = ContextTree.from_bytes(read_file(path), str(path))
    assert tree.num_pdfs > 0
    return tree


register("tree-binary", holding(TREE.to_bytes(), "tree"), a_tree)
register("tree-text", holding(text_tree(TREE), "tree"), a_tree)


def a_graph(path: Path) -> int:
    arcs = GraphArcs(*read_graph_fst(path))
    assert len(arcs.source) == len(arcs.target) == len(arcs.ilabel) == len(arcs.weight)
    assert 16 * len(arcs.source) + 12 * arcs.num_states <= path.stat().st_size
    assert arcs.source.max(initial=0) < arcs.num_states
    return arcs.num_states


register("fst-vector", holding(tiny_fst(const=False), "HCLG.fst"), a_graph)
register("fst-const", holding(tiny_fst(const=True), "HCLG.fst"), a_graph)
register("fst-const-aligned", holding(tiny_fst(const=True, aligned=True), "HCLG.fst"), a_graph)


def symbols(path: Path) -> int:
    names = read_symbols(path)
    assert len(set(names)) == len(names)
    return len(names)


register("words.txt", holding(KALDI_WORDS, "words.txt"), symbols)
PHONES = "".join(f"{name} {i}\n" for i, name in enumerate(["<eps>", "SIL", "AH", "B", "#0"]))
ALIGN_LEXICON = "<eps> <eps> SIL\na a AH\nab ab AH B\nb b B\n!SIL !SIL SIL\n"


def a_lang_folder(name: str):
    files = {"phones.txt": PHONES, "phones/align_lexicon.txt": ALIGN_LEXICON, "phones/silence.csl": "1\n"}

    def make(folder: Path) -> Path:
        (folder / "phones").mkdir()
        for file, content in files.items():
            (folder / file).write_text(content)
        return folder / name

    return make


def a_lang(path: Path) -> list[str]:
    folder = path.parent if path.name == "phones.txt" else path.parents[1]
    lang = read_lang([folder], None, None, lambda _: None)
    assert set(lang.silence_phones) <= set(lang.phones)
    return lang.phones


for name in ("phones.txt", "phones/align_lexicon.txt", "phones/silence.csl"):
    register(f"lang/{name}", a_lang_folder(name), a_lang)


def imported_hmm(name: str):
    def make(folder: Path) -> Path:
        lang = read_lang([a_lang_folder("phones.txt")(folder).parent], None, None, lambda _: None)
        of_phones = [Table(PDF_CLASS, tuple(map(Leaf, pdfs))) for pdfs in ((0, 1), (2, 3), (4, 3))]
        tree = ContextTree(Table(0, (None, *of_phones)), 1, 0)
        ImportedHmm(MODEL, tree.to_bytes(), lang).save(folder / "hmm")
        return folder / "hmm" / name

    return make


for name in ("hmm.json", "final.mdl", "tree", "lexicon.txt"):
    register(f"imported-hmm/{name}", imported_hmm(name), lambda path: ImportedHmm.load(path.parent).seal, sealed=True)

register(
    "fbank.conf",
    holding("# fbank\n--sample-frequency=8000\n--num-mel-bins=23 --use-energy=false\n--dither=1\n", "fbank.conf"),
    lambda path: read_front_end(path, "fbank").to_json(),
)
register("cmvn_opts", holding("--norm-means=true --norm-vars=true --skip-dims=1:2\n"), read_cmvn_options)
register("counts", holding(" [ 3 4 0 17 2000 ]\n"), lambda path: len(read_counts(path)))


# --- Kaldi's tables


def table(write, *items, options: str = "ark", name: str = "x.ark"):
    def make(folder: Path) -> Path:
        write(f"{options}:{folder / name}", list(items))
        return folder / name

    return make


def numbers(read, kinds: str):
    def reading(path: Path) -> int:
        kind = "scp" if path.suffix == ".scp" else "ark"
        count = 0
        for count, (key, values) in enumerate(read(f"{kind}:{path}"), 1):  # noqa: B007
            assert key
            assert values.dtype.kind in kinds
        return count

    return reading


MATRICES = [(f"m{i}", RNG.normal(size=(5 + i, 3)).astype(np.float32)) for i in range(3)]
VECTORS = [(f"v{i}", RNG.normal(size=4 + i).astype(np.float32)) for i in range(3)]
INTS = [(f"i{i}", RNG.integers(0, 1000, size=4 + i)) for i in range(3)]
register("ark-matrices", table(write_matrices, *MATRICES), numbers(read_matrices, "f"))
register("ark-matrices-text", table(write_matrices, *MATRICES, options="ark,t"), numbers(read_matrices, "f"))
register("ark-matrices-gz", table(write_matrices, *MATRICES, name="x.ark.gz"), numbers(read_matrices, "f"))
for method in (2, 3, 5):

    def compressed(wspecifier: str, items: list, method: int = method) -> None:
        write_matrices(wspecifier, items, method)

    register(f"ark-compressed-{method}", table(compressed, *MATRICES), numbers(read_matrices, "f"))
register("ark-vectors", table(write_vectors, *VECTORS), numbers(read_vectors, "f"))
register("ark-vectors-text", table(write_vectors, *VECTORS, options="ark,t"), numbers(read_vectors, "f"))
register("ark-ints", table(write_int_vectors, *INTS), numbers(read_int_vectors, "i"))
register("ark-ints-text", table(write_int_vectors, *INTS, options="ark,t"), numbers(read_int_vectors, "i"))


def script(folder: Path) -> Path:
    write_matrices(f"ark,scp:{folder}/x.ark,{folder}/x.scp", MATRICES)
    (folder / "x.scp").write_text((folder / "x.scp").read_text().replace("\n", "[0:3]\n", 1))
    return folder / "x.scp"


register("scp-matrices", script, numbers(read_matrices, "f"))

LONE_STATES = [(f"{u}", np.array([1, 2, 1])) for u in LAYOUT.utt_ids]


class OfTopology:
    transitions, t2pdf = TOPOLOGY_TRANSITIONS, TOPOLOGY_TRANSITIONS.t2pdf
    t2phone = TOPOLOGY_TRANSITIONS.t2phone_id - 1


def alignments(path: Path) -> int:
    found = read_alignments([f"ark:{path}"], OfTopology, LAYOUT)
    assert found.pdf.min() >= -1
    assert found.pdf.max() < TOPOLOGY_TRANSITIONS.num_pdfs
    assert ((found.pdf < 0) == (found.phone < 0)).all()
    return len(found.left_out)


def walks(length: int) -> np.ndarray:
    """A path through phone 1 of so many frames."""
    t = TOPOLOGY_TRANSITIONS
    first, second = (
        int(np.flatnonzero((t.t2phone_id == 1) & (t.t2hmm_state == s) & ~t.is_self_loop)[0]) for s in (0, 1)
    )
    return np.array([first, *[first - 1] * (length - 2), second])


ALIGNED = [(u, walks(n)) for u, n in zip(LAYOUT.utt_ids, LAYOUT.lengths.tolist(), strict=True)]
register("ali.gz", table(write_int_vectors, *ALIGNED, name="ali.1.gz"), alignments)
register("ali-text", table(write_int_vectors, *ALIGNED, options="ark,t", name="ali.ark"), alignments)

POST_TEXT = "".join(
    f"{u} " + "".join("[ 1 0.5 2 0.25 ] " if t % 2 else "[ 0 1 ] " for t in range(n)) + "\n"
    for u, n in zip(LAYOUT.utt_ids, LAYOUT.lengths.tolist(), strict=True)
)


def binary_posteriors() -> bytes:
    def number(value: int) -> bytes:
        return b"\x04" + value.to_bytes(4, "little")

    out = b""
    for utt_id, length in zip(LAYOUT.utt_ids, LAYOUT.lengths.tolist(), strict=True):
        out += utt_id.encode() + b" \0B" + number(length)
        for t in range(length):
            entries = [(1, 0.5), (2, 0.25)] if t % 2 else [(0, 1.0)]
            out += number(len(entries))
            out += b"".join(number(pdf) + b"\x04" + np.float32(weight).tobytes() for pdf, weight in entries)
    return out


def sparse(path: Path) -> int:
    for _, post in read_posteriors(f"ark:{path}"):
        assert post.offset[0] == 0
        assert post.offset[-1] == len(post.pdf) == len(post.weight)
    width = min(widest_frame(f"ark:{path}"), 4)
    rows = 0
    for block, arrays in sparse_targets(f"ark:{path}", LAYOUT, 5, width):
        assert (arrays["prob"] >= 0).all()
        assert arrays["pdf"].min() >= 0
        assert arrays["pdf"].max() < 5
        assert np.allclose(arrays["prob"].sum(1) + arrays["tail"], 1, atol=0.02)
        rows += block.stop - block.start
    assert rows == LAYOUT.num_frames
    return rows


register("posterior-text", holding(POST_TEXT, "post.ark"), sparse)
register("posterior-binary", holding(binary_posteriors(), "post.ark"), sparse)


# --- language models, lattices

ARPA = """\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-99\t<s>\t-0.3
-0.5\t</s>
-1.5\t<unk>
-0.7\ta\t-0.2
-0.9\tb\t-0.1

\\2-grams:
-0.4\t<s> a
-0.3\ta b
-0.2\tb </s>

\\end\\
"""


def a_language_model(path: Path) -> int:
    model = read_arpa(path)
    for level in model.levels:
        assert np.isfinite(level.log_prob).all()
    return len(model.words)


register("arpa", holding(ARPA, "lm.arpa"), a_language_model)
register("arpa.gz", holding(gzip.compress(ARPA.encode(), mtime=0), "lm.arpa.gz"), a_language_model)
register("lm-text", holding("a b\nb\nb a a\n", "lm.txt"), lambda path: len(read_text(path)))
register("lm-vocabulary", holding("a\nb\nc\n", "words"), lambda path: len(read_vocabulary(path)))


def a_lattice(kind: str):
    def make(folder: Path) -> Path:
        states = [0, 0, 1, 2], [1, 2, 2, 3]
        costs = [1.5, 0.5, 0.25, 2.0], [-10.0, -10.25, -1.0, 3.0]
        columns = (np.array(column) for column in (*states, [4, 3, 4, 0], *costs))
        tids = [np.array(each, "<i4").tobytes() for each in ([9], [7, 8], [9], [11])]
        lattice = Lattice.from_arcs(0, 3, *columns, tids)
        write_lattices(f"{kind}:{folder}/lat", [("u", lattice), ("v", lattice)])
        return folder / "lat"

    return make


def lattices_of(path: Path) -> int:
    count = 0
    for _, lattice in read_lattices(f"ark:{path}"):
        assert (lattice.source < lattice.target).all()
        count += len(lattice.tids)
    return count


register("lattices", a_lattice("ark"), lattices_of)
register("lattices-text", a_lattice("ark,t"), lattices_of)


# --- our own files: always the same, for as a donor, whole in another's place, each is right

FRAMES = RNG.normal(size=(LAYOUT.num_frames, 4)).astype(np.float32)
STATES = RNG.integers(0, 5, LAYOUT.num_frames)
NOISE = RNG.normal(0, 0.1, 800)


def feats(folder: Path) -> Path:
    with FeatsWriter(folder / "f.h5", kind="fbank", options=FbankOptions(num_mel_bins=4), sample_rate=16000) as writer:
        for utt_id in LAYOUT.utt_ids:
            writer.append(utt_id, utt_id[0], FRAMES[LAYOUT.rows(utt_id)])
    return folder / "f.h5"


def frames_of(path: Path) -> str:
    with FeatsReader(path) as reader:
        for utt, utt_id in enumerate(reader.layout.utt_ids):
            reader.require_intact(utt, reader[utt_id])
        return reader.content_digest + reader.layout.digest


def ali(folder: Path) -> Path:
    path, phones = folder / "a.h5", list("abcde")
    write_ali(path, LAYOUT, STATES, num_pdfs=5, model_digest="m", sil_pdfs=[0], phone=STATES, phones=phones)
    return path


def states_of(path: Path) -> str:
    reader = AliReader(path)
    return digest_of(reader.pdf, reader.phone) + reader.layout.digest


def targets(folder: Path) -> Path:
    attributes = {
        "temperature": 1.0,
        "mean": "arithmetic",
        "members": ["x"],
        "content_digest": "c",
        "model_digest": "m",
    }
    n = LAYOUT.num_frames
    blocks = [(slice(0, n), {"prob": np.full((n, 2), 0.25), "pdf": np.tile([0, 3], (n, 1)), "tail": np.full(n, 0.5)})]
    write_targets(folder / "t.h5", LAYOUT, blocks, num_pdfs=5, top_k=2, attributes=attributes)
    return folder / "t.h5"


def targets_of(path: Path) -> str:
    reader = TargetsReader(path)
    return reader.digest + reader.layout.digest


register("feats.h5", feats, frames_of, sealed=True)
register("ali.h5", ali, states_of, sealed=True)
register("targets.h5", targets, targets_of, sealed=True)


def posteriors_h5(flat: bool):
    post = RNG.dirichlet(np.ones(5), LAYOUT.num_frames).astype(np.float32)

    def make(folder: Path) -> Path:
        with h5py.File(folder / "p.h5", "w") as file:
            if flat:
                file["post"], file["utt/id"], file["utt/offset"] = post, list(LAYOUT.utt_ids), LAYOUT.offsets
            else:
                for utt_id in LAYOUT.utt_ids:
                    file[utt_id] = post[LAYOUT.rows(utt_id)]
        return folder / "p.h5"

    return make


def log_posteriors_of(path: Path) -> int:
    count = 0
    for _, log_post in open_posteriors(path):
        assert np.allclose(np.exp(log_post).sum(1), 1, atol=0.02)
        count += 1
    return count


register("posteriors-flat.h5", posteriors_h5(True), log_posteriors_of)
register("posteriors-by-utterance.h5", posteriors_h5(False), log_posteriors_of)


def net_file(name: str):
    def make(folder: Path) -> Path:
        save_net(folder / "net", tiny_net())
        return folder / "net" / name

    return make


register("net.json", net_file("net.json"), lambda path: load_net(path.parent).digest, sealed=True)
register("final.safetensors", net_file("final.safetensors"), lambda path: load_net(path.parent).digest, sealed=True)

SYSTEMS = "- {name: baseline, role: baseline, nets: [[net]]}\n"
SYSTEMS += "- {name: e, role: ensemble, combination: geometric, nets: [[net, net2]]}\n"


def systems(folder: Path) -> Path:
    for name in ("net", "net2"):
        save_net(folder / name, tiny_net())
    return holding(SYSTEMS, "systems.yaml")(folder)


register("systems.yaml", systems, lambda path: len(read_systems(path)))
register("conf.yaml", holding(yaml.safe_dump({"temperature": 2, "top_k": None, "acwts": [0.1, 0.2]})), load_yaml)
RESULTS = {"recipe": "r", "preset": "p", "split": "test", "num_utts": 3, "num_words": 4}
RESULTS["systems"] = [{"name": "s", "role": "student", "frame_accuracy": {"value": 1.0}, "wer": {"value": 2.0}}]
register("results.json", holding(json.dumps(RESULTS)), lambda path: scores_of(path, "s"))


def scores_file(folder: Path) -> Path:
    make_system("s", "student", [1], 2.0, 0.3, np.random.default_rng(1), num_utts=4).save(folder / "s.json")
    return folder / "s.json"


register("scores.json", scores_file, lambda path: len(SystemScores.load(path).utt_ids))


def trained(name: str):
    """A folder of an HMM or a graph of ours; needs the wheels."""

    def make(folder: Path) -> Path:
        model = untrained_model()
        model.save(folder / "hmm")
        make_graph(model, model.lang, None).save(folder / "graph")
        return folder / name

    return make


def model_file(name: str):
    """A file of a model directory; needs the wheels."""

    def make(folder: Path) -> Path:
        trained("hmm")(folder)
        hmm, few = HmmModel.load(folder / "hmm"), tiny_net()
        net = FrameClassifier(replace(few.net.architecture, num_pdfs=hmm.num_pdfs)).eval()
        labels = {"num_pdfs": hmm.num_pdfs, "model_digest": hmm.digest}
        front_end = {"kind": "fbank", "sample_rate": 16000, "frame_shift_ms": 10.0}
        save_net(folder / "net", replace(few, net=net, labels=labels, front_end=front_end))
        counts = holding(f" [ {'7 ' * hmm.num_pdfs}]\n", "counts")(folder)
        parts = {"hmm": folder / "hmm", "graph": folder / "graph", "counts": counts, "scales": Scales(0.1)}
        export_model(folder / "model", nets=[folder / "net"], **parts)
        return folder / "model" / name

    return make


def a_model_directory(path: Path) -> tuple:
    sums = path.parent / "SHA256SUMS"
    if path != sums:  # a damaged file would be refused for its checksum, and never be looked at
        sealed = hashlib.sha256(path.read_bytes()).hexdigest()
        others = [line for line in sums.read_text().splitlines() if not line.endswith(f"  {path.name}")]
        sums.write_text("".join(f"{line}\n" for line in [*others, f"{sealed}  {path.name}"]))
    model = load_model(path.parent)
    assert len(model.log_priors) == model.graph.num_pdfs
    assert len(model.phone_table.t2phone) == len(model.graph.t2pdf)
    return model.graph.digest, [net.digest for net in model.nets], model.scales


if importlib.util.find_spec("kaldi_hmm_gmm"):
    register("model/SHA256SUMS", model_file("SHA256SUMS"), a_model_directory, sealed=True)
    for name in ("model.json", "phones.json"):
        register(f"model/{name}", model_file(name), a_model_directory)
    for name in ("hmm.json", "final.mdl", "tree", "lexicon.txt"):
        register(f"hmm/{name}", trained(f"hmm/{name}"), lambda path: HmmModel.load(path.parent).digest, sealed=True)
    for name in ("graph.json", "HCLG.fst"):
        register(f"graph/{name}", trained(f"graph/{name}"), lambda path: Graph.load(path.parent).digest, sealed=True)


# --- text that people write


def lines(path: Path) -> int:
    return len(read_transcripts(path))


register("text", holding("a-1 one two\na-2 three\nb-1 one\n", "text"), lines)
register("trn", holding("one two (a-1)\n{ three / tree } (a-2)\n", "hyp.trn"), lambda path: len(read_trn(path)))
register("ctm", holding("a-1 1 0.00 0.31 one 0.9\na-1 1 0.5 0.2 two\n", "hyp.ctm"), lambda path: len(read_ctm(path)))
register(
    "stm",
    holding(";; x\na A s1 0.0 1.5 <o> one two\na A s1 1.5 2.5 three\n", "r.stm"),
    lambda path: len(read_stm(path)),
)
register("truth.ctm", holding("a-1 1 0.0 0.5 SIL\na-1 1 0.5 0.2 AH\n", "truth.ctm"), lambda path: len(read_truth(path)))
register(
    "lexicon.txt",
    holding("one W AH N\none HH W AH N\n<unk> SPN\n", "lexicon.txt"),
    lambda path: len(read_lexicon(path).entries),
)
register(
    "lexiconp.txt",
    holding("one 1.0 W AH N\ntwo 0.5 T UW\n", "lexiconp.txt"),
    lambda path: len(read_lexicon(path).entries),
)
register("utt2uniq", holding("sp0.9-a-1 a-1\na-1 a-1\n", "utt2uniq"), lambda path: len(read_utt2uniq(path)))
register("utt-list", holding("a-1\na-2\n", "list"), lambda path: len(read_utt_list(path)))
DATA_DIR = {
    "wav.scp": "a a.wav\nb b.wav\n",
    "segments": "s-1 a 0.0 0.5\ns-2 a 0.5 -1\nt-1 b 0.25 0.75\n",
    "utt2spk": "s-1 s\ns-2 s\nt-1 t\n",
    "spk2utt": "s s-1 s-2\nt t-1\n",
    "text": "s-1 one\ns-2 two\nt-1 three\n",
    "utt2uniq": "s-1 s-1\ns-2 s-1\nt-1 t-1\n",
    "reco2file_and_channel": "a a A\nb b B\n",
}


def a_data_dir(name: str):
    def make(folder: Path) -> Path:
        for file, content in DATA_DIR.items():
            (folder / file).write_text(content)
        for wav in ("a", "b"):
            soundfile.write(folder / f"{wav}.wav", np.zeros((8000, 2), np.int16), 8000)
        return folder / name

    return make


for name in DATA_DIR:
    register(f"data/{name}", a_data_dir(name), lambda path: len(read_data_dir(path.parent, allow_pipes=False)))


def rows_of(path: Path) -> int:
    table, problems = read_table(path)
    if problems:
        raise AsrKdError(str(problems[0]))
    return len(table.rows)


register(
    "feats.scp-table",
    holding("a-1 feats.ark:12\na-2 feats.ark:88\n", "feats.scp"),
    rows_of,
)


def sound(subtype: str, ending: str):
    def make(folder: Path) -> Path:
        soundfile.write(folder / f"a.{ending}", NOISE, 8000, subtype=subtype)
        return folder / f"a.{ending}"

    return make


def samples(path: Path) -> int:
    found = read_audio(path, 8000)
    assert found.ndim == 1
    assert np.isfinite(found).all()
    return len(found)


register("audio.wav", sound("PCM_16", "wav"), samples)
register("audio-float.wav", sound("FLOAT", "wav"), samples)
register("audio.flac", sound("PCM_16", "flac"), samples)
register("audio.ogg", sound("VORBIS", "ogg"), samples)
register("wav-list", holding("a a.wav\nb b.flac\n", "list"), lambda path: len(read_wav_list(str(path))))
CHAPTER = "19-141-0000 HE TOOK A BOX\n19-141-0001 NO\n"
SPEAKERS = ";ID |SEX| SUBSET | MINUTES | NAME\n19 | F | train-clean-5 | 0.5 | A\n26 | M | train-clean-5 | 0.5 | B\n"


def librispeech(name: str):
    def make(folder: Path) -> Path:
        chapter = folder / "train-clean-5/19/141"
        chapter.mkdir(parents=True)
        for number in range(2):
            (chapter / f"19-141-000{number}.flac").touch()  # its transcripts alone are read
        (chapter / "19-141.trans.txt").write_text(CHAPTER)
        (folder / "SPEAKERS.TXT").write_text(SPEAKERS)
        return folder / name

    return make


register(
    "librispeech/trans.txt",
    librispeech("train-clean-5/19/141/19-141.trans.txt"),
    lambda path: len(read_subset(path.parents[2])),
)
register(
    "librispeech/SPEAKERS.TXT",
    librispeech("SPEAKERS.TXT"),
    lambda path: len(read_genders(path.parent / "train-clean-5")),
)


def mboshi(ending: str):
    def make(folder: Path) -> Path:
        for split in ("train", "dev"):
            (folder / split).mkdir()
            name = folder / split / "abiayi_2015-09-08-11-31-39_samsung-SM-T530_mdw_elicit_Dico18_1"
            soundfile.write(f"{name}.wav", NOISE, 16000, subtype="PCM_16")
            Path(f"{name}.mb.cleaned").write_text("ambángé á lebá\n")
        return Path(f"{name}{ending}")

    return make


for ending in (".wav", ".mb.cleaned"):
    register(
        f"mboshi{ending}",
        mboshi(ending),
        lambda path: len(read_mboshi(path.parents[1], any_version=True, log=lambda _: None).left_out),
    )
IDX = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 3, 3)) + bytes(range(18))
register("idx", holding(IDX), lambda path: read_idx(path.read_bytes(), 3, str(path)).shape)

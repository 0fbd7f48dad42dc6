"""A directory that holds all it takes to recognise speech: nets, front end, CMVN, priors, graph, words, scales.

    README.md                 the model card
    model.json                format, scales, what it was made from and with
    nets/1, nets/2, …         final.safetensors and net.json (architecture, front end, CMVN), as by asr-kd train
    graph/                    HCLG.fst, words.txt, graph.json
    lexicon.txt               or lexiconp.txt; with phones.json it tells when a word was said
    phones.json               phone of every transition-id
    ali_train_pdf.counts      priors of the states
    SHA256SUMS                of all of the above: `sha256sum -c SHA256SUMS`

Nothing points out of it, and nothing in it is unpickled or run.
"""

import hashlib
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from asr_kd import __version__
from asr_kd.choices import Combination, require_choice
from asr_kd.corpus.lexicon import read_lexicon_in, write_lexicon_in
from asr_kd.errors import AsrKdError
from asr_kd.hmm.graph import Graph
from asr_kd.hmm.imported import load_hmm
from asr_kd.hmm.kaldi_lang import ImportedLang
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.viterbi import epsilon_levels
from asr_kd.hmm.word_times import PhoneTable
from asr_kd.model_card import card_text
from asr_kd.nnet.net_dir import TrainedNet, load_net, require_alike, save_net
from asr_kd.nnet.priors import read_decoding_priors
from asr_kd.runinfo import git_commit
from asr_kd.store.atomic import atomic_dir, require_replaceable, write_json, write_text
from asr_kd.store.parsing import parse_json

FORMAT, VERSION = "asr_kd.model", 1
RECORD, COUNTS, PHONES, SUMS = "model.json", "ali_train_pdf.counts", "phones.json", "SHA256SUMS"


@dataclass(frozen=True)
class Scales:
    """How scores become words: acwt on log-likelihoods, insertion_penalty a word, search limits, the smallest prior.

    Raises AsrKdError for an acoustic scale or penalty that nothing can be decoded with.
    """

    acwt: float
    insertion_penalty: float = 0.0
    beam: float = 20.0
    min_active: int = 200
    prior_floor: float = 1e-5
    max_active: int = 7000

    def __post_init__(self) -> None:
        if not (0 < self.acwt < math.inf and math.isfinite(self.insertion_penalty)):
            raise AsrKdError(
                f"acoustic scale {self.acwt:g}, insertion penalty {self.insertion_penalty:g}: the scale must be above "
                "0, and both finite"
            )


@dataclass(frozen=True)
class Model:
    """What a model directory holds, in memory.

    log_priors: (num_pdfs,) float32; record: model.json. Raises AsrKdError where the parts do not belong together.
    """

    nets: Sequence[TrainedNet]
    combination: Combination
    graph: Graph
    log_priors: np.ndarray
    lang: Lang | ImportedLang
    phone_table: PhoneTable
    scales: Scales
    record: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.nets:
            raise AsrKdError("a model needs at least one net")
        require_choice("combination", self.combination, Combination)
        if any(trained.labels.get("model_digest") != self.graph.model_digest for trained in self.nets):
            raise AsrKdError("a net was trained on the states of another HMM than the graph was made from")
        require_alike(self.nets)
        num_pdfs = self.nets[0].net.architecture.num_pdfs
        if num_pdfs != self.graph.num_pdfs:
            raise AsrKdError(f"a net of {num_pdfs} states does not fit a graph of {self.graph.num_pdfs}")
        if len(self.log_priors) != self.graph.num_pdfs:
            raise AsrKdError(f"priors of {len(self.log_priors)} states do not fit a graph of {self.graph.num_pdfs}")
        if len(self.phone_table.t2phone) != len(self.graph.t2pdf):
            raise AsrKdError("the phones are of another HMM than the graph")
        if not self.lang.pronounces(self.graph.words, np.unique(self.graph.arcs.olabel[self.graph.arcs.olabel > 0])):
            raise AsrKdError("the lexicon has other words than the graph")


def export_model(
    out: str | Path,
    *,
    nets: Sequence[str | Path],
    hmm: str | Path,
    graph: str | Path,
    counts: str | Path,
    scales: Scales,
    combination: Combination = "arithmetic",
    name: str = "",
    license: str = "",
    trained_on: str = "",
    config: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
) -> None:
    """Write a model directory, as a whole or not at all, from the folders and files of an experiment.

    nets: one, or the members of an ensemble, combined as `combination` says. name, license, trained_on (which speech):
    for the card. config: of the experiment; scores: as asr_kd.model_card.scores_of takes them from results.json.

    Raises AsrKdError where the parts do not belong together, or `out` is something else than a model directory.
    """
    out = Path(out)
    require_replaceable(out, RECORD)
    hmm_model, trained = load_hmm(hmm), [load_net(path) for path in nets]
    decoding_graph = Graph.load(graph)
    if hmm_model.digest != decoding_graph.model_digest:
        raise AsrKdError(f"{graph}: was made from another HMM than {hmm}")
    if not hmm_model.lang.lexicon.entries:
        raise AsrKdError(f"{hmm}: knows no pronunciations, which tell when words were said; import it with --lexicon")
    record = {
        "format": FORMAT,
        "version": VERSION,
        "name": name or out.resolve().name,
        "license": license or None,
        "trained_on": trained_on or None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "asr_kd": __version__,
        "git_commit": git_commit(),
        "num_nets": len(trained),
        "combination": combination,
        "scales": asdict(scales),
        "lang": hmm_model.lang.options,
        "digests": {
            "hmm": hmm_model.digest,
            "graph": decoding_graph.digest,
            "nets": [each.digest for each in trained],
        },
        "scores": scores,
        "config": config,
    }
    table = PhoneTable.of_model(hmm_model)
    log_priors = read_decoding_priors(counts, scales.prior_floor, decoding_graph.num_pdfs)
    model = Model(trained, combination, decoding_graph, log_priors, hmm_model.lang, table, scales, record)
    with atomic_dir(out) as folder:
        for number, each in enumerate(trained, 1):
            save_net(folder / "nets" / str(number), each)
        decoding_graph.save(folder / "graph")
        shutil.copyfile(counts, folder / COUNTS)
        write_lexicon_in(folder, hmm_model.lang.lexicon)
        write_json(folder / PHONES, table.to_json())
        write_json(folder / RECORD, record)
        write_text(folder / "README.md", card_text(model))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sums = "".join(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
        write_text(folder / SUMS, sums)


def load_model(path: str | Path) -> Model:
    """Read a model directory, from wherever it was copied to, after its checksums.

    Raises AsrKdError, naming the file, for what is missing, damaged, changed, or of another format.
    """
    path = Path(path)
    _check_sums(path)
    record = _read_json(path / RECORD)
    if record.get("format") != FORMAT:
        raise AsrKdError(f"{path / RECORD}: is not of format {FORMAT}")
    if record.get("version") != VERSION:
        raise AsrKdError(
            f"{path / RECORD}: version {record.get('version')} is not the {VERSION} that this asr_kd reads"
        )
    try:
        scales = Scales(**record["scales"])
        nets = [load_net(path / "nets" / str(number + 1)) for number in range(int(record["num_nets"]))]
        # The options of an imported system name its phones.
        lang = (ImportedLang if "phones" in record["lang"] else Lang)(read_lexicon_in(path), **record["lang"])
        phones = _read_json(path / PHONES)
        table = PhoneTable(
            np.array(phones["t2phone"], np.int64), np.array(phones["enters_phone"], bool), len(lang.phones)
        )
        graph = Graph.load(path / "graph")
        log_priors = read_decoding_priors(path / COUNTS, scales.prior_floor, graph.num_pdfs)
        epsilon_levels(graph.arcs)  # a cycle without frames would keep the search for ever
        return Model(nets, record["combination"], graph, log_priors, lang, table, scales, record)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise AsrKdError(f"{path}: is not a complete model directory ({error!r})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AsrKdError(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise AsrKdError(f"{path}: holds no JSON object")
    return value


def _check_sums(path: Path) -> None:
    """Every file that is read must be listed, be there, and have its digest: C++ reads one of them and trusts it."""
    try:
        lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: is no model directory made by asr-kd export ({SUMS} cannot be read)") from error
    listed = set()
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9a-f]{64})  ([\w.-]+(?:/[\w.-]+)*)", line)
        if not match or ".." in match[2].split("/"):
            raise AsrKdError(f"{path / SUMS}:{number}: is not a checksum and a file of this directory")
        file = path / match[2]
        try:
            same = _sha256(file) == match[1]
        except OSError as error:
            raise AsrKdError(f"{file}: cannot be read ({error.strerror}); copy the model directory again") from error
        if not same:
            raise AsrKdError(f"{file}: is not the file that was exported; copy the model directory again")
        listed.add(match[2])
    there = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    unlisted = {file for file in there - listed if file != SUMS and re.match(r"nets/|graph/|lexiconp?\.txt", file)}
    for name in sorted({RECORD, PHONES, COUNTS} - listed | unlisted):
        raise AsrKdError(f"{path / SUMS}: does not list {name}; copy the model directory again")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

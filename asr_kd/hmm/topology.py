"""HMM topologies, as Kaldi's text.

`3state`: three states left to right, self-loop 0.75, forward 0.25 (Kaldi's gen_topo.pl). A phone lasts at least 30 ms.
`bakis`: the same three states, and arcs that skip the next one (Bakis 1976): a phone lasts at least 10 ms, for lexicons
with flaps and reduced vowels. Silence and noise have three states left to right in both: pauses shorter than 30 ms are
absorbed by the optional-silence arc of L, so silence gains nothing from skips.
`5state`: for silence and noise, the five states of Kaldi's gen_topo.pl, the inner three of which follow each other in
any order: for long, varying pauses and noises. They last at least 30 ms.
"""

from collections.abc import Sequence

from asr_kd.choices import SilenceTopology, Topology, require_choice

NUM_STATES = 3
NUM_ERGODIC_STATES = 5


def _states(arcs_of_state: list[list[tuple[int, float]]]) -> str:
    lines = []
    for state, arcs in enumerate(arcs_of_state):
        transitions = " ".join(f"<Transition> {to} {probability:g}" for to, probability in arcs)
        lines.append(f"<State> {state} <PdfClass> {state} {transitions} </State>")
    lines.append(f"<State> {len(arcs_of_state)} </State>")
    return "\n".join(lines)


def _left_to_right() -> str:
    return _states([[(s, 0.75), (s + 1, 0.25)] for s in range(NUM_STATES)])


def _bakis() -> str:
    # Skips start rare: a phone keeps its three states where its frames allow, and training raises them where they help.
    return _states([[(0, 0.7), (1, 0.2), (2, 0.05), (3, 0.05)], [(1, 0.7), (2, 0.2), (3, 0.1)], [(2, 0.75), (3, 0.25)]])


def _ergodic() -> str:
    last = NUM_ERGODIC_STATES - 1
    probability = 1.0 / last
    first = [(state, probability) for state in range(last)]
    inner = [(state, probability) for state in range(1, last + 1)]
    return _states([first, *[inner] * (last - 1), [(last, 0.75), (last + 1, 0.25)]])


def topology_text(
    num_phones: int, kind: Topology, silence_ids: Sequence[int] = (1,), silence_kind: SilenceTopology = "3state"
) -> str:
    """Kaldi's <Topology> for phones 1 … num_phones, of which silence_ids are silence and noise.

    Raises AsrKdError for an unknown kind.
    """
    require_choice("topology", kind, Topology)
    require_choice("silence topology", silence_kind, SilenceTopology)
    others = [phone for phone in range(1, num_phones + 1) if phone not in silence_ids]
    states = _left_to_right() if kind == "3state" else _bakis()
    entries = [(others, states), (silence_ids, _left_to_right() if silence_kind == "3state" else _ergodic())]
    body = "".join(
        f"<TopologyEntry>\n<ForPhones>\n{' '.join(map(str, phones))}\n</ForPhones>\n{text}\n</TopologyEntry>\n"
        for phones, text in entries
        if phones
    )
    return f"<Topology>\n{body}</Topology>\n"

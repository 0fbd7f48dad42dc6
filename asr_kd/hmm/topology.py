"""HMM topologies, as Kaldi's text.

`3state`: three states left to right, self-loop 0.75, forward 0.25 (Kaldi's gen_topo.pl). A phone lasts at least 30 ms.
`bakis`: the same three states, and arcs that skip the next one (Bakis 1976): a phone lasts at least 10 ms, for lexicons
with flaps and reduced vowels. Silence has three states left to right in both: pauses shorter than 30 ms are absorbed by
the optional-silence arc of L, so silence gains nothing from skips.
"""

from asr_kd.errors import AsrKdError

NUM_STATES = 3
TOPOLOGIES = ("3state", "bakis")


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


def topology_text(num_phones: int, kind: str) -> str:
    """Kaldi's <Topology> for silence (phone id 1) and phones 2 … num_phones.

    Raises AsrKdError for an unknown kind.
    """
    if kind not in TOPOLOGIES:
        raise AsrKdError(f"topology {kind!r} is unknown; choose one of {', '.join(TOPOLOGIES)}")
    others = " ".join(str(phone) for phone in range(2, num_phones + 1))
    states = _left_to_right() if kind == "3state" else _bakis()
    entries = [(others, states), ("1", _left_to_right())]
    body = "".join(
        f"<TopologyEntry>\n<ForPhones>\n{phones}\n</ForPhones>\n{text}\n</TopologyEntry>\n" for phones, text in entries
    )
    return f"<Topology>\n{body}</Topology>\n"

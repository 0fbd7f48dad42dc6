"""Phonetic decision trees in Kaldi's form: which pdf a phone's state has, given the phones around it.

An event is four numbers: left phone, phone, right phone (Kaldi's ids, 0 beyond the ends of an utterance) and pdf-class
(the HMM state, from 0). The layout is that of Kaldi's tree/event-map.cc and tree/context-dep.cc.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.store.kaldi_object import BINARY_MARK, KaldiObject

# Kaldi's keys of an event: positions in the window of phones, and the pdf-class.
PDF_CLASS = -1
CONTEXT_WIDTH, CENTRAL = 3, 1
MAX_WIDTH = 15
# Trees have tens of levels; a damaged file must not exhaust the stack.
MAX_DEPTH = 500


@dataclass(frozen=True)
class Leaf:
    """One pdf (Kaldi's ConstantEventMap)."""

    pdf: int


@dataclass(frozen=True)
class Table:
    """A child for each value of the event's `key`, None where there is none (TableEventMap)."""

    key: int
    children: tuple["Node | None", ...]


@dataclass(frozen=True)
class Split:
    """Child `yes` where the event's value of `key` is one of `values`, sorted, else child `no` (SplitEventMap)."""

    key: int
    values: tuple[int, ...]
    yes: "Node"
    no: "Node"


Node = Leaf | Table | Split


@dataclass(frozen=True)
class ContextTree:
    """Kaldi's ContextDependency: windows of `context_width` phones, that at index `central` being the one modelled."""

    root: Node
    context_width: int = CONTEXT_WIDTH
    central: int = CENTRAL

    @property
    def num_pdfs(self) -> int:
        return 1 + max(leaf.pdf for leaf in _leaves(self.root))

    def pdfs(self, windows: np.ndarray, pdf_classes: np.ndarray) -> np.ndarray:
        """pdf-id of each event, (num_events,) int64.

        windows: (num_events, context_width) phone ids; pdf_classes: (num_events,).
        Raises AsrKdError where the tree has no leaf for an event.
        """
        pdfs = np.full(len(windows), -1, dtype=np.int64)
        todo: list[tuple[Node, np.ndarray]] = [(self.root, np.arange(len(windows)))]
        while todo:
            node, rows = todo.pop()
            if not len(rows):
                continue
            if isinstance(node, Leaf):
                pdfs[rows] = node.pdf
                continue
            values = pdf_classes[rows] if node.key == PDF_CLASS else windows[rows, node.key]
            if isinstance(node, Split):
                yes = np.isin(values, node.values)
                todo += [(node.yes, rows[yes]), (node.no, rows[~yes])]
            else:
                todo += [(child, rows[values == v]) for v, child in enumerate(node.children) if child is not None]
        if (pdfs < 0).any():
            event = int((pdfs < 0).argmax())
            raise AsrKdError(f"the tree has no leaf for phones {windows[event]}, pdf-class {pdf_classes[event]}")
        return pdfs

    def pdfs_of(self, phone: int, pdf_class: int) -> set[int]:
        """The pdfs that a phone's state has in one context or another, as Kaldi's GetPdfInfo finds them."""
        known = {self.central: phone, PDF_CLASS: pdf_class}
        found: set[int] = set()
        todo: list[Node | None] = [self.root]
        while todo:
            node = todo.pop()
            if isinstance(node, Leaf):
                found.add(node.pdf)
            elif isinstance(node, Split):
                if (value := known.get(node.key)) is None:
                    todo += [node.yes, node.no]
                else:
                    todo.append(node.yes if value in node.values else node.no)
            elif node is not None:
                value = known.get(node.key)
                todo += node.children if value is None else node.children[value : value + 1]
        return found

    def to_bytes(self) -> bytes:
        """Kaldi's binary form, without the mark that a file begins with."""
        head = b"ContextDependency " + _int(self.context_width) + _int(self.central)
        return head + b"ToPdf " + b"".join(_write(self.root)) + b"EndContextDependency "

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> "ContextTree":
        """Read Kaldi's binary form, with or without the mark, or its text.

        Raises AsrKdError that names the file `name`.
        """
        head = b"ContextDependency "
        source = KaldiObject(data, name, binary=data.removeprefix(BINARY_MARK).startswith(head + b"\x04"))
        source.expect(head.decode().strip())
        width, central = source.int(), source.int()
        if not 0 <= central < width <= MAX_WIDTH:
            raise source.error(f"its windows have {width} phones, of which number {central} is modelled")
        source.expect("ToPdf")
        root = _read_node(source, width, 0)
        source.expect("EndContextDependency")
        if not source.at_end() or next(_leaves(root), None) is None:
            raise source.error("is not one Kaldi tree and nothing else")
        return cls(root, width, central)


def phone_table(states_of_phone: dict[int, list[Node]]) -> Table:
    """A table over central phones of tables over their pdf-classes; the lists hold a tree for each class."""
    children = [states_of_phone.get(phone) for phone in range(max(states_of_phone) + 1)]
    return Table(CENTRAL, tuple(None if states is None else Table(PDF_CLASS, tuple(states)) for states in children))


def _leaves(node: Node | None) -> Iterator[Leaf]:
    if isinstance(node, Leaf):
        yield node
    elif isinstance(node, Table):
        for child in node.children:
            yield from _leaves(child)
    elif isinstance(node, Split):
        yield from _leaves(node.yes)
        yield from _leaves(node.no)


def _int(value: int) -> bytes:
    # The size of the number, negative for an unsigned one (WriteBasicType).
    return b"\x04" + struct.pack("<i", value)


def _write(node: Node | None) -> Iterable[bytes]:
    if node is None:
        yield b"NULL "
    elif isinstance(node, Leaf):
        yield b"CE " + _int(node.pdf)
    elif isinstance(node, Table):
        yield b"TE " + _int(node.key) + b"\xfc" + struct.pack("<I", len(node.children)) + b"( "
        for child in node.children:
            yield from _write(child)
        yield b") "
    else:
        yield b"SE " + _int(node.key) + _int(len(node.values)) + struct.pack(f"<{len(node.values)}i", *node.values)
        yield b"{ "
        yield from _write(node.yes)
        yield from _write(node.no)
        yield b"} "


def _read_node(source: KaldiObject, width: int, depth: int) -> Node | None:
    """The node that comes next, with all below it."""
    if depth > MAX_DEPTH:
        raise source.error(f"its tree is deeper than {MAX_DEPTH} levels")
    kind = source.token()
    if kind == "NULL":
        return None
    if kind == "CE":
        if (pdf := source.int()) < 0:
            raise source.error(f"has a leaf of pdf {pdf}")
        return Leaf(pdf)
    if kind not in ("TE", "SE"):
        raise source.error(f"has {kind!r} where a tree has CE, TE or SE")
    key = source.int()
    if not PDF_CLASS <= key < width:
        raise source.error(f"asks for position {key} of a window of {width} phones")
    if kind == "TE":
        size, children = source.unsigned(), []
        source.expect("(")
        for _ in range(size):  # a loop, for a comprehension is a frame more on the stack
            children.append(_read_node(source, width, depth + 1))
        source.expect(")")
        return Table(key, tuple(children))
    values = tuple(source.int_vector().tolist())
    source.expect("{")
    yes, no = _read_node(source, width, depth + 1), _read_node(source, width, depth + 1)
    source.expect("}")
    if yes is None or no is None:
        raise source.error("has a question with an answer missing")
    return Split(key, values, yes, no)

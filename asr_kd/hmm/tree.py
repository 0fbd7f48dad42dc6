"""Phonetic decision trees in Kaldi's form: which pdf a phone's state has, given the phones around it.

An event is four numbers: left phone, phone, right phone (Kaldi's ids, 0 beyond the ends of an utterance) and pdf-class
(the HMM state, from 0). The binary layout is that of Kaldi's tree/event-map.cc and tree/context-dep.cc.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from asr_kd.errors import AsrKdError

# Kaldi's keys of an event: positions in the window of phones, and the pdf-class.
PDF_CLASS = -1
CONTEXT_WIDTH, CENTRAL = 3, 1
# Kaldi begins a binary file so.
BINARY_MARK = b"\0B"
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

    def to_bytes(self) -> bytes:
        """Kaldi's binary form, without the mark that a file begins with."""
        head = b"ContextDependency " + _int(self.context_width) + _int(self.central)
        return head + b"ToPdf " + b"".join(_write(self.root)) + b"EndContextDependency "

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> "ContextTree":
        """Read Kaldi's binary form, with or without the mark; raises AsrKdError that names the file `name`."""
        reader = _Reader(data.removeprefix(BINARY_MARK), name)
        reader.expect("ContextDependency")
        width, central = reader.int(), reader.int()
        reader.expect("ToPdf")
        root = reader.node(0)
        reader.expect("EndContextDependency")
        if reader.position != len(reader.data) or root is None:
            raise AsrKdError(f"{name}: is not one Kaldi tree and nothing else")
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


class _Reader:
    """A cursor over the bytes of a tree."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.position = data, name, 0

    def _take(self, size: int) -> bytes:
        taken = self.data[self.position : self.position + size]
        if len(taken) < size:
            raise AsrKdError(f"{self.name}: ends within the tree; it was cut short")
        self.position += size
        return taken

    def token(self) -> str:
        end = self.data.find(b" ", self.position, self.position + 32)
        if end < 0:
            raise AsrKdError(f"{self.name}: is not a Kaldi tree in binary form (byte {self.position})")
        token = self.data[self.position : end]
        self.position = end + 1
        return token.decode("ascii", "replace")

    def expect(self, token: str) -> None:
        found = self.token()
        if found != token:
            raise AsrKdError(f"{self.name}: has {found!r} where a Kaldi tree has {token}")

    def int(self, mark: bytes = b"\x04") -> int:
        if self._take(1) != mark:
            raise AsrKdError(f"{self.name}: has no 32-bit number at byte {self.position - 1}")
        return struct.unpack("<i", self._take(4))[0]

    def node(self, depth: int) -> Node | None:
        if depth > MAX_DEPTH:
            raise AsrKdError(f"{self.name}: its tree is deeper than {MAX_DEPTH} levels")
        kind = self.token()
        if kind == "NULL":
            return None
        if kind == "CE":
            return Leaf(self.int())
        if kind == "TE":
            key, size = self.int(), self.int(b"\xfc")
            self.expect("(")
            children = tuple(self.node(depth + 1) for _ in range(size))
            self.expect(")")
            return Table(key, children)
        if kind != "SE":
            raise AsrKdError(f"{self.name}: has {kind!r} where a tree has CE, TE or SE")
        key, size = self.int(), self.int()
        if size < 0:
            raise AsrKdError(f"{self.name}: has a question of {size} phones")
        values = struct.unpack(f"<{size}i", self._take(4 * size))
        self.expect("{")
        yes, no = self.node(depth + 1), self.node(depth + 1)
        self.expect("}")
        if yes is None or no is None:
            raise AsrKdError(f"{self.name}: has a question with an answer missing")
        return Split(key, values, yes, no)

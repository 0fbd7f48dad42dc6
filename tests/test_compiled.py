"""Functions that numba compiles and keeps on disk."""

import importlib
import types
from pathlib import Path

import pytest

import asr_kd
from asr_kd.compiled import InThreads

dispatcher = pytest.importorskip("numba.core.dispatcher")
ROOT = Path(asr_kd.__file__).parent
MODULES = [
    ".".join(["asr_kd", *path.relative_to(ROOT).with_suffix("").parts])
    for path in sorted(ROOT.rglob("*.py"))
    if "from asr_kd.compiled import" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_what_is_kept_does_not_go_stale(module):
    """It is made anew when the file of a function changes, not that of another one which it calls."""
    names = vars(importlib.import_module(module))
    pairs = {
        f"{name}.{way}": each
        for name, pair in names.items()
        if isinstance(pair, InThreads)
        for way, each in pair._asdict().items()
    }
    functions = {name: each for name, each in {**names, **pairs}.items() if isinstance(each, dispatcher.Dispatcher)}
    assert functions
    for name, function in functions.items():
        assert function.py_func.__module__ == module, f"{name} is of another file"
        for called in function.py_func.__code__.co_names:
            value = function.py_func.__globals__.get(called)
            assert not isinstance(value, types.ModuleType) or value.__name__.partition(".")[0] != "asr_kd", called


def test_there_are_such_modules():
    assert len(MODULES) > 3

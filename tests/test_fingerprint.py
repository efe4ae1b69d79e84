"""Fingerprints change when the code changes that decides a reward, and only then."""

from __future__ import annotations

import copy
import functools
import operator
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kart_rewards.fingerprint import file_fingerprint, fingerprint
from kart_rewards.scripting import import_source

TERM = '''
"""Rewards of a test."""
import math
import helper_of_a_test

LIMIT = 900
TABLE = {"road": [1.0, 2.0]}


def clip(value):
    """Limit a value."""
    return min(value, 1.0)


class Base:
    gain = 2.0

    def pay(self, ram):
        return clip(ram.speed / LIMIT) * self.gain


class Memory(Base):
    """Remember the best speed."""

    def __init__(self):
        self.best = 0

    def __call__(self, ram):
        return self.pay(ram) + helper_of_a_test.bonus(ram) + TABLE["road"][0]


def term(ram, previous=None, *, factor=3.0):
    """Pay for speed."""
    return factor * clip(ram.speed) + math.sqrt(4)


def unrelated(ram):
    return 5.0
'''
HELPER = "EXTRA = 4\n\n\ndef bonus(ram):\n    return EXTRA\n\n\ndef other(ram):\n    return 1\n"


def of(folder: Path, text: str = TERM, helper: str = HELPER) -> dict[str, str]:
    """The fingerprints of the definitions in a file, each in a folder of its own so that no import is cached."""
    case = folder / str(len(list(folder.iterdir())))
    case.mkdir()
    sys.modules.pop("helper_of_a_test", None)
    (case / "helper_of_a_test.py").write_text(helper)
    (case / "terms.py").write_text(text)
    sys.path.insert(0, str(case))
    try:
        module: Any = import_source(case / "terms.py")
    finally:
        sys.path.remove(str(case))
    return {name: fingerprint(getattr(module, name)) for name in ("term", "Memory")}


CHANGES = [
    ('"""Pay for speed."""', '"""Pay for a lot of speed."""', set()),
    ('"""Limit a value."""', "# a comment in place of the docstring", set()),
    ("    return 5.0", "    return 6.0", set()),
    ("def term(ram, previous=None,", "def term(ram: object, previous: object | None = None,", set()),
    ("factor * clip(ram.speed) + math.sqrt(4)", "(factor * clip(ram.speed)\n            + math.sqrt(4))", set()),
    ("factor=3.0", "factor=4.0", {"term"}),
    ("previous=None", "previous=0", {"term"}),
    ("math.sqrt(4)", "math.exp(4)", {"term"}),
    ("min(value, 1.0)", "min(value, 2.0)", {"term", "Memory"}),
    ("LIMIT = 900", "LIMIT = 901", {"Memory"}),
    ("[1.0, 2.0]", "[1.5, 2.0]", {"Memory"}),
    ("gain = 2.0", "gain = 2.5", {"Memory"}),
    ("self.best = 0", "self.best = 1", {"Memory"}),
]


# joblib/joblib#680: other code above a function, which only moves it, made its stored results invalid.
@pytest.mark.parametrize(("old", "new", "changed"), CHANGES, ids=[new for _, new, _ in CHANGES])
def test_the_code_that_decides_a_reward_and_no_other_changes_the_fingerprint(
    tmp_path: Path, old: str, new: str, changed: set[str]
) -> None:
    assert TERM.count(old) == 1
    before, after = of(tmp_path), of(tmp_path, TERM.replace(old, new))
    assert {name for name in before if before[name] != after[name]} == changed


# joblib/joblib#1287: a change of a helper function was not noticed, because the code of the first function alone
# counted.
@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [("return EXTRA", "return -EXTRA", True), ("EXTRA = 4", "EXTRA = 5", True), ("return 1", "return 2", False)],
)
def test_functions_of_helper_modules_count(tmp_path: Path, old: str, new: str, changed: bool) -> None:
    before, after = of(tmp_path), of(tmp_path, helper=HELPER.replace(old, new))
    assert (before["Memory"] != after["Memory"]) == changed
    assert before["term"] == after["term"]


def make(factor: float) -> Callable[[Any], float]:
    def inner(ram: Any) -> float:
        return factor * float(ram)

    return inner


class Instance:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, ram: Any) -> float:
        return self.factor

    def method(self, ram: Any) -> float:
        return self.factor


@pytest.mark.parametrize(
    "kind",
    [
        make,
        Instance,
        lambda factor: Instance(factor).method,
        lambda factor: functools.partial(make, factor),
        lambda factor: functools.lru_cache(make(factor)),
        lambda factor: functools.wraps(make(0.0))(make(factor)),
    ],
    ids=["closure", "instance", "bound method", "partial", "cached", "wrapped"],
)
def test_what_a_callable_holds_counts(kind: Callable[[float], Any]) -> None:
    assert fingerprint(kind(1.0)) == fingerprint(kind(1.0))
    assert fingerprint(kind(1.0)) != fingerprint(kind(2.0))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (range(3), range(4)),
        (deque([1]), deque([2])),
        (operator.attrgetter("speed"), operator.attrgetter("laps")),
        (re.compile("a"), re.compile("b")),
        (MappingProxyType({1: 2}), MappingProxyType({1: 3})),
        (Decimal(1), Decimal(2)),
        (bytearray(1), bytearray(2)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (SimpleNamespace(a=1), SimpleNamespace(a=2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_constants_of_every_type_count(one: Any, other: Any) -> None:
    def term_with(constant: Any) -> Any:
        return lambda ram: constant

    assert fingerprint(term_with(one)) == fingerprint(
        term_with(one if isinstance(one, MappingProxyType) else copy.copy(one))
    )
    assert fingerprint(term_with(one)) != fingerprint(term_with(other))


def test_callables_without_source_have_fingerprints() -> None:
    first, second = eval("lambda ram: 1.0"), eval("lambda ram: 2.0")  # noqa: S307
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(abs) != fingerprint(len)


def test_lambdas_of_one_line_differ() -> None:
    first, second = [lambda ram: 1.0, lambda ram: 2.0]
    assert fingerprint(first) != fingerprint(second)


def test_recursive_functions_end() -> None:
    def fall(depth: int) -> int:
        return fall(depth - 1) if depth else 0

    assert len(fingerprint(fall)) == 16


SAME_EVERYWHERE = """
import functools, io, logging, random, sys
import numpy as np
import torch

logging.getLogger(sys.argv[1])  # another one in each process
LOG = logging.getLogger(__name__)
RANDOM = [random.Random(), np.random.default_rng(), np.random.RandomState()]
FILE = io.StringIO()
TENSORS = [torch.ones(3), torch.nn.Parameter(torch.ones(2)), np.array([None, "a"], dtype=object)]


def helper(value):
    return value


SETS = {helper, frozenset({"a", "b", "c"}), 1}
TABLE = {helper: 1, frozenset({"a", "b", "c"}): 2}


def term(ram):
    LOG.info("called")
    return helper(RANDOM, FILE, TENSORS, SETS, TABLE)
"""


def test_fingerprints_are_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "terms.py").write_text(SAME_EVERYWHERE)
    code = (
        "from kart_rewards.fingerprint import *; from kart_rewards.rewards import *\n"
        "from kart_rewards.imports import import_source\n"
        "print(fingerprint(Checkpoint), fingerprint(import_source('terms.py').term))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code, name],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        ).stdout
        for seed, name in (("1", "first"), ("2", "second"))
    }
    assert len(seen) == 1


def test_tensors_and_arrays_of_objects_count() -> None:
    def term_with(constant: Any) -> Any:
        return lambda ram: constant

    for one, other in ((torch.ones(2), torch.zeros(2)), (np.array([None, "a"]), np.array([None, "b"]))):
        assert fingerprint(term_with(one)) != fingerprint(term_with(other))


class Corner:
    __slots__ = ("next", "x")

    def __init__(self, x: int) -> None:
        self.x = x
        self.next: Any = None


def test_data_may_hold_itself_or_be_a_long_chain() -> None:
    first: dict[str, Any] = {"id": 0}
    first["next"] = {"id": 1, "next": first}
    ring: list[Any] = [1]
    ring.append(ring)
    chain = last = SimpleNamespace(x=0, next=None)
    for x in range(2000):
        last.next = SimpleNamespace(x=x, next=None)
        last = last.next
    corner, line = Corner(1), deque([1])
    corner.next = Corner(2)
    corner.next.next = corner
    line.append(line)  # type: ignore[arg-type]
    before = fingerprint(lambda ram: (first, ring, chain, corner, line))
    last.x = -1
    assert fingerprint(lambda ram: (first, ring, chain, corner, line)) != before


def test_the_getattr_of_a_settings_object_is_not_called() -> None:
    class Settings:
        def __init__(self, values: dict[str, Any]) -> None:
            self._values = values

        def __getattr__(self, name: str) -> Any:
            return self._values[name]

    class Loose(Settings):
        __slots__ = ("unset",)

        def __getattr__(self, name: str) -> Any:
            return None

    for kind in (Settings, Loose):
        one, other = kind({"limit": 1}), kind({"limit": 2})
        assert fingerprint(lambda ram, of=one: of.limit) != fingerprint(lambda ram, of=other: of.limit)


@pytest.mark.parametrize("odd", ["\f", "# \x1c", "# \x85", "# \u2028"])
def test_characters_at_which_text_is_split_but_not_code_move_no_line(odd: str, tmp_path: Path) -> None:
    def fingerprint_of(result: str) -> str:
        text = f"def other(ram):\n    return 0\n{odd}\ndef term(ram):\n    x = ram.speed\n    return {result}\n"
        (tmp_path / "terms.py").write_text(text, encoding="utf-8")
        return fingerprint(import_source(tmp_path / "terms.py").term)

    assert fingerprint_of("x") != fingerprint_of("-x")


def test_the_fingerprint_of_a_file_is_that_of_its_text(tmp_path: Path) -> None:
    (tmp_path / "terms.py").write_text("def term(ram):\n    return 1.0\n")
    before = file_fingerprint(import_source(tmp_path / "terms.py").term)
    (tmp_path / "terms.py").write_text("def term(ram):\n    return 1.0  # a comment\n")
    assert file_fingerprint(import_source(tmp_path / "terms.py").term) != before

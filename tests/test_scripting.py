from __future__ import annotations

import functools
import operator
import re
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kart_rewards.done import DoneRule, done_rule
from kart_rewards.errors import KartRewardsError
from kart_rewards.ram import RamLayout, Variable
from kart_rewards.rewards import EpisodeRewards, RewardTerm, as_term, reward_term
from kart_rewards.scenario import Scoring
from kart_rewards.scripting import (
    Script,
    ScriptCalls,
    from_plain,
    import_source,
    marked_scripts,
    plain_action,
    snake_case,
    to_plain,
)
from kart_rewards.testing import ends_at, score, score_episode, snapshot


def test_names_are_converted_to_snake_case() -> None:
    assert [snake_case(name) for name in ("LeftTheRoad", "top_speed", "Wall", "RPM2High")] == [
        "left_the_road",
        "top_speed",
        "wall",
        "rpm2_high",
    ]


def test_arguments_with_a_default_are_not_for_snapshots() -> None:
    def limited(ram: Any, limit: int = 900, *, factor: float = 2.0) -> float:
        return factor * (ram.speed > limit)

    assert score([snapshot(), snapshot(speed=901)], [limited]) == {"limited": 2.0}


def test_partials_and_instances_are_scripts_too() -> None:
    def above(ram: Any, limit: int) -> float:
        return float(ram.speed > limit)

    class Above:
        def __call__(self, ram: Any) -> float:
            return float(ram.speed > 500)

    trace = [snapshot(), snapshot(speed=700)]
    assert score(trace, [functools.partial(above, limit=600), Above()]) == {"partial": 1.0, "above": 1.0}


class NotCallable:
    """A class whose instances can't be called."""


@pytest.mark.parametrize(
    "definition", [max, lambda: 0, lambda ram, previous, third: 0, lambda ram, *, limit: 0, NotCallable]
)
def test_a_script_must_take_one_snapshot_or_two(definition: Any) -> None:
    with pytest.raises(KartRewardsError, match="must take the RAM snapshot"):
        Script("odd", definition)


@pytest.mark.parametrize("name", ["_hidden", "off-road", "<lambda>", ""])
def test_a_name_must_be_a_public_python_name(name: str) -> None:
    with pytest.raises(KartRewardsError, match="can't be a script's name"):
        Script(name, lambda ram: 0.0)


def test_the_fingerprint_is_that_of_the_code_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "terms.py"
    path.write_text("from kart_rewards import reward_term\n@reward_term\ndef gift(ram):\n    return 1.0\n")
    [before] = marked_scripts(path, RewardTerm)
    fingerprint = before.fingerprint
    path.write_text('"""An unfinished edit')
    assert (before.fingerprint, before.where) == (fingerprint, f"{path}:2")
    assert before.reads() == set()  # not known any more; it must not raise
    path.write_text("from kart_rewards import reward_term\n@reward_term\ndef gift(ram):\n    return -1.0\n")
    [after] = marked_scripts(path, RewardTerm)
    assert after.fingerprint != fingerprint
    assert (before.definition(None), after.definition(None)) == (1.0, -1.0)


def test_a_script_that_exits_is_reported() -> None:
    def leaves(ram: Any) -> float:
        raise SystemExit(0)

    with pytest.raises(KartRewardsError, match=r"'leaves' .* raised SystemExit"):
        ScriptCalls([as_term(leaves)]).values(snapshot())


def test_the_variables_that_a_script_reads_include_those_of_its_helpers() -> None:
    def helper(kart: Any, limit: int) -> bool:
        return kart.surface == 0x40 and kart.laps > limit

    globals()["helper"] = helper

    def term(ram: Any, previous: Any) -> float:
        other = object()
        return ram.speed + previous.checkpoint + other.nothing + helper(ram, 3)  # type: ignore[attr-defined]

    assert Script("term", term).reads() == {"speed", "checkpoint", "surface", "laps"}


def test_a_replaced_snapshot_and_variables_that_are_asked_for_need_no_definition() -> None:
    def replaced(ram: Any) -> float:
        ram = SimpleNamespace(**ram._asdict())
        return ram.derived

    def asks(ram: Any) -> float:
        return ram.fuel + ram.laps if hasattr(ram, "fuel") else 0

    assert Script("term", replaced).reads() == set()
    assert Script("term", asks).reads() == {"laps"}


def test_methods_of_tuples_are_no_variables() -> None:
    def term(ram: Any) -> float:
        return ram.count + ram.index

    layout = RamLayout([Variable("laps", 1, "|u1")])
    with pytest.raises(KartRewardsError, match="reads 'count', which data"):
        Script("term", term).check_reads(layout)
    with pytest.raises(AttributeError, match="no RAM variable 'index'"):
        print(layout.snapshot(laps=1).index)
    counted = RamLayout([Variable("count", 1, "|u1")])
    assert counted.snapshot(count=7).count == 7


@pytest.mark.parametrize(
    ("code", "read"),
    [
        ("@reward_term\nclass A:\n    def __call__(self, ram):\n        return self.b(ram)\n"
         "    def b(self, r):\n        return r.laps\n", {"laps"}),
        ("@reward_term\nclass A:\n    def __call__(self, ram):\n        before, self.ram = self.ram, ram\n"
         "        return before.laps\n    def __init__(self):\n        self.ram = None\n", {"laps"}),
        ("import utils\n@reward_term\ndef a(ram):\n    return utils.laps_of(ram)\n", {"laps"}),
        ("from kart_rewards import race\n@reward_term\ndef a(ram):\n    return race.lap(ram)\n", {"laps"}),
        ("@reward_term\ndef a(ram):\n    now = ram\n    return now.laps + getattr(ram, 'speed')\n", {"laps", "speed"}),
        ("@reward_term\ndef a(ram):\n    return getattr(ram, 'la' + 'ps')\n", {"laps", "speed", "surface"}),
        ("@reward_term\ndef a(ram):\n    return ram[0]\n", {"laps", "speed", "surface"}),
        ("@reward_term\ndef a(ram):\n    return sum(ram)\n", {"laps", "speed", "surface"}),
        ("@reward_term\ndef a(ram):\n    return ram._asdict()['laps']\n", {"laps", "speed", "surface"}),
        ("@reward_term\ndef a(ram):\n    'Pay for speed.'\n    return 1.0  # not for laps\n", set()),
    ],
)  # fmt: skip
def test_the_variables_that_may_decide_a_value_include_those_of_all_code_that_runs(
    tmp_path: Path, code: str, read: set[str]
) -> None:
    (tmp_path / "utils.py").write_text("def laps_of(ram):\n    return ram.laps\ndef b(ram):\n    return ram.speed\n")
    (tmp_path / "terms.py").write_text(f"from kart_rewards import reward_term\n{code}")
    terms = marked_scripts(tmp_path / "terms.py", RewardTerm)
    assert terms[0].may_read(["laps", "speed", "surface"]) == read
    layout = RamLayout([Variable(name, 0, "|u1") for name in ("laps", "speed", "surface")])
    assert {f"variable {name}" for name in read} == Scoring(terms, []).fingerprints(layout).keys() - {"term a"}


def test_plain_values_are_converted_back_to_equal_values() -> None:
    value = {"a": [1, 2.5, None, True], (1, 2): {3, 4}, "ram": snapshot(speed=-5), 7: {"snapshot": "text"}, "t": ((),)}
    value |= {"recent": deque([1, 2], maxlen=2), "frozen": frozenset({5})}
    assert from_plain(to_plain(value)) == value
    assert from_plain(to_plain(value))["recent"].maxlen == 2
    assert type(to_plain(np.float64(2.5))) is float
    with pytest.raises(TypeError, match="a value of type object"):
        to_plain([object()])


GAIN = [snapshot(speed=speed) for speed in (5, 7, 12)]


def gained(ram: Any, previous: Any = None) -> float:
    return ram.speed - previous.speed if previous else 0.0


def passed_on(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Gains:
    """Callables of a class, all of which return the gain of speed."""

    def bound(self, ram: Any, previous: Any = None) -> float:
        return gained(ram, previous)

    @classmethod
    def of_class(cls, ram: Any, previous: Any = None) -> float:
        return gained(ram, previous)

    @staticmethod
    def static(ram: Any, previous: Any = None) -> float:
        return gained(ram, previous)

    def __call__(self, ram: Any, *, previous: Any = None) -> float:
        return gained(ram, previous)


class StaticCall:
    @staticmethod
    def __call__(ram: Any, previous: Any = None) -> float:
        return gained(ram, previous)


class WrappedCall:
    @passed_on
    def __call__(self, ram: Any, previous: Any) -> float:
        return gained(ram, previous)


def scaled(factor: float, ram: Any, previous: Any = None) -> float:
    return factor * gained(ram, previous)


# ray-project/ray#13009: arguments were counted, so that a callable with defaults or a partial was called wrongly.
@pytest.mark.parametrize(
    "definition",
    [
        gained,
        lambda ram, previous: gained(ram, previous),
        lambda ram, limit=3, previous=None: gained(ram, previous),
        lambda ram, *, previous=None: gained(ram, previous),
        lambda ram, *, previous: gained(ram, previous),
        lambda ram, before: gained(ram, before),
        lambda ram, previous, /: gained(ram, previous),
        lambda ram, previous=None, *args, **kwargs: gained(ram, previous),
        functools.partial(scaled, 1.0),
        functools.partial(lambda ram, previous=None, *, factor: factor * gained(ram, previous), factor=1.0),
        functools.partial(functools.partial(scaled, 1.0)),
        functools.partial(Gains),
        Gains().bound,
        Gains.of_class,
        Gains.static,
        Gains(),
        Gains,
        StaticCall,
        StaticCall(),
        WrappedCall,
        WrappedCall(),
        passed_on(gained),
        functools.lru_cache(gained),
        functools.cache(passed_on(gained)),
    ],
)
def test_callables_of_every_sort_get_the_previous_snapshot(definition: Any) -> None:
    assert score(GAIN, [RewardTerm("gain", definition)]) == {"gain": 7.0}


@pytest.mark.parametrize(
    ("definition", "value"),
    [
        (lambda ram, limit=3: limit, 6.0),
        (lambda ram, last_lap=4: last_lap, 8.0),
        (lambda ram, *, table=None: 1.0 if table is None else 0.0, 2.0),
        (lambda *args: len(args), 2.0),
        (lambda ram, *args, **kwargs: len(args) + len(kwargs), 0.0),
        (functools.partial(gained, previous=snapshot(speed=2)), 15.0),
        (operator.attrgetter("speed"), 19.0),
    ],
)
def test_other_arguments_keep_their_defaults(definition: Any, value: float) -> None:
    assert score(GAIN, [RewardTerm("term", definition)]) == {"term": value}


async def later(ram: Any) -> float:
    return 1.0


def several(ram: Any) -> Any:
    yield 1.0


class Later:
    async def __call__(self, ram: Any) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (lambda ram, before=None: 0, "argument 'before' that would always keep its default.* call it previous"),
        (lambda ram, prev=0: 0, "call it previous"),
        (lambda ram, last_ram=0: 0, "call it previous"),
        (lambda ram, prev_speed=0: 0, "call it previous"),
        (lambda ram, *, previous_ram=None: 0, "call it previous"),
        (lambda ram, limit=3, old=None: 0, "call it previous"),
        (lambda ram, other=None: 0, "second argument 'other' that would always be None.* call it previous"),
        (lambda previous, ram: 0, "'previous' as its first argument"),
        (lambda before, after: 0, "'before' as its first argument"),
        (lambda ram, before, previous=None: 0, "two arguments for the previous snapshot: before, previous"),
        (lambda **kwargs: 0, "must take the RAM snapshot"),
        (functools.partial(gained, ram=3), "must take the RAM snapshot"),
        (later, "is an async function"),
        (functools.partial(later), "is an async function"),
        (Later, "is an async function"),
        (several, "is a generator"),
        (Gains.bound, "is a method of a class"),
    ],
)
def test_callables_that_can_not_be_called_as_they_read_are_refused(definition: Any, message: str) -> None:
    with pytest.raises(KartRewardsError, match=rf"'odd' .*{message}"):
        RewardTerm("odd", definition)


# HypothesisWorks/hypothesis#189 and pytest-dev/pytest#3664: a decorator hid another decorator's mark without a word.
@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (reward_term, done_rule),
        (done_rule, reward_term),
        (reward_term, reward_term),
        (reward_term(weight=2), done_rule),
    ],
)
def test_two_marks_on_one_definition_are_refused(outer: Any, inner: Any) -> None:
    with pytest.raises(KartRewardsError, match=r"test_scripting\.py:\d+: 'both' has two marks, @\w+ and @\w+"):

        @outer
        @inner
        def both(ram: Any) -> bool:
            return True

    with pytest.raises(KartRewardsError, match="'wrapped' has two marks"):

        @outer
        @passed_on
        @inner
        def wrapped(ram: Any) -> bool:
            return True


def test_a_function_with_both_marks_is_told_that_a_class_can_have_them() -> None:
    with pytest.raises(
        KartRewardsError, match=r"two functions .*, or write a class, which can be a term and a rule: its"
    ):
        reward_term(name="f")(done_rule(name="f")(lambda ram: 1))
    with pytest.raises(KartRewardsError, match=r"of which one calls the other$"):
        reward_term(name="f")(reward_term(name="f")(lambda ram: 1))


BOTH = """
import functools
from kart_rewards import done_rule, reward_term

@reward_term(weight=3)
@done_rule(name="over")
class Both:
    def __init__(self, last=2):
        self.calls, self.last = 0, last
    def __call__(self, ram):
        self.calls += 1
        return self.calls, self.calls > self.last

later = done_rule(name="later", truncates=True)(reward_term(name="later", weight=5)(functools.partial(Both, 3)))
"""


def test_a_class_of_a_file_can_have_both_marks_and_so_can_a_partial_and_an_instance_of_it(tmp_path: Path) -> None:
    (tmp_path / "both.py").write_text(BOTH)
    term, later = marked_scripts(tmp_path / "both.py", RewardTerm)
    rule, watchdog = marked_scripts(tmp_path / "both.py", DoneRule)
    assert (term.name, term.weight, rule.name, rule.truncates) == ("both", 3, "over", False)
    assert (later.name, watchdog.name, watchdog.truncates) == ("later", "later", True)
    assert term.definition is rule.definition
    assert later.definition is watchdog.definition
    assert rule.fingerprint == term.fingerprint != later.fingerprint
    trace = [snapshot()] * 9
    for scripts, sums, end in (
        (tmp_path / "both.py", {"both": 3.0 * (2 + 3), "later": 5.0 * (2 + 3)}, (2, "over")),
        (term.definition, {"both": 3.0 * (2 + 3)}, (2, "over")),
        (term.definition(5), {"both": 3.0 * (2 + 3 + 4 + 5 + 6)}, (5, "over")),
        (later.definition, {"later": 5.0 * (2 + 3 + 4)}, (3, "later")),
        (reward_term(name="only")(term.definition(5)), {"only": float(sum(range(2, 10)))}, None),
    ):
        for _ in range(2):
            assert score_episode(trace, [scripts]) == (sums, end)
    assert score(trace, [later]) == {"later": 5.0 * sum(range(2, 10))}
    assert ends_at(trace, [rule]) == (2, "over")


@pytest.mark.parametrize("kind", [reward_term, done_rule])
def test_a_class_can_not_have_one_mark_twice(kind: Any) -> None:
    with pytest.raises(KartRewardsError, match="'both' has two marks"):

        @kind
        @reward_term
        @done_rule
        class Both:
            def __call__(self, ram: Any) -> Any:
                return 1.0, False


def test_a_class_that_derives_from_one_with_both_marks_needs_its_own() -> None:
    @reward_term
    @done_rule
    class Base:
        def __call__(self, ram: Any) -> Any:
            return 1.0, ram.speed > 3

    class Derived(Base):
        pass

    assert not as_term(Derived).returns_pair
    marked = reward_term(done_rule(Derived))
    assert as_term(marked).returns_pair
    assert score_episode([snapshot(), snapshot(speed=4)], marked) == ({"derived": 1.0}, (1, "derived"))


def test_the_mark_of_a_function_counts_for_its_wrapper_and_its_partial() -> None:
    def doubled(function: Any) -> Any:
        return functools.wraps(function)(lambda ram, **options: 2 * function(ram, **options))

    @doubled
    @reward_term(weight=-5, name="fast")
    def speed(ram: Any, factor: float = 1.0) -> float:
        return factor * ram.speed

    assert score(GAIN, [speed]) == {"fast": -5 * 2 * 19.0}
    assert score(GAIN, [functools.partial(speed, factor=10.0)]) == {"fast": -5 * 20 * 19.0}
    assert score(GAIN, [functools.cache(speed)]) == {"fast": -5 * 2 * 19.0}


def test_wrappers_partials_and_static_methods_of_a_file_are_found(tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text(
        "def twice(function):\n    def wrapper(*args):\n        return 2 * function(*args)\n    return wrapper\n"
        "def above(ram, limit):\n    return float(ram.speed > limit)\n"
    )
    (tmp_path / "terms.py").write_text(
        "import functools\nfrom kart_rewards import reward_term\nfrom kart_rewards.rewards import wall\nimport utils\n"
        "@reward_term(name='doubled')\n@utils.twice\ndef speed(ram):\n    return ram.speed\n"
        "fast = reward_term(name='fast')(functools.partial(utils.above, limit=6))\n"
        "class Group:\n    @staticmethod\n    @reward_term(weight=3)\n    def inner(ram):\n        return 1.0\n"
        "    @reward_term(weight=4)\n    @staticmethod\n    def outer(ram):\n        return 1.0\n"
    )
    terms = marked_scripts(tmp_path / "terms.py", RewardTerm)
    assert score(GAIN, terms) == {"doubled": 38.0, "fast": 2.0, "inner": 6.0, "outer": 8.0}


def test_definitions_that_are_marked_in_loops_lists_and_functions_are_found(tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text(
        "from kart_rewards import reward_term\ndef over(ram, limit):\n    return float(ram.speed > limit)\n"
        "def mark(limit):\n    @reward_term(name=f'marked_{limit}')\n    def term(ram):\n"
        "        return over(ram, limit)\n"
    )
    (tmp_path / "terms.py").write_text(
        "import functools\nfrom kart_rewards import done_rule, reward_term\nfrom utils import mark, over\n"
        "for limit in (5, 6):\n"
        "    term = reward_term(name=f'over_{limit}')(functools.partial(over, limit=limit))\n"
        "    reward_term(2, f'twice_{limit}')(lambda ram, limit=limit: over(ram, limit))\n"
        "    done_rule(f'stop_{limit}')(lambda ram, limit=limit: ram.speed > limit)\n"
        "    mark(limit)\n"
        "    @reward_term(weight=2, name=f'decorated_{limit}')\n"
        "    def decorated(ram, limit=limit):\n        return over(ram, limit)\n"
        "TERMS = {'a': [reward_term(name='a')(lambda ram: 1.0)]}\n"
        "class Group:\n    @reward_term\n    class Inner:\n        def __call__(self, ram):\n            return 1.0\n"
    )
    terms = marked_scripts(tmp_path / "terms.py", RewardTerm)
    assert score(GAIN, terms) == {
        **{"over_5": 2.0, "over_6": 2.0, "twice_5": 4.0, "twice_6": 4.0, "marked_5": 2.0, "marked_6": 2.0},
        **{"decorated_5": 4.0, "decorated_6": 4.0},
        **{"a": 2.0, "inner": 2.0},
    }
    assert [rule.name for rule in marked_scripts(tmp_path / "terms.py", DoneRule)] == ["stop_5", "stop_6"]
    assert marked_scripts(tmp_path / "utils.py", RewardTerm) == []


REPLACED = "has a mark, but at the end of the file 'term' is something else: rename one of the two definitions"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("@reward_term\ndef term(ram): return 1\n@reward_term\ndef term(ram): return 2\n", REPLACED),
        ("@reward_term\ndef term(ram): return 1\ndef term(ram): return 2\n", REPLACED),
        ("@reward_term\nclass Term: __call__ = lambda self, ram: 1\nTerm = 3\n", REPLACED.replace("'term'", "'Term'")),
        ("@reward_term\ndef term(ram): return 1\ndel term\n", REPLACED),
        ("@lambda f: lambda ram: 2 * f(ram)\n@reward_term\ndef term(ram): return 1\n", f"{REPLACED}.* decorator"),
        ("class Group:\n    @reward_term\n    def term(this, ram): return 1\n", "is a method of a class"),
        (
            "class Group:\n    @classmethod\n    @reward_term\n    def term(cls, ram): return 1\n",
            "is a method of a class",
        ),
        ("class Group:\n    @reward_term\n    @classmethod\n    def term(cls, ram): return 1\n", "is a classmethod"),
        ("class Group:\n    @reward_term\n    @property\n    def term(self): return 1\n", "is a property"),
        ("@reward_term(name=5)\ndef term(ram): return 1\n", "5 can't be a script's name"),
        ("@reward_term\ndef term(ram, *previous): return 1\n", r"an argument \*previous that would always be empty"),
    ],
)
def test_a_mark_that_would_have_no_effect_is_refused(tmp_path: Path, code: str, message: str) -> None:
    path = tmp_path / "terms.py"
    path.write_text("from kart_rewards import reward_term\n" + code)
    with pytest.raises(KartRewardsError, match=message):
        marked_scripts(path, RewardTerm)


def test_a_class_that_makes_no_instance_is_refused() -> None:
    class Leaves:
        def __init__(self) -> None:
            raise SystemExit(3)

        def __call__(self, ram: Any) -> float:
            return 1.0

    class Number:
        def __new__(cls) -> Any:
            return 3

        def __call__(self, ram: Any) -> float:
            return 1.0

    with pytest.raises(KartRewardsError, match="can't be instantiated: it raised SystemExit: 3"):
        score(GAIN, [Leaves])
    with pytest.raises(KartRewardsError, match="makes 3, which can't be called"):
        score(GAIN, [Number])


def test_what_can_not_have_a_mark_is_refused() -> None:
    for definition in (Gains().bound, Slotted(3)):
        with pytest.raises(KartRewardsError, match="can't be marked, because it is a"):
            reward_term(name="odd")(definition)


@reward_term(weight=-5)
class Hits:
    """Charge from the ``limit``-th hit on."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.seen: list[int] = []

    def __call__(self, ram: Any) -> float:
        self.seen.append(ram.collision)
        return float(sum(self.seen) >= self.limit)

    def count(self, ram: Any) -> float:
        self.seen.append(ram.collision)
        return float(sum(self.seen))


class Slotted:
    __slots__ = ("__calls", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.__calls = 0

    def __call__(self, ram: Any) -> float:
        self.__calls += 1
        return float(self.__calls >= self.limit)


@dataclass(frozen=True)
class Frozen:
    limit: int

    def __call__(self, ram: Any) -> float:
        return float(ram.collision >= self.limit)


HIT = snapshot(collision=1)


# DLR-RM/stable-baselines3#1151: one object, passed several times, was silently shared by all environments.
@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        (Hits(3), {"hits": -15.0}),
        (functools.partial(Hits, 3), {"hits": -15.0}),
        (functools.partial(Hits(3)), {"hits": -15.0}),
        (Hits(3).count, {"count": 14.0}),
        (Slotted(3), {"slotted": 3.0}),
        (Frozen(1), {"frozen": 4.0}),
    ],
)
def test_an_instance_has_its_classs_mark_and_a_new_memory_in_each_episode(
    definition: Any, expected: dict[str, float]
) -> None:
    trace = [HIT] * 5
    assert score(trace, [definition]) == expected
    assert score(trace, [definition]) == expected
    whole, other = (EpisodeRewards([as_term(definition)]) for _ in range(2))
    for _ in range(2):
        whole(HIT)
    state = whole.get_state()
    paid = [whole(HIT) for _ in range(3)]
    other.set_state(state)
    assert [other(HIT) for _ in range(3)] == paid
    assert as_term(definition).fingerprint == as_term(definition).fingerprint


def test_two_methods_of_one_instance_have_one_memory() -> None:
    class Best:
        def __init__(self) -> None:
            self.best = 0

        def update(self, ram: Any) -> float:
            self.best = max(self.best, ram.speed)
            return 0.0

        def pay(self, ram: Any) -> float:
            return float(self.best)

    best = Best()
    terms = [as_term(best.update), as_term(best.pay)]
    for _ in range(2):
        assert score(GAIN, terms) == {"update": 0.0, "pay": 7.0 + 12.0}
    whole, other = EpisodeRewards(terms), EpisodeRewards(terms)
    whole(GAIN[2])
    other.set_state(whole.get_state())
    assert [rewards(GAIN[0]) for rewards in (whole, other)] == [12.0, 12.0]
    assert best.best == 0


def test_memory_that_would_change_on_resume_is_refused() -> None:
    class Longest(list[int]):
        def __call__(self, ram: Any) -> float:
            self.append(ram.speed)
            return float(len(self))

    class Twins:
        def __init__(self) -> None:
            self.seen: list[int] = []
            self.also = {"seen": self.seen}

        def __call__(self, ram: Any) -> float:
            self.seen.append(ram.speed)
            return float(len(self.also["seen"]))

    class Phase(IntEnum):
        GRID = 0

    class Phased:
        def __init__(self) -> None:
            self.phase = Phase.GRID

        def __call__(self, ram: Any) -> float:
            return float(self.phase is Phase.GRID)

    for definition, message in (
        (Longest, "because it is a list, and not in self.x"),
        (Twins, "the same list in two"),
        (Phased, "a value of type Phase"),
    ):
        rewards = EpisodeRewards([as_term(definition)])
        rewards(HIT)
        with pytest.raises(KartRewardsError, match=rf"test_scripting\.py:\d+\) can't be saved: it holds .*{message}"):
            rewards.get_state()


def test_instances_of_one_class_need_different_names() -> None:
    with pytest.raises(
        KartRewardsError, match=r"two terms .* 'hits': .*name one, such as reward_term\(name='hits_2'\)"
    ):
        score([HIT], [Hits(3), Hits(4)])
    named = reward_term(weight=2, name="many_hits")(Hits(4))
    assert score([HIT] * 5, [Hits(3), named]) == {"hits": -15.0, "many_hits": 4.0}
    assert as_term(named).fingerprint != as_term(Hits(3)).fingerprint
    rewards = EpisodeRewards([as_term(named)])
    rewards.set_state(rewards.get_state())


def test_an_instance_that_can_not_be_copied_is_refused() -> None:
    hits = Hits(3)
    hits.seen = (x for x in range(3))  # type: ignore[assignment]
    with pytest.raises(KartRewardsError, match=r"'hits' .* can't be copied for a new episode: .*Pass the class"):
        score([HIT], [hits])


def test_a_class_whose_constructor_needs_arguments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"'hits' is a class that needs arguments \(missing .*'limit'\)"):
        as_term(Hits)
    (tmp_path / "terms.py").write_text(
        "from kart_rewards import done_rule\n@done_rule\nclass Stop:\n    def __init__(self, limit):\n        pass\n"
        "    def __call__(self, ram):\n        return True\n"
    )
    with pytest.raises(KartRewardsError, match=r"terms\.py:2: 'stop' is a class that needs arguments"):
        marked_scripts(tmp_path / "terms.py", DoneRule)


def test_a_variable_with_a_similar_name_is_suggested_with_the_line_that_reads_the_wrong_one(tmp_path: Path) -> None:
    (tmp_path / "terms.py").write_text(
        "from kart_rewards import reward_term\n\n\ndef fast(kart):\n    limit = 7\n    return kart.spede > limit\n\n\n"
        "@reward_term\ndef gas(ram):\n    if ram.laps:\n        return 0\n    return ram.sped + fast(ram)\n"
    )
    [term] = marked_scripts(tmp_path / "terms.py", RewardTerm)
    variables = [Variable("speed", 0, "|u1"), Variable("laps", 1, "|u1")]
    with pytest.raises(KartRewardsError) as raised:
        term.check_reads(RamLayout(variables))
    assert f"'gas' ({tmp_path}/terms.py:9) reads 'sped'" in str(raised.value)
    assert "Did you mean 'speed'" in str(raised.value)
    assert str(raised.value).endswith(f"\n  at {tmp_path}/terms.py:13: return ram.sped + fast(ram)")
    for line, name in ((6, "spede"), (13, "sped")):
        assert f"/terms.py:{line}: " in term.place_of(name)
    assert term.place_of("surface") == ""


def test_a_variable_with_a_similar_name_is_suggested() -> None:
    with pytest.raises(KartRewardsError, match="Did you mean 'speed'"):
        as_term(misspelt).check_reads(RamLayout([Variable("speed", 0, "|u1")]))


def misspelt(ram: Any) -> float:
    return float(ram.sped)


# --- buttons and action -----------------------------------------------------------------------------------------------


def call_with(definition: Any, *, previous: Any = None) -> Any:
    """What a script returns on a frame with buttons and an action."""
    calls = ScriptCalls([as_term(definition)])
    calls.previous = previous
    return calls.values(RAM, frozenset({"B", "LEFT"}), (0.5, -1.0))[0]


RAM = RamLayout([Variable("speed", 0, "|u1")]).snapshot(speed=7)


def test_a_script_gets_buttons_and_action_by_name() -> None:
    class Both:
        def __call__(self, ram: Any, action: Any, buttons: frozenset[str]) -> Any:
            return sorted(buttons), action

    def keywords(ram: Any, *, buttons: Any = None, other: int = 3) -> Any:
        return buttons, other

    def with_previous(ram: Any, before: Any, action: Any) -> Any:
        return before, action

    def all_by_name(ram: Any, buttons: Any, previous: Any) -> Any:
        return buttons, previous

    held = frozenset({"B", "LEFT"})
    assert call_with(Both) == (["B", "LEFT"], (0.5, -1.0))
    assert call_with(keywords) == (held, 3)
    assert call_with(with_previous, previous=RAM) == (RAM, (0.5, -1.0))
    assert call_with(all_by_name, previous=RAM) == (held, RAM)
    assert call_with(functools.partial(keywords, other=4)) == (held, 4)
    assert call_with(functools.partial(keywords, buttons="mine")) == ("mine", 3), "a value of the author's own stays"
    assert [as_term(each).inputs for each in (Both, with_previous)] == [["action", "buttons"], ["action"]]
    assert as_term(all_by_name).reads() == set()


def test_arguments_that_look_like_inputs_are_explained() -> None:
    def first(buttons: Any) -> float:
        return 0

    def only_by_place(ram: Any, buttons: Any, /) -> float:
        return 0

    def misspelt(ram: Any, button: Any) -> float:
        return 0

    def misspelt_later(ram: Any, previous: Any, actions: Any) -> float:
        return 0

    for definition, message in (
        (first, "has 'buttons' as its first argument, but the first one gets the snapshot of this frame"),
        (only_by_place, "has an argument 'buttons' before a /, but it is passed by its name"),
        (misspelt, "has a second argument 'button', which would get the previous snapshot. Did you mean 'buttons'?"),
        (misspelt_later, "its argument 'actions' needs a default. Did you mean 'action'?"),
    ):
        with pytest.raises(KartRewardsError, match=re.escape(message)):
            as_term(definition)


def test_a_fault_names_the_input() -> None:
    def bad(ram: Any, action: Any) -> float:
        return 1 / 0

    with pytest.raises(KartRewardsError, match=r"on RamSnapshot\(speed=7\), action \(0\.5, -1\.0\)$"):
        call_with(bad)


@pytest.mark.parametrize(
    ("action", "plain"),
    [(np.int64(3), 3), (np.array([0.5], np.float32), (0.5,)), ([1, (2, 3)], (1, (2, 3))), (True, True), (None, None)],
)
def test_an_action_is_plain_numbers_that_a_checkpoint_holds(action: Any, plain: Any) -> None:
    assert plain_action(action) == plain
    assert from_plain(to_plain(plain_action(action))) == plain


def test_marks_in_a_copy_of_a_modules_variables_are_not_the_modules(tmp_path: Path) -> None:
    """A doctest runs in such a copy, which shares the module's lists."""
    (tmp_path / "copied.py").write_text(
        "from kart_rewards import reward_term\n@reward_term\ndef own(ram):\n    return 0\n"
    )
    module = import_source(tmp_path / "copied.py")
    exec("@reward_term\ndef example(ram):\n    return 1\n", dict(vars(module)))  # noqa: S102
    assert [term.name for term in marked_scripts(module, RewardTerm)] == ["own"]

"""Memory outside a term is refused at load, with file and line; what has no memory is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kart_rewards.errors import KartRewardsError
from kart_rewards.rewards import RewardTerm, as_term
from kart_rewards.scripting import marked_scripts
from kart_rewards.testing import score, snapshot

HEAD = """import collections, contextvars, functools, heapq, itertools, logging, math, queue
import numpy as np
from dataclasses import dataclass, field
from kart_rewards import reward_term
import state
best = 0
SEEN = set()
RECENT = collections.deque(maxlen=3)
TABLE = {"laps": [], 64: 1.0}
FRAMES = itertools.count()
ARRAY = np.zeros(3)
class Tracker:
    last = 0
    def update(self, ram):
        self.speed = ram.speed
    def pay(self, ram):
        return float(ram.speed)
TRACKER = Tracker()
class Counter:
    n = 0
    def __getitem__(self, key):
        self.n += 1
        return self.n
    def __enter__(self):
        self.n += 1
    def __exit__(self, *error):
        pass
    @property
    def next(self):
        self.n += 1
        return self.n
COUNTER = Counter()
TRACKERS = [Tracker(), TRACKER]
QUEUE = queue.Queue()
CONTEXT = contextvars.ContextVar("n", default=0)
def generate():
    n = 0
    while True:
        yield n
GENERATOR = generate()
def table():
    return TABLE
@functools.cache
def cached():
    return []
def remember(ram):
    global best
    best = max(best, ram.speed)
    return best
def add_to(values, ram):
    values.append(ram.speed)
def plain(ram):
    return ram.speed
"""
STATE = "best = 0\nSEEN = []\ndef keep(ram):\n    SEEN.append(ram.speed)\n    return len(SEEN)\n"


def function(*lines: str, arguments: str = "") -> str:
    return "\n    ".join([f"@reward_term\ndef term(ram{arguments}):", *lines]) + "\n"


def load(folder: Path, code: str) -> list[RewardTerm]:
    (folder / "state.py").write_text(STATE)
    (folder / "rewards.py").write_text(HEAD + code)
    return marked_scripts(folder / "rewards.py", RewardTerm)


# Kaggle/kaggle-environments#156: environments shared lists, which were the defaults of arguments.
# benelot/pybullet-gym#61: the environments of training and evaluation shared one object, a default as well.
@pytest.mark.parametrize(
    "body",
    [
        "global best\n    best = max(best, ram.speed)  # here",
        "global best\n    best += ram.speed  # here",
        "global new\n    new = ram.speed  # here",
        "global best\n    for best in range(3):  # here\n        pass",
        "if (x := 3) and True:\n        SEEN.add(ram.speed)  # here",
        "RECENT.append(ram.speed)  # here",
        "TABLE['laps'].append(ram.laps)  # here",
        "TABLE[ram.surface] = 1.0  # here",
        "TABLE[ram.surface] += 1.0  # here",
        "del TABLE[64]  # here",
        "TABLE.setdefault('new', []).append(1)  # here",
        "x = TABLE['laps']\n    x.append(3)  # here",
        "x = RECENT\n    x += [3]  # here",
        "x, y = SEEN, TABLE\n    y[1] = 2  # here",
        "x = y = SEEN\n    x.add(1)  # here",
        "x: set = SEEN\n    x.add(1)  # here",
        "x = SEEN if ram.speed else None\n    x.add(1)  # here",
        "x = None\n    if ram.speed:\n        x = SEEN\n        x.add(1)  # here",
        "x = SEEN or set()\n    x.add(1)  # here",
        "for x in TRACKERS:\n        x.speed = 1  # here",
        "for i, x in enumerate(TRACKERS):\n        x.speed = i  # here",
        "for x in TABLE.values():\n        x.append(3)  # here",
        "[x.append(3) for x in TABLE.values()]  # here",
        "x = table()\n    x[3] = 1  # here",
        "table()[3] = 1  # here",
        "cached().append(1)  # here",
        "QUEUE.put(1)  # here",
        "CONTEXT.set(CONTEXT.get() + 1)  # here",
        "GENERATOR.send(None)  # here",
        "ARRAY[:2][0] = 1  # here",
        "ARRAY[0] += 1  # here",
        "ARRAY.fill(1)  # here",
        "term.best = ram.speed  # here",
        "Tracker.last += 1  # here",
        "TRACKER.speed = ram.speed  # here",
        "state.best = ram.speed  # here",
        "state.SEEN.append(1)  # here",
        "setattr(TRACKER, 'speed', 1)  # here",
        "heapq.heappush(TABLE['laps'], 3)  # here",
        "list.append(TABLE['laps'], 3)  # here",
        "globals()['best'] = 3  # here",
        "x = next(FRAMES)  # here",
        "x = [SEEN.add(y) for y in range(3)]  # here",
        "def inner():\n        SEEN.add(1)  # here\n    inner()",
    ],
)
def test_a_function_that_changes_what_lies_outside_it_is_refused(tmp_path: Path, body: str) -> None:
    code = function(body, "return 1.0")
    line = next(i for i, text in enumerate((HEAD + code).splitlines(), 1) if "# here" in text)
    with pytest.raises(KartRewardsError) as error:
        load(tmp_path, code)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'rewards.py'}:{line}: 'term' keeps a value outside itself: ")
    assert "# here" in message
    assert "Write a class: set self.value in __init__" in message


@pytest.mark.parametrize(
    "code",
    [
        function("return remember(ram)"),
        function("add_to(TABLE['laps'], ram)", "return 1.0"),
        function("TRACKER.update(ram)", "return 1.0"),
        function("return state.keep(ram)"),
        function("from state import keep", "return keep(ram)"),
        function("return sum(map(remember, [ram]))"),
        "PARTS = [remember]\n" + function("return sum(part(ram) for part in PARTS)"),
        "PARTS = {3: remember}\n" + function("return PARTS.get(3)(ram)"),
        "PART = functools.partial(add_to, [])\n" + function("PART(ram)", "return 1.0"),
        function("for x in TRACKERS:", "    x.update(ram)", "return 1.0"),
        function("return COUNTER[0]"),
        function("return COUNTER.next"),
        function("with COUNTER:", "    return 1.0"),
        function("seen.append(1)", "return len(seen)", arguments=", seen=[]"),
        function("seen[1] = 1", "return len(seen)", arguments=", *, seen={}"),
        "@reward_term\nclass Term:\n    count = 0\n    def __call__(self, ram):\n"
        "        Term.count += 1\n        return 1.0\n",
        "@reward_term\nclass Term:\n    count = 0\n    def __call__(self, ram):\n"
        "        type(self).count += 1\n        return 1.0\n",
        "@reward_term\nclass Term:\n    seen = []\n    def __call__(self, ram):\n"
        "        self.seen.append(1)\n        return 1.0\n",
        "@reward_term\nclass Term:\n    seen = []\n    def __call__(self, ram):\n"
        "        self.seen += [1]\n        return 1.0\n",
        "@reward_term\nclass Term:\n    def __init__(self, seen=[]):\n        self.seen = seen\n"
        "        seen.append(1)\n"
        "    def __call__(self, ram):\n        return 1.0\n",
        "@reward_term\nclass Term:\n    def __init__(self, seen=[]):\n        self.seen = seen\n"
        "    def __call__(self, ram):\n        self.seen.append(1)\n        return 1.0\n",
        "@reward_term\nclass Term:\n    def __init__(self):\n        self.seen = SEEN\n"
        "    def __call__(self, ram):\n        self.seen.add(1)\n        return 1.0\n",
        "@reward_term\nclass Term:\n    def __init__(self):\n        self.best, self.tracker = 0, TRACKER\n"
        "    def __call__(self, ram):\n        self.tracker.speed = ram.speed\n        return 1.0\n",
        "@reward_term\n@dataclass\nclass Term:\n    tracker: Tracker = TRACKER\n"
        "    def __call__(self, ram):\n        self.tracker.speed = ram.speed\n        return 1.0\n",
        "@reward_term\nclass Term:\n    one = None\n    def __new__(cls):\n        if cls.one is None:\n"
        "            cls.one = super().__new__(cls)\n        return cls.one\n"
        "    def __call__(self, ram):\n        return 1.0\n",
        "class One(type):\n    made = {}\n    def __call__(cls):\n        if cls not in One.made:\n"
        "            One.made[cls] = super().__call__()\n        return One.made[cls]\n"
        "@reward_term\nclass Term(metaclass=One):\n    def __call__(self, ram):\n        return 1.0\n",
        "@reward_term\nclass Term:\n    def __call__(self, ram):\n        return self.help(ram)\n"
        "    def help(self, ram):\n        SEEN.add(1)\n        return 1.0\n",
        "@reward_term\nclass Term:\n    n = 0\n    @classmethod\n    def help(cls):\n        cls.n += 1\n"
        "    def __call__(self, ram):\n        self.help()\n        return 1.0\n",
        "def make():\n    last = 0\n    @reward_term\n    def term(ram):\n        nonlocal last\n"
        "        last = ram.speed\n"
        "        return last\n    return term\nterm = make()\n",
        "def make():\n    seen = []\n    def term(ram):\n        seen.append(1)\n"
        "        return len(seen)\n    return term\n"
        "term = reward_term(name='term')(make())\n",
        "term = reward_term(name='term')(lambda ram: SEEN.add(ram.speed) or 1.0)\n",
        "@reward_term\n@functools.lru_cache\ndef term(ram):\n    SEEN.add(ram.speed)\n    return 1.0\n",
        "def base(seen, ram):\n    seen.append(1)\n    return 1.0\n"
        "term = reward_term(name='term')(functools.partial(base, []))\n",
    ],
)
def test_helpers_classes_closures_and_defaults_are_searched(tmp_path: Path, code: str) -> None:
    with pytest.raises(KartRewardsError, match=r"(rewards|state)\.py:\d+: 'term' keeps a value outside itself"):
        load(tmp_path, code)


@pytest.mark.parametrize(
    "code",
    [
        function("return TABLE.get(ram.surface, 0.0) + best + len(SEEN)"),
        function("seen = set(SEEN)", "seen.add(1)", "return len(seen)"),
        function("seen = SEEN", "seen = [1]", "seen.append(2)", "return len(seen)"),
        function("seen = sorted(SEEN)", "seen.append(2)", "return len(seen)"),
        function("seen = TABLE['laps'][:]", "seen.append(2)", "return len(seen)"),
        function("total = 0", "for x in SEEN:", "    x += 1", "    total += x", "return total"),
        function("return sum(x.last for x in TRACKERS + [Tracker]) if ram.speed else 1.0"),
        function("print(ram.speed)", "logging.getLogger('x').info('y')", "return 1.0"),
        function("values = []", "add_to(values, ram)", "return values[0]"),
        function("n = 0", "def inner():", "    nonlocal n", "    n += 1", "inner()", "return n"),
        function("return TRACKER.pay(ram) + Tracker().pay(ram) + state.best"),
        function("tracker = Tracker()", "tracker.update(ram)", "return tracker.speed"),
        function("return np.add(ram.speed, 1) + math.sqrt(4)"),
        function("return float(ram.speed in limits)", arguments=", limits=[1, 2]"),
        "@functools.cache\ndef square(x):\n    return x * x\n@reward_term\ndef term(ram):\n"
        "    return square(ram.speed)\n",
        "@reward_term\nclass Term:\n    count = 0\n    limits = [1]\n    def __init__(self):\n"
        "        self.seen = []\n"
        "    def __call__(self, ram):\n        self.count += 1\n"
        "        self.seen.append(self.limits[0])\n        return 1.0\n",
        "@reward_term\nclass Term:\n    def __init__(self):\n        self.seen = list(SEEN)\n"
        "        self.recent = RECENT.copy()\n        self.limits = TABLE['laps']\n"
        "    def __call__(self, ram):\n        self.seen.append(len(self.limits))\n"
        "        self.recent.append(3)\n        return len(self.recent)\n",
        "@reward_term\n@dataclass\nclass Term:\n    seen: list = field(default_factory=list)\n"
        "    def __call__(self, ram):\n        self.seen.append(1)\n        return 1.0\n",
    ],
)  # fmt: skip
def test_reading_local_values_and_own_instances_are_not_refused(tmp_path: Path, code: str) -> None:
    [term] = load(tmp_path, code)
    assert score([snapshot()] * 3, [term])[term.name] >= 0.0


def test_in_python_a_test_may_record_what_its_term_sees() -> None:
    seen, calls = [], {"n": 0}

    def watch(ram: Any) -> float:
        seen.append(ram.speed)
        calls["n"] += 1
        return 0.0

    score([snapshot(speed=3)], [watch])
    assert (seen, calls) == ([3], {"n": 1})

    last = 0

    def gained(ram: Any) -> float:
        nonlocal last
        last, before = ram.speed, last
        return last - before

    def most(ram: Any) -> float:
        most.best = max(getattr(most, "best", 0), ram.speed)  # type: ignore[attr-defined]
        return most.best  # type: ignore[attr-defined]

    for term in (gained, most):
        with pytest.raises(KartRewardsError, match=r"test_memory\.py:\d+: '\w+' keeps a value outside itself"):
            as_term(term)


def test_an_attribute_that_depends_on_itself_is_no_memory_of_others() -> None:
    class Best:
        def __init__(self) -> None:
            self.best: Any = None

        def __call__(self, ram: Any) -> float:
            self.best = ram.speed if self.best is None else self.best
            return float(self.best)

    class Last:
        last: Any

        def __call__(self, ram: Any) -> float:
            self.last = self.last if hasattr(self, "last") else ram.speed
            return float(self.last)

    for honest in (Best, Last):
        assert as_term(honest).name == honest.__name__.lower()

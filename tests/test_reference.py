"""Compares the reference terms and rules with the same rules in Lua, which stable-retro's script engine runs.

The Lua script is part of this project (tests/reference/reference.lua). ``kart_rewards.games.parity`` compares both on
the same frames of the same emulator. There are two intended differences. Python reads a negative speed, which
stable-retro reads as a large one. Python reports the early stop on the frame of the seventh hit; the Lua engine reports
it one frame later, with reward 0.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kart_rewards.done import REFERENCE_RULES, as_rule
from kart_rewards.drivers import CentrelineDriver, Driver, RandomDriver, WallHugger, centreline, full_throttle, reverse
from kart_rewards.games.parity import Inputs, Parity, PortScore, Scored
from kart_rewards.integrations import INTEGRATIONS, Game
from kart_rewards.rewards import REFERENCE_TERMS, as_term
from kart_rewards.scenario import Scoring

LUA = Path(__file__).parent / "reference" / "reference.lua"
REFERENCE = Scoring([as_term(term) for term in REFERENCE_TERMS], [as_rule(rule) for rule in REFERENCE_RULES])


@pytest.fixture
def game(tmp_path: Path) -> Game:
    """HomebrewKart with the Lua script. In signed.json, a copy of data.json, Lua reads the speed as signed."""
    folder = tmp_path / "HomebrewKart-Snes"
    shutil.copytree(INTEGRATIONS / "HomebrewKart-Snes", folder)
    info = json.loads((folder / "data.json").read_text())
    info["info"]["speed"]["type"] = "<i2"
    scripts = {
        "scripts": ["reference.lua"],
        "reward": {"script": "lua:reference_reward"},
        "done": {"script": "lua:reference_done"},
    }
    (folder / "signed.json").write_text(json.dumps(info))
    (folder / "scenario.json").write_text(json.dumps(scripts))
    shutil.copy(LUA, folder)
    return Game(folder.name, folder)


class LikeLua:
    """Scores an episode with the Python terms and rules, and reports the early stop one frame later, without reward.

    ``convert`` is applied to each snapshot.
    """

    def __init__(self, convert: Callable[[Any], Any] = lambda ram: ram) -> None:
        self.score = PortScore(REFERENCE)
        self.convert = convert
        self.stopped = False

    def __call__(self, ram: Any, buttons: frozenset[str]) -> Scored:
        if self.stopped:
            return Scored(0.0, {}, "wall_hits")
        scored = self.score(self.convert(ram), buttons)
        self.stopped = scored.rule == "wall_hits"
        return replace(scored, rule=None) if self.stopped else scored


def follow(course: int, **options: Any) -> Driver:
    return CentrelineDriver(centreline(f"Level{course + 1}"), **options)


def test_python_and_lua_agree_on_each_frame_of_all_drives(game: Game) -> None:
    """All rewards are multiples of 0.5, which single precision holds exactly.

    A drive goes on after the end of its episode. Only random drives are then other ones, so the others end soon.
    """
    drives: list[tuple[str, int, Callable[[int], Driver], int]] = [
        ("a complete race", 3100, lambda i: follow(0), 0),
        ("another course, off the line", 1000, lambda i: follow(3, offset=60.0), 3),
        ("the wrong way round", 800, lambda i: follow(0, backward=True), 0),
        ("at random", 2000, lambda i: RandomDriver(seed=i), 1),
        ("into walls", 1200, lambda i: WallHugger("LEFT" if i % 2 else "RIGHT"), 2),
        ("full throttle", 600, lambda i: full_throttle, 0),
        ("in reverse", 300, lambda i: reverse, 0),
    ]
    parity = Parity(game, REFERENCE, make_score=LikeLua, their_info="signed")
    for name, frames, make_driver, course in drives:
        drivers = map(make_driver, itertools.count())
        inputs = Inputs(name, game.load_state(f"Level{course + 1}"), partial(next, drivers), frames)
        assert parity.compare(inputs) is None
    assert parity.frames == 9_000
    assert parity.silent() == [], "all terms paid, and both rules ended an episode"


@pytest.mark.slow
def test_with_the_retail_type_only_negative_speeds_differ(game: Game) -> None:
    """stable-retro reads the type ``<s2`` as unsigned. With an unsigned speed, Python and Lua agree on each frame."""
    differing = []

    class Unsigned(LikeLua):
        def __init__(self) -> None:
            super().__init__(lambda ram: ram._replace(speed=ram.speed % 65536))
            self.signed = PortScore(REFERENCE)
            self.signed_stopped = False

        def __call__(self, ram: Any, buttons: frozenset[str]) -> Scored:
            scored, stopped = super().__call__(ram, buttons), self.signed_stopped
            if not stopped:
                signed = self.signed(ram, buttons)
                self.signed_stopped = signed.rule is not None
                if signed.reward != scored.reward:
                    differing.append(ram)
            return scored

    drivers: list[Driver] = [reverse, WallHugger("LEFT"), WallHugger("RIGHT"), RandomDriver(3)]
    parity = Parity(game, REFERENCE, make_score=Unsigned)
    for i, driver in enumerate(drivers):
        inputs = Inputs(str(i), game.load_state(f"Level{i + 1}"), partial(next, itertools.repeat(driver)), 1200)
        assert parity.compare(inputs) is None
    assert len(differing) >= 20
    assert all(ram.speed < 0 for ram in differing)

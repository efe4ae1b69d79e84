from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kart_rewards.drives import SHIPPED, load_drive
from kart_rewards.lab.auditing.behaviours import Behaviour, Phase
from kart_rewards.lab.auditing.rollouts import Reference, Rollout, Setup
from kart_rewards.lab.auditing.verdicts import Audit, Confirmed, as_json, report
from kart_rewards.lab.score import RewardSet, score_drive

RACE, STANDING = (load_drive(SHIPPED / f"{name}.drive") for name in ("race", "standing"))
REWARDS = RewardSet()
ROLLOUT = Rollout(
    Behaviour("standing still", 0, (Phase("", 60),)), frames=600, ended_by=None, truncated=False, complete=True,
    total=-0.2, expected=-0.2, gain=0.0, expected_gain=0.0, reached=False, short=-0.1, short_reference=48.0,
    short_size=48.0, short_gain=0.0, short_gain_reference=40.0, place=None, signature=(),
)  # fmt: skip
AUDIT = Audit(
    Setup("HomebrewKart-Snes", "Level1", REWARDS, SHIPPED / "race.drive"),
    Reference(359.0, 361.0, 121.0, True, 3026, "race_finished"), RACE, score_drive(RACE, REWARDS.load(RACE)),
    exploit=None, listed=(), by_goal=None, short_end=None, best=ROLLOUT, margin=-0.9, frames=123_456, rounds=20,
    seconds=300.0, interrupted=False,
)  # fmt: skip
FOUND = Confirmed(ROLLOUT, "return", STANDING, score_drive(STANDING, REWARDS.load(STANDING)), Path("a/exploit.drive"))


def test_nothing_found_says_how_much_was_searched() -> None:
    text = report(AUDIT)
    assert text.startswith("No better-paid behaviour found in 5 min (123,456 frames searched).\n")
    assert "The reference drive, race (finished in 50.35 s), earns 359.00." in text
    assert "note:" not in text
    assert "searched), when you ended the search." in report(replace(AUDIT, interrupted=True))
    assert as_json(AUDIT)["exploit"] is None


def test_an_early_end_that_only_the_discount_makes_better_is_a_note() -> None:
    early = ROLLOUT._replace(ended_by="wall_hits", frames=150, short=-1.5, short_reference=-4.0)
    text = report(replace(AUDIT, short_end=early))
    assert "note: At gamma 0.99, an early end is better paid than driving on. If wall_hits ends the episode" in text


def test_an_exploit_is_compared_by_term_in_the_same_number_of_frames() -> None:
    rewards = RewardSet(("my file.py",), weights={"time": -2}, gamma=0.9)
    text = report(replace(AUDIT, exploit=FOUND, setup=replace(AUDIT.setup, rewards=rewards)))
    assert text.startswith("Exploit: standing still. It earns -0.20 in an episode of 600 frames, and comes 0% as far.")
    [header] = [line for line in text.splitlines() if line.startswith("term ")]
    assert header.split() == ["term", "600", "frames", "3,026", "frames", "600", "frames"]
    [row] = [line.split() for line in text.splitlines() if line.startswith("checkpoint")]
    assert row[1] == "0.0"
    assert row[2] == "36,000.0"
    assert "kart-rewards lab a/exploit.drive race --rewards 'my file.py' --reward-weights time=-2 --gamma 0.9" in text
    assert as_json(replace(AUDIT, exploit=FOUND))["exploit"]["terms"]["checkpoint"] == 0

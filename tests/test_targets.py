from __future__ import annotations

from pathlib import Path

from kart_rewards.lab.auditing.targets import CHANGES, Target, targets_of
from kart_rewards.rewards import REFERENCE_TERMS, as_term
from kart_rewards.scenario import load_scoring

SOURCE = """
from kart_rewards import reward_term
from kart_rewards.race import BOOST, DEEP_WATER as WATER

LIMIT = 600


@reward_term
class Mine:
    FULL = 900

    def __call__(self, ram, buttons):
        ground, x = ram.surface, ram.kart_x
        if ground == BOOST or ram.surface in (0x40, WATER):
            return 1.0
        if 100 < x <= LIMIT or abs(ram.speed) >= self.FULL or "L" in buttons:
            return 2.0
        return float(ram.kart_y > ram.kart_x)
"""


def test_comparisons_with_numbers_and_names_are_targets(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    scripts = load_scoring(None, str(tmp_path / "mine.py")).terms
    targets, words = targets_of(scripts, ["surface", "kart_x", "kart_y", "speed"])
    assert set(targets) == {
        Target("surface", "==", 0x16),
        Target("surface", "==", 0x40),
        Target("surface", "==", 0x22),
        Target("kart_x", ">", 100),
        Target("kart_x", "<=", 600),
        Target("speed", ">=", 900),
    }
    assert "L" in words


def test_the_terms_of_the_package_give_no_targets() -> None:
    assert targets_of(map(as_term, REFERENCE_TERMS), ["surface", "speed"]) == ((), ())


def test_a_target_has_an_inverse() -> None:
    assert Target("speed", "<=", 0).inverse() == Target("speed", ">", 0)
    assert Target("laps", CHANGES).inverse() == Target("laps", CHANGES)
    assert str(Target("speed", "<=", 0)) == "speed <= 0"

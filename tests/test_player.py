from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from kart_rewards.drives import SHIPPED
from kart_rewards.lab.auditing.behaviours import Behaviour, Phase
from kart_rewards.lab.auditing.player import Player
from kart_rewards.lab.auditing.rollouts import Setup
from kart_rewards.lab.auditing.targets import CHANGES, Target
from kart_rewards.lab.replay import replay
from kart_rewards.lab.score import RewardSet, score_drive

BRAKE = Behaviour("stop", 40, (Phase("Y", 200, Target("speed", "<=", 0)), Phase("B", 30), Phase("Y", 30)), 1)
NO_MEMORY = """
import numpy as np

from kart_rewards import reward_term


@reward_term(weight=0.5)
class Seen:
    def __init__(self):
        self.sums = np.zeros(2)

    def __call__(self, ram, action, buttons):
        self.sums[0] += ram.speed > 300
        return float(self.sums[0] % 7 == 3) + ("B" in buttons) + (action[0] if action else 0.0)
"""


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(NO_MEMORY)
    yield Player(Setup("HomebrewKart-Snes", "Level1", RewardSet((str(path),)), SHIPPED / "race.drive"))
    gc.collect()


def test_the_reference_is_scored_like_any_drive(player: Player) -> None:
    score = score_drive(player.reference, player.loaded)
    assert player.summary.total == pytest.approx(score.transformed)
    assert (player.summary.end, player.summary.ended_by) == (score.end, "race_finished")
    assert player.summary.reached
    assert player.summary.gain == 5 * 24 + 1


def test_a_behaviour_is_paid_what_its_drive_is_paid(player: Player) -> None:
    behaviour = BRAKE._replace(phases=(*BRAKE.phases, Phase("B+LEFT", 10)))
    rollout = player.run(behaviour, (300,), 0.0)
    assert (rollout.frames, rollout.complete) == (300, False)
    drive = player.drive(behaviour, 300, "tried")
    assert len(drive) == 341
    assert score_drive(drive, player.loaded).transformed == pytest.approx(rollout.total)
    assert [drive.columns[name][:41].tolist() for name in ("kart_x", "kart_y")] == [
        player.reference.columns[name][:41].tolist() for name in ("kart_x", "kart_y")
    ]
    player.console.em = player.console.data = None  # a process can have one emulator
    player.drawing = None  # type: ignore[assignment]
    gc.collect()
    assert sum(1 for _ in replay(drive)) == 341


def test_phases_end_on_their_conditions(tmp_path: Path) -> None:
    gc.collect()
    player = Player(Setup("HomebrewKart-Snes", "Level1", RewardSet(), SHIPPED / "race.drive"))
    shuttle = Behaviour("shuttling", 100, (Phase("Y", 300, Target("checkpoint", CHANGES)), Phase("B", 2)), 0)
    speeds = [ram.speed for (ram, _), _ in zip(player.frames(BRAKE), range(150), strict=False)]
    stop = next(i for i, speed in enumerate(speeds) if speed <= 0)
    assert speeds[stop + 30] > 150
    first = player.reference[100].checkpoint
    seen = [(ram.checkpoint, mask) for (ram, mask), _ in zip(player.frames(shuttle), range(300), strict=False)]
    change = next(i for i, (checkpoint, _) in enumerate(seen) if checkpoint != first)
    assert seen[change + 1][1] != seen[change][1] == seen[0][1]
    promised = player.run(BRAKE, (60, 120, 240), 1e9)
    assert promised.frames == 60
    assert promised.total < promised.expected < 1e9
    assert player.run(Behaviour("standing", 0, (Phase("", 60),)), (60, 120), -1e9).frames == 120

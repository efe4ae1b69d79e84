from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from kart_rewards.drives import SHIPPED
from kart_rewards.lab.auditing.behaviours import Behaviour, Phase
from kart_rewards.lab.auditing.rollouts import Setup
from kart_rewards.lab.auditing.stage import Stage
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
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(NO_MEMORY)
    yield Stage(Setup("HomebrewKart-Snes", "Level1", RewardSet((str(path),)), SHIPPED / "race.drive"))
    gc.collect()


def test_the_reference_is_scored_like_any_drive(stage: Stage) -> None:
    score = score_drive(stage.reference, stage.loaded)
    assert stage.summary.total == pytest.approx(score.transformed)
    assert (stage.summary.end, stage.summary.ended_by) == (score.end, "race_finished")
    assert stage.summary.reached
    assert stage.summary.gain == 5 * 24 + 1


def test_a_behaviour_is_paid_what_its_drive_is_paid(stage: Stage) -> None:
    behaviour = BRAKE._replace(phases=(*BRAKE.phases, Phase("B+LEFT", 10)))
    rollout = stage.run(behaviour, (300,), 0.0)
    assert (rollout.frames, rollout.complete) == (300, False)
    drive = stage.drive(behaviour, 300, "tried")
    assert len(drive) == 341
    assert score_drive(drive, stage.loaded).transformed == pytest.approx(rollout.total)
    assert [drive.columns[name][:41].tolist() for name in ("kart_x", "kart_y")] == [
        stage.reference.columns[name][:41].tolist() for name in ("kart_x", "kart_y")
    ]
    stage.console.em = stage.console.data = None  # a process can have one emulator
    stage.drawing = None  # type: ignore[assignment]
    gc.collect()
    assert sum(1 for _ in replay(drive)) == 341


def test_phases_end_on_their_conditions(tmp_path: Path) -> None:
    gc.collect()
    stage = Stage(Setup("HomebrewKart-Snes", "Level1", RewardSet(), SHIPPED / "race.drive"))
    shuttle = Behaviour("shuttling", 100, (Phase("Y", 300, Target("checkpoint", CHANGES)), Phase("B", 2)), 0)
    speeds = [ram.speed for (ram, _), _ in zip(stage.frames(BRAKE), range(150), strict=False)]
    stop = next(i for i, speed in enumerate(speeds) if speed <= 0)
    assert speeds[stop + 30] > 150
    first = stage.reference[100].checkpoint
    seen = [(ram.checkpoint, mask) for (ram, mask), _ in zip(stage.frames(shuttle), range(300), strict=False)]
    change = next(i for i, (checkpoint, _) in enumerate(seen) if checkpoint != first)
    assert seen[change + 1][1] != seen[change][1] == seen[0][1]
    promised = stage.run(BRAKE, (60, 120, 240), 1e9)
    assert promised.frames == 60
    assert promised.total < promised.expected < 1e9
    assert stage.run(Behaviour("standing", 0, (Phase("", 60),)), (60, 120), -1e9).frames == 120

"""benchmarks/lap.py: it draws a lap of a drive beside the reference lap, and reports a drive without a lap."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import load_module

from kart_rewards.drives import SHIPPED
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation.courses import find_courses
from kart_rewards.evaluation.sectors import reference_lap
from kart_rewards.integrations import INTEGRATIONS
from kart_rewards.ram import load_json

GAME = INTEGRATIONS / "HomebrewKart-Snes"
lap = load_module(Path(__file__).parent.parent / "benchmarks" / "lap.py")


def test_it_draws_the_lap_of_a_drive_beside_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "pictures" / "lap.png"
    lap.command(SHIPPED / "race-Level3.drive", output)
    loss = 14.776 - load_json(GAME / "reference_laps.json")["lap_time_seconds"]["Level3"]
    assert capsys.readouterr().out == f"Level3: agent 14.78 s, {loss:+.2f} s to the reference; wrote {output}\n"
    picture = np.array(cv2.imread(str(output)), np.int64)
    assert picture.shape == (520, 1100, 3)
    blue, _, red = np.moveaxis(picture[:, :480], -1, 0)
    assert (red - blue > 150).sum() > 500, "the line of the agent is on the map"
    assert (blue - red > 100).sum() > 500, "the line of the reference is on the map"


@pytest.mark.parametrize("state", ["Level1", "Level3"])
def test_a_lap_goes_once_along_the_middle_of_the_road(state: str) -> None:
    found = reference_lap(GAME, state)
    assert found
    part = lap.along(found.path, find_courses(GAME)[state])
    assert part[0] == pytest.approx(0, abs=0.03)
    assert part[-1] == pytest.approx(1, abs=0.03)
    assert np.diff(part).min() > -0.01


def test_a_drive_without_a_lap_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"wander\.drive: has no complete lap with positions"):
        lap.command(SHIPPED / "wander.drive", tmp_path / "lap.png")
    assert not (tmp_path / "lap.png").exists()

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kart_rewards.drivers import centreline
from kart_rewards.drives import SHIPPED, Drive, load_drive
from kart_rewards.lab.page.figures import drive_figures, packed, score_figures
from kart_rewards.lab.score import RewardSet

MINE = """from kart_rewards import reward_term

@reward_term(weight=0)
def fast(ram):
    return float(ram.speed > 300)


@reward_term(weight=2)
class Count:
    '''Counts.'''

    def __call__(self, ram):
        return 1.5
"""


@pytest.fixture(scope="module")
def drive() -> Drive:
    return load_drive(SHIPPED / "turning.drive")


def test_a_term_of_weight_0_has_its_values(drive: Drive, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    figures = score_figures(drive, RewardSet((str(tmp_path / "mine.py"),), scenario=None).load(drive))
    fast, count = figures["terms"]
    assert fast["values"] == [0.0] * len(drive)
    assert fast["raw"] == [0.0, *(float(ram.speed > 300) for ram in drive[1:])]
    assert count["raw"] is None
    assert count["values"][:3] == [0.0, 3.0, 3.0]
    assert (count["line"], count["summary"]) == (8, "Counts.")
    assert count["source"].splitlines()[:2] == ["@reward_term(weight=2)", "class Count:"]
    assert figures["summary"]["plain"] == 3.0 * (len(drive) - 1)
    assert len(figures["rewards"]) == len(drive)


def test_the_road_of_the_course_is_in_the_units_of_the_variables(drive: Drive) -> None:
    course = drive_figures(drive)["map"]
    assert course["line"] == [[4 * x, 4 * y] for x, y in centreline("Level1")]
    assert course["width"] == 4 * 108
    assert drive_figures(replace(drive, info=replace(drive.info, state="mine")))["map"] is None
    assert drive_figures(replace(drive, info=replace(drive.info, game="None-Snes")))["map"] is None
    without = {name: column for name, column in drive.columns.items() if name != "kart_x"}
    assert drive_figures(replace(drive, columns=without))["map"] is None


def test_numbers_that_are_not_finite_become_none(drive: Drive) -> None:
    odd = np.full((len(drive), 2), 0.5)
    odd[3] = np.nan, np.inf
    columns = drive_figures(replace(drive, columns={"odd": odd, "more": odd[:, 1]}))["columns"]
    assert columns["odd"][3] == [None, None]
    assert columns["more"][2:4] == [0.5, None]
    assert json.loads(gzip.decompress(packed(columns))) == columns


def test_figures_import_neither_the_emulator_nor_torch() -> None:
    code = "import sys, kart_rewards.lab.page.figures; print('stable_retro' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_a_term_that_a_scenario_declares_shows_the_file(drive: Drive, tmp_path: Path) -> None:
    scenario = tmp_path / "mine.json"
    scenario.write_text('{"reward": {"variables": {"speed": {"reward": 0.5}}}}\n')
    [term] = score_figures(drive, RewardSet(scenario=str(scenario)).load(drive))["terms"]
    assert (term["name"], term["source"]) == ("speed", scenario.read_text())

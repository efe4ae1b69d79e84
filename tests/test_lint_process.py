from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kart_rewards.drives import SHIPPED, load_drive
from kart_rewards.lab.page.lint_process import Linting, findings_of_now, with_numbers
from kart_rewards.lab.score import RewardSet

REVERSE = SHIPPED / "reverse.drive"


def test_a_finding_has_the_number_of_its_drive(tmp_path: Path) -> None:
    here, elsewhere = ({"title": "a", "path": str(path)} for path in (REVERSE, tmp_path / "gone.drive"))
    assert with_numbers([here, elsewhere], [SHIPPED / "race.drive", REVERSE]) == [
        {"title": "a", "drive": "reverse", "number": 1},
        {"title": "a", "drive": "gone", "number": None},
    ]
    assert with_numbers(None, [REVERSE]) is None


@pytest.fixture
def without_rom(tmp_path: Path) -> Path:
    """A drive of a game whose ROM is not here."""
    drive = load_drive(REVERSE)
    replace(drive, info=replace(drive.info, game="MarioKart-Snes")).save(tmp_path / "retail.drive")
    return tmp_path / "retail.drive"


def test_a_game_that_lint_can_not_examine_is_an_error_of_the_page(without_rom: Path, tmp_path: Path) -> None:
    result = findings_of_now([RewardSet()], [without_rom], tmp_path)
    assert result["findings"] == []
    assert "rom.sfc" in result["error"]


def test_a_run_whose_files_have_changed_is_killed(without_rom: Path, tmp_path: Path) -> None:
    received: list[Mapping[str, Any]] = []
    busy: list[bool] = []

    async def receive(result: Mapping[str, Any]) -> None:
        received.append(result)

    async def edit_while_it_runs() -> None:
        state: tuple[Any, bool] = (None, False)
        paths = [REVERSE]
        linting = Linting(
            [RewardSet()], tmp_path, lambda: state, lambda: paths, receive, lambda: busy.append(linting.is_busy)
        )
        task = asyncio.create_task(linting.run())
        state = (1, True)
        while not multiprocessing.active_children():
            await asyncio.sleep(0.01)
        [outdated] = multiprocessing.active_children()
        state = (2, False)  # a file has changed, and it is scored now
        while outdated.is_alive():
            await asyncio.sleep(0.01)
        assert (received, linting.is_busy) == ([], True)
        state, paths = (2, True), [without_rom]
        while not received:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert not linting.is_busy
        state = (3, True)
        while not multiprocessing.active_children():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert not multiprocessing.active_children(), "no process is left"

    asyncio.run(asyncio.wait_for(edit_while_it_runs(), 120))
    assert len(received) == 1
    assert "rom.sfc" in received[0]["error"]
    assert busy[0]

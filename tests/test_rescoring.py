from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kart_rewards.drives import SHIPPED
from kart_rewards.errors import KartRewardsError
from kart_rewards.lab.page.rescoring import Rescoring
from kart_rewards.lab.score import RewardSet

MINE = "from kart_rewards import reward_term\n\n@reward_term\ndef mine(ram):\n    return VALUE\n"
PATHS = [SHIPPED / "reverse.drive", SHIPPED / "standing.drive"]


async def until(condition: Callable[[], object]) -> None:
    for _ in range(600):
        if condition():
            return
        await asyncio.sleep(0.05)
    pytest.fail("waited in vain")


async def mine_of(rescoring: Rescoring) -> dict[str, Any]:
    content = json.loads(gzip.decompress(await rescoring.figures(0)))
    [term] = content["terms"]
    return {"version": content["version"], "value": term["values"][1], "line": term["source"].splitlines()[-1].strip()}


def test_each_state_of_the_files_is_scored(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE.replace("VALUE", "2"))
    changes: list[None] = []

    async def edit_and_look() -> None:
        rewards = RewardSet((str(tmp_path / "mine.py"),), scenario=None)
        rescoring = Rescoring(PATHS, PATHS[:1], rewards, lambda: changes.append(None))
        task = asyncio.create_task(rescoring.run())
        try:
            assert await mine_of(rescoring) == {"version": 1, "value": 2.0, "line": "return 2"}
            await until(lambda: all(rescoring.summaries))
            assert [each and each["plain"] for each in rescoring.summaries] == [1200.0, 1200.0]

            (tmp_path / "mine.py").write_text("import helper\n" + MINE.replace("VALUE", "helper.value"))
            await until(lambda: rescoring.error)
            assert rescoring.error is not None
            assert "No module named 'helper'" in rescoring.error
            assert (await mine_of(rescoring))["value"] == 2.0, "the last good state stays"

            (tmp_path / "helper.py").write_text("value = 3\n")  # a file that no import has found so far
            await until(lambda: rescoring.version == 2)
            assert (await mine_of(rescoring)) == {"version": 2, "value": 3.0, "line": "return helper.value"}
            (tmp_path / "helper.py").write_text("value = 4\n")
            await until(lambda: rescoring.version == 3)
            assert (await mine_of(rescoring))["value"] == 4.0
            await until(lambda: not rescoring.status()["busy"])
            assert rescoring.status()["seconds"] is not None

            (tmp_path / "helper.py").write_text("value = None\n")
            await until(lambda: rescoring.version == 4)
            with pytest.raises(KartRewardsError, match=r"reverse, frame 0: 'mine' .* returned None"):
                await rescoring.figures(0)
            await until(lambda: all(each and each["version"] == 4 for each in rescoring.summaries))
            summary = rescoring.summaries[0]
            assert summary and "returned None" in summary["error"]
            assert summary["plain"] == 2400.0, "of the last good state"
        finally:
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(edit_and_look())
    assert changes


def test_a_scenario_is_watched_too(tmp_path: Path) -> None:
    scenario = tmp_path / "mine.json"
    scenario.write_text(json.dumps({"kart_rewards": {"rewards": {"time": -1}, "done": []}}))

    async def edit_and_look() -> None:
        rescoring = Rescoring(PATHS[:1], PATHS[:1], RewardSet(scenario=str(scenario)), lambda: None)
        task = asyncio.create_task(rescoring.run())
        try:
            await rescoring.figures(0)
            scenario.write_text(json.dumps({"kart_rewards": {"rewards": {"time": -5}, "done": []}}))
            await until(lambda: rescoring.version == 2)
            content = json.loads(gzip.decompress(await rescoring.figures(0)))
            assert [term["weight"] for term in content["terms"]] == [-5]
        finally:
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(edit_and_look())

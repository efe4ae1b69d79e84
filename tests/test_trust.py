"""Which options of a checkpoint name code, and whose code runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from kart_rewards.errors import KartRewardsError
from kart_rewards.training.checkpoints import Checkpoint
from kart_rewards.training.trust import is_own, signature, without_foreign_code

OF_THE_GAME: dict[str, Any] = {
    "env_id": "A-Snes",
    "integrations_path": None,
    "scenario": "sprint",
    "rewards": (),
    "wrappers": (),
}


def foreign(**options: Any) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint without a signature, and its options of the environment."""
    env = OF_THE_GAME | options
    return Checkpoint(Path("agent.pt"), {}, 0, 0, {"env": env}, {}, {}, [], [], []), env


@pytest.mark.parametrize("scenario", ["sprint", "scenario", None])
def test_scenarios_of_the_game_are_not_foreign_code(scenario: str | None) -> None:
    for resuming in (False, True):
        assert without_foreign_code(*foreign(scenario=scenario), resuming) == {}


@pytest.mark.parametrize(
    "options",
    [
        {"scenario": "/elsewhere/sprint.json"},
        {"scenario": "/elsewhere/sprint"},
        {"scenario": "../../elsewhere/sprint"},
        {"scenario": "folder/sprint"},
        {"integrations_path": Path("/elsewhere")},
        {"rewards": ("mine.py",)},
        {"rewards": ("a_module",)},
    ],
    ids=str,
)
def test_options_that_lead_out_of_the_game_name_code(options: dict[str, Any]) -> None:
    [named] = options.values()
    code = str(named if isinstance(named, (str, Path)) else named[0])
    with pytest.raises(KartRewardsError, match=f"names code to run: {code}. Read that code, and add --trust"):
        without_foreign_code(*foreign(**options), resuming=True)
    without = {"scenario": None, "rewards": (), "reward_weights": ()}
    assert without_foreign_code(*foreign(**options), resuming=False) == without


def test_a_game_in_the_current_folder_may_come_with_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    game = tmp_path / "integrations" / "A-Snes"
    game.mkdir(parents=True)
    for name, content in (
        ("data", {"info": {}}),
        ("scenario", {}),
        ("sprint", {"kart_rewards": {"modules": ["a.py"]}}),
    ):
        (game / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    assert without_foreign_code(*foreign(scenario="scenario"), resuming=True) == {}
    with pytest.raises(KartRewardsError, match=f"names code to run: {game / 'sprint.json'}. Read that code"):
        without_foreign_code(*foreign(), resuming=True)
    (game / "sprint.json").write_text(json.dumps({"scripts": ["a.lua"]}))
    assert without_foreign_code(*foreign(), resuming=False)["scenario"] is None


def test_an_agent_behind_foreign_wrappers_is_refused() -> None:
    with pytest.raises(KartRewardsError, match=r"names code to run: mine\.py:Narrow\."):
        without_foreign_code(*foreign(wrappers=("mine.py:Narrow",)), resuming=False)


def test_a_file_system_without_links_holds_a_key_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(platformdirs, "user_data_path", lambda _: tmp_path / "data")
    signed = signature(OF_THE_GAME)
    assert is_own(OF_THE_GAME, signed)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["key"]
    assert (tmp_path / "data" / "key").stat().st_mode & 0o777 == 0o600


def test_a_signature_fits_the_options_that_name_code() -> None:
    signed = signature(OF_THE_GAME)
    assert is_own(OF_THE_GAME, signed)
    assert is_own(OF_THE_GAME | {"frame_skip": 2}, signed)
    for name in OF_THE_GAME:
        assert not is_own(OF_THE_GAME | {name: "other"}, signed), name
    for wrong in ("", None, 3, "é"):
        assert not is_own(OF_THE_GAME, wrong)

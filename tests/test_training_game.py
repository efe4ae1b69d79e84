"""Which game is trained, with and without the retail game's ROM."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import GAME, SMALL, only_run, train_here

from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import INTEGRATIONS, MissingRomError
from kart_rewards.training.game import FREE_GAME, RETAIL_GAME, names_of_run, playable_game, resolved_options


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """A folder of integrations with the free game and the retail game, which has no ROM."""
    folder = tmp_path / "games"
    shutil.copytree(INTEGRATIONS / FREE_GAME, folder / FREE_GAME)
    no_rom = shutil.ignore_patterns("rom.sfc", "*.state")
    shutil.copytree(INTEGRATIONS / RETAIL_GAME, folder / RETAIL_GAME, ignore=no_rom)
    return folder


def test_a_game_with_a_rom_is_played(games: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert playable_game(FREE_GAME, games, fallback=True) == (FREE_GAME, games)
    assert playable_game(FREE_GAME, None, fallback=False) == (FREE_GAME, None)
    assert not capsys.readouterr().out


def test_without_its_rom_the_retail_game_is_replaced(games: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert playable_game(RETAIL_GAME, games, fallback=True) == (FREE_GAME, games)
    printed = capsys.readouterr().out
    for words in ("MarioKart-Snes has no ROM", "import PATH", "Training HomebrewKart-Snes instead", "--no-fallback"):
        assert words in printed


def test_the_free_game_is_found_outside_a_folder_that_lacks_it(games: Path) -> None:
    shutil.rmtree(games / FREE_GAME)
    assert playable_game(RETAIL_GAME, games, fallback=True) == (FREE_GAME, None)


def test_without_fallback_a_missing_rom_is_an_error(games: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingRomError, match="MarioKart-Snes has no ROM"):
        playable_game(RETAIL_GAME, games, fallback=False)
    assert not capsys.readouterr().out


def test_no_other_game_is_replaced(games: Path) -> None:
    (games / RETAIL_GAME).rename(games / "Other-Snes")
    with pytest.raises(MissingRomError, match="Other-Snes has no ROM"):
        playable_game("Other-Snes", games, fallback=True)


def test_a_wrong_rom_is_not_replaced(games: Path) -> None:
    (games / RETAIL_GAME / "rom.sfc").write_bytes(bytes(100))
    with pytest.raises(KartRewardsError, match="is not the ROM that MarioKart-Snes needs"):
        playable_game(RETAIL_GAME, games, fallback=True)


def test_an_unknown_game_is_not_replaced(games: Path) -> None:
    with pytest.raises(KartRewardsError, match="unknown game 'MarioCart-Snes'"):
        playable_game("MarioCart-Snes", games, fallback=True)


# hydra-ecosystem/hydra#922: relative paths of a configuration lead nowhere, because the program works in another
# folder.
def test_paths_are_found_from_every_folder(games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {
        "env_id": RETAIL_GAME,
        "integrations_path": Path("games"),
        "fallback": True,
        "scenario": "sprint.json",
        "info": "data.json",
        "state": ("Level1", "Level2.state", "mine.state"),
        "rewards": ("mine.py", "a_module"),
        "wrappers": ("mine.py:Narrow", "a_module:Wide"),
    }
    assert resolved_options(asked) == {
        "env_id": FREE_GAME,
        "integrations_path": games,
        "scenario": str(tmp_path / "sprint.json"),
        "info": "data.json",  # of the game, wherever that is
        "state": ("Level1", "Level2.state", str(tmp_path / "mine.state")),
        "rewards": (str(tmp_path / "mine.py"), "a_module"),
        "wrappers": (f"{tmp_path / 'mine.py'}:Narrow", "a_module:Wide"),
    }
    assert resolved_options({**asked, "scenario": None})["scenario"] is None
    assert resolved_options({**asked, "scenario": "scenario"})["scenario"] == "scenario"
    assert resolved_options({**asked, "scenario": "/games/my.json"})["scenario"] == "/games/my.json"


def test_a_run_of_the_retail_game_may_have_trained_the_free_one() -> None:
    assert names_of_run(RETAIL_GAME, fallback=True) == [RETAIL_GAME, FREE_GAME]
    assert names_of_run(RETAIL_GAME, fallback=False) == [RETAIL_GAME]
    assert names_of_run("Other-Snes", fallback=True) == ["Other-Snes"]


def test_with_its_rom_the_retail_game_is_trained(tmp_path: Path) -> None:
    """A stand-in: a ROM of this project under the retail game's name, with its SHA-1 in that folder's rom.sha."""
    folder = tmp_path / "games" / RETAIL_GAME
    shutil.copytree(INTEGRATIONS / GAME, folder)
    rom = bytearray((folder / "rom.sfc").read_bytes())
    rom[0x7FDB] += 1  # the header's version number
    (folder / "rom.sfc").unlink()
    (folder / "rom.sha").write_text(hashlib.sha1(rom, usedforsecurity=False).hexdigest())
    (tmp_path / "my dump.sfc").write_bytes(rom)
    words = ["import", str(tmp_path / "my dump.sfc"), "--integrations-path", str(folder.parent)]
    subprocess.run([sys.executable, "-m", "kart_rewards", *words], check=True, capture_output=True)

    finished = train_here(
        *SMALL, "--total-timesteps", 32, "--integrations-path", folder.parent, "--runs-path", tmp_path / "runs"
    )
    assert "has no ROM" not in finished.stdout
    assert finished.stdout.startswith("MarioKart-Snes on cpu")
    assert only_run(tmp_path / "runs").name.startswith("MarioKart-Snes__")

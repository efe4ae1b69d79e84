from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import stable_retro
from command_line import make_game, needs_setpriv, run
from conftest import tiny_rom

from kart_rewards import integrations
from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import (
    FOLDER_VARIABLE,
    INTEGRATIONS,
    Game,
    MissingRomError,
    command,
    find_folder,
    find_game,
    integration_folders,
    list_games,
    state_labels,
    writable,
    writable_folder,
)

ROM = tiny_rom()


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """A folder with one game, 'Tiny-Snes', whose ROM is missing."""
    return make_game(tmp_path / "games" / "Tiny-Snes")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As an installed wheel in an empty folder: returns the folder of the package's games; Tiny-Snes is one of them."""
    package = make_game(tmp_path / "site-packages" / "integrations_data" / "Tiny-Snes")
    monkeypatch.setattr(integrations, "_INSIDE_PACKAGE", package)
    monkeypatch.setattr(integrations, "INTEGRATIONS", package)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "user" / "games"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return package


def test_the_projects_own_games() -> None:
    own = ["HomebrewKart-Snes", "MarioKart-Snes"]
    assert set(own) <= set(list_games())  # a user's own games may be there, too
    homebrew, retail = (INTEGRATIONS / game for game in own)
    assert (homebrew / "scenario.json").read_text() == (retail / "scenario.json").read_text()
    of_homebrew, of_retail = (json.loads((folder / "data.json").read_text())["info"] for folder in (homebrew, retail))
    assert of_retail.items() < of_homebrew.items(), "the free game has all variables of the retail game, and more"


def test_unknown_games_are_reported(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"unknown game 'MarioKart'\. Did you mean 'MarioKart-Snes'\?"):
        find_game("MarioKart")
    with pytest.raises(KartRewardsError, match=r"'mine\.py'\. It looks like a rewards file: write --rewards"):
        find_game("mine.py")
    with pytest.raises(KartRewardsError, match="no such folder of integrations"):
        find_game("MarioKart-Snes", tmp_path / "nowhere")
    (tmp_path / "Empty-Snes").mkdir()
    with pytest.raises(KartRewardsError, match=r"Empty-Snes: is not a game's folder: it has no data\.json"):
        find_game("Empty-Snes", tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "Tiny-Snes/", "games/Tiny-Snes", "x" * 5000, "a\0b"])
def test_a_path_is_not_a_games_name(games: Path, name: str) -> None:
    with pytest.raises(KartRewardsError, match="unknown game"):
        find_game(name, games)
    assert find_folder(name, games) is None


# itsapi/pycraft#73: a name that was too long for a file ended the program with an OSError.
@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "a/b", "é", "\udc80"])
def test_a_name_that_no_file_can_have_is_reported(games: Path, name: str) -> None:
    game = find_game("Tiny-Snes", games)
    with pytest.raises(KartRewardsError, match="no such start state of Tiny-Snes; it has no states yet"):
        game.state_path(name)
    with pytest.raises(KartRewardsError, match=r"no such file; .* has data\.json"):
        game.json_path(name)


def test_a_missing_rom_is_reported(games: Path) -> None:
    with pytest.raises(MissingRomError, match="kart-rewards import PATH"):
        find_game("Tiny-Snes", games).rom()


def test_a_wrong_rom_is_reported(games: Path) -> None:
    (games / "Tiny-Snes" / "rom.sfc").write_bytes(ROM[:-1] + b"!")
    with pytest.raises(KartRewardsError, match=r"rom\.sfc: is not the ROM that Tiny-Snes needs: its SHA-1 is"):
        find_game("Tiny-Snes", games).rom()


def test_a_missing_checksum_is_reported(games: Path) -> None:
    (games / "Tiny-Snes" / "rom.sfc").write_bytes(ROM)
    (games / "Tiny-Snes" / "rom.sha").unlink()
    with pytest.raises(KartRewardsError, match=r"rom\.sha: can't be read"):
        find_game("Tiny-Snes", games).rom()


def test_missing_states_and_files_are_reported(games: Path) -> None:
    game = find_game("Tiny-Snes", games)
    (game.folder / "Start.state").write_bytes(b"not gzip")
    with pytest.raises(KartRewardsError, match=r"Level9\.state: no such start state of Tiny-Snes; it has Start"):
        game.load_state("Level9")
    with pytest.raises(KartRewardsError, match=r"Start\.state: is not a save state"):
        game.load_state("Start")
    with pytest.raises(KartRewardsError, match=r"sprint\.json: no such file; .* has data\.json"):
        game.json_path("sprint")
    with pytest.raises(KartRewardsError, match=r"metadata\.json: can't be read"):
        game.default_state()


def test_a_pattern_names_all_states_that_match_it_once(games: Path) -> None:
    game = find_game("Tiny-Snes", games)
    for name in ("Start", "Gen01", "Gen02", "Test1", "Odd[1]"):
        (game.folder / f"{name}.state").touch()
    assert game.chosen_states(["Gen*"]) == ["Gen01", "Gen02"]
    assert game.chosen_states(["Gen02", "*"]) == ["Gen02", "Gen01", "Odd[1]", "Start", "Test1"]
    assert game.chosen_states(["Test?.state", "Odd[1]", "Gen02", "Gen02"]) == ["Test1", "Odd[1]", "Gen02", "Gen02"]
    assert game.chosen_states([]) == []
    with pytest.raises(
        KartRewardsError, match=r"no start state of Tiny-Snes matches 'Level\*'; it has Gen01, Gen02, O"
    ):
        game.chosen_states(["Level*"])


def test_a_checksum_in_capitals_is_a_checksum(games: Path) -> None:
    sha = games / "Tiny-Snes" / "rom.sha"
    sha.write_text(sha.read_text().upper())
    (games / "Tiny-Snes" / "rom.sfc").write_bytes(ROM)
    assert find_game("Tiny-Snes", games).rom()


def test_games_are_found_in_the_current_folder_then_the_users_then_the_package(wheel: Path, tmp_path: Path) -> None:
    here, user = tmp_path / "work" / "integrations", tmp_path / "user" / "games"
    assert integration_folders()[:-3] == [wheel]
    assert find_game("Tiny-Snes").folder == wheel / "Tiny-Snes"
    make_game(user / "Tiny-Snes")
    make_game(user / "Mine-Snes")
    assert find_game("Tiny-Snes").folder == user / "Tiny-Snes"
    make_game(here / "Tiny-Snes")
    assert integration_folders()[:-3] == [here, user, wheel]
    assert integration_folders()[-3:] == [STOCK, STOCK.parent / "experimental", STOCK.parent / "contrib"]
    assert find_game("Tiny-Snes").folder == here / "Tiny-Snes"
    assert list_games(here) == ["Tiny-Snes"]
    assert {"Mine-Snes", "Tiny-Snes", "Airstriker-Genesis-v0"} < set(list_games())
    assert find_game("Tiny-Snes", wheel).folder == wheel / "Tiny-Snes", "an explicit folder is the only one"
    with pytest.raises(KartRewardsError) as caught:
        find_game("Mine-Sness")
    text = str(caught.value)
    assert text.startswith("unknown game 'Mine-Sness'. Did you mean 'Mine-Snes'? Known games: Mine-Snes, Tiny-Snes, 1,")
    assert f" games of stable-retro. Looked in: {here}, {user}, {wheel}, {STOCK}, " in text


def test_the_users_folder_is_where_platformdirs_says(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(wheel.parent / "share"))
    make_game(wheel.parent / "share" / "kart_rewards" / "integrations" / "Mine-Snes")
    assert find_game("Mine-Snes").folder == wheel.parent / "share" / "kart_rewards" / "integrations" / "Mine-Snes"


def test_a_folder_that_is_found_twice_counts_once(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("integrations").symlink_to(wheel)
    monkeypatch.setenv(FOLDER_VARIABLE, "integrations")
    assert [folder.resolve() for folder in integration_folders()][:-3] == [wheel]


def test_a_broken_folder_of_games_does_not_disturb_the_others(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("integrations").symlink_to("integrations")
    monkeypatch.setenv(FOLDER_VARIABLE, str(wheel / "Tiny-Snes" / "data.json"))
    assert "Tiny-Snes" in list_games()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert find_game("Tiny-Snes").folder == wheel / "Tiny-Snes"


@needs_setpriv
def test_a_locked_folder_of_games_is_reported_and_the_others_are_found(tmp_path: Path) -> None:
    locked = tmp_path / "integrations"
    locked.mkdir()
    locked.chmod(0)
    try:
        done = run("games", ordinary_user=True, folder=tmp_path)
        assert "HomebrewKart-Snes" in done.stdout
        assert done.returncode == 0, done.stderr
        done = run("doctor", "Mine-Snes", ordinary_user=True, folder=tmp_path)
        assert done.stderr == f"error: {locked}: may not be read: change its permissions\n"
    finally:
        locked.chmod(0o700)


def test_a_game_without_data_json_is_found_only_on_request(wheel: Path) -> None:
    (wheel / "Begun-Snes").mkdir()
    assert find_folder("Begun-Snes") == Game("Begun-Snes", wheel / "Begun-Snes")
    assert find_folder("Other-Snes") is None
    with pytest.raises(KartRewardsError, match=r"Begun-Snes: is not a game's folder: it has no data\.json"):
        find_game("Begun-Snes")
    begun = wheel.parent.parent / "user" / "games" / "Begun-Snes"
    begun.mkdir(parents=True)
    assert find_folder("Begun-Snes") == Game("Begun-Snes", begun)
    (wheel / "Begun-Snes").rmdir()
    make_game(wheel / "Begun-Snes")
    assert find_folder("Begun-Snes") == Game("Begun-Snes", wheel / "Begun-Snes"), "a complete folder comes first"


def test_half_written_files_and_folders_are_not_games_and_states(games: Path) -> None:
    """A process that is killed leaves them behind."""
    shutil.copytree(games / "Tiny-Snes", games / ".New-Snes.partial")
    (games / "Tiny-Snes" / ".Start.partial.state").write_bytes(b"")
    assert list_games(games) == ["Tiny-Snes"]
    assert find_game("Tiny-Snes", games).states() == []


def test_games_are_written_to_the_first_folder_that_may_be_written_to(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert writable_folder() == tmp_path / "user" / "games"
    assert (tmp_path / "user" / "games").is_dir(), "the user's data folder is created"
    Path("integrations").mkdir()
    assert writable_folder() == tmp_path / "work" / "integrations"
    Path("integrations").rmdir()
    monkeypatch.setenv(FOLDER_VARIABLE, str(wheel / "Tiny-Snes" / "data.json" / "not-a-folder"))
    with pytest.raises(KartRewardsError, match=f"no folder of games may be written to: .*Set {FOLDER_VARIABLE}"):
        writable_folder()  # root may write into the package, too; but its games are lost with it
    monkeypatch.setattr(integrations, "_INSIDE_PACKAGE", tmp_path / "nowhere")  # as in a checkout
    assert writable_folder() == wheel


def test_a_game_of_the_package_is_copied_before_it_is_written_to(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (wheel / "Tiny-Snes" / "__pycache__").mkdir()
    (wheel / "Tiny-Snes").chmod(0o555)
    copy = writable(find_game("Tiny-Snes"))
    (wheel / "Tiny-Snes").chmod(0o755)
    target = tmp_path / "user" / "games" / "Tiny-Snes"
    assert copy == find_game("Tiny-Snes") == Game("Tiny-Snes", target)
    assert f"copied Tiny-Snes to {target}" in capsys.readouterr().out
    assert sorted(os.listdir(target.parent)) == ["Tiny-Snes"]  # noqa: PTH208
    assert sorted(os.listdir(target)) == ["data.json", "rom.sha"]  # noqa: PTH208
    assert target.stat().st_mode & 0o200, "the copy may be written to, although the original may not"
    assert writable(copy) == copy
    assert capsys.readouterr().out == ""


def test_a_copy_that_the_lookup_would_not_find_is_not_made(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrations, "_may_be_written", lambda folder: folder == tmp_path / "user" / "games")
    here = Game("Tiny-Snes", make_game(Path("integrations").absolute() / "Tiny-Snes") / "Tiny-Snes")
    assert writable(here) == here, "the lookup finds ./integrations before the user's folder"
    other = Game("Tiny-Snes", make_game(tmp_path / "other" / "Tiny-Snes") / "Tiny-Snes")
    assert writable(other) == other, "the lookup does not find this folder at all"
    assert not (tmp_path / "user" / "games" / "Tiny-Snes").exists()


def test_a_copy_that_fails_leaves_nothing(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (wheel / "Tiny-Snes" / "broken").symlink_to("nowhere")
    with pytest.raises(KartRewardsError, match=r"user/games/Tiny-Snes: can't be written: .*No such file"):
        writable(find_game("Tiny-Snes"))
    assert not os.listdir(tmp_path / "user" / "games")  # noqa: PTH208


def test_a_printed_command_names_the_folder_only_where_the_lookup_needs_it(wheel: Path, tmp_path: Path) -> None:
    other = make_game(tmp_path / "other games" / "Tiny-Snes")
    assert find_game("Tiny-Snes").command("doctor Tiny-Snes") == "kart-rewards doctor Tiny-Snes"
    assert find_game("Tiny-Snes", wheel).command("doctor Tiny-Snes") == "kart-rewards doctor Tiny-Snes"
    elsewhere = find_game("Tiny-Snes", other).command("doctor Tiny-Snes")
    assert elsewhere == f"kart-rewards doctor Tiny-Snes --integrations-path '{other}'"
    assert command("import PATH") == command("import PATH", wheel) == "kart-rewards import PATH"
    assert command("import PATH", other) == f"kart-rewards import PATH --integrations-path '{other}'"
    shutil.copytree(other, "integrations")  # now the lookup finds another Tiny-Snes than the package's
    hidden = find_game("Tiny-Snes", wheel).command("doctor Tiny-Snes")
    assert hidden == f"kart-rewards doctor Tiny-Snes --integrations-path {wheel}"


# Observed: the videos of Zone.Act1 and Zone.Act2, named as stable-retro names those of Sonic, were one file.
@pytest.mark.parametrize(
    ("states", "labels"),
    [
        (["Level1", "Level2"], ["Level1", "Level2"]),
        (["Zone.Act1", "Zone.Act2"], ["Zone.Act1", "Zone.Act2"]),
        (["a/start.state", "b/start.state", "/b/start.state"], ["start", "b-start", "start-2"]),
        (["start", "games/start.state", "start.state"], ["start", "games-start", f"{Path.cwd().name}-start"]),
        (["Level1", "level1"], ["Level1", f"{Path.cwd().name}-level1"]),
        (['a:b*"c', "a/..hidden.state"], ["a_b__c", "_.hidden"]),
        (["x" * 60 + "1", "y" * 60 + "1"], ["x" * 49 + "1", "y" * 49 + "1"]),
        (["x" * 60, "x" * 61], ["x" * 50, "x" * 48 + "-2"]),
        (["Level1", "Level1"], ["Level1"]),
    ],
)
def test_labels_of_states_are_different_names_of_files(states: list[str], labels: list[str], tmp_path: Path) -> None:
    assert state_labels(states) == dict(zip(dict.fromkeys(states), labels, strict=True))
    for label in labels:
        (tmp_path / f".{label}-agent.partial.mp4").touch()


STOCK = Path(stable_retro.__file__).parent / "data" / "stable"


# openai/retro#60, openai/retro#181: "Game not found", with no word about where the game is and what it needs.
def test_games_of_stable_retro_are_found_behind_all_others(wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    game = find_game("Airstriker-Genesis-v0")
    assert (game.folder, game.is_stock) == (STOCK / "Airstriker-Genesis-v0", True)
    assert game.rom().is_file()
    assert "SonicTheHedgehogCustomKevin-Genesis" in list_games()  # contrib
    assert capsys.readouterr().out == ""
    make_game(wheel / "Airstriker-Genesis-v0")
    for _ in range(2):
        assert find_game("Airstriker-Genesis-v0").folder == wheel / "Airstriker-Genesis-v0"
    said = f"Airstriker-Genesis-v0 is the game in {wheel}/Airstriker-Genesis-v0; there is another in {STOCK}/"
    assert capsys.readouterr().out == f"{said}Airstriker-Genesis-v0\n"


def test_a_name_without_the_version_is_explained(wheel: Path) -> None:
    unknown = r"^unknown game 'SuperMarioWorld-Snes'\. Did you mean 'SuperMarioWorld-Snes-v0'\?"
    with pytest.raises(KartRewardsError, match=unknown):
        find_game("SuperMarioWorld-Snes")


def test_a_game_outside_the_explicit_folder_is_explained(games: Path) -> None:
    elsewhere = r"^unknown game 'Airstriker-Genesis-v0'\. It is in .*/stable: leave out the folder of games"
    with pytest.raises(KartRewardsError, match=elsewhere):
        find_game("Airstriker-Genesis-v0", games)
    copy = shutil.copytree(STOCK / "Airstriker-Genesis-v0", games / "Airstriker-Genesis-v0")
    game = find_game("Airstriker-Genesis-v0", games)
    assert (game.folder, game.is_stock) == (copy, False)


def test_games_of_stable_retro_are_copied_before_they_are_changed(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = writable(find_game("Airstriker-Genesis-v0"))
    assert copy.folder == tmp_path / "user" / "games" / "Airstriker-Genesis-v0"
    assert copy.rom().is_file()
    assert capsys.readouterr().out.startswith("copied Airstriker-Genesis-v0 to ")
    assert find_game("Airstriker-Genesis-v0") == copy


@pytest.mark.parametrize("name", ["NoSuchGame-Snes", "../stable/Airstriker-Genesis-v0", ""])
def test_other_unknown_games_are_not_looked_for_in_stable_retro(games: Path, name: str) -> None:
    with pytest.raises(KartRewardsError) as error:
        find_game(name, games)
    assert "stable-retro" not in str(error.value)


def test_a_missing_default_state_comes_with_a_remedy(games: Path) -> None:
    game = find_game("Tiny-Snes", games)
    missing = rf"{game.folder}/metadata\.json: can't be read: no such file\. It has the default start state: "
    with pytest.raises(
        KartRewardsError, match=missing + "make one: kart-rewards state Tiny-Snes start --play .*--default"
    ):
        game.default_state()
    (game.folder / "Start.state").touch()
    with pytest.raises(KartRewardsError, match=missing + 'write {"default_state": "Start"} to it, or name a state'):
        game.default_state()
    (game.folder / "metadata.json").write_text("{}")
    with pytest.raises(
        KartRewardsError, match=r'metadata\.json: has no "default_state": write {"default_state": "Start"}'
    ):
        game.default_state()

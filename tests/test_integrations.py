from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import tiny_rom

from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import INTEGRATIONS, MissingRomError, find_game, import_roms, list_games

ROM = tiny_rom()


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """A folder with one game, 'Tiny-Snes', whose ROM is not there yet."""
    folder = tmp_path / "games" / "Tiny-Snes"
    folder.mkdir(parents=True)
    (folder / "data.json").write_text("{}")
    (folder / "rom.sha").write_text(hashlib.sha1(ROM).hexdigest() + "\n")  # noqa: S324 - what rom.sha holds
    return folder.parent


def test_the_projects_own_games() -> None:
    assert list_games() == ["HomebrewKart-Snes", "MarioKart-Snes"]
    homebrew, retail = (INTEGRATIONS / game for game in list_games())
    for shared in ("data.json", "scenario.json"):
        assert (homebrew / shared).read_text() == (retail / shared).read_text(), "one map and one scenario serve both"


def test_unknown_games_are_told(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"unknown game 'MarioKart': did you mean 'MarioKart-Snes'\?"):
        find_game("MarioKart")
    with pytest.raises(KartRewardsError, match="no such folder of integrations"):
        find_game("MarioKart-Snes", tmp_path / "nowhere")


def test_a_missing_rom_is_told(games: Path) -> None:
    with pytest.raises(MissingRomError, match="python -m kart_rewards import PATH"):
        find_game("Tiny-Snes", games).rom()


def test_a_wrong_rom_is_told(games: Path) -> None:
    (games / "Tiny-Snes" / "rom.sfc").write_bytes(ROM[:-1] + b"!")
    with pytest.raises(KartRewardsError, match=r"rom\.sfc: is not the ROM that Tiny-Snes needs: its SHA-1 is"):
        find_game("Tiny-Snes", games).rom()


def test_a_missing_checksum_is_told(games: Path) -> None:
    (games / "Tiny-Snes" / "rom.sfc").write_bytes(ROM)
    (games / "Tiny-Snes" / "rom.sha").unlink()
    with pytest.raises(KartRewardsError, match=r"rom\.sha: can't be read"):
        find_game("Tiny-Snes", games).rom()


def test_missing_states_and_files_are_told(games: Path) -> None:
    game = find_game("Tiny-Snes", games)
    (game.folder / "Start.state").write_bytes(b"not gzip")
    with pytest.raises(KartRewardsError, match=r"Level9\.state: no such start state of Tiny-Snes; it has Start"):
        game.load_state("Level9")
    with pytest.raises(KartRewardsError, match=r"Start\.state: is not a save state"):
        game.load_state("Start")
    with pytest.raises(KartRewardsError, match=r"sprint\.json: no such file; .* holds data\.json"):
        game.json_path("sprint")
    with pytest.raises(KartRewardsError, match=r"metadata\.json: can't be read"):
        game.default_state()


def test_importing_a_plain_dump(games: Path, tmp_path: Path) -> None:
    (tmp_path / "dump.smc").write_bytes(ROM)
    [(_, what, in_place)] = import_roms([tmp_path / "dump.smc"], games)
    assert in_place
    assert what.startswith("imported as Tiny-Snes's ROM")
    assert find_game("Tiny-Snes", games).rom().read_bytes() == ROM
    [(_, what, in_place)] = import_roms([tmp_path / "dump.smc"], games)
    assert in_place
    assert "which is there already" in what


def test_importing_removes_a_copier_header(games: Path, tmp_path: Path) -> None:
    (tmp_path / "dump.smc").write_bytes(bytes(512) + ROM)
    [(_, what, _)] = import_roms([tmp_path / "dump.smc"], games)
    assert "512-byte copier header removed" in what
    assert find_game("Tiny-Snes", games).rom().read_bytes() == ROM


def test_importing_looks_into_folders_and_zips_and_explains_each_file(games: Path, tmp_path: Path) -> None:
    dumps = tmp_path / "dumps"
    (dumps / "deep").mkdir(parents=True)
    (dumps / "notes.txt").write_text("hello")
    (dumps / "broken.zip").write_bytes(b"PK\x03\x04 not a zip")
    with zipfile.ZipFile(dumps / "deep" / "pack.zip", "w") as archive:
        archive.writestr("../../escape.sfc", ROM)  # a name that would leave the folder: only the content is used
    results = {name.removeprefix(str(dumps)): what for name, what, _ in import_roms([dumps], games)}
    assert results["/notes.txt"].startswith("skipped: not the ROM of a known game (SHA-1")
    assert results["/broken.zip"].startswith("skipped: damaged, locked, or larger")
    assert results["/deep/pack.zip!../../escape.sfc"].startswith("imported as Tiny-Snes's ROM")
    assert sorted(path.name for path in (games / "Tiny-Snes").iterdir()) == ["data.json", "rom.sfc", "rom.sha"]
    assert not list(tmp_path.glob("escape*"))


def test_importing_replaces_another_file_and_says_so(games: Path, tmp_path: Path) -> None:
    (games / "Tiny-Snes" / "rom.sfc").write_bytes(b"another")
    (tmp_path / "dump.sfc").write_bytes(ROM)
    [(_, what, _)] = import_roms([tmp_path / "dump.sfc"], games)
    assert "in place of another file" in what
    assert find_game("Tiny-Snes", games).rom().read_bytes() == ROM


def test_a_checksum_in_capitals_is_a_checksum(games: Path) -> None:
    sha = games / "Tiny-Snes" / "rom.sha"
    sha.write_text(sha.read_text().upper())
    (games / "Tiny-Snes" / "rom.sfc").write_bytes(ROM)
    assert find_game("Tiny-Snes", games).rom()


def test_importing_where_there_are_no_games_is_told(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match="holds no games"):
        list(import_roms([tmp_path], tmp_path))


def test_a_path_that_is_not_there_is_told(games: Path, tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match="nothing-here: no such file or folder"):
        list(import_roms([tmp_path / "nothing-here"], games))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kart_rewards", *arguments], capture_output=True, text=True, check=False
    )


def test_the_import_command(games: Path, tmp_path: Path) -> None:
    (tmp_path / "dump.sfc").write_bytes(ROM)
    done = run("import", str(tmp_path / "dump.sfc"), "--integrations-path", str(games))
    assert done.returncode == 0, done.stderr
    assert "imported as Tiny-Snes's ROM" in done.stdout
    done = run("import", str(games / "Tiny-Snes" / "rom.sha"), "--integrations-path", str(games))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "none of these files is the ROM of a game" in done.stderr


def test_the_ram_command_needs_no_emulator() -> None:
    done = run("ram", str(INTEGRATIONS / "HomebrewKart-Snes" / "Level1.state"))
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:4] for line in done.stdout.splitlines()}
    assert run("ram", "nowhere.state").stderr == "error: nowhere.state: no such file\n"
    assert rows["laps"] == ["0x7E10C1", "|u1", "127"]
    assert rows["speed"] == ["0x7E10EA", "<s2", "0"]
    assert rows["backward"] == ["0x00010B", "|u1", "0"]

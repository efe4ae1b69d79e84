from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import stable_retro
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
    (folder / "rom.sha").write_text(sha1(ROM) + "\n")
    return folder.parent


def sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def what_became(paths: list[Path], games: Path) -> dict[str, str]:
    """File name -> what importing made of it."""
    return {Path(name).name: what for name, what, _ in import_roms(paths, games)}


def test_the_projects_own_games() -> None:
    own = ["HomebrewKart-Snes", "MarioKart-Snes"]
    assert set(own) <= set(list_games())  # beside what `new` made
    homebrew, retail = (INTEGRATIONS / game for game in own)
    for shared in ("data.json", "scenario.json"):
        assert (homebrew / shared).read_text() == (retail / shared).read_text(), "one map and one scenario serve both"


def test_unknown_games_are_told(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"unknown game 'MarioKart': did you mean 'MarioKart-Snes'\?"):
        find_game("MarioKart")
    with pytest.raises(KartRewardsError, match="no such folder of integrations"):
        find_game("MarioKart-Snes", tmp_path / "nowhere")
    (tmp_path / "Empty-Snes").mkdir()
    with pytest.raises(KartRewardsError, match=r"Empty-Snes: is no game's folder: it has no data\.json"):
        find_game("Empty-Snes", tmp_path)


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
    [(_, what, game)] = import_roms([tmp_path / "dump.smc"], games)
    assert game == "Tiny-Snes"
    assert what.startswith("imported as Tiny-Snes's ROM")
    assert find_game("Tiny-Snes", games).rom().read_bytes() == ROM
    [(_, what, game)] = import_roms([tmp_path / "dump.smc"], games)
    assert game == "Tiny-Snes"
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
    assert results["/broken.zip"] == "skipped: can't be read: File is not a zip file"
    assert results["/deep/pack.zip!../../escape.sfc"].startswith("imported as Tiny-Snes's ROM")
    assert sorted(path.name for path in (games / "Tiny-Snes").iterdir()) == ["data.json", "rom.sfc", "rom.sha"]
    assert not list(tmp_path.glob("escape*"))


def test_importing_replaces_another_file_and_says_so(games: Path, tmp_path: Path) -> None:
    (games / "Tiny-Snes" / "rom.sfc").write_bytes(b"another")
    (tmp_path / "dump.sfc").write_bytes(ROM)
    [(_, what, _)] = import_roms([tmp_path / "dump.sfc"], games)
    assert f"in place of another file (SHA-1 {sha1(b'another')})" in what
    assert find_game("Tiny-Snes", games).rom().read_bytes() == ROM


def test_a_right_rom_is_not_replaced_by_another_right_one(games: Path, tmp_path: Path) -> None:
    revision = ROM[:-1] + b"!"
    (games / "Tiny-Snes" / "rom.sha").write_text(f"{sha1(ROM)}\n{sha1(revision)}\n")
    (tmp_path / "first.sfc").write_bytes(revision)
    (tmp_path / "second.sfc").write_bytes(ROM)
    results = what_became([tmp_path / "first.sfc", tmp_path / "second.sfc"], games)
    assert results["first.sfc"].startswith("imported as Tiny-Snes's ROM")
    assert results["second.sfc"].startswith("is Tiny-Snes's ROM; another that its rom.sha allows stays in place")
    assert find_game("Tiny-Snes", games).rom().read_bytes() == revision


def test_a_rom_of_two_games_goes_to_both(games: Path, tmp_path: Path) -> None:
    shutil.copytree(games / "Tiny-Snes", games / "Twin-Snes")
    (tmp_path / "dump.sfc").write_bytes(ROM)
    results = list(import_roms([tmp_path / "dump.sfc"], games))
    assert [game for _, _, game in results] == ["Tiny-Snes", "Twin-Snes"]
    assert find_game("Twin-Snes", games).rom().read_bytes() == find_game("Tiny-Snes", games).rom().read_bytes() == ROM


def test_every_obstacle_in_a_folder_is_named(games: Path, tmp_path: Path) -> None:
    dumps = tmp_path / "dumps"
    (dumps / "deep").mkdir(parents=True)
    (dumps / "loop").symlink_to(".")
    (dumps / "itself").symlink_to("itself")
    (dumps / "broken").symlink_to("nowhere")
    os.mkfifo(dumps / "pipe")
    (dumps / "revision.sfc").write_bytes(titled(b"ANOTHER REVISION"))
    (dumps / "\udce9\x1b[2J.txt").write_bytes(b"not UTF-8, and a terminal's command")
    (dumps / "deep" / "linked.sfc").symlink_to(dumps / "deep" / "dump.sfc")
    (dumps / "deep" / "dump.sfc").write_bytes(ROM)
    results = what_became([dumps], games)
    assert results.keys() == {
        *("loop", "itself", "broken", "pipe", "revision.sfc", r"\udce9\x1b[2J.txt", "linked.sfc", "dump.sfc")
    }
    assert results["loop"] == "skipped: a link to a folder; name it to have it looked into"
    assert results["itself"] == results["broken"] == "skipped: a link that leads nowhere"
    assert results["pipe"] == "skipped: not a plain file"
    assert results["revision.sfc"].startswith("skipped: a SNES ROM, titled 'ANOTHER REVISION', but not one that")
    assert results["dump.sfc"].startswith("imported")
    assert "there already" in results["linked.sfc"]
    assert "there already" in what_became([dumps / "loop"], games)["dump.sfc"]  # named, a link is looked into


def titled(title: bytes) -> bytes:
    """A SNES ROM with a title, a checksum and its complement in its header."""
    rom = bytearray(ROM)
    rom[0x7FC0:0x7FD5] = title.ljust(21)
    rom[0x7FDC:0x7FE0] = b"\x34\x12\xcb\xed"
    return bytes(rom)


def test_what_is_inside_a_zip_is_told_one_by_one(games: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "inner.zip", "w") as archive:
        archive.writestr("dump.sfc", ROM)
    with zipfile.ZipFile(tmp_path / "outer.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("damaged.sfc", bytes(5000))
        archive.write(tmp_path / "inner.zip", "inner.zip")
        archive.writestr("locked.sfc", ROM)
        archive.writestr("headered.smc", bytes(512) + ROM)
    content = bytearray((tmp_path / "outer.zip").read_bytes())
    content[content.index(b"damaged.sfc") + len("damaged.sfc")] ^= 0xFF  # the first byte of what is compressed
    directory = content.rindex(b"locked.sfc") - 46  # of the entry, in the list of entries at the end
    content[directory + 8] |= 1  # encrypted
    (tmp_path / "outer.zip").write_bytes(content)
    results = {name.partition("!")[2]: what for name, what, _ in import_roms([tmp_path / "outer.zip"], games)}
    assert results["damaged.sfc"].startswith("skipped: can't be read: ")
    assert results["inner.zip"].startswith("skipped: an archive, which is not looked into: unpack it first")
    assert results["locked.sfc"] == "skipped: can't be read: it is encrypted"
    assert results["headered.smc"].startswith("imported")


def test_a_zip_that_would_never_end_is_passed_over(
    games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kart_rewards.integrations.LARGEST_ROM_BYTES", 2**22)  # 1 GiB takes seconds
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.sfc", bytes(2**24))
    (tmp_path / "film.mkv").write_bytes(bytes(2**24))
    results = what_became([tmp_path / "bomb.zip", tmp_path / "film.mkv"], games)
    assert results["bomb.zip!bomb.sfc"] == results["film.mkv"]
    assert results["film.mkv"] == "skipped: can't be read: it is larger than any ROM (4 MiB)"
    with zipfile.ZipFile(tmp_path / "collection.zip", "w") as archive:
        archive.writestr("film.mkv", bytes(2**24))
        archive.writestr("dump.sfc", ROM)
    assert what_became([tmp_path / "collection.zip"], games)["collection.zip!dump.sfc"].startswith("imported")


def test_other_consoles_roms(games: Path, tmp_path: Path) -> None:
    shipped = Path(stable_retro.data.get_file_path("Airstriker-Genesis-v0", "rom.md"))
    nes = b"NES\x1a" + bytes(12) + b"a NES cartridge's content"  # of which stable-retro leaves the header out
    arcade = tmp_path / "arcade.zip"
    with zipfile.ZipFile(arcade, "w") as archive:
        archive.writestr("chip.bin", "an arcade board's ROM is a zip")
    contents = {"Air-Genesis": shipped.read_bytes(), "Tiny-Nes-v1": nes[16:], "Tiny-FBNeo": arcade.read_bytes()}
    for name, content in contents.items():
        shutil.copytree(games / "Tiny-Snes", games / name)
        (games / name / "rom.sha").write_text(sha1(content))
    (games / "Tiny-FBNeo" / "metadata.json").write_text(json.dumps({"original_rom_name": "board.zip"}))
    (tmp_path / "air.bin").write_bytes(shipped.read_bytes())
    (tmp_path / "cartridge.nes").write_bytes(nes)
    results = list(import_roms([tmp_path / "air.bin", tmp_path / "cartridge.nes", arcade], games))
    assert [game for _, _, game in results] == ["Air-Genesis", "Tiny-Nes-v1", "Tiny-FBNeo"]
    assert find_game("Air-Genesis", games).rom().name == "rom.md"
    assert find_game("Tiny-Nes-v1", games).rom().read_bytes() == nes
    assert find_game("Tiny-FBNeo", games).rom().name == "board.zip"


def test_a_checksum_in_capitals_is_a_checksum(games: Path) -> None:
    sha = games / "Tiny-Snes" / "rom.sha"
    sha.write_text(sha.read_text().upper())
    (games / "Tiny-Snes" / "rom.sfc").write_bytes(ROM)
    assert find_game("Tiny-Snes", games).rom()


def test_importing_where_there_are_no_games_is_told(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match="holds no games"):
        list(import_roms([tmp_path], tmp_path))


def test_a_path_that_is_not_there_is_told(games: Path, tmp_path: Path) -> None:
    (tmp_path / "dump.sfc").write_bytes(ROM)
    with pytest.raises(KartRewardsError, match="nothing-here: no such file or folder"):
        list(import_roms([tmp_path / "dump.sfc", tmp_path / "nothing-here"], games))
    assert not (games / "Tiny-Snes" / "rom.sfc").exists()  # told before anything was done


def run(*arguments: object, ordinary_user: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs a command; as root's, without root's right to open whatever is locked, if ``ordinary_user``."""
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if ordinary_user and not os.geteuid() else []
    command = [*prefix, sys.executable, "-m", "kart_rewards", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


needs_setpriv = pytest.mark.skipif(
    not os.geteuid() and not shutil.which("setpriv"), reason="root opens everything, and there is no setpriv"
)


@needs_setpriv
def test_what_may_not_be_read_or_written_is_told(games: Path, tmp_path: Path) -> None:
    dumps = tmp_path / "dumps"
    (dumps / "locked").mkdir(parents=True)
    (dumps / "secret.sfc").write_bytes(ROM)
    (dumps / "dump.sfc").write_bytes(ROM)
    closed = [dumps / "locked", dumps / "secret.sfc", games / "Tiny-Snes"]
    try:
        for path, mode in zip(closed, (0, 0, 0o500), strict=True):
            path.chmod(mode)
        done = run("import", dumps / "locked", dumps / "secret.sfc", "--integrations-path", games, ordinary_user=True)
        assert done.returncode == 2
        assert f"{dumps}/locked: skipped: the folder can't be read: Permission denied" in done.stdout
        assert f"{dumps}/secret.sfc: skipped: can't be read: Permission denied" in done.stdout
        assert done.stderr == f"error: none of these files (2) is the ROM of a game in {games}: Tiny-Snes\n"
        done = run("import", dumps, "--integrations-path", games, ordinary_user=True)
        assert done.returncode == 2
        assert done.stderr == f"error: {games}/Tiny-Snes/rom.sfc: can't be written: Permission denied\n"
        (games / "Tiny-Snes").chmod(0o700)
        games.chmod(0)
        done = run("import", dumps, "--integrations-path", games, ordinary_user=True)
        assert done.stderr == f"error: {games}: holds no games that may be read, so no ROM can be recognised\n"
    finally:
        for path in (games, *closed):
            path.chmod(0o700)
    assert sorted(path.name for path in (games / "Tiny-Snes").iterdir()) == ["data.json", "rom.sha"]


def test_the_import_command(games: Path, tmp_path: Path) -> None:
    (tmp_path / "dump.sfc").write_bytes(ROM)
    done = run("import", str(tmp_path / "dump.sfc"), "--integrations-path", str(games))
    assert done.returncode == 0, done.stderr
    assert "imported as Tiny-Snes's ROM" in done.stdout
    assert done.stdout.endswith("1 looked at; ROMs in place: Tiny-Snes\n")
    done = run("import", str(games / "Tiny-Snes" / "rom.sha"), "--integrations-path", str(games))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "none of these files (1) is the ROM of a game" in done.stderr


def test_whoever_reads_the_output_may_stop_reading(games: Path, tmp_path: Path) -> None:
    (tmp_path / "dumps").mkdir()
    for i in range(800):
        (tmp_path / "dumps" / f"{i}.txt").write_text(str(i))
    command = [sys.executable, "-m", "kart_rewards", "import", str(tmp_path), "--integrations-path", str(games)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout
        assert reader.stderr
        reader.stdout.readline()
        reader.stdout.close()
        assert reader.stderr.read() == b""
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 2
        assert done.stderr == b"error: [Errno 28] No space left on device\n"


def test_the_ram_command_needs_no_emulator() -> None:
    done = run("ram", str(INTEGRATIONS / "HomebrewKart-Snes" / "Level1.state"))
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:4] for line in done.stdout.splitlines()}
    assert run("ram", "nowhere.state").stderr == "error: nowhere.state: no such file\n"
    assert rows["laps"] == ["0x7E10C1", "|u1", "127"]
    assert rows["speed"] == ["0x7E10EA", "<s2", "0"]
    assert rows["backward"] == ["0x00010B", "|u1", "0"]

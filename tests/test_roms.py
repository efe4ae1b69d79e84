from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import stable_retro
from command_line import make_game, needs_setpriv, run, sha1
from conftest import tiny_rom
from console_roms import genesis

from kart_rewards import integrations
from kart_rewards.errors import KartRewardsError
from kart_rewards.games.roms import command, import_roms
from kart_rewards.integrations import FOLDER_VARIABLE, find_game

ROM = tiny_rom()


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """A folder with one game, 'Tiny-Snes', whose ROM is missing."""
    return make_game(tmp_path / "games" / "Tiny-Snes")


def messages(paths: list[Path], games: Path) -> dict[str, str]:
    """File name -> the message of its import."""
    return {Path(result.file).name: result.message for result in import_roms(paths, games)}


def test_importing_a_plain_dump(games: Path, tmp_path: Path) -> None:
    (tmp_path / "dump.smc").write_bytes(ROM)
    [(_, what, game)] = import_roms([tmp_path / "dump.smc"], games)
    assert game == "Tiny-Snes"
    assert what.startswith("imported as Tiny-Snes's ROM")
    assert find_game("Tiny-Snes", games).rom().read_bytes() == ROM
    [(_, what, game)] = import_roms([tmp_path / "dump.smc"], games)
    assert game == "Tiny-Snes"
    assert "already in place" in what


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
    assert f"replaces another file (SHA-1 {sha1(b'another')})" in what
    assert find_game("Tiny-Snes", games).rom().read_bytes() == ROM


def test_a_right_rom_is_not_replaced_by_another_right_one(games: Path, tmp_path: Path) -> None:
    revision = ROM[:-1] + b"!"
    (games / "Tiny-Snes" / "rom.sha").write_text(f"{sha1(ROM)}\n{sha1(revision)}\n")
    (tmp_path / "first.sfc").write_bytes(revision)
    (tmp_path / "second.sfc").write_bytes(ROM)
    results = messages([tmp_path / "first.sfc", tmp_path / "second.sfc"], games)
    assert results["first.sfc"].startswith("imported as Tiny-Snes's ROM")
    assert results["second.sfc"].startswith("is Tiny-Snes's ROM; another ROM that its rom.sha allows stays in place")
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
    results = messages([dumps], games)
    assert results.keys() == {
        *("loop", "itself", "broken", "pipe", "revision.sfc", r"\udce9\x1b[2J.txt", "linked.sfc", "dump.sfc")
    }
    assert results["loop"] == "skipped: a link to a folder; pass its path to search it"
    assert results["itself"] == results["broken"] == "skipped: a broken link"
    assert results["pipe"] == "skipped: not a plain file"
    assert results["revision.sfc"].startswith(
        "skipped: a SNES ROM, titled 'ANOTHER REVISION', but not the ROM of a known game"
    )
    assert results["dump.sfc"].startswith("imported")
    assert "already in place" in results["linked.sfc"]
    followed = messages([dumps / "loop"], games)
    assert "already in place" in followed["dump.sfc"], "a link is searched if its path is passed"


def titled(title: bytes) -> bytes:
    """A SNES ROM with a title, a checksum and its complement in its header."""
    rom = bytearray(ROM)
    rom[0x7FC0:0x7FD5] = title.ljust(21)
    rom[0x7FDC:0x7FE0] = b"\x34\x12\xcb\xed"
    return bytes(rom)


def test_each_file_inside_a_zip_is_reported(games: Path, tmp_path: Path) -> None:
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
    assert results["inner.zip"].startswith("skipped: an archive of a kind that is not searched: unpack it first")
    assert results["locked.sfc"] == "skipped: can't be read: it is encrypted"
    assert results["headered.smc"].startswith("imported")


def test_a_zip_that_would_never_end_is_skipped(games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kart_rewards.integrations.LARGEST_ROM_BYTES", 2**22)  # 1 GiB takes seconds
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.sfc", bytes(2**24))
    (tmp_path / "film.mkv").write_bytes(bytes(2**24))
    results = messages([tmp_path / "bomb.zip", tmp_path / "film.mkv"], games)
    assert results["bomb.zip!bomb.sfc"] == results["film.mkv"]
    assert results["film.mkv"] == "skipped: can't be read: it is larger than any ROM (4 MiB)"
    with zipfile.ZipFile(tmp_path / "collection.zip", "w") as archive:
        archive.writestr("film.mkv", bytes(2**24))
        archive.writestr("dump.sfc", ROM)
    assert messages([tmp_path / "collection.zip"], games)["collection.zip!dump.sfc"].startswith("imported")


def test_other_consoles_roms(games: Path, tmp_path: Path) -> None:
    shipped = Path(stable_retro.data.get_file_path("Airstriker-Genesis-v0", "rom.md"))
    nes = b"NES\x1a" + bytes(12) + b"a NES cartridge's content"  # stable-retro's SHA-1 does not include the header
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


def test_importing_without_games_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"no readable game with a rom\.sha"):
        list(import_roms([tmp_path], tmp_path))


def test_a_missing_path_is_reported(games: Path, tmp_path: Path) -> None:
    (tmp_path / "dump.sfc").write_bytes(ROM)
    with pytest.raises(KartRewardsError, match="nothing-here: no such file or folder"):
        list(import_roms([tmp_path / "dump.sfc", tmp_path / "nothing-here"], games))
    assert not (games / "Tiny-Snes" / "rom.sfc").exists()  # reported before any file was copied


@needs_setpriv
def test_files_that_may_not_be_read_or_written_are_reported(games: Path, tmp_path: Path) -> None:
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
        assert done.stderr == "error: none of these files (2) is the ROM of a known game. Known games: Tiny-Snes\n"
        done = run("import", dumps, "--integrations-path", games, ordinary_user=True)
        assert done.returncode == 2
        assert done.stderr == f"error: {games}/Tiny-Snes/rom.sfc: can't be written: Permission denied\n"
        (games / "Tiny-Snes").chmod(0o700)
        games.chmod(0)
        done = run("import", dumps, "--integrations-path", games, ordinary_user=True)
        assert done.stderr == f"error: {games}: no readable game with a rom.sha, so no ROM can be recognised\n"
    finally:
        for path in (games, *closed):
            path.chmod(0o700)
    assert sorted(path.name for path in (games / "Tiny-Snes").iterdir()) == ["data.json", "rom.sha"]


def test_the_import_command(games: Path, tmp_path: Path) -> None:
    (tmp_path / "dump.sfc").write_bytes(ROM)
    done = run("import", str(tmp_path / "dump.sfc"), "--integrations-path", str(games))
    assert done.returncode == 0, done.stderr
    assert "imported as Tiny-Snes's ROM" in done.stdout
    assert done.stdout.endswith("1 file examined; ROMs in place: Tiny-Snes\n")
    done = run("import", str(games / "Tiny-Snes" / "rom.sha"), "--integrations-path", str(games))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "none of these files (1) is the ROM of a known game" in done.stderr


def test_a_rom_of_a_game_in_the_package_goes_to_the_users_folder(
    tmp_path: Path, games: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrations, "_INSIDE_PACKAGE", games)
    monkeypatch.setattr(integrations, "INTEGRATIONS", games)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "user"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "dump.sfc").write_bytes(ROM)
    (tmp_path / "same.smc").write_bytes(bytes(512) + ROM)
    first, second = import_roms([tmp_path / "dump.sfc", tmp_path / "same.smc"])
    target = tmp_path / "user" / "Tiny-Snes" / "rom.sfc"
    assert first.message == f"imported as Tiny-Snes's ROM: {target}"
    assert second.message == f"is Tiny-Snes's ROM, and is already in place: {target}"
    assert find_game("Tiny-Snes").rom() == target
    assert not (games / "Tiny-Snes" / "rom.sfc").exists()


def interleaved(rom: bytes) -> bytes:
    """A dump as the Super Magic Drive writes it, without its header."""
    blocks = [rom[i : i + 2**14] for i in range(0, len(rom), 2**14)]
    return b"".join(block[1::2] + block[::2] for block in blocks)


# bzhxx/gwenesis#3, jsgroth/jgenesis#149: interleaved .smd dumps of the Genesis were not recognised.
@pytest.mark.parametrize("header", [512, 0])
def test_an_interleaved_dump_is_put_in_order(games: Path, tmp_path: Path, header: int) -> None:
    rom = genesis().rom
    shutil.copytree(games / "Tiny-Snes", games / "Tiny-Genesis")
    (games / "Tiny-Genesis" / "rom.sha").write_text(sha1(rom))
    dump = tmp_path / "dump.smd"
    dump.write_bytes(bytes(header) + interleaved(rom))
    [(_, what, game)] = import_roms([dump], games)
    assert game == "Tiny-Genesis"
    removed = "512-byte copier header removed, " if header else ""
    assert what.endswith(f"rom.md ({removed}interleaved bytes put in order)")
    assert find_game("Tiny-Genesis", games).rom().read_bytes() == rom
    [(_, what, game)] = import_roms([dump], games)
    assert (game, "already in place" in what) == ("Tiny-Genesis", True)

    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        archive.writestr("dump.smd", dump.read_bytes())
    [(_, what, game)] = import_roms([tmp_path / "pack.zip"], games)
    assert (game, "already in place" in what) == ("Tiny-Genesis", True)


# openai/retro#218, openai/retro#284: a folder that lacked a file was ignored, and nothing said which.
def test_a_folder_without_checksum_or_variables_is_named(games: Path, tmp_path: Path) -> None:
    (games / "Other-Genesis").mkdir()
    (games / "Other-Genesis" / "data.json").write_text("{}")
    (games / "Empty-Nes").mkdir()
    (games / "notes").mkdir()
    (tmp_path / "dump.md").write_bytes(genesis().rom)
    done = run("import", tmp_path / "dump.md", "--integrations-path", games)
    assert done.returncode == 2
    assert done.stderr == (
        "error: none of these files (1) is the ROM of a known game. Known games: Other-Genesis, Tiny-Snes. "
        f"{games}/Empty-Nes has no data.json and no metadata.json and no rom.sha and no scenario.json. To add the "
        f"files that the folder lacks: kart-rewards new Empty-Nes ROM --complete --integrations-path {games}. "
        f"{games}/Other-Genesis has no metadata.json and no rom.sha and no scenario.json. To add the files that the "
        f"folder lacks: kart-rewards new Other-Genesis ROM --complete --integrations-path {games}\n"
    )
    (games / "Tiny-Snes" / "rom.sha").unlink()
    done = run("import", tmp_path / "dump.md", "--integrations-path", games)
    assert done.returncode == 2
    assert "no readable game with a rom.sha, so no ROM can be recognised. " in done.stderr
    assert "kart-rewards new Tiny-Snes ROM --complete" in done.stderr


@pytest.mark.parametrize("locked", [False, True])
def test_a_game_of_stable_retro_gets_its_rom_in_the_package(
    locked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There, ``stable_retro.make`` finds it. Without permission to write, it is in a copy of the game's folder."""
    stock = tmp_path / "stable"
    make_game(stock / "Stock-Snes-v0")
    monkeypatch.setattr(integrations, "_stock_folders", lambda: [stock])
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dump.sfc").write_bytes(tiny_rom())
    if locked:
        access = os.access  # root may write everywhere
        allowed = lambda path, mode: access(path, mode) and not Path(path).is_relative_to(stock)  # noqa: E731
        monkeypatch.setattr(os, "access", allowed)
    command((tmp_path / "dump.sfc",))
    folder = tmp_path / "user" if locked else stock
    assert f"imported as Stock-Snes-v0's ROM: {folder}/Stock-Snes-v0/rom.sfc" in capsys.readouterr().out
    assert find_game("Stock-Snes-v0").rom().read_bytes() == tiny_rom()

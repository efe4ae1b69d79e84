from __future__ import annotations

import gc
import gzip
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import stable_retro
from command_line import run
from conftest import tiny_rom
from console_roms import genesis, snes
from stable_retro.data import EMU_INFO, Integrations
from training_runs import COMMAND, run_here

from kart_rewards import KartRewardsError, ObservationConfig, integrations, make_env
from kart_rewards.games import doctor
from kart_rewards.games.doctor import diagnose
from kart_rewards.games.new import complete_folder, scaffold
from kart_rewards.games.roms import import_roms
from kart_rewards.integrations import find_game
from kart_rewards.scenario import load_scoring

ROM = tiny_rom()
FILES = {".gitignore", "data.json", "metadata.json", "rewards.py", "rom.sha", "scenario.json", "test_rewards.py"}


@pytest.fixture
def games(tmp_path: Path) -> Path:
    (tmp_path / "games").mkdir()
    return tmp_path / "games"


@pytest.fixture
def rom(tmp_path: Path) -> Path:
    """The do-nothing ROM, with the header of an old copier."""
    (tmp_path / "dump.smc").write_bytes(bytes(512) + ROM)
    return tmp_path / "dump.smc"


@pytest.fixture
def airstriker() -> Path:
    """The free game that comes with stable-retro."""
    return Path(stable_retro.data.get_file_path("Airstriker-Genesis-v0", "rom.md"))


def pytest_on(folder: Path) -> str:
    """Runs the unit tests of a game. Returns the output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder]
    without_plugins = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # Hypothesis would take most of the time
    return subprocess.run([*map(str, command)], env=without_plugins, capture_output=True, text=True, check=False).stdout


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_command_makes_a_folder_and_says_what_is_next(games: Path, rom: Path) -> None:
    done = run("new", "Tiny-Snes", rom, "--integrations-path", games)
    assert done.returncode == 0, done.stderr
    folder = games / "Tiny-Snes"
    assert names(folder) == FILES | {"rom.sfc"}
    assert find_game("Tiny-Snes", games).rom().read_bytes() == ROM
    sha1 = hashlib.sha1(ROM, usedforsecurity=False).hexdigest()
    assert done.stdout.startswith(f"made {folder}\n")
    assert f"ROM: 32 KiB, without its copier's header of 512 bytes, SHA-1 {sha1}\n" in done.stdout
    commands = ("state Tiny-Snes start --play --default", "search Tiny-Snes", "doctor Tiny-Snes")
    for command in (*commands, "train --env-id Tiny-Snes"):
        assert f"       kart-rewards {command} --integrations-path {games}" in done.stdout
    assert f"       pytest {folder}\n" in done.stdout

    (folder / "rewards.py").write_text("# mine\n")
    done = run("new", "Tiny-Snes", rom, "--integrations-path", games)
    assert done.returncode == 2
    assert done.stderr == f"error: {folder}: exists already, and was not changed; choose another name\n"
    assert (folder / "rewards.py").read_text() == "# mine\n"


def test_every_console_that_stable_retro_emulates(games: Path, tmp_path: Path) -> None:
    (tmp_path / "board.zip").write_bytes(zipped(tmp_path, {"chip1.u7": b"an arcade board", "chip2.u8": b"'s ROMs"}))
    for console, info in EMU_INFO.items():
        if console == "FBNeo":
            rom = tmp_path / "board.zip"
        else:
            rom = tmp_path / f"cartridge.{info['ext'][-1]}"
            rom.write_bytes((b"NES\x1a" + bytes(12) if console == "Nes" else b"") + console.encode() * 100)
        scaffold(f"Game-{console}", rom, games)
        Integrations.add_custom_path(str(games))
        try:
            path = stable_retro.data.get_original_romfile_path(f"Game-{console}", Integrations.CUSTOM_ONLY)
            assert stable_retro.get_romfile_system(path) == console
            assert stable_retro.data.verify_hash(f"Game-{console}", Integrations.CUSTOM_ONLY) == []
        finally:
            Integrations.clear_custom_paths()
        assert find_game(f"Game-{console}", games).rom() == Path(path)
        assert Path(path).read_bytes() == rom.read_bytes()
        assert Path(path).name in (games / f"Game-{console}" / ".gitignore").read_text()
        [(_, what, game)] = import_roms([rom], games)
        assert game == f"Game-{console}"
        assert "already in place" in what
    assert (games / "Game-FBNeo" / "board.zip").is_file()


def interleaved(rom: bytes) -> bytes:
    """A dump as the Super Magic Drive writes it, without its header."""
    blocks = [rom[i : i + 2**14] for i in range(0, len(rom), 2**14)]
    return b"".join(block[1::2] + block[::2] for block in blocks)


def zipped(tmp_path: Path, files: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return (tmp_path / "packed.zip").read_bytes()


def test_the_console_follows_from_the_rom(games: Path, rom: Path, tmp_path: Path) -> None:
    assert f"made {games}/Tiny-Snes\n" in scaffold("Tiny", rom, games)
    zipped(tmp_path, {"read me.txt": b"hello", "folder/game.md": b"a ROM"})
    assert f"made {games}/Packed-Genesis\n" in scaffold("Packed", tmp_path / "packed.zip", games)
    assert find_game("Packed-Genesis", games).rom().read_bytes() == b"a ROM"
    (tmp_path / "dump.bin").write_bytes(b"whose ROM is this?")
    assert f"made {games}/Known-Genesis-v1\n" in scaffold("Known-Genesis-v1", tmp_path / "dump.bin", games)
    assert find_game("Known-Genesis-v1", games).rom().name == "rom.md"


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("my game", "dump.sfc", "'my game' can't be a game's name: use letters, digits and _"),
        ("../Tiny-Snes", "dump.sfc", "can't be a game's name"),
        ("Tiny-SNES", "dump.sfc", "'Tiny-SNES': end the game's name in its console, which is one of -32x, -Atari2600,"),
        ("Tiny", "dump.bin", "'Tiny': end the game's name in its console"),
        ("Tiny-Genesis", "dump.sfc", "ends in Genesis, but the name of dump.sfc is that of a ROM for Snes: correct"),
        ("Tiny-Snes", "empty.sfc", "empty.sfc: is empty, so it is not a ROM"),
        ("Tiny-Snes", "folder", "folder: can't be read: Is a directory"),
        ("Tiny-Snes", "lost.sfc", "lost.sfc: can't be read: No such file or directory"),
        ("Tiny-Snes", "broken.zip", "broken.zip: can't be read: File is not a zip file"),
        ("Tiny", "two.zip", "must contain one console's ROM, but it contains a.sfc, b.md. Unpack it"),
        ("Tiny", "none.zip", "but it contains none. .* If it is an arcade game's ROM, end the game's name in -FBNeo"),
    ],
)
def test_wrong_arguments_are_reported_and_leave_nothing(
    games: Path, tmp_path: Path, name: str, file: str, message: str
) -> None:
    for path, content in (("dump.sfc", ROM), ("dump.bin", ROM), ("empty.sfc", b""), ("broken.zip", b"PK")):
        (tmp_path / path).write_bytes(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "two.zip").write_bytes(zipped(tmp_path, {"a.sfc": ROM, "b.md": ROM}))
    (tmp_path / "none.zip").write_bytes(zipped(tmp_path, {"notes.txt": b"hello"}))
    with pytest.raises(KartRewardsError, match=message):
        scaffold(name, tmp_path / file, games)
    assert names(games) == set()


def test_a_folder_of_games_is_made_if_necessary(rom: Path, tmp_path: Path) -> None:
    scaffold("Tiny-Snes", rom, tmp_path / "my" / "games")
    assert find_game("Tiny-Snes", tmp_path / "my" / "games").rom()
    with pytest.raises(KartRewardsError, match=r"games/Tiny-Snes: can't be made: Not a directory"):
        scaffold("Tiny-Snes", rom, rom / "games")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs the right to mount a small disk")
def test_a_full_disk_is_reported_and_keeps_nothing(rom: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=44k", "tmpfs", disk], check=True)  # noqa: S607
    try:
        with pytest.raises(KartRewardsError, match=r"disk/Tiny-Snes: can't be made: No space left on device"):
            scaffold("Tiny-Snes", rom, disk)
        assert names(disk) == set()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)  # noqa: S607
        with pytest.raises(KartRewardsError, match=r"disk/Tiny-Snes: can't be made: Read-only file system"):
            scaffold("Tiny-Snes", rom, disk)
    finally:
        subprocess.run(["umount", disk], check=True)  # noqa: S607


def test_from_nothing_to_training(
    games: Path, airstriker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scaffold("Mine-Genesis", airstriker, games)
    folder = games / "Mine-Genesis"
    assert " passed" in pytest_on(folder)

    monkeypatch.setattr(doctor, "_SECONDS_TO_PLAY", 0.0)
    monkeypatch.setattr(doctor, "_MAX_SECONDS_TO_PLAY", 0.2)
    assert not diagnose("Mine-Genesis", games)
    output = capsys.readouterr().out
    where = f"--integrations-path {games}\n"
    assert "FAIL  start states: none yet -> " in output
    assert f"-> kart-rewards state Mine-Genesis start --play --default {where}" in output
    assert f"warn  data.json: no variables yet -> kart-rewards search Mine-Genesis {where}" in output
    assert output.count("FAIL  ") == 1

    play_plainly(games)  # from power-on
    emulator = stable_retro.RetroEmulator(str(folder / "rom.md"))
    for _ in range(300):
        emulator.step()
    (folder / "start.state").write_bytes(gzip.compress(emulator.get_state()))
    (folder / "metadata.json").write_text(json.dumps({"default_state": "start"}))
    del emulator
    play_plainly(games)
    assert diagnose("Mine-Genesis", games)
    assert capsys.readouterr().out.count("warn  data.json: no variables yet") == 1

    observation = ObservationConfig(crop=None)
    env = make_env("Mine-Genesis", integrations=games, observation=observation, action_mode="multi-discrete")
    try:
        env.reset(seed=1)
        assert env.step(env.action_space.sample())[4]["reward_terms"] == {"survival": 4.0}
    finally:
        env.close()

    (folder / "data.json").write_text(json.dumps({"info": {"lives": {"address": 16712282, "type": ">u2"}}}))
    assert " passed" in pytest_on(folder)  # also with variables


def play_plainly(games: Path) -> None:
    """Plays the game in plain stable-retro."""
    gc.collect()
    Integrations.add_custom_path(str(games))
    try:
        env = stable_retro.make("Mine-Genesis", inttype=Integrations.CUSTOM_ONLY, render_mode="rgb_array")
        env.reset()
        assert env.step(env.action_space.sample())[0].shape == (224, 320, 3)
        env.close()
    finally:
        Integrations.clear_custom_paths()


def test_the_trainer_trains_it(games: Path, airstriker: Path, tmp_path: Path) -> None:
    output = scaffold("Mine-Genesis", airstriker, games)
    shutil.copy(airstriker.parent / "Level1.state", games / "Mine-Genesis")
    (games / "Mine-Genesis" / "metadata.json").write_text(json.dumps({"default_state": "Level1"}))
    command = output[output.index("kart-rewards train") :].replace("\\\n", " ").split()
    small = ["--total-timesteps", 16, "--num-envs", 1, "--num-steps", 16, "--num-minibatches", 1, "--eval-interval", 0]
    run_here(COMMAND, *command[1:], *small, "--precision", "float32", "--runs-path", tmp_path / "runs")
    assert len(list((tmp_path / "runs").glob("*/agent.pt"))) == 1


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder, which does not exist yet. The current folder is another one, and is empty."""
    monkeypatch.setenv(integrations.FOLDER_VARIABLE, str(tmp_path / "my games"))
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    return tmp_path / "my games"


def test_without_a_folder_it_is_made_where_commands_find_it(mine: Path, rom: Path) -> None:
    done = run("new", "Tiny-Snes", rom)
    assert done.stdout.startswith(f"made {mine / 'Tiny-Snes'}\n")
    assert "       kart-rewards doctor Tiny-Snes\n" in done.stdout
    assert "       kart-rewards train --env-id Tiny-Snes\n" in done.stdout
    assert f"       pytest '{mine / 'Tiny-Snes'}'\n" in done.stdout
    assert find_game("Tiny-Snes").folder == mine / "Tiny-Snes"

    Path("integrations").mkdir()
    other = Path("integrations").absolute() / "Other-Snes"
    assert scaffold("Other-Snes", rom).startswith(f"made {other}\n")
    assert find_game("Other-Snes").folder == other


def test_a_new_game_does_not_hide_a_game_in_another_folder(mine: Path, rom: Path) -> None:
    scaffold("Tiny-Snes", rom)
    Path("integrations").mkdir()
    with pytest.raises(KartRewardsError, match="my games/Tiny-Snes: exists already, and was not changed"):
        scaffold("Tiny-Snes", rom)
    assert names(Path("integrations")) == set()


# --- what is no ROM, and interleaved dumps ----------------------------------------------------------------------------


# Observed: README.md, whose suffix is that of Genesis ROMs, became a game, and its folder stayed.
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"# Read me\n\nThis is text.\n", "a text file"),
        ("Züge und Räder\n".encode(), "a text file"),
        ("Züge und Räder\n".encode("latin-1"), "a text file"),
        (b"%PDF-1.7\x00", "a PDF document"),
        (b"\x89PNG\r\n\x1a\n\x00", "a picture"),
        (b"\xff\xd8\xff\xe0\x00", "a picture"),
        (b"GIF89a\x00", "a picture"),
        (gzip.compress(b"a state", mtime=0), "a gzip file, such as a save state"),
        (b"7z\xbc\xaf\x27\x1c\x00", "a 7z archive"),
        (b"Rar!\x1a\x07\x00", "a RAR archive"),
        (lzma.compress(b"a ROM"), "an xz file"),
        (b"PK\x03\x04\x00", "a zip file"),
        (b"PK\x05\x06" + bytes(18), "a zip file without content"),
        (b"\x7fELF\x02\x00", "a program"),
    ],
)
def test_a_file_of_another_kind_is_refused(games: Path, tmp_path: Path, content: bytes, what: str) -> None:
    for name in ("README.md", "dump.bin"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KartRewardsError, match=f"is not a ROM, but {what}"):
            scaffold("Foo-Genesis", tmp_path / name, games)
    assert names(games) == set()


def test_a_text_file_in_a_zip_file_is_refused(games: Path, tmp_path: Path) -> None:
    zipped(tmp_path, {"README.md": b"# Read me\n"})
    with pytest.raises(KartRewardsError, match=r"packed\.zip: is not a ROM, but a text file"):
        scaffold("Foo-Genesis", tmp_path / "packed.zip", games)


@pytest.mark.parametrize("header", [512, 0])
def test_an_interleaved_dump_is_put_in_order(games: Path, tmp_path: Path, header: int) -> None:
    rom = genesis().rom
    (tmp_path / "dump.smd").write_bytes(bytes(header) + interleaved(rom))
    output = scaffold("Foo", tmp_path / "dump.smd", games)
    assert f"made {games}/Foo-Genesis\n" in output
    assert "interleaved bytes put in order, SHA-1 " in output
    assert find_game("Foo-Genesis", games).rom().read_bytes() == rom
    for name, content in (("plain.md", rom), ("copied.bin", bytes(512) + rom)):
        (tmp_path / name).write_bytes(content)
        scaffold(f"{Path(name).stem}-Genesis", tmp_path / name, games)
        assert find_game(f"{Path(name).stem}-Genesis", games).rom().read_bytes() == rom


# --- completing a folder ----------------------------------------------------------------------------------------------


@pytest.fixture
def incomplete(games: Path, rom: Path) -> Path:
    """A game of which the user has the ROM, the variables and a state, but nothing else."""
    scaffold("Tiny-Snes", rom, games)
    folder = games / "Tiny-Snes"
    for name in FILES - {"data.json"}:
        (folder / name).unlink()
    (folder / "data.json").write_text('{"info": {"speed": {"address": 8257536, "type": "<s2"}}}')
    (folder / "start.state").write_bytes(b"a state")
    return folder


# openai/retro#218: an integration by hand did not work, and which file was missing or wrong had to be guessed.
def test_each_command_says_how_to_complete_a_folder(incomplete: Path, games: Path, rom: Path) -> None:
    remedy = f"kart-rewards new Tiny-Snes {incomplete}/rom.sfc --complete --integrations-path {games}\n"
    done = run("new", "Tiny-Snes", rom, "--integrations-path", games)
    lacks = "It lacks metadata.json, rom.sha, scenario.json. To add the files that the folder lacks: "
    assert done.stderr == (
        f"error: {incomplete}: exists already, and was not changed; choose another name. {lacks}{remedy}"
    )
    done = run("doctor", "Tiny-Snes", "--integrations-path", games)
    assert done.returncode == 1
    lines = done.stdout.splitlines(keepends=True)
    for what in ("ROM", "scenario.json"):
        [line] = [line for line in lines if line.startswith(f"FAIL  {what}: ")]
        assert line.endswith(remedy)
    [line] = [line for line in lines if line.startswith("FAIL  default state: ")]
    assert 'write {"default_state": "start"} to it' in line
    (incomplete / "data.json").unlink()
    done = run("train", "--env-id", "Tiny-Snes", "--integrations-path", games)
    assert done.returncode == 2
    assert done.stderr.endswith(remedy)


def test_a_folder_is_completed(incomplete: Path, games: Path, rom: Path) -> None:
    before = {name: (incomplete / name).read_bytes() for name in ("data.json", "start.state", "rom.sfc")}
    done = run("new", "Tiny-Snes", incomplete / "rom.sfc", "--complete", "--integrations-path", games)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"completed {incomplete}\n  added: .gitignore metadata.json rewards.py rom.sha scenario.json test_rewards.py\n"
        f"  what remains to be done: kart-rewards doctor Tiny-Snes --integrations-path {games}\n"
    )
    assert {name: (incomplete / name).read_bytes() for name in before} == before
    game = find_game("Tiny-Snes", games)
    assert (game.rom().read_bytes(), game.default_state(), game.missing_files()) == (ROM, "start", [])
    assert " passed" in pytest_on(incomplete)
    assert complete_folder("Tiny-Snes", rom, games).splitlines()[1] == "  added: nothing"


def test_a_missing_rom_is_added_to_a_folder(incomplete: Path, games: Path, rom: Path) -> None:
    (incomplete / "rom.sfc").unlink()
    done = run("play", "Tiny-Snes", "--integrations-path", games)
    assert done.stderr == (
        f"error: Tiny-Snes has no ROM: {incomplete}/rom.sfc is missing. {incomplete}/rom.sha is missing, too. To add "
        f"the files that the folder lacks: kart-rewards new Tiny-Snes ROM --complete --integrations-path {games}\n"
    )
    assert "rom.sfc rom.sha" in complete_folder("Tiny", rom, games)
    assert find_game("Tiny-Snes", games).rom().read_bytes() == ROM


def test_own_rewards_and_scenarios_are_not_mixed_with_the_example(incomplete: Path, games: Path, rom: Path) -> None:
    (incomplete / "rewards.py").write_text("# mine")
    assert "added: .gitignore metadata.json rom.sha scenario.json\n" in complete_folder("Tiny-Snes", rom, games)
    assert load_scoring(incomplete / "scenario.json").terms == []
    (incomplete / "rewards.py").unlink()
    assert "added: nothing" in complete_folder("Tiny-Snes", rom, games)


def test_a_folder_is_not_completed_with_another_rom(incomplete: Path, games: Path, rom: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sfc"
    other.write_bytes(snes().rom)
    with pytest.raises(KartRewardsError, match=r"rom\.sfc: is another ROM than .*other\.sfc: remove one of them"):
        complete_folder("Tiny-Snes", other, games)
    assert not (incomplete / "rom.sha").exists()
    complete_folder("Tiny-Snes", rom, games)
    (incomplete / "rom.sfc").unlink()
    with pytest.raises(KartRewardsError, match=r"other\.sfc: its SHA-1 is .*, which .*rom\.sha does not allow"):
        complete_folder("Tiny-Snes", other, games)
    with pytest.raises(KartRewardsError, match="there is no folder Lost-Snes to complete: leave out --complete"):
        complete_folder("Lost-Snes", rom, games)
    assert names(games) == {"Tiny-Snes"}


def test_an_arcade_game_is_completed_with_both_names_of_its_rom(games: Path, tmp_path: Path) -> None:
    (tmp_path / "board.zip").write_bytes(zipped(tmp_path, {"chip.u7": b"an arcade board"}))
    (games / "Board-FBNeo").mkdir()
    complete_folder("Board-FBNeo", tmp_path / "board.zip", games)
    assert names(games / "Board-FBNeo") == FILES | {"board.zip", "rom.zip"}
    assert find_game("Board-FBNeo", games).rom().name == "board.zip"

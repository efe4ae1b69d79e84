from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import stable_retro
from command_line import needs_setpriv, run
from conftest import tiny_rom

from kart_rewards import integrations
from kart_rewards.errors import KartRewardsError
from kart_rewards.games import doctor
from kart_rewards.games.doctor import Findings, diagnose
from kart_rewards.integrations import INTEGRATIONS, Game

GAME, RETAIL_GAME = "HomebrewKart-Snes", "MarioKart-Snes"
Diagnose = Callable[..., tuple[bool, list[str]]]


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """A folder of integrations to spoil, with a copy of HomebrewKart."""
    shutil.copytree(INTEGRATIONS / GAME, tmp_path / "games" / GAME)
    return tmp_path / "games"


@pytest.fixture
def examine(games: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Diagnose:
    """Runs the doctor in this process. Random play ends with the first episode. Returns the result and the lines."""
    monkeypatch.setattr(doctor, "_SECONDS_TO_PLAY", 0.0)
    monkeypatch.setattr(doctor, "_MAX_SECONDS_TO_PLAY", 1.0)
    monkeypatch.setattr(doctor, "_FRAMES_TO_REPEAT", 8)

    def examine(name: str | None = GAME) -> tuple[bool, list[str]]:
        passed = diagnose(name, games)
        return passed, capsys.readouterr().out.splitlines()

    return examine


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def failures(lines: list[str]) -> list[str]:
    """The names of the checks that failed."""
    return [line[6:].partition(": ")[0] for line in lines if line.startswith("FAIL  ")]


def the(lines: list[str], start: str) -> str:
    [line] = [line for line in lines if line.startswith(start)]
    return line


def doctor_on(*arguments: object, folder: Path, ordinary_user: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs the command in a folder."""
    return run("doctor", *arguments, folder=folder, ordinary_user=ordinary_user)


def test_the_command_passes_a_sound_game_and_passes_over_one_without_rom(games: Path, tmp_path: Path) -> None:
    (games / RETAIL_GAME).mkdir()
    for name in ("data.json", "scenario.json", "metadata.json", "rom.sha"):
        shutil.copy(INTEGRATIONS / RETAIL_GAME / name, games / RETAIL_GAME)
    done = doctor_on("--integrations-path", games, folder=tmp_path)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert failures(lines) == []
    assert the(lines, f"--    {RETAIL_GAME}") == (
        f"--    {RETAIL_GAME}: has no ROM -> kart-rewards import PATH --integrations-path {games}"
    )
    assert "stable-retro 1." in the(lines, "ok    versions: Python 3.")
    assert "SHA-1 19337e286861c9f910bc968c8544278ba2d0bba1" in the(lines, "ok    ROM: rom.sfc")
    assert the(lines, "ok    data.json") == "ok    data.json: 19 variables"
    assert "terms: wall checkpoint terrain time backwards" in the(lines, "ok    scenario.json")
    assert "Level1, Level2, Level3, Level4, Level5: loaded" in the(lines, "ok    start states")
    assert len([line for line in lines if line.startswith("ok    check ")]) == 14
    assert "all rewards finite" in the(lines, "ok    random play: from Level1, an episode of")
    assert " steps/s, " in the(lines, "ok    speed: ")
    assert "drawn" in the(lines, "ok    drawing: ")
    assert the(lines, "ok    snapshots") == (
        "ok    snapshots: 300 frames from Level1 are the same again after a saved state is loaded"
    )
    assert lines[-1].startswith("pass: 29 ok")
    assert done.returncode == 0

    done = doctor_on(RETAIL_GAME, "--integrations-path", games, folder=tmp_path)
    lines = done.stdout.splitlines()
    assert failures(lines) == ["ROM", "start states"]
    assert "has no ROM" in the(lines, "FAIL  ROM")
    assert f"kart-rewards import PATH --integrations-path {games}" in the(lines, "FAIL  ROM")
    assert f"kart-rewards state {RETAIL_GAME} start --play --default" in the(lines, "FAIL  start states")
    assert the(lines, "ok    data.json")  # what can be checked without a ROM still is
    assert the(lines, "ok    scenario.json")
    assert "they need the right ROM" in the(
        lines, "--    emulator, start states, checks, snapshots, random play, speed"
    )
    assert lines[-1].startswith("FAIL: ")
    assert done.returncode == 1


def test_an_unknown_game_is_a_wrong_command(tmp_path: Path) -> None:
    done = doctor_on("HomebrewCart-Snes", folder=tmp_path)
    assert done.returncode == 2
    assert "unknown game 'HomebrewCart-Snes'. Did you mean 'HomebrewKart-Snes'?" in done.stderr


def test_no_game_with_a_rom_is_a_failure(examine: Diagnose, games: Path) -> None:
    (games / GAME / "rom.sfc").unlink()
    passed, lines = examine(None)
    assert not passed
    assert the(lines, "--    HomebrewKart-Snes: has no ROM")
    assert failures(lines) == ["games"]


def test_games_of_stable_retro_without_a_rom_are_not_listed(
    examine: Diagnose, games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(games / GAME, tmp_path / "stable" / "Stock-Snes-v0")
    (tmp_path / "stable" / "Stock-Snes-v0" / "rom.sfc").unlink()
    monkeypatch.setattr(integrations, "_stock_folders", lambda: [tmp_path / "stable"])
    monkeypatch.setattr(integrations, "INTEGRATIONS", games)
    monkeypatch.setenv(integrations.FOLDER_VARIABLE, str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    assert diagnose(None)
    assert "Stock-Snes-v0" not in capsys.readouterr().out
    assert not diagnose("Stock-Snes-v0")
    assert "FAIL  ROM: Stock-Snes-v0 has no ROM" in capsys.readouterr().out


def test_faults_hide_neither_each_other_nor_what_is_sound(examine: Diagnose, games: Path, tiny_state: bytes) -> None:
    folder = games / GAME
    level = (folder / "Level1.state").read_bytes()
    (folder / "Foreign.state").write_bytes(gzip.compress(tiny_state))
    (folder / "Empty.state").write_bytes(gzip.compress(b""))
    (folder / "Truncated.state").write_bytes(level[: len(level) // 2])
    (folder / "Cut.state").write_bytes(gzip.compress(gzip.decompress(level)[:300_000]))
    shutil.copy(stable_retro.data.get_file_path("Airstriker-Genesis-v0", "Level1.state"), folder / "Genesis.state")
    edit(folder / "metadata.json", lambda metadata: metadata.update(default_state="Level9"))
    edit(folder / "scenario.json", lambda scenario: scenario["kart_rewards"]["rewards"].update(top_sped=3))
    info = json.loads((folder / "data.json").read_text())["info"]
    info["kart_y"]["address"] = 99_999_999
    info["speed"]["address"] += 100  # where nothing changes
    info["race_minutes"]["address"] = 136  # kart_x
    (folder / "data.json").write_text(json.dumps({"info": info}))

    passed, lines = examine()
    assert not passed
    assert failures(lines) == [
        "scenario.json",
        "default state",
        "variable kart_y",
        "start state Cut",
        "start state Empty",
        "start state Genesis",
        "start state Truncated",
        "start state Foreign",
        "check race_minutes == 0 and race_seconds < 60 and race_centiseconds < 100",
        "check speed > before.speed + 100, holding B",
    ]
    assert "there is no reward term 'top_sped' in this run; there are wall, checkpoint" in the(lines, "FAIL  scenario")
    assert "Level9.state: no such start state of HomebrewKart-Snes; it has Cut, Empty, Foreign" in the(
        lines, "FAIL  default"
    )
    assert "lies outside memory" in the(lines, "FAIL  variable kart_y")
    for state in ("Cut", "Empty", "Genesis"):
        assert "the emulator refuses it: it is damaged, or it is from another console" in the(
            lines, f"FAIL  start state {state}"
        )
    assert "is not a save state" in the(lines, "FAIL  start state Truncated")
    again = f"kart-rewards state {GAME} Foreign --play --overwrite --integrations-path {games}"
    assert the(lines, "FAIL  start state Foreign").endswith(f"it is from another ROM -> make it again: {again}")
    speed = the(lines, "FAIL  check speed")
    assert (
        "does not hold within 900 frames; after the last: speed 0, before.speed 0 -> correct data.json: kart" in speed
    )
    assert str(games) + "/" not in speed
    assert the(lines, "ok    start states: Level1, Level2, Level3, Level4, Level5")
    assert the(lines, "--    check kart_x != before.kart_x").endswith("it reads kart_y, see above")
    assert the(lines, "ok    check laps == 127: laps 127")
    assert the(lines, "ok    check race_seconds > before.race_seconds, holding B: on frame ")
    assert the(lines, "--    snapshots: not checked: they need data.json and a start state, both without a fault")
    assert the(lines, "--    random play, speed: not checked")


# openai/retro#34: decimal digits were read with a binary type, and the score 1550 became 5456 without a word.
def test_decimals_with_other_digits_fail(examine: Diagnose, games: Path) -> None:
    edit(games / GAME / "data.json", lambda data: data["info"]["race_minutes"].update(address=140))  # kart_y, 0xC3F
    passed, lines = examine()
    assert not passed
    assert "is not binary-coded decimal (<d2)" in the(lines, "FAIL  variable race_minutes")


# Observed: only the type d was checked. With n, digits over 9 were read modulo 10.
@pytest.mark.parametrize(("kind", "address"), [("<n2", 140), (">n2", 140), ("|n1", 141)])
def test_decimals_with_one_digit_per_byte_are_checked_too(
    examine: Diagnose, games: Path, kind: str, address: int
) -> None:
    """The high byte of kart_y, at 141, is 0x0C."""
    edit(games / GAME / "data.json", lambda data: data["info"].update(odd={"address": address, "type": kind}))
    _, lines = examine()
    assert "variable odd" in failures(lines)
    assert f"is not one decimal digit per byte ({kind})" in the(lines, "FAIL  variable odd")


def test_the_high_half_of_a_byte_with_one_digit_may_be_anything(examine: Diagnose, games: Path) -> None:
    """0x40, the ground of a road, is the digit 0."""
    edit(games / GAME / "data.json", lambda data: data["info"]["surface"].update(type="|n1"))
    _, lines = examine()
    assert "variable surface" not in failures(lines)


def test_arrays_and_variables_behind_pointers_are_checked_like_others(examine: Diagnose, games: Path) -> None:
    info = {
        "tens": {"address": 256, "type": "<d2", "count": 3},  # the race clock
        "odd": {"address": 138, "type": "|d1", "count": 4},  # its fourth element is the high byte of kart_y, 0x0C
        "lap_pointer": {"address": 8261824, "type": "|u1"},  # checkpoint, 23
        "pointed": {"address": 117, "type": "<d2", "pointer": "lap_pointer"},  # at 140: kart_y
        "null": {"address": 9_000_000, "type": "<d2", "pointer": "lap_pointer"},
        "large": {"address": 0x7FFFF0, "type": "<u2", "count": 9},
        "far": {"address": 99_999_999, "type": "<u2"},
        "farther": {"address": 1, "type": "<u2", "pointer": "far"},
    }
    edit(games / GAME / "data.json", lambda data: data["info"].update(info))
    _, lines = examine()
    assert failures(lines)[:5] == [f"variable {name}" for name in ("large", "far", "farther", "odd", "pointed")]
    assert "at address 8388592 (0x7FFFF0, 18 bytes) lies outside memory" in the(lines, "FAIL  variable large")
    assert "its pointer far can't be read" in the(lines, "FAIL  variable farther")
    assert "0x0C at 0x8D is not binary-coded decimal (|d1)" in the(lines, "FAIL  variable odd")
    assert "at 0x8C is not binary-coded decimal (<d2)" in the(lines, "FAIL  variable pointed")
    assert the(lines, "warn  variable null").startswith(
        "warn  variable null: it reads as 0, because its pointer lap_pointer points outside memory in this state -> "
    )


def test_a_frame_counter_that_does_not_count(examine: Diagnose, games: Path) -> None:
    edit(games / GAME / "data.json", lambda data: data["info"]["current_frame"].update(address=0x7E1F38))
    passed, lines = examine()
    assert not passed
    assert failures(lines) == ["start states", "check current_frame == (before.current_frame + 1) % 65536"]
    assert "current_frame does not count in any of Level1, Level2" in the(lines, "FAIL  start states")
    assert "does not hold within 1 frame; after the last: current_frame 0, before.current_frame 0" in the(
        lines, "FAIL  check"
    )
    assert the(lines, "ok    check speed > before.speed + 100, holding B")


def test_a_state_in_which_nothing_moves(examine: Diagnose, games: Path, tiny_state: bytes) -> None:
    (games / "Tiny-Snes").mkdir()
    for name, content in (
        ("rom.sfc", tiny_rom()),
        ("rom.sha", hashlib.sha1(tiny_rom(), usedforsecurity=False).hexdigest().encode()),
        ("data.json", b'{"info": {"speed": {"address": 8257536, "type": "<s2"}}}'),
        ("scenario.json", b'{"kart_rewards": {"rewards": {}, "done": []}}'),
        ("metadata.json", b'{"default_state": "start"}'),
        ("start.state", gzip.compress(tiny_state)),
    ):
        (games / "Tiny-Snes" / name).write_bytes(content)
    passed, lines = examine("Tiny-Snes")
    assert not passed
    assert failures(lines) == ["start state start"]
    assert "the game does not run on from it (nothing moves)" in the(lines, "FAIL  start state start")


def test_a_wrong_rom_and_damaged_files(examine: Diagnose, games: Path) -> None:
    (games / GAME / "rom.sfc").write_bytes(tiny_rom())
    (games / GAME / "data.json").write_text('{"info": {')
    (games / GAME / "scenario.json").write_text("[]")
    passed, lines = examine()
    assert not passed
    assert failures(lines) == ["ROM", "data.json", "scenario.json"]
    assert "is not the ROM that HomebrewKart-Snes needs: its SHA-1 is" in the(lines, "FAIL  ROM: rom.sfc")
    assert the(lines, "FAIL  data.json").startswith("FAIL  data.json: is not JSON: ")
    assert the(lines, "FAIL  scenario.json") == "FAIL  scenario.json: holds a JSON list, not an object {…}"
    assert the(lines, "ok    default state: Level1")


def test_without_data_json_the_emulator_and_the_states_are_checked(examine: Diagnose, games: Path) -> None:
    (games / GAME / "data.json").unlink()
    shutil.copy(games / GAME / "rom.sfc", games / GAME / "Level9.state")
    passed, lines = examine()
    assert not passed
    assert failures(lines) == ["data.json", "start state Level9"]
    assert the(lines, "ok    emulator: Snes, 60.1 frames/s")
    assert the(
        lines, "ok    start states: Level1, Level2, Level3, Level4, Level5: loaded, and the game runs on; screen: 224"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / (ram.speed < 200)", "raised ZeroDivisionError: division by zero at mine.py:4: return 1 / (ram.speed <"),
        ("float('nan')", "returned nan, not a finite number"),
    ],
)
def test_a_term_that_fails_at_play(examine: Diagnose, games: Path, body: str, message: str) -> None:
    source = f"from kart_rewards import reward_term\n@reward_term()\ndef moody(ram):\n    return {body}\n"
    (games / GAME / "mine.py").write_text(source)
    edit(
        games / GAME / "scenario.json",
        lambda scenario: scenario["kart_rewards"].update(modules=["mine.py"], rewards={"moody": 1}),
    )
    passed, lines = examine()
    assert not passed
    assert failures(lines) == ["random play"]
    assert the(lines, "FAIL  random play: 'moody' (mine.py:2) ")
    assert message in the(lines, "FAIL  random play")
    assert the(lines, "--    speed: not measured")
    assert examine()[0] is False  # the emulator was closed, so that there can be another


def test_checks_that_can_not_be_made(examine: Diagnose, games: Path) -> None:
    checks: list[Any] = [
        {"expect": "lap == 127"},
        {"expect": "laps = 127"},
        {"expect": "laps == 127", "hold": "B+C"},
        {"expect": "1 // speed == 1"},
        {"expect": "laps == 128"},
        {"expect": "laps == 127"},
    ]
    edit(games / GAME / "scenario.json", lambda scenario: scenario["kart_rewards"].update(checks=checks))
    passed, lines = examine()
    assert not passed
    faults = [line for line in lines if line.startswith("FAIL  check")]
    for fault, message in zip(
        faults,
        (
            "FAIL  check: 'lap == 127' names no RAM variable 'lap'. Did you mean 'laps'?",
            "FAIL  check: 'laps = 127' is not a condition (write == to compare) -> correct it in scenario.json",
            "FAIL  check: laps == 127, holding B+C, line 1: this console has no button 'C'",
            "FAIL  check 1 // speed == 1: '1 // speed == 1' can't be worked out: ",
            "FAIL  check laps == 128: does not hold: laps 127 -> correct data.json: ",
        ),
        strict=True,
    ):
        assert fault.startswith(message)
    assert the(lines, "ok    check laps == 127")

    edit(games / GAME / "scenario.json", lambda scenario: scenario["kart_rewards"].update(checks=["laps == 127"]))
    passed, lines = examine()
    assert not passed
    assert failures(lines) == ["checks in scenario.json"]


def test_a_game_of_another_console_without_checks_or_data_of_ours(examine: Diagnose, games: Path) -> None:
    shipped = Path(stable_retro.data.get_file_path("Airstriker-Genesis-v0", "rom.md")).parent
    shutil.copytree(shipped, games / "Airstriker-Genesis-v0")
    passed, lines = examine("Airstriker-Genesis-v0")
    assert passed  # the terms and rules are those that its scenario declares for stable-retro
    assert the(lines, "ok    emulator: Genesis, 59.9 frames/s")
    assert the(lines, "ok    start states") == (
        "ok    start states: Level1: loaded, and the game runs on; screen: 224 rows x 320 columns"
    )
    assert 'declare "checks" in scenario.json' in the(lines, "warn  variables: 3 read in Level1")
    assert " with a warning" in lines[-1]
    edit(games / "Airstriker-Genesis-v0" / "scenario.json", lambda scenario: scenario.clear())
    passed, lines = examine("Airstriker-Genesis-v0")
    assert passed
    assert the(lines, "ok    scenario.json") == "ok    scenario.json: terms: none, rules: none"


@needs_setpriv
def test_what_may_not_be_read_is_reported(games: Path, tmp_path: Path) -> None:
    locked = [games / GAME / name for name in ("data.json", "Level2.state")]
    try:
        for path in locked:
            path.chmod(0)
        done = doctor_on(GAME, "--integrations-path", games, folder=tmp_path, ordinary_user=True)
        lines = done.stdout.splitlines()
        assert failures(lines) == ["data.json", "start state Level2"]
        assert "Permission denied" in the(lines, "FAIL  data.json")
        assert "Permission denied" in the(lines, "FAIL  start state Level2")
        (games / GAME).chmod(0)
        done = doctor_on(GAME, "--integrations-path", games, folder=tmp_path, ordinary_user=True)
        lines = done.stdout.splitlines()
        assert failures(lines) == ["folder"]
        assert "Permission denied" in the(lines, "FAIL  folder")
        assert the(lines, "--    all other checks")
        assert done.returncode == 1
        assert done.stderr == ""
    finally:
        for path in (games / GAME, *locked):
            path.chmod(0o700)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs the right to mount a small disk")
def test_a_small_disk_is_a_warning_and_not_a_failure(
    examine: Diagnose, games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (games / GAME / "rom.sfc").unlink()  # so that it is quick
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)  # noqa: S607
    try:
        monkeypatch.chdir(disk)
        _, lines = examine()
    finally:
        monkeypatch.chdir(tmp_path)
        subprocess.run(["umount", disk], check=True)  # noqa: S607
    assert the(
        lines, "warn  disk here: 0.1 of 0.1 GiB free; training takes up to 1 GiB -> train into another folder: --runs"
    )
    assert failures(lines) == ["ROM"]


def test_a_rom_that_no_emulator_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rom.sfc").write_bytes(b"")
    assert doctor.check_emulator(tmp_path / "rom.sfc", Findings()) is None
    assert "rom.sfc: the emulator did not start" in the(capsys.readouterr().out.splitlines(), "FAIL  emulator: ")


@needs_setpriv
@pytest.mark.slow
def test_a_game_in_a_read_only_place(games: Path, tmp_path: Path) -> None:
    for path in (games, games / GAME):
        path.chmod(0o555)
    try:
        done = doctor_on(GAME, "--integrations-path", games, folder=games, ordinary_user=True)
    finally:
        for path in (games, games / GAME):
            path.chmod(0o755)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, ""), lines
    assert "all rewards finite" in the(lines, "ok    random play")


def test_a_game_is_looked_for_in_every_folder(
    games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(integrations.FOLDER_VARIABLE, str(games))
    (games / GAME / "rom.sfc").unlink()  # so that the checks are quick
    (games / GAME).rename(games / "Mine-Snes")
    monkeypatch.chdir(tmp_path)
    assert not diagnose("Mine-Snes")
    lines = capsys.readouterr().out.splitlines()
    assert the(lines, f"ok    folder: {games / 'Mine-Snes'}, ")
    assert the(lines, "FAIL  ROM").endswith("Import your own dump of the game: kart-rewards import PATH")


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_random_play_stops_at_a_reward_that_is_not_finite(
    games: Path, reward: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_env = doctor.make_env

    def with_reward(*arguments: Any, **options: Any) -> gym.Env[Any, Any]:
        return gym.wrappers.TransformReward(make_env(*arguments, **options), lambda _: reward)

    monkeypatch.setattr(doctor, "make_env", with_reward)
    findings = Findings()
    assert doctor.check_random_play("Level1", Game(GAME, games / GAME), findings) is None
    assert not findings.passed
    line = f"FAIL  random play: the reward of a step is {reward}: it must be a finite number\n"
    assert capsys.readouterr().out == line


def test_a_finding_names_files_without_the_folder_and_is_wrapped_in_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = Findings()
    findings.folder = tmp_path
    with findings.check("data.json", "correct it"):
        raise KartRewardsError(f"{tmp_path}/data.json: is not\n JSON")
    assert capsys.readouterr().out == "FAIL  data.json: is not JSON -> correct it\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((24, 80)))
    findings.skip("speed", "not measured: it needs play")
    assert capsys.readouterr().out == "--    speed: not\n      measured: it needs\n      play\n"
    assert findings.summary() == "FAIL: 1 failed, 1 not checked"

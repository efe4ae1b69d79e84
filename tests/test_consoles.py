"""Every console that stable-retro emulates: shared emulators, start states, resumed states, and pictures."""

from __future__ import annotations

import gc
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_retro
from command_line import sha1
from console_roms import PROGRAMS, Program, arcade, saturn
from declared_walks import saturn_environment
from stable_retro.data import EMU_INFO, Integrations

from kart_rewards import KartEnv, KartRewardsError, ObservationConfig, ScriptRewards
from kart_rewards.env import core, kart_env
from kart_rewards.env.core import INEXACT_STATES, SharedEmulator, start_emulator
from kart_rewards.games import doctor
from kart_rewards.games.console import Console
from kart_rewards.integrations import find_game
from kart_rewards.training.episodes import make_training_envs
from kart_rewards.training.ranks import Ranks

NEED_A_BIOS = {"SCD": "scd", "Saturn": "chd"}
"""Console -> suffix of its ROMs. The BIOS of these consoles belongs to Sega, so stable-retro comes without it."""
FEW_STEPS = {"Atari2600": 15, "N64": 3, "NintendoDs": 3, "Saturn": 4}
"""Console -> number of steps, because its emulator is slow; 70 on the others."""
WITH_SATURN = {"Saturn": saturn} if "RETRO_CORE_PATH" in os.environ else {}
"""The Saturn in a process of ``test_the_saturn_with_a_bios_of_our_own``."""
SIZES = {
    "32x": ((224, 320), (224, 256)),
    "Genesis": ((224, 320), (224, 256)),
    "PCEngine": ((243, 256), (243, 512)),
    "Saturn": ((224, 330), (448, 330)),
    "Sms": ((192, 256), (224, 256)),
    "Snes": ((224, 256), (448, 512)),
}
"""Console -> rows and columns of the pictures of its program: at power-on, and with ``other_size``."""

Log = list[tuple[dict[int, bytes], bytes, bytes, float]]


def make_game(games: Path, console: str, program: Program) -> dict[str, Any]:
    """Makes the folder of a game with a start state. Returns the options of its environments."""
    folder = games / f"Tiny-{console}"
    folder.mkdir()
    (folder / program.file).write_bytes(program.rom)
    (folder / "rom.sha").write_text(sha1(program.rom[16 if console == "Nes" else 0 :]))
    emulator = Console(folder / program.file)
    for _ in range(5):
        emulator.step()
    (folder / "start.state").write_bytes(gzip.compress(emulator.em.get_state()))
    if program.other_size:
        for variable in program.other_size:
            emulator.data.memory.assign(*variable)
        for _ in range(5):
            emulator.step()
        (folder / "other.state").write_bytes(gzip.compress(emulator.em.get_state()))
    (folder / "data.json").write_text(json.dumps({"info": {"count": {"address": program.counter, "type": "|u1"}}}))
    (folder / "metadata.json").write_text(json.dumps({"default_state": "start", "original_rom_name": program.file}))
    (folder / "scenario.json").write_text(json.dumps({"kart_rewards": {"rewards": {}, "done": []}}))
    observation = ObservationConfig(crop=None, size=None, stack=2)
    return {
        "game": folder.name,
        "integrations": games,
        "action_mode": "all",
        "frame_skip": 3,
        "observation": observation,
        "rewards": [count],
    }


def count(ram: Any) -> float:
    return float(ram.count)


@pytest.fixture
def make_options(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    def make_options(console: str) -> dict[str, Any]:
        return make_game(
            tmp_path, console, arcade(tmp_path) if console == "FBNeo" else (PROGRAMS | WITH_SATURN)[console]()
        )

    return make_options


def seen(env: KartEnv, observation: np.ndarray, reward: float) -> tuple[dict[int, bytes], bytes, bytes, float]:
    return env.data.memory.blocks, env.em.get_screen().tobytes(), observation.tobytes(), reward


def played(env: KartEnv, actions: np.ndarray, seed: int = 1) -> Log:
    """RAM, screen, observation and reward after the reset and after each step."""
    log = [seen(env, env.reset(seed=seed)[0], 0.0)]
    for action in actions:
        observation, reward, *_ = env.step(action)
        log.append(seen(env, observation, reward))
    return log


def random_actions(env: KartEnv, steps: int) -> np.ndarray:
    """Actions of two players, who also press where the console has no button."""
    return np.random.default_rng(1).integers(0, 2, (2, steps, len(env.buttons)))


# openai/retro#114: after get_state and set_state, the RAM of some games of the Atari 2600, the Game Boy and the SNES
# went on in another way than without. Here, on the Atari 2600, the RAM of the first of two environments stood still.
@pytest.mark.parametrize(
    "console",
    [
        pytest.param(console, marks=pytest.mark.slow if console in ("N64", "NintendoDs") else ())
        for console in sorted({*PROGRAMS, *WITH_SATURN} - INEXACT_STATES.keys())
    ],
)
def test_two_environments_of_a_process_play_as_if_alone(
    console: str, make_options: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their RAM, pictures, observations and rewards are those of a lone environment, also in its second episode."""
    if console in FEW_STEPS:
        monkeypatch.setattr(kart_env, "_FRAMES_TO_COMPARE", 2)
    options = make_options(console)
    with closing(KartEnv(**options)) as env:
        actions = random_actions(env, FEW_STEPS.get(console, 70))
        alone = [played(env, actions[0])]
    with closing(KartEnv(**options)) as env:
        alone.append(played(env, actions[1]))
        assert played(env, actions[0]) == alone[0], "the episode before makes no difference"
    assert alone[0][-1][1] != alone[0][-2][1], "the picture moves"
    assert [step[0] for step in alone[0]] != [step[0] for step in alone[1]], "the buttons make a difference"

    with ExitStack() as stack:
        envs = [stack.enter_context(closing(KartEnv(**options))) for _ in actions]
        together: list[Log] = [[seen(env, env.reset(seed=1)[0], 0.0)] for env in envs]
        turns = np.repeat([0, 1], len(actions[0]))
        for player in np.random.default_rng(2).permuted(turns).tolist():
            env, log = envs[player], together[player]
            observation, reward, *_ = env.step(actions[player][len(log) - 1])
            log.append(seen(env, observation, reward))
    assert together == alone


def test_every_console_is_tested() -> None:
    assert set(EMU_INFO) == {*PROGRAMS, "FBNeo", *NEED_A_BIOS}


@pytest.mark.parametrize("console", NEED_A_BIOS)
def test_some_consoles_do_not_start_without_a_bios(console: str, tmp_path: Path) -> None:
    """So the core of the Sega CD can't be tested. Games are examined before two environments share an emulator."""
    rom = tmp_path / f"rom.{NEED_A_BIOS[console]}"
    rom.write_bytes(bytes(2**16))
    code = "import sys, stable_retro; stable_retro.RetroEmulator(sys.argv[1])"
    # A process of its own, because Saturn's core does not return an error: the process dies.
    assert subprocess.run([sys.executable, "-c", code, rom], capture_output=True, check=False).returncode != 0


@pytest.mark.skipif(bool(WITH_SATURN), reason="this process tests the Saturn")
@pytest.mark.slow
def test_the_saturn_with_a_bios_of_our_own(tmp_path: Path) -> None:
    """Its core looks for the BIOS in the folder of the cores, which a process chooses when it starts."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", "Saturn and not bios"]
    done = subprocess.run(command, env=saturn_environment(tmp_path), capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("console", INEXACT_STATES)
def test_a_core_that_does_not_save_its_complete_state_refuses_a_second_environment(
    console: str, make_options: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_options(console)
    with closing(KartEnv(**options)) as env:
        env.reset(seed=1)
        with pytest.raises(
            KartRewardsError,
            match=rf"Tiny-{console}: a process can have one environment of this game, because its core leaves .* out "
            r"of the states that it saves\. Close the other one first, or make each environment in a process of its",
        ):
            KartEnv(**options)
        env.step(np.zeros(len(env.buttons)))

    monkeypatch.setattr(SharedEmulator, "faults", {env.game.rom(): ""})
    with ExitStack() as stack:
        envs = [stack.enter_context(closing(KartEnv(**options))) for _ in range(2)]
        actions = random_actions(envs[0], 150)
        alone = played(envs[0], actions[0])
        together: list[Log] = [[seen(env, env.reset(seed=1)[0], 0.0)] for env in envs]
        for step in range(150):
            for env, log, own in zip(envs, together, actions, strict=True):
                log.append(seen(env, *env.step(own[step])[:2]))
    assert together[0] != alone, "the reason is true"


def test_any_game_is_examined_before_its_environments_share_an_emulator(
    make_options: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cartridges may have chips of their own, which a core does not save. PAUSE has the same effect here."""
    monkeypatch.setattr(core, "_KEEPS_BUTTONS", set())
    options = make_options("Sms")
    with closing(KartEnv(**options)) as env:
        actions = random_actions(env, 30)
        expected = played(env, actions[0])
        env.reset(seed=1)
        with pytest.raises(
            KartRewardsError,
            match=r"Tiny-Sms: a process can have one environment of this game, because its core does not save its "
            r"complete state: in turns the RAM differs on frame \d+\. Close the other one first, or make each",
        ):
            KartEnv(**options)
        assert played(env, actions[0]) == expected, "the first environment plays on"


@pytest.mark.parametrize("console", ["Atari2600", "FBNeo"])
def test_the_trainer_gives_each_environment_a_process_where_sharing_is_wrong_or_slow(
    console: str, make_options: Callable[[str], dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    options = make_options(console)
    with closing(make_training_envs(options, 4, 100, Ranks())) as envs:
        assert envs.num_processes == 4
        envs.reset(seed=1)
    notice = f"Tiny-{console}: each environment has a process of its own, because "
    assert capfd.readouterr().out.count(notice) == 1


def test_what_the_console_has_no_button_for_is_not_pressed(make_options: Callable[[str], dict[str, Any]]) -> None:
    """The core of the Game Boy Advance has rapid fire there, whose memory is in no state."""
    with closing(KartEnv(**make_options("GbAdvance"))) as env:
        without = np.array([name is None for name in env.buttons])
        assert without.sum() == 2
        assert played(env, np.tile(without, (10, 1))) == played(env, np.zeros((10, len(without))))


def test_the_buttons_of_the_last_frame_are_part_of_a_saved_state(make_options: Callable[[str], dict[str, Any]]) -> None:
    """On the Master System, PAUSE that stays down pauses once. The core keeps it outside of its states."""
    options = make_options("Sms")
    with closing(KartEnv(**options)) as env:
        all_held = np.ones((5, len(env.buttons)))
        played(env, all_held)
        state = env.get_state()
        expected = [seen(env, *env.step(action)[:2]) for action in all_held]
    with closing(KartEnv(**options)) as env:
        played(env, 0 * all_held)
        env.set_state(state)
        assert [seen(env, *env.step(action)[:2]) for action in all_held] == expected


# Farama-Foundation/stable-retro 1.0.1 reads 240 rows from a core that draws 224; the last ones are memory that others
# use. From one that draws 512 columns, it reads the left 256. A Genesis with 256 columns has 64 columns of old pixels.
@pytest.mark.parametrize("console", sorted(SIZES.keys() - {"Saturn"}))
def test_pictures_are_those_of_stable_retro_in_the_size_that_the_core_draws(
    console: str, make_options: Callable[[str], dict[str, Any]]
) -> None:
    options = make_options(console)
    game = find_game(options["game"], options["integrations"])
    pictures: dict[Any, list[np.ndarray]] = {}
    for make in (lambda rom: stable_retro.RetroEmulator(str(rom)), start_emulator):
        emulator = make(game.rom())
        for state in ("start", "other"):
            assert emulator.set_state(game.load_state(state))
            for _ in range(20):
                emulator.step()
            pictures.setdefault(make, []).append(emulator.get_screen())
        del emulator
        gc.collect()
    plain, own = pictures.values()
    rows, columns = np.minimum(plain[0].shape, own[0].shape)[:2]
    assert np.array_equal(plain[0][:rows, :columns], own[0][:rows, :columns])
    assert own[0].any()
    assert tuple(picture.shape[:2] for picture in own) == SIZES[console]
    assert plain[0].shape == plain[1].shape, "stable-retro reads pictures of one size"


@pytest.mark.parametrize("console", sorted({"Saturn"} ^ SIZES.keys() | WITH_SATURN.keys()))
def test_the_screen_has_the_size_of_the_loaded_state(
    console: str, make_options: Callable[[str], dict[str, Any]]
) -> None:
    options = make_options(console)
    at_power_on, other = SIZES[console]
    with closing(KartEnv(**options, state="other", render_mode="rgb_array")) as env:
        assert env.observation_space.shape == (2, *other)
        assert env.reset(seed=1)[0] in env.observation_space
        assert env.render().shape == (*other, 3)
        assert env.step(np.zeros(len(env.buttons)))[0] in env.observation_space
    options["state"] = ["start", "other"]
    path = options["integrations"] / options["game"] / "other.state"
    with pytest.raises(KartRewardsError) as refused:
        KartEnv(**options)
    changed = f"{path}: the screen changed from {at_power_on[0]} rows and {at_power_on[1]} columns to {other[0]} and"
    assert str(refused.value).startswith(changed)
    options |= {"observation": ObservationConfig(crop=None), "render_mode": "rgb_array"}
    with closing(KartEnv(**options)) as env:
        for state, size in (("start", at_power_on), ("other", other), ("start", at_power_on)):
            assert env.reset(seed=1, options={"state": state})[0] in env.observation_space
            if console == "Sms":  # its core reports the larger height from then on
                size = (env.render().shape[0], 256)
            assert env.render().shape == (*size, 3)


@pytest.fixture
def arcade_game(tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Makes an arcade game whose scenario has a crop. The result makes stable-retro's environment of this game."""
    options = make_game(tmp_path, "FBNeo", arcade(tmp_path))
    scenario = {"crop": [8, 16, 100, 120], "kart_rewards": {"rewards": {}, "done": []}}
    (tmp_path / options["game"] / "scenario.json").write_text(json.dumps(scenario))
    (tmp_path / options["game"] / "rom.zip").touch()  # stable-retro only looks whether it is there
    Integrations.add_custom_path(str(tmp_path))
    yield lambda: stable_retro.make(options["game"], inttype=Integrations.ALL, render_mode="rgb_array")
    gc.collect()


def test_an_arcade_game_whose_screen_stands_on_its_side_is_upright(
    make_options: Callable[[str], dict[str, Any]],
) -> None:
    options = make_options("FBNeo")
    with closing(KartEnv(**options, render_mode="rgb_array")) as env:
        assert env.observation_space.shape == (2, 288, 224)
        env.reset(seed=1)
        pictures = [env.render()]
        for _ in range(5):
            observation, *_ = env.step(np.zeros(len(env.buttons)))
            pictures.append(env.render())
    changed = np.argwhere(np.any(np.diff(np.array(pictures, int), axis=0), axis=(0, 3)))
    assert (changed.min(axis=0).tolist(), changed.max(axis=0).tolist()) == ([16, 216], [23, 223])
    assert observation.shape == (2, 288, 224)
    console = Console(find_game(options["game"], options["integrations"]).rom())
    assert console.screen.shape == (288, 224, 3), "in the window in which start states are made"


# Farama-Foundation/stable-retro 1.0.1: its rotation is clockwise, and its environments turn counterclockwise.
def test_pictures_of_stable_retros_own_environments_stay_as_they_are(
    arcade_game: Callable[[], Any], tmp_path: Path
) -> None:
    def pictures(env: Any) -> list[np.ndarray]:
        with closing(env):
            shown = [env.reset(seed=1)[0]]
            for _ in range(10):
                shown.append(env.step(0 * env.action_space.sample())[0])
        return shown

    plain = pictures(arcade_game())
    gc.collect()
    assert np.array_equal(plain, pictures(ScriptRewards(arcade_game())))
    gc.collect()
    raw = ObservationConfig(crop="auto", grey=False, size=None, stack=1)
    upright = pictures(KartEnv("Tiny-FBNeo", integrations=tmp_path, action_mode="all", frame_skip=1, observation=raw))
    assert upright[0].shape == (100, 120, 3), "the scenario's crop is one of the screen on its side"
    assert np.array_equal(plain, np.rot90(upright, 2, axes=(1, 2)))


def test_the_doctor_reports_sizes_of_screens_and_what_the_states_of_a_core_lack(
    make_options: Callable[[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = make_options("32x")
    monkeypatch.setattr(doctor, "_MAX_SECONDS_TO_PLAY", 0.1)
    assert doctor.diagnose(options["game"], options["integrations"])
    lines = capsys.readouterr().out.splitlines()
    [states] = [line for line in lines if line.startswith("ok    start states: ")]
    assert "screen: 224 rows x 320 columns in start, 224 rows x 256 columns in other" in states
    [snapshots] = [line for line in lines if line.startswith("warn  snapshots: ")]
    assert "from a saved state, the game does not continue as it did before: its RAM differs after " in snapshots
    assert snapshots.endswith(
        "-> training works, but a resumed run differs from one that was not stopped, and each "
        "environment needs a process of its own"
    )
    [line] = [line for line in lines if line.startswith("warn  several environments: ")]
    assert "each needs a process of its own, because its core leaves clock cycles out of the states" in line

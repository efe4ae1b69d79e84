from __future__ import annotations

import gc
import gzip
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GAME, emulator, play

from kart_rewards import KartEnv, KartRewardsError
from kart_rewards.env.core import SharedEmulator, buttons_of, console_of, game_runs_on, start_emulator
from kart_rewards.integrations import INTEGRATIONS
from kart_rewards.ram import RamLayout, Variable

FOLDER = INTEGRATIONS / GAME
ROM = FOLDER / "rom.sfc"


# --- the emulator -----------------------------------------------------------------------------------------------------


def test_a_process_has_one_emulator_at_a_time(tiny_rom_path: Path) -> None:
    first = start_emulator(tiny_rom_path)
    with pytest.raises(KartRewardsError, match=r"rom\.sfc: the emulator did not start"):
        start_emulator(tiny_rom_path)
    cycle: list[Any] = [first]
    cycle.append(cycle)
    del first, cycle  # the garbage collector must find the emulator before the next one starts
    assert start_emulator(tiny_rom_path).get_screen().shape == (224, 256, 3)


def test_a_rom_of_another_console_is_reported(tmp_path: Path) -> None:
    rom = tmp_path / "rom.md"
    rom.write_bytes(b"")
    with pytest.raises(KartRewardsError, match=r"rom\.md: the emulator did not start"):
        start_emulator(rom)


def test_the_suffix_of_a_rom_decides_its_console() -> None:
    assert [console_of(Path(name)) for name in ("rom.sfc", "rom.md", "rom.nes")] == ["Snes", "Genesis", "Nes"]


def test_buttons_are_in_the_cores_order() -> None:
    assert buttons_of("Snes") == ["B", "Y", "SELECT", "START", "UP", "DOWN", "LEFT", "RIGHT", "A", "X", "L", "R"]
    assert buttons_of("Nes")[:3] == ["B", None, "SELECT"], "None where the core has no button"


class AlarmError(Exception):
    pass


def test_what_the_handler_of_a_signal_raises_during_a_frame_is_not_lost() -> None:
    """As it would be in a function that the emulator calls: so Ctrl-C ends a program."""

    def ring(*_: object) -> None:
        raise AlarmError

    em = start_emulator(ROM)

    def play() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        for _ in range(2000):
            em.step()

    before = signal.signal(signal.SIGALRM, ring)
    try:
        for _ in range(20):
            with pytest.raises(AlarmError):
                play()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- whether the game runs on -----------------------------------------------------------------------------------------


@pytest.fixture
def game() -> Iterator[tuple[Any, Any]]:
    """An emulator that runs HomebrewKart from a start state, and its game data."""
    with emulator(ROM, FOLDER) as (em, data):
        em.set_state(gzip.decompress((FOLDER / "Level1.state").read_bytes()))
        yield em, data


def variables(data: Any, known: str = "counter") -> tuple[RamLayout | None, Any]:
    """Returns the game's variables and their reader: with ``current_frame``, without it, or without any variable."""
    if known == "no variables":
        return None, lambda: ()
    layout = RamLayout.from_file(FOLDER / "data.json")
    if known == "no counter":
        layout = RamLayout([variable for variable in layout.variables if variable.name != "current_frame"])
    return layout, layout.reader(data)


@pytest.mark.parametrize("known", ["counter", "no counter", "no variables"])
def test_a_game_runs_on_from_its_own_state(game: Any, known: str) -> None:
    em, data = game
    assert game_runs_on(em, data, *variables(data, known), em.step)


def test_a_game_does_not_run_on_from_a_state_of_another_rom(tiny_state: bytes, game: Any) -> None:
    em, data = game
    assert em.set_state(tiny_state), "the core accepts it"
    assert not game_runs_on(em, data, *variables(data), em.step)


@pytest.mark.parametrize("layout", [None, RamLayout([])], ids=["no variables", "no counter"])
def test_a_game_without_a_counter_that_changes_neither_ram_nor_screen_does_not_run_on(
    tiny_emulator: Any, layout: RamLayout | None
) -> None:
    em, data = tiny_emulator
    assert not game_runs_on(em, data, layout, lambda: (), em.step)


def test_a_change_of_ram_is_enough_without_a_counter(tiny_emulator: Any) -> None:
    em, data = tiny_emulator
    steps = iter(range(1, 99))
    assert game_runs_on(em, data, None, lambda: (), lambda: data.memory.assign(0x7E1000, "|u1", next(steps)))


@pytest.mark.parametrize(("known", "frames"), [("counter", 11), ("no counter", 61), ("no variables", 61)])
def test_the_check_runs_few_frames(game: Any, known: str, frames: int) -> None:
    em, data = game
    steps = []
    game_runs_on(em, data, *variables(data, known), lambda: steps.append(em.step()))
    assert len(steps) == frames


def test_a_counter_that_wraps_counts_up(game: Any) -> None:
    em, data = game
    data.memory.assign(0x7E0038, "<u2", 65533)
    assert game_runs_on(em, data, *variables(data), em.step)


# Observed: nothing public. A good state was refused as "made with another ROM" when the counter passed 255.
# us-irs/spacepackets-rs#15, GoldenCheetah/GoldenCheetah#1669: differences were wrong after a counter of one byte began
# again, because its number of values was not taken from its width.
@pytest.mark.parametrize(
    ("kind", "mask", "lowest", "numbers"),
    [
        ("|u1", None, 0, 256),
        ("|i1", None, -128, 256),
        ("|d1", None, 0, 100),
        ("|n1", None, 0, 10),
        ("<u2", 0xFF, 0, 256),
        ("<u2", 0x7, 0, 8),
        ("<u2", 0x1, 0, 2),
        ("<u4", None, 0, 2**32),
    ],
)
def test_a_counter_of_any_size_begins_again(
    tiny_emulator: Any, kind: str, mask: int | None, lowest: int, numbers: int
) -> None:
    em, data = tiny_emulator
    layout = RamLayout([Variable("current_frame", 0x7E1000, kind, mask)])
    count = [0]

    def read() -> Any:
        return layout.snapshot_class(count[0] % numbers + lowest)

    def step() -> None:
        count[0] += 1

    for first in (numbers - 3, 0, numbers // 2):
        count[0] = first
        assert game_runs_on(em, data, layout, read, step)
    assert not game_runs_on(em, data, layout, read, em.step)


def test_a_counter_that_stands_still_does_not_count_frames(game: Any) -> None:
    em, data = game
    assert not game_runs_on(em, data, *variables(data), lambda: None)


def test_a_counter_that_jumps_does_not_count_frames(game: Any) -> None:
    em, data = game

    def step() -> None:
        em.step()
        data.memory.assign(0x7E0038, "<u2", 40_000)

    assert not game_runs_on(em, data, *variables(data), step)


# --- sharing ----------------------------------------------------------------------------------------------------------


class Recorder:
    """A player that records the calls of all players in a common list."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def put_aside(self) -> None:
        self.calls.append(f"{self.name} saves")

    def take_up(self) -> None:
        self.calls.append(f"{self.name} loads")


def test_players_save_and_load_when_turns_change(tiny_rom_path: Path) -> None:
    calls: list[str] = []
    shared, first, second = SharedEmulator.of(tiny_rom_path), Recorder("first", calls), Recorder("second", calls)
    shared.take(first)
    shared.take(first)
    assert calls == ["first loads"], "the same player again: nothing to save or load"
    shared.take(second)
    assert calls[1:] == ["first saves", "second loads"]
    shared.leave(first)
    shared.take(first)
    assert calls[3:] == ["second saves", "first loads"], "only the player whose turn it is can end it"
    shared.leave(first)
    shared.take(second)
    assert calls[5:] == ["second loads"], "a player that has left does not save"
    del second
    shared.take(first)
    assert calls[6:] == ["first loads"], "a player that was deleted does not save"


def test_one_rom_has_one_emulator_until_nothing_refers_to_it(tiny_rom_path: Path) -> None:
    shared = SharedEmulator.of(tiny_rom_path)
    assert SharedEmulator.of(tiny_rom_path) is shared
    with pytest.raises(KartRewardsError, match="the emulator did not start"):
        SharedEmulator.of(ROM)
    del shared
    gc.collect()
    assert SharedEmulator.of(ROM).rom == ROM


def test_environments_of_a_game_share_the_emulator_and_play_as_if_alone() -> None:
    """For any order of their steps, each environment has its own observations, rewards, RAM and screens."""
    actions = {5: [0, 1, 0, 2] * 15, 6: [0, 2, 2, 0] * 15}
    options: dict[str, Any] = {"action_mode": "driving", "render_mode": "rgb_array", "random_start_steps": 30}
    alone = {}
    for seed in actions:
        with closing(KartEnv(GAME, **options)) as env:
            alone[seed] = play(env, actions[seed], seed)
    with ExitStack() as stack:
        envs = {seed: stack.enter_context(closing(KartEnv(GAME, **options))) for seed in actions}
        together = {seed: [(env.reset(seed=seed)[0].tobytes(), 0.0, False, env.ram)] for seed, env in envs.items()}
        screens = {seed: env.render() for seed, env in envs.items()}
        for seed in np.random.default_rng(1).permuted([5] * 60 + [6] * 60).tolist():
            env, log = envs[seed], together[seed]
            observation, reward, terminated, _, _ = env.step(actions[seed][len(log) - 1])
            log.append((observation.tobytes(), reward, terminated, env.ram))
            screens[seed] = env.render()
            envs[11 - seed].get_state()  # uses the emulator without a new screen
            assert all(np.array_equal(envs[each].render(), screens[each]) for each in envs), "each keeps its screen"
    assert together == alone
    assert alone[5] != alone[6]


def test_an_environment_plays_on_after_another_one_of_its_game_is_closed() -> None:
    with closing(KartEnv(GAME, action_mode="driving")) as alone:
        expected = play(alone, [0] * 20, seed=1)
    with closing(KartEnv(GAME, action_mode="driving")) as first:
        second = KartEnv(GAME, action_mode="driving")
        second.reset(seed=9)
        observation, _ = first.reset(seed=1)
        second.step(1)
        second.close()
        for _ in range(20):
            observation, *_ = first.step(0)
    assert observation.tobytes() == expected[-1][0]


def test_an_environment_of_another_game_is_refused(own_game: Path) -> None:
    with (
        closing(KartEnv(GAME)),
        pytest.raises(KartRewardsError, match=r"rom\.sfc: the emulator did not start"),
    ):
        KartEnv(GAME, integrations=own_game)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import stable_retro

from kart_rewards.errors import KartRewardsError
from kart_rewards.games.console import Console
from kart_rewards.integrations import INTEGRATIONS, Game
from kart_rewards.ram import RamLayout, Variable

KART = Game("HomebrewKart-Snes", INTEGRATIONS / "HomebrewKart-Snes")
SPEED = Variable("speed", 8261866, "<s2")
FRAME_COUNTER = Variable("current_frame", 8257592, "<u2")
OUTSIDE = Variable("nowhere", 99_999_999, "|u1")


@pytest.fixture
def layout() -> RamLayout:
    return RamLayout.from_file(KART.json_path("data"))


def test_it_describes_the_console_of_the_rom() -> None:
    console = Console(KART.rom())
    assert (console.name, console.screen.shape, console.screen.dtype.name) == ("Snes", (224, 256, 3), "uint8")
    assert console.buttons[:4] == ["B", "Y", "SELECT", "START"]
    assert 60 < console.frames_per_second < 60.2
    del console
    console = Console(Path(stable_retro.data.get_file_path("Airstriker-Genesis-v0", "rom.md")))
    for _ in range(30):  # then the game has set the size of the picture
        console.step()
    assert (console.name, console.screen.shape) == ("Genesis", (224, 320, 3))


def test_buttons_are_held_for_one_frame_each(layout: RamLayout) -> None:
    console = Console(KART.rom(), layout)

    def speed_after(frames: int, held: frozenset[str]) -> int:
        console.load(KART.load_state("Level1"))
        for _ in range(frames):
            console.step(held)
        return int(console.ram().speed)

    before = speed_after(0, frozenset())
    assert before == speed_after(120, frozenset()) == 0
    fast = speed_after(120, frozenset({"B"}))
    assert fast > 300
    assert speed_after(120, frozenset({"LEFT"})) == 0
    speed_after(120, frozenset({"B"}))
    for _ in range(60):
        console.step()
    assert console.ram().speed < fast  # B is not held any more


def test_power_on_starts_the_game_afresh(layout: RamLayout) -> None:
    console = Console(KART.rom(), layout)
    at_first, picture = console.ram(), console.screen
    console.load(KART.load_state("Level1"))
    console.step()
    assert console.ram() != at_first
    console.power_on()
    assert console.ram() == at_first
    assert np.array_equal(console.screen, picture)


def test_a_loaded_state_is_on_the_screen_after_the_next_frame() -> None:
    console = Console(KART.rom())
    picture = console.screen
    console.load(KART.load_state("Level1"))
    assert np.array_equal(console.screen, picture)
    console.step()
    assert not np.array_equal(console.screen, picture)


def test_a_state_that_the_emulator_refuses_is_named() -> None:
    console = Console(KART.rom())
    with pytest.raises(KartRewardsError, match=r"^state Broken: the emulator refuses it: it is damaged, or it is from"):
        console.load(b"#!s9xsnp:0011\n and no more", "state Broken")


def test_variables_can_be_set_later(layout: RamLayout) -> None:
    console = Console(KART.rom())
    assert console.ram() == ()
    console.set_layout(layout)
    assert console.ram()._fields == layout.names
    console.set_layout(RamLayout([SPEED]))
    assert console.ram() == (0,)
    console.power_on()
    assert console.ram() == (0,)
    with pytest.raises(KartRewardsError, match=r"'nowhere' at address 99999999 .* lies outside memory"):
        console.set_layout(RamLayout([OUTSIDE]))
    console.set_layout(None)
    assert console.ram() == ()


@pytest.mark.parametrize("variables", [[], [SPEED], [FRAME_COUNTER]])
def test_whether_the_game_runs_on(variables: list[Variable], tiny_rom_path: Path) -> None:
    console = Console(KART.rom(), RamLayout(variables))
    console.load(KART.load_state("Level1"))
    assert console.runs_on()
    del console
    assert not Console(tiny_rom_path, RamLayout(variables)).runs_on()


def test_a_rom_that_no_emulator_starts(tmp_path: Path) -> None:
    (tmp_path / "rom.sfc").write_bytes(b"")
    with pytest.raises(KartRewardsError, match=r"rom\.sfc: the emulator did not start"):
        Console(tmp_path / "rom.sfc")

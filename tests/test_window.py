"""The window: its picture pixel by pixel, real key events, a gamepad, and the errors without a display."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from xvfb import Display, virtual_display, wait_until

from kart_rewards.env import KartEnv
from kart_rewards.env.window import PANEL_COLUMNS, PANEL_LINES, Headings, Lit, Window, compose, key_help
from kart_rewards.errors import KartRewardsError

SCREEN = np.random.default_rng(1).integers(0, 256, (224, 256, 3), np.uint8)
LINE_HEIGHT = 24  # at scale 3
BACKGROUND = compose(SCREEN, [""])[-1, -1]


@pytest.fixture(scope="module")
def display(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Display]:
    with virtual_display(tmp_path_factory.mktemp("display")) as display:
        yield display


@pytest.fixture
def window(display: Display, monkeypatch: pytest.MonkeyPatch) -> Iterator[Window]:
    monkeypatch.setenv("DISPLAY", display.name)
    with Window("a test's window") as window:
        window.show(SCREEN, ["text"])
        yield window


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process without a display, unless ``environment`` names one."""
    without = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run([sys.executable, "-c", code], env=without | environment, capture_output=True, text=True)


def inked(picture: np.ndarray, line: int) -> np.ndarray:
    """The columns of the panel, at scale 3, in which a line of text has ink."""
    rows = picture[line * LINE_HEIGHT : (line + 1) * LINE_HEIGHT, 3 * SCREEN.shape[1] :]
    return np.flatnonzero((rows != BACKGROUND).any(axis=(0, 2)))


# ---------------------------------------------------------------------------------------------------------- its picture
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_the_games_picture_is_enlarged_pixel_by_pixel(scale: int) -> None:
    enlarged = SCREEN.repeat(scale, axis=0).repeat(scale, axis=1)
    assert np.array_equal(compose(SCREEN, [], scale), enlarged), "without lines there is nothing beside it"
    picture = compose(SCREEN, ["text"], scale)
    assert np.array_equal(picture[: 224 * scale, : 256 * scale], enlarged)
    assert picture.dtype == np.uint8
    assert picture.shape[0] >= PANEL_LINES * 16, "the text can be read at any scale"


@pytest.mark.parametrize("shape", [(223, 255, 3), (144, 160, 3), (448, 512, 3)])
def test_sizes_are_even_and_do_not_depend_on_the_text(shape: tuple[int, ...]) -> None:
    sizes = {compose(np.zeros(shape, np.uint8), lines, 1).shape for lines in ([""], ["x" * 200], ["x"] * 200)}
    assert len(sizes) == 1
    assert all(pixels % 2 == 0 for pixels in sizes.pop()[:2])
    assert all(pixels % 2 == 0 for pixels in compose(np.zeros(shape, np.uint8), [], 1).shape[:2])


def test_numbers_end_and_text_begins_in_columns() -> None:
    picture = compose(
        SCREEN, [f"{'wall':<12}{'-7.50':>12}", f"{'illicit':<12}{'1048.00':>12}", "a           B", "ii          R"]
    )
    ends = [inked(picture, line).max() for line in (0, 1)]
    assert abs(ends[0] - ends[1]) <= 1
    text = [inked(picture, line) for line in (2, 3)]
    starts = [columns[columns > 100].min() for columns in text]
    assert abs(starts[0] - starts[1]) <= 1


def test_headings_end_where_the_numbers_below_them_end() -> None:
    row, heading = f"{'wall':<12}{'-7.50':>12}", f"{'reward term':<12}{'paid':>12}"
    picture = compose(SCREEN, [row, Headings(heading), heading])
    ends = [inked(picture, line).max() for line in range(3)]
    assert abs(ends[0] - ends[1]) <= 1
    assert ends[0] - ends[2] > 4, "other text begins at its position"
    assert inked(picture, 1).min() <= inked(picture, 0).min() + 3, "the first heading begins where the names do"


def test_text_within_the_limits_is_not_cut_off() -> None:
    """The longest lines of digits, and the largest number of lines, do not touch the panel's edges."""
    line = "0" * PANEL_COLUMNS
    picture = compose(SCREEN, [line] * PANEL_LINES)
    for i in range(PANEL_LINES):
        assert inked(picture, i).min() >= LINE_HEIGHT - 1
        assert inked(picture, i).max() < picture.shape[1] - 3 * SCREEN.shape[1] - LINE_HEIGHT + 2
    assert np.array_equal(picture[-1], compose(SCREEN, [""])[-1])


def test_more_lines_than_fit_end_in_an_ellipsis() -> None:
    picture = compose(SCREEN, ["line"] * (PANEL_LINES + 1))
    assert np.array_equal(picture, compose(SCREEN, ["line"] * (PANEL_LINES - 1) + ["…"]))


def test_a_lit_line_has_another_colour() -> None:
    plain, lit = compose(SCREEN, ["paid", "paid"]), compose(SCREEN, ["paid", Lit("paid")])
    assert np.array_equal(plain[:LINE_HEIGHT], lit[:LINE_HEIGHT])
    assert np.array_equal(inked(plain, 1), inked(lit, 1))
    panel = lit[LINE_HEIGHT : 2 * LINE_HEIGHT, 3 * SCREEN.shape[1] :].astype(int)
    assert (panel[..., 0] - panel[..., 2]).max() > 100, "yellow"


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_a_picture_stands_to_the_right_of_the_text_in_full_height(scale: int) -> None:
    screen = np.full((224, 255, 3), 90, np.uint8)
    aside = np.zeros((672, 336, 3), np.uint8)
    aside[:, :168], aside[:, 168:] = (255, 0, 0), (0, 0, 255)
    long = ["x" * 200] * 4
    without, beside = compose(screen, long, scale), compose(screen, long, scale, aside=aside)
    height, width = without.shape[:2]
    assert beside.shape[0] == height and beside.shape[1] % 2 == 0
    assert beside.shape[1] - width == pytest.approx(height / 2, abs=2)
    assert (beside[:, : width - 2] == without[:, : width - 2]).all(), "the text ends before the picture"
    quarter = height // 4
    for x, colour in ((width + quarter // 2, (255, 0, 0)), (width + quarter + quarter // 2, (0, 0, 255))):
        assert (beside[:, x] == colour).all()


def test_compose_needs_no_display_and_prints_nothing() -> None:
    code = (
        "import sys, numpy as np, kart_rewards.env.window as window\n"
        "assert 'pygame' not in sys.modules, 'training must not load it'\n"
        "assert window.compose(np.zeros((224, 256, 3), np.uint8), ['text']).any()"
    )
    result = run(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# --------------------------------------------------------------------------------------------------------- on a display
def test_it_shows_the_picture_of_compose(window: Window, display: Display) -> None:
    lines = ["speed  812", Lit("checkpoint  +300")]
    window.show(SCREEN, lines)
    expected = compose(SCREEN, lines)
    wait_until(lambda: np.array_equal(display.picture(), expected), "the window shows it")


def test_a_console_may_change_its_resolution(window: Window, display: Display) -> None:
    window.show(SCREEN[:, :100], ["text"])
    wait_until(
        lambda: np.array_equal(display.picture(), compose(SCREEN[:, :100], ["text"])), "the window has the new size"
    )


def test_it_is_scaled_to_fit_the_display(window: Window, display: Display) -> None:
    """The display is 1500 x 760 pixels: at scale 4 the window would be 1662 x 896."""
    window.close()
    with Window("large", scale=4) as large:
        large.show(SCREEN, ["text"])
        wait_until(lambda: np.array_equal(display.picture(), compose(SCREEN, ["text"], 3)), "it is shown at scale 3")


def test_a_small_picture_is_large_again_after_one_in_high_resolution(window: Window, display: Display) -> None:
    window.show(np.repeat(np.repeat(SCREEN, 2, axis=0), 2, axis=1), ["text"])
    window.show(SCREEN, ["text"])
    wait_until(lambda: np.array_equal(display.picture(), compose(SCREEN, ["text"], 3)), "it is shown at scale 3")


def test_keys_are_reported(window: Window, display: Display) -> None:
    seen: list[str] = []

    def reported(held: set[str]) -> bool:
        window.show(SCREEN, ["text"])
        seen.extend(window.pressed)
        return window.held == held

    display.xdotool("keydown", "z", "keydown", "Left")
    wait_until(lambda: reported({"z", "left"}), "both are held")
    assert window.buttons("Snes") == {"B", "LEFT"}
    assert window.buttons("Genesis") == {"A", "LEFT"}
    display.xdotool("keyup", "Left", "key", "F5", "key", "Return")
    wait_until(lambda: reported({"z"}) and len(seen) == 4, "the others are up")
    assert seen == ["z", "left", "f5", "return"]
    display.xdotool("keyup", "z")
    wait_until(lambda: reported(set()), "none is held")
    assert window.buttons("Snes") == frozenset()


def test_a_key_pressed_and_released_between_two_frames_counts(window: Window, display: Display) -> None:
    display.xdotool("key", "x")
    buttons: list[frozenset[str]] = []

    def shown() -> bool:
        window.show(SCREEN, ["text"])
        buttons.append(window.buttons("Snes"))
        return any(buttons) and not buttons[-1]

    wait_until(shown, "the key is released")
    assert buttons.count(frozenset({"A"})) >= 1


@pytest.mark.parametrize("how", ["Escape", "close button"])
def test_escape_and_the_close_button_close_it(window: Window, display: Display, how: str) -> None:
    if how == "Escape":
        display.xdotool("key", "Escape")
    else:
        display.press_close_button()

    def closed() -> bool:
        window.show(SCREEN, ["text"])
        return window.closed

    wait_until(closed, "it is closed")
    wait_until(display.is_dark, "it has disappeared")
    window.show(SCREEN, ["text"])
    assert display.is_dark(), "a closed window stays closed"
    with Window("the next one") as another:
        another.show(SCREEN, ["text"])
        assert not another.closed
        wait_until(lambda: not display.is_dark(), "the next one is open")


def test_a_gamepad_is_read(window: Window) -> None:
    """SDL's virtual gamepad. It is connected and disconnected while the window is open."""

    def shown() -> bool:
        window.show(SCREEN, ["text"])
        return True

    [library] = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libSDL2-2" in line}
    sdl = ctypes.CDLL(library)
    sdl.SDL_JoystickOpen.restype = ctypes.c_void_p
    is_gamepad, axes, buttons, hats = 1, 6, 15, 0
    index = sdl.SDL_JoystickAttachVirtual(is_gamepad, axes, buttons, hats)
    assert index >= 0
    pad = ctypes.c_void_p(sdl.SDL_JoystickOpen(index))
    try:
        south, east, left_x, left_y = 0, 1, 0, 1
        wait_until(lambda: shown() and window._pads, "the pad is found")
        assert window.buttons("Snes") == frozenset()
        sdl.SDL_JoystickSetVirtualButton(pad, south, 1)
        wait_until(lambda: shown() and window.buttons("Snes") == {"B"}, "B")
        assert window.buttons("Atari2600") == {"BUTTON"}
        sdl.SDL_JoystickSetVirtualButton(pad, south, 0)
        sdl.SDL_JoystickSetVirtualButton(pad, east, 1)
        sdl.SDL_JoystickSetVirtualAxis(pad, left_x, ctypes.c_int16(-30000))
        sdl.SDL_JoystickSetVirtualAxis(pad, left_y, ctypes.c_int16(5000))
        wait_until(lambda: shown() and window.buttons("Snes") == {"A", "LEFT"}, "A and left")
    finally:
        sdl.SDL_JoystickDetachVirtual(index)
    wait_until(lambda: shown() and not window._pads, "the pad is disconnected")
    assert window.buttons("Snes") == frozenset()


def test_the_environment_shows_its_game_in_it(display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", display.name)
    env = KartEnv("HomebrewKart-Snes", action_mode="driving", render_mode="human")
    try:
        env.reset(seed=1)
        env.step(0)
        wait_until(lambda: np.array_equal(display.picture(), compose(env.em.get_screen())), "the game is shown")
        display.xdotool("key", "Escape")
        wait_until(lambda: env.step(0) and display.is_dark(), "the window is closed")
        env.step(0)
    finally:
        env.close()


def test_sigterm_ends_a_program_that_has_a_window(display: Display) -> None:
    code = (
        "import os, signal, time, numpy as np, kart_rewards.env.window as window\n"
        "window.Window('x').show(np.zeros((224, 256, 3), np.uint8))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(60)"
    )
    assert run(code, DISPLAY=display.name).returncode == -15


# --------------------------------------------------------------------------------------------------------- without one
# openai/gym#2936: on a server without a screen, rendering raises pygame's own error.
@pytest.mark.parametrize(("where", "reason"), [("", "neither DISPLAY nor"), (":4242", "DISPLAY is :4242")])
def test_a_missing_display_is_reported(where: str, reason: str) -> None:
    result = run("import kart_rewards.env.window as window\nwindow.Window('x')", DISPLAY=where)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("kart_rewards.errors.KartRewardsError: a window needs a display, and there is none")
    assert reason in last


def test_a_scale_out_of_range_is_reported() -> None:
    with pytest.raises(KartRewardsError, match="scale of a window must be between 1 and 16, not 0"):
        Window("x", scale=0)


def test_key_help_names_each_key() -> None:
    assert key_help("Snes")[:4] == ["z       B", "a       Y", "tab     SELECT", "return  START"]
    assert len(key_help("Snes")) == 12
    assert len(key_help("Nes")) == 8, "one entry of its list of buttons is empty"

"""A window with a game's picture and lines of text beside it.

* ``Window`` - shows pictures at the console's frame rate, and reads the keyboard and gamepads
* ``compose`` - returns the window's picture as an array, for videos; needs no display
* ``Lit``, ``Headings`` - a highlighted line of text; a line of headings of columns
* ``PANEL_COLUMNS``, ``PANEL_LINES``, ``LARGEST_SCALE`` - limits
* ``key_help`` - returns the keys of a console's buttons

pygame is imported when it is first needed. Training loads it only for videos of evaluations.

Example:
    >>> screen = np.zeros((224, 256, 3), np.uint8)
    >>> compose(screen, ["speed  812", Lit("checkpoint  +300")]).shape
    (672, 1256, 3)
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import stable_retro

from kart_rewards.env.core import buttons_of
from kart_rewards.errors import KartRewardsError

PANEL_COLUMNS = 40
"""Number of characters per line that fit if each is as wide as a digit. The panel's edge cuts off longer lines."""
PANEL_LINES = 28
"""Number of lines that fit beside every picture."""

_SMALLEST_LINE_HEIGHT = 16  # pixels; a smaller font is hard to read
LARGEST_SCALE = 16
"""Largest ``scale`` of ``Window``."""
_BACKGROUND, _TEXT, _LIT = (18, 20, 28), (205, 210, 220), (255, 214, 64)
_NUMBER = re.compile(r"[-+]?[\d.,:]+")

_KEY_NAMES = {"ENTER": "return"}  # stable-retro's name of a key -> pygame's, if it differs from it in lower case

# SDL's names of a gamepad's buttons, in the order of stable-retro's lists of buttons. That order is libretro's, which
# names the position of a button on the pad, not its label.
_PAD_BUTTONS = (
    *("A", "X", "BACK", "START", "DPAD_UP", "DPAD_DOWN", "DPAD_LEFT", "DPAD_RIGHT"),
    *("B", "Y", "LEFTSHOULDER", "RIGHTSHOULDER"),
)
_STICK_TILTED = 0.5 * 32767  # the left stick acts as the D-pad if it is tilted further than this


class Lit(str):
    """A line of text that is highlighted: it is drawn in another colour."""


class Headings(str):
    """A line of headings. The first begins at its position; the others end at theirs, as the numbers below them do."""


def _pygame() -> Any:
    # Otherwise SDL turns SIGTERM into an event, which this program may never read.
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")
    import pygame

    return pygame


class Window:
    """A window with the game's picture and lines of text beside it. A process can have one window at a time.

    Args:
        title: Text of the title bar.
        scale: Width and height, in pixels of the window, of a pixel of the game. Smaller if the window would not fit
            the display.
        instead: What the user can do without a display, for the error message.

    Attributes:
        pressed: Names of the keys pressed since the previous ``show``, in order: ``left``, ``f5``, ``return``.
        held: Names of the keys that are down.
        closed: Whether the window was closed, by its close button, by Escape or by ``close``.

    Raises:
        KartRewardsError: There is no display, or the scale is out of its range.
    """

    def __init__(self, title: str, scale: int = 3, instead: str = "") -> None:
        if not 1 <= scale <= LARGEST_SCALE:
            raise KartRewardsError(f"the scale of a window must be between 1 and {LARGEST_SCALE}, not {scale}")
        self.pressed: list[str] = []
        self.held: frozenset[str] = frozenset()
        self.closed = False
        self._scale = self._chosen_scale = scale
        self._due = 0.0
        self._pads: list[Any] = []
        try:
            _open_display()
        except KartRewardsError as error:
            raise KartRewardsError(f"{error}{f'. {instead}' if instead else ''}") from None
        pygame = _pygame()
        from pygame._sdl2 import controller  # unlike pygame.joystick, it knows the positions of a pad's buttons

        self._controllers = controller
        controller.init()
        pygame.display.set_caption(title)

    def show(
        self,
        screen: np.ndarray,
        lines: Sequence[str] = (),
        frames_per_second: float | None = None,
        aside: np.ndarray | None = None,
    ) -> None:
        """Shows the picture that ``compose`` returns, waits until the next frame is due, and reads the events.

        A closed window ignores the call.

        Args:
            screen: The game's picture, uint8 (height, width, 3).
            lines: The text.
            frames_per_second: Frame rate. None: do not wait.
            aside: A picture to the right of the text; see ``compose``.

        Raises:
            KartRewardsError: The window can't be opened.
        """
        if self.closed:
            return
        pygame = _pygame()
        picture = compose(screen, lines, self._scale, aside=aside)
        surface = pygame.display.get_surface()
        if surface is None or surface.get_size() != picture.shape[1::-1]:
            largest = pygame.display.get_desktop_sizes()[0]
            if self._scale < self._chosen_scale:  # the picture before was larger
                self._scale = self._chosen_scale
                picture = compose(screen, lines, self._scale, aside=aside)
            while self._scale > 1 and (picture.shape[1] > largest[0] or picture.shape[0] > largest[1]):
                self._scale -= 1
                picture = compose(screen, lines, self._scale, aside=aside)
        size = picture.shape[1::-1]
        if surface is None or surface.get_size() != size:
            try:
                surface = pygame.display.set_mode(size)
            except pygame.error as error:
                raise KartRewardsError(f"the window can't be opened: {error}") from None
        surface.blit(pygame.image.frombuffer(picture, size, "RGB"), (0, 0))
        pygame.display.flip()
        if frames_per_second:
            now = time.perf_counter()
            self._due = max(self._due + 1 / frames_per_second, now)  # after a late frame, later frames are not hurried
            time.sleep(self._due - now)
        self._take_events(pygame)

    def _take_events(self, pygame: Any) -> None:
        self.pressed = []
        held = set(self.held)
        for event in pygame.event.get():
            if event.type == pygame.KEYDOWN:
                self.pressed.append(pygame.key.name(event.key))
                held.add(self.pressed[-1])
            elif event.type == pygame.KEYUP:
                held.discard(pygame.key.name(event.key))
            elif event.type in (pygame.CONTROLLERDEVICEADDED, pygame.CONTROLLERDEVICEREMOVED):
                count = self._controllers.get_count()
                known = [index for index in range(count) if self._controllers.is_controller(index)]
                self._pads = [self._controllers.Controller(index) for index in known]
            elif event.type == pygame.QUIT:
                self.closed = True
        self.held = frozenset(held)
        if self.closed or "escape" in self.pressed:
            self.close()

    def buttons(self, system: str) -> frozenset[str]:
        """Returns the console's buttons that are down, or were pressed since the previous ``show``.

        The keys are stable-retro's key bindings of the console. All connected gamepads are read, too.

        Args:
            system: stable-retro's name of the console, such as ``Snes``.
        """
        down = self.held | set(self.pressed)
        by_key = {button for key, button in _bindings(system) if key in down}
        names = buttons_of(system)
        on_pad = zip(names, _PAD_BUTTONS, strict=False)  # a console may have fewer or more buttons than a pad
        return frozenset(by_key | {name for name, of_pad in on_pad if name and self._pad_holds(of_pad)})

    def _pad_holds(self, name: str) -> bool:
        pygame = _pygame()
        axis, _, direction = name.partition("_")
        for pad in self._pads:
            if pad.get_button(getattr(pygame, f"CONTROLLER_BUTTON_{name}")):
                return True
            if axis == "DPAD":
                stick = pygame.CONTROLLER_AXIS_LEFTX if direction in ("LEFT", "RIGHT") else pygame.CONTROLLER_AXIS_LEFTY
                tilt = pad.get_axis(stick)
                if (tilt if direction in ("RIGHT", "DOWN") else -tilt) > _STICK_TILTED:
                    return True
        return False

    def close(self) -> None:
        """Closes the window."""
        pygame = _pygame()
        self.closed = True
        self._pads = []
        self._controllers.quit()
        pygame.display.quit()

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_display() -> None:
    """Starts SDL's video output. Without a display, SDL would draw invisibly or use a text console; this raises.

    On X11, the picture goes to the X server as it is. By default, SDL would copy it with OpenGL. Without a GPU, a
    driver with threads of its own would draw it. That takes processor time, and the program waits for them at its end.
    """
    pygame = _pygame()
    os.environ.setdefault("SDL_FRAMEBUFFER_ACCELERATION", "0")  # other systems ignore it
    message = "a window needs a display, and there is none"
    chosen = os.environ.get("SDL_VIDEODRIVER")
    if sys.platform == "linux" and not chosen:
        servers = {"x11": "DISPLAY", "wayland": "WAYLAND_DISPLAY"}
        drivers = [driver for driver, name in servers.items() if os.environ.get(name)]
        if not drivers:
            raise KartRewardsError(f"{message}: neither DISPLAY nor WAYLAND_DISPLAY is set")
        os.environ["SDL_VIDEODRIVER"] = ",".join(drivers)
    try:
        pygame.display.init()
    except pygame.error as error:
        where = f" (DISPLAY is {os.environ['DISPLAY']})" if os.environ.get("DISPLAY") else ""
        raise KartRewardsError(f"{message}: {error}{where}") from None
    finally:
        if chosen is None:
            os.environ.pop("SDL_VIDEODRIVER", None)


def compose(
    screen: np.ndarray,
    lines: Sequence[str] = (),
    scale: int = 3,
    panel_lines: int = PANEL_LINES,
    aside: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the game's picture, enlarged, with lines of text to its right.

    The size depends only on the size of the game's picture, on the scale, on whether there are lines, on
    ``panel_lines``, and on the proportions of ``aside``. Height and width are even, because video encoders require it.
    Two or more spaces separate columns: in a column, numbers end and other text begins at the same position as in a
    monospaced font.

    Args:
        screen: The game's picture, uint8 (height, width, 3).
        lines: The text: ``panel_lines`` lines of ``PANEL_COLUMNS`` characters; more lines fit beside a tall picture.
            ``Lit`` lines are highlighted, and ``Headings`` end where numbers do. Without lines there is no panel.
        scale: Width and height, in pixels of the result, of a pixel of the game.
        panel_lines: Number of lines that the picture has room for, at least.
        aside: A picture to the right of the text, uint8 (height, width, 3). It is resized to the height of the result.

    Returns:
        uint8 (height, width, 3).
    """
    line_height = max(8 * scale, _SMALLEST_LINE_HEIGHT)
    height, width = screen.shape[0] * scale, screen.shape[1] * scale
    text_width, text_height = _font(line_height).size("0" * PANEL_COLUMNS)
    column = text_width / PANEL_COLUMNS
    panel_width, panel_height = (text_width + 2 * line_height, panel_lines * line_height) if lines else (0, 0)
    text_end, canvas_height = width + panel_width, max(height, panel_height)
    canvas_height += canvas_height % 2
    aside_width = 0 if aside is None else round(aside.shape[1] / aside.shape[0] * canvas_height)
    canvas = np.empty((canvas_height, (text_end + aside_width + 1) // 2 * 2, 3), np.uint8)
    canvas[:] = np.full_like(canvas[0], _BACKGROUND)  # by rows; assigning single pixels takes ten times as long
    canvas[:height, :width] = cv2.resize(screen, (width, height), interpolation=cv2.INTER_NEAREST)
    if aside is not None:
        size = aside_width, canvas_height
        fits = aside.shape[1::-1] == size
        canvas[:, text_end:][:, :aside_width] = aside if fits else cv2.resize(aside, size, interpolation=cv2.INTER_AREA)
    panel = canvas[:, width + line_height : text_end]
    fitting = canvas_height // line_height
    for i, line in enumerate(lines if len(lines) <= fitting else [*lines[: fitting - 1], "…"]):
        end = 0
        for match in re.finditer(r"\S+(?: \S+)*", line):
            phrase = _phrase(match[0], line_height, _LIT if isinstance(line, Lit) else _TEXT)
            at = round(match.start() * column)
            if _NUMBER.fullmatch(match[0]) or (isinstance(line, Headings) and match.start()):
                at = round(match.end() * column) - phrase.shape[1]
            at = max(at, end)
            top = i * line_height + (line_height - text_height) // 2
            place = panel[top : top + phrase.shape[0], at : at + phrase.shape[1]]
            place[:] = phrase[:, : place.shape[1]]
            end = at + phrase.shape[1] + round(column / 2)
    return canvas


@functools.cache
def _font(line_height: int) -> Any:
    pygame = _pygame()
    pygame.font.init()
    # pygame's own font, so that videos look the same on all machines. Its height is about 0.7 of the requested size.
    return pygame.font.Font(None, round(1.125 * line_height))


@functools.lru_cache(maxsize=1024)  # some kilobytes each; most text is the same in the next frame
def _phrase(text: str, line_height: int, colour: tuple[int, int, int]) -> np.ndarray:
    pygame = _pygame()
    surface = _font(line_height).render(text, True, colour, _BACKGROUND)
    return pygame.surfarray.array3d(surface).swapaxes(0, 1)


def _bindings(system: str) -> list[tuple[str, str]]:
    """Returns pairs of key and button, in the order of the console's buttons. Keys have pygame's names."""
    info = stable_retro.get_system_info(system)
    return [
        (_KEY_NAMES.get(key, key.lower()), button)
        for key, button in zip(info["keybinds"], info["buttons"], strict=True)
        if key and button
    ]


def key_help(system: str) -> list[str]:
    """Returns a line for each key of a console, with the key and its button: ``z  B``.

    Args:
        system: stable-retro's name of the console, such as ``Snes``.
    """
    bindings = _bindings(system)
    width = max(len(key) for key, _ in bindings)
    return [f"{key:<{width}}  {button}" for key, button in bindings]

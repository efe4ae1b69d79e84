"""The window in which a person plays a game and keeps start states.

* ``StateWindow`` - plays a session in a window: its keys keep, save, load and rewind
* ``Rewind`` - the moments to rewind to, in bounded memory
"""

from __future__ import annotations

import itertools
import textwrap
from collections import deque
from collections.abc import Callable

from kart_rewards.env.window import PANEL_COLUMNS, Lit, Window, key_help
from kart_rewards.errors import KartRewardsError
from kart_rewards.games.condition import Condition
from kart_rewards.games.session import Moment, Session

_FRAMES_PER_MOMENT = 4  # between the points that a rewind stops at
_REWIND_BYTES = 64 * 2**20  # about three minutes of a SNES
_FAST = 8  # times the console's own speed
_KEYS = [
    "f5   keep the state",
    "1-9  choose a slot",
    "f2   save the slot",
    "f3   load the slot",
    "p    pause, play",
    "n    next frame",
    "f    fast (hold)",
    "backspace  rewind (hold)",
    "f9   start again",
    "esc  close",
]
_ARROWS = frozenset(["up", "down", "left", "right"])
_SLOTS = frozenset("123456789")


class Rewind:
    """Moments to go back to, the latest first. The oldest are deleted when they take too much memory.

    Args:
        max_bytes: Maximum size of all snapshots together.
    """

    def __init__(self, max_bytes: int = _REWIND_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._moments: deque[Moment] = deque()

    def push(self, moment: Moment) -> None:
        """Adds a moment."""
        self._moments.append(moment)
        self._bytes += len(moment.snapshot)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._moments.popleft().snapshot)

    def pop(self) -> Moment | None:
        """Removes and returns the latest moment; None if there is none."""
        if not self._moments:
            return None
        self._bytes -= len(self._moments[-1].snapshot)
        return self._moments.pop()


class StateWindow:
    """A person plays a session in a window, and keeps states.

    Args:
        session: The session.
        window: The window.
        message: The first message in the panel.
        keep: Keeps the current state. If it raises KartRewardsError, the panel shows the message.
        pause_at: Pauses the game on the first frame after which this condition holds. None: it does not pause.
    """

    def __init__(
        self,
        session: Session,
        window: Window,
        message: str,
        keep: Callable[[], None],
        pause_at: Condition | None = None,
    ) -> None:
        self._session, self._window, self._message, self._keep = session, window, message, keep
        self._pause_at = pause_at
        self._rewind = Rewind()
        self._slots: dict[str, Moment] = {}
        self._slot = "1"
        self._paused = False
        game_keys = [line for line in key_help(session.console.name) if line.split()[0] not in _ARROWS]
        rows = itertools.zip_longest(_KEYS, ["arrows  the D-pad", *game_keys], fillvalue="")
        self._help = [f"{own:<26}{of_game}" for own, of_game in rows]

    def play(self) -> None:
        """Plays until the window is closed."""
        session, window = self._session, self._window
        while not window.closed:
            window.show(session.console.screen, self._lines(), session.console.frames_per_second)
            for key in window.pressed:
                self._take(key)
            if "backspace" in (*window.held, *window.pressed):
                moment = self._rewind.pop()
                if moment:
                    session.go_to(moment)
            else:
                for _ in range(_FAST if "f" in window.held else 1):
                    if not self._paused:
                        self._step()

    def _lines(self) -> list[str]:
        """The text of the panel."""
        status = f"{'paused' if self._paused else 'playing'}, frame {len(self._session.pressed)}"
        slot = f"slot {self._slot} {'saved' if self._slot in self._slots else 'empty'}"
        message = map(Lit, textwrap.wrap(self._message, PANEL_COLUMNS))
        return [f"{status:<26}{slot}", *message, *self._help, *self._session.table()]

    def _take(self, key: str) -> None:
        """Does what a key stands for."""
        match key:
            case "f5":
                try:
                    self._keep()
                    self._message = "kept; loaded again and checked"
                except KartRewardsError as error:
                    self._message = str(error)
            case "f2":
                self._slots[self._slot] = self._session.moment()
                self._message = f"slot {self._slot} saved"
            case "f3" if self._slot in self._slots:
                self._jump(self._slots[self._slot], f"slot {self._slot} loaded")
            case "f3":
                self._message = f"slot {self._slot} is empty: f2 saves it"
            case "f9":
                self._jump(self._session.beginning, f"back at {self._session.origin}")
            case "p":
                self._paused = not self._paused
            case "n":
                self._paused = True
                self._step()
            case _ if key in _SLOTS:
                self._slot = key

    def _jump(self, moment: Moment, message: str) -> None:
        self._rewind.push(self._session.moment())  # so that a rewind undoes the jump
        self._session.go_to(moment)
        self._message = message

    def _step(self) -> None:
        """Runs one frame with the buttons that the person holds."""
        session, condition = self._session, self._pause_at
        if len(session.pressed) % _FRAMES_PER_MOMENT == 0:
            self._rewind.push(session.moment())
        held_before = condition and condition(session.console.ram())
        session.step(self._window.buttons(session.console.name))
        if condition and condition(session.console.ram()) and not held_before:
            self._paused, self._message = True, f"paused: {condition.text}"

"""Drive yourself, and see what each reward term pays as you do.

* ``play`` - a game in a window, on the keyboard or a gamepad, with the terms at its side; every episode is recorded
* ``Episode`` - one drive: its frames, what they paid, and its recording

A recording is two files: ``NAME.csv.gz``, the RAM frame by frame, which ``kart_rewards.testing.load_trace`` reads, and
``NAME.bk2``, what was pressed, which stable-retro plays back.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import stable_retro

from kart_rewards.env import KartEnv
from kart_rewards.env.window import Lit, Window, key_help
from kart_rewards.errors import KartRewardsError
from kart_rewards.look.panel import Panel, fitting
from kart_rewards.testing import save_trace

_TRACE, _MOVIE = ".csv.gz", ".bk2"


def play(game: str, output: Path, scale: int, **options: Any) -> None:
    """Lets a person play a game until they close its window. Recordings are complete however the program ends.

    Args:
        game: The game's folder name.
        output: Folder for the recordings.
        scale: Pixels of the window, in each direction, for one of the game's.
        options: ``KartEnv``'s: integrations, state, scenario, rewards, reward_weights.

    Raises:
        KartRewardsError: Something about the game or the options is wrong, there is no display, or a recording can't be
            written.
    """
    with (
        _noting_signals() as signals,
        closing(KartEnv(game, action_mode="all", frame_skip=1, **options)) as env,
        Window(game, scale) as window,
    ):
        while not (window.closed or signals):
            episode = Episode(env, output)
            try:
                episode.run(window, signals)
            finally:
                episode.save()


@contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """A list that takes in Ctrl-C and the signals that ask a program to end, so that none comes amid the saving."""
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Episode:
    """One drive, from the start state until its recording is saved.

    Args:
        env: The game, with ``action_mode="all"`` and ``frame_skip=1``.
        folder: Where the recording will go; made if it is not there.

    Raises:
        KartRewardsError: Nothing can be written there.
    """

    def __init__(self, env: KartEnv, folder: Path) -> None:
        self._env = env
        self._system = stable_retro.get_romfile_system(str(env.game.rom()))
        _, self._info = env.reset()
        self._state = self._info["state"]
        self._panel = Panel(env, self._info)
        self._trace = [env.ram]
        self._held: list[list[bool]] = []
        self._folder = folder
        self._name, self._unfinished = _new_recording(folder, f"{env.game.name}-{Path(self._state).stem}")

    def run(self, window: Window, signals: Sequence[int]) -> None:
        """Plays until R or Escape is pressed, the window is closed, or a signal is caught."""
        while True:
            window.show(self._env.em.get_screen(), self.lines(), self._env.frames_per_second)
            if window.closed or signals or "r" in window.pressed:
                return
            if not self._panel.done_rule:
                self.step(window.buttons(self._system))

    def step(self, held: frozenset[str]) -> None:
        """Plays one frame.

        Args:
            held: Names of the console's buttons that are down.
        """
        self._held.append([name in held for name in self._env.buttons])
        try:
            *_, self._info = self._env.step(self._held[-1])
        finally:
            self._trace.append(self._env.ram)  # also of a frame on which a term failed: the recording shows it again
        self._panel.step(self._info)

    def lines(self) -> list[str]:
        """Returns the text beside the picture. With a dozen terms or more its last lines do not fit there."""
        keys = key_help(self._system)
        in_pairs = [f"{left:<20}{right}" for left, right in itertools.zip_longest(keys[::2], keys[1::2], fillvalue="")]
        again = f"{'R':<8}{'again':<12}{'Escape':<8}end"
        return fitting(
            [
                [f"recording {self._name}"],
                *self._panel.blocks(),
                [Lit(again) if self._panel.done_rule else again, *in_pairs],
            ]
        )

    def save(self) -> None:
        """Writes the recording, unless there is nothing in it.

        Raises:
            KartRewardsError: It can't be written.
        """
        files = ((_TRACE, self._save_trace), (_MOVIE, self._save_movie)) if self._held else ()
        try:
            for suffix, write in files:
                written = self._unfinished / f"{self._name}{suffix}"
                write(written)
                written.rename(self._folder / written.name)
        except OSError as error:
            raise KartRewardsError(f"{self._folder}: the recording can't be written: {error.strerror}") from None
        finally:
            shutil.rmtree(self._unfinished, ignore_errors=True)
        if self._held:
            total = sum(self._info["episode_rewards"]["sum"].values())
            print(f"{self._folder / self._name}{_TRACE}, {_MOVIE}: {len(self._held)} frames, reward {total:.2f}")

    def _save_trace(self, path: Path) -> None:
        save_trace(path, self._trace)

    def _save_movie(self, path: Path) -> None:
        env = self._env
        movie = stable_retro.Movie(str(path), True, 1)
        movie.configure(env.game.name, env.em)
        movie.set_state(env.game.load_state(self._state))
        movie.step()  # the frame that a reset plays, with nothing pressed
        for held in self._held:
            for button, down in enumerate(held):
                movie.set_key(button, down, 0)
            movie.step()
        movie.close()
        try:
            with zipfile.ZipFile(path) as written:  # stable-retro says nothing of a write that fails
                damaged = written.testzip()
        except (OSError, zipfile.BadZipFile):
            damaged = path.name
        if damaged:
            raise KartRewardsError(f"{self._folder / path.name}: can't be written: is the disk full?")


def _new_recording(folder: Path, name: str) -> tuple[str, Path]:
    """Finds the next free number of a recording, and makes a folder to write it in, which nobody else has then.

    Returns:
        The recording's name and that folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            numbered = f"{name}-{number}"
            unfinished = folder / f".{numbered}.partial"
            try:
                unfinished.mkdir()
            except FileExistsError:
                continue  # another game of the same name is being played, or one was killed
            if not any((folder / f"{numbered}{suffix}").exists() for suffix in (_TRACE, _MOVIE)):
                return numbered, unfinished
            unfinished.rmdir()
        raise AssertionError("numbers do not end")
    except OSError as error:
        raise KartRewardsError(f"{folder}: recordings can't be written there: {error.strerror}") from None

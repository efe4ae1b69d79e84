"""Driving by hand, with the payments of each reward term beside the game.

* ``command`` - the command line: a game in a window, played with the keyboard or a gamepad; each episode is recorded
* ``Recording`` - one episode: its frames, their rewards, and its files

A recording has two files. ``NAME.drive`` is a ``kart_rewards.drives.Drive``; ``load_trace`` of
``kart_rewards.testing`` reads it.
``NAME.bk2`` has the buttons of each frame; stable-retro plays it back.
"""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import tyro

from kart_rewards.drives import SUFFIX
from kart_rewards.env import KartEnv
from kart_rewards.env.core import console_of
from kart_rewards.env.movie import save_movie
from kart_rewards.env.panel import Panel, fitting
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.env.window import Lit, Window, key_help
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.files import UnwritableError
from kart_rewards.integrations import state_labels
from kart_rewards.rewards import parse_weights
from kart_rewards.training.options import GamesFolder, Names

_MOVIE = ".bk2"


def command(
    game: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[GAME]")] = "HomebrewKart-Snes",
    /,
    state: str | None = None,
    scenario: str = "scenario",
    rewards: Names = (),
    reward_weights: Names = (),
    integrations_path: GamesFolder = None,
    output: Path = Path("recordings"),
    scale: int = 3,
) -> None:
    """Opens a window in which you drive, and shows the payments of each reward term. Each episode is recorded.

    Args:
        game: Name of the game's folder.
        state: Start state: a name in the game's folder, or a .state file. By default the one in metadata.json.
        scenario: Reward terms and done rules: the name of a file in the game's folder, or a .json path.
        rewards: Python files or modules with reward terms and done rules to add.
        reward_weights: Weights that override the scenario's, as NAME=NUMBER: --reward-weights wall=-5 top_speed=0.02.
        output: Folder for the recordings. Each episode has two files: NAME.drive for score and lab, NAME.bk2 for
            stable-retro.
        scale: Width and height, in pixels of the window, of a pixel of the game. Smaller if the window would not fit
            the display.
    """
    options: dict[str, Any] = {
        "integrations": integrations_path,
        "state": state or (),
        "scenario": scenario,
        "rewards": rewards,
        "reward_weights": parse_weights(reward_weights),
    }
    with (
        _caught_signals() as signals,
        closing(KartEnv(game, action_mode="all", frame_skip=1, **options)) as env,
        Window(game, scale) as window,
    ):
        while not (window.closed or signals):
            recording = Recording(env, output)
            try:
                recording.run(window, signals)
            finally:
                recording.save()


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and the signals that ask a program to end, so that none interrupts the saving of a recording."""
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


class Recording:
    """One episode, from the start state until its files are saved.

    Args:
        env: The game, with ``action_mode="all"`` and ``frame_skip=1``.
        folder: Folder for the files. A missing folder is created.

    Raises:
        KartRewardsError: The folder can't be written to.
    """

    def __init__(self, env: KartEnv, folder: Path) -> None:
        self._env = env
        self._system = console_of(env.game.rom())
        self._recorder = env.recorder = DriveRecorder("player")
        _, self._info = env.reset()
        self._state = self._info["state"]
        self._panel = Panel(env, self._info)
        self._held: list[list[bool]] = []
        self._folder = folder
        label = state_labels([self._state])[self._state]
        self._name, self._unfinished = _new_recording(folder, f"{env.game.name}-{label}")

    def run(self, window: Window, signals: Sequence[int]) -> None:
        """Plays until R or Escape is pressed, the window is closed, or a signal is in ``signals``."""
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
        *_, self._info = self._env.step(self._held[-1])
        self._panel.step(self._info)

    def lines(self) -> list[str]:
        """Returns the text beside the picture. With twelve or more reward terms its last lines do not fit."""
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
        """Writes the files, unless no frame was played.

        Raises:
            KartRewardsError: A file can't be written.
        """
        try:
            if self._held:
                drive = self._recorder.drive(self._env)
                files = [self._unfinished / f"{self._name}{suffix}" for suffix in (SUFFIX, _MOVIE)]
                drive.save(files[0])
                save_movie(drive, files[1], self._env.em)
                for file in files:
                    file.rename(self._folder / file.name)
        except (OSError, UnwritableError) as error:
            raise KartRewardsError(f"{self._folder}: the recording can't be written: {error.strerror}") from None
        finally:
            shutil.rmtree(self._unfinished, ignore_errors=True)
        if self._held:
            total = sum(self._info["episode_rewards"]["sum"].values())
            frames = counted(len(self._held), "frame")
            print(f"{self._folder / self._name}{SUFFIX}, {_MOVIE}: {frames}, reward {total:.2f}")


def _new_recording(folder: Path, name: str) -> tuple[str, Path]:
    """Finds the next free number of a recording, and creates a folder for its unfinished files.

    The folder also reserves the number: a second program that records the same game takes the next one.

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
                continue  # another program is recording under this name, or one was killed
            if not any((folder / f"{numbered}{suffix}").exists() for suffix in (SUFFIX, _MOVIE)):
                return numbered, unfinished
            unfinished.rmdir()
        raise AssertionError("unreachable: the numbers do not end")
    except OSError as error:
        raise KartRewardsError(f"{folder}: recordings can't be written there: {error.strerror}") from None

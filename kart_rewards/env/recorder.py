"""Recording of drives.

* ``DriveRecorder`` - collects what a ``KartEnv`` does, and makes a ``Drive`` of each episode
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from kart_rewards.drives import Drive, DriveInfo, smallest
from kart_rewards.env.core import fingerprints_of

_PACKAGES = ("kart_rewards", "stable-retro", "numpy", "gymnasium")


class DriveRecorder:
    """Collects the frames and steps of an episode. ``KartEnv`` calls its methods if it is ``KartEnv.recorder``.

    Args:
        driver: Who chooses the actions; see ``DriveInfo``.
        steps_before: See ``DriveInfo``.
    """

    def __init__(self, driver: str, steps_before: int | None = None) -> None:
        self.driver, self.steps_before = driver, steps_before
        self.begin(b"", "", None)

    def begin(self, start: bytes, state: str, seed: int | None) -> None:
        """Begins an episode. Calls of ``lead`` and one call of ``first`` follow.

        Args:
            start: The emulator's snapshot, before any frame.
            state: The name of the start state.
            seed: The seed of the reset, or None.
        """
        self._start, self._state, self._seed = start, state, seed
        self._lead: list[bytes] = []
        self._frames: list[Any] = []
        self._masks: list[bytes] = []
        self._first_masks: list[int] = []  # of each step: the number of masks before it
        self._actions: list[Any] = []
        self._rewards: list[float] = []

    def lead(self, mask: np.ndarray) -> None:
        """Adds a frame up to the first frame of the episode.

        Args:
            mask: The buttons: uint8, shape (number of buttons,).
        """
        self._lead.append(mask.tobytes())

    def first(self, ram: Any) -> None:
        """Adds the snapshot of the first frame."""
        self._frames.append(ram)

    def step(self, action: Any) -> None:
        """Begins a step. Calls of ``frame`` and one call of ``paid`` follow; if a term fails, ``paid`` does not."""
        self._actions.append(np.array(action))
        self._first_masks.append(len(self._masks))

    def frame(self, mask: np.ndarray, ram: Any) -> None:
        """Adds an emulated frame.

        Args:
            mask: The buttons: uint8, shape (number of buttons,).
            ram: The ``RamSnapshot``.
        """
        self._masks.append(mask.tobytes())
        self._frames.append(ram)

    def paid(self, reward: float) -> None:
        """Ends a step with its reward."""
        self._rewards.append(reward)

    @property
    def has_drive(self) -> bool:
        """Whether an episode was recorded from its beginning, and has a frame beside the first."""
        return bool(self._masks) and len(self._frames) == len(self._masks) + 1

    def forget(self) -> None:
        """Ends the recording of this episode: the environment has got another state."""
        self.begin(b"", "", None)

    def drive(self, env: Any, limited: bool = False) -> Drive:
        """Returns the episode so far.

        Args:
            env: The ``KartEnv``.
            limited: Whether a step limit or a wrapper ended the episode, if no done rule did.
        """
        info = env.score.info()
        names = self._frames[0]._fields
        rewards = [*self._rewards, *[0.0] * (len(self._actions) - len(self._rewards))]
        return Drive(
            DriveInfo(
                game=env.game.name,
                state=self._state,
                driver=self.driver,
                ended_by=info.get("done_rule"),
                terminated=env.score.terminated,
                truncated=env.score.truncated or (limited and not env.score.terminated),
                buttons=tuple(env.buttons),
                frame_skip=env.frame_skip,
                action_mode=env.action_mode,
                frames_per_second=env.frames_per_second,
                race=info.get("race"),
                fingerprints=_fingerprints(env.game.rom()),
                versions=_versions(),
                seed=self._seed,
                steps_before=self.steps_before,
            ),
            dict(zip(names, map(smallest, zip(*self._frames, strict=True)), strict=True)),
            _bits(self._masks),
            _bits(self._lead),
            np.diff([*self._first_masks, len(self._masks)]).astype(np.uint16),
            np.array(self._actions),
            np.array(rewards, np.float64),
            self._start,
        )


def _bits(masks: Sequence[bytes]) -> np.ndarray:
    known = {mask: sum(held << bit for bit, held in enumerate(mask)) for mask in {*masks}}
    return np.array([known[mask] for mask in masks], np.uint32)


@functools.cache
def _fingerprints(rom: Path) -> dict[str, str]:
    return fingerprints_of(rom)


@functools.cache
def _versions() -> dict[str, str]:
    return {package: metadata.version(package) for package in _PACKAGES}

"""Defaults of an episode, for everything that plays one."""

from __future__ import annotations

DEFAULT_FRAME_SKIP = 4
"""Emulated frames for which an action is held."""

DEFAULT_MAX_EPISODE_FRAMES = 12_000
"""Emulated frames, 60 a second: five laps of 40 seconds, three times what a good driver takes."""


def default_max_episode_steps(frame_skip: int) -> int:
    """Returns how many agent steps of ``frame_skip`` frames make an episode of the default length."""
    return max(DEFAULT_MAX_EPISODE_FRAMES // max(frame_skip, 1), 1)

"""What a unit test of a reward term needs: snapshots typed by hand, and what terms make of a trace.

* ``snapshot`` - one frame's RAM, in microseconds and without an emulator
* ``score`` - what reward terms pay over a sequence of snapshots

Example:
    >>> from kart_rewards.rewards import wall
    >>> wall(snapshot(collision=1, speed=599))
    1.0
    >>> score([snapshot(), snapshot(collision=1)], [wall])
    {'wall': -10.0}
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kart_rewards.ram import snapshot_class
from kart_rewards.rewards import EpisodeRewards, as_term

START_OF_RACE = {
    "laps": 127,
    "checkpoint": 29,
    "num_checkpoints": 30,
    "speed": 0,
    "surface": 0x40,
    "collision": 0,
    "backward": 0,
    "current_frame": 360,
}
"""What the variables read at the retail game's start of Mario Circuit 1, time trial."""


def snapshot(**values: int) -> Any:
    """Returns a ``RamSnapshot`` of the start of a race, with some values changed or added."""
    values = START_OF_RACE | values
    return snapshot_class(tuple(values))(**values)


def score(trace: Iterable[Any], terms: Iterable[Any]) -> dict[str, float]:
    """Returns what each term pays over a trace, weighted.

    Args:
        trace: Snapshots, a frame each. The first is an episode's reset frame: the terms see it, and it pays nothing.
        terms: Functions and classes, marked ``@reward_term`` or plain.

    Raises:
        KartRewardsError: A term raised, or its value is no finite number.
    """
    rewards = EpisodeRewards([as_term(term) for term in terms])
    for frame, ram in enumerate(trace):
        rewards(ram)
        if frame == 0:
            rewards.discard()
    return rewards.episode_summary()["sum"]

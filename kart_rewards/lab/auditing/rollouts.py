"""How a behaviour went in the emulator, and when it is an exploit.

* ``Setup`` - the game, the reward and the reference drive; it can be pickled
* ``Rollout``, ``Reference`` - what a behaviour and the reference drive are paid, and how far they came
* ``exploit_kind``, ``excess``, ``short_excess``, ``is_worthless``, ``scale_of`` - the comparison of both
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kart_rewards.defaults import DEFAULT_MAX_EPISODE_FRAMES
from kart_rewards.lab.auditing.behaviours import Behaviour
from kart_rewards.lab.score import RewardSet

LIMIT = DEFAULT_MAX_EPISODE_FRAMES
"""The frames of an episode, at most."""

SHORT_FRAMES = 1200
"""The frames over which discounted returns are compared: what comes later counts for 5 % at a gamma of 0.99."""

LEAST_EXCESS = 0.1
"""An exploit earns this much more than the reference, as a part of the sum of the absolute rewards of that drive."""

MOST_PROGRESS = 0.5
"""An exploit comes at most this far, as a part of the way of the reference."""

LEAST_SHORT_EXCESS = 0.5
"""The discounted return of an exploit is this much larger, see ``short_excess``."""

_LEAST_SHORT_PART = 0.1  # of an exploit's discounted return, as a part of that of the reference
_FRAMES_THAT_COUNT = 400  # at a gamma of 0.99 per step of four frames


@dataclass(frozen=True)
class Setup:
    """What workers need to play and score behaviours. It can be pickled.

    Args:
        game: The game's folder name.
        state: The start state.
        rewards: The reward set.
        reference: The file of the reference drive. None: there is none.
        goal: See ``Goal``. None: finish, then time, in a kart race; else there is no goal.
    """

    game: str
    state: str
    rewards: RewardSet
    reference: Path | None
    goal: str | None = None


class Rollout(NamedTuple):
    """How a behaviour went.

    Args:
        behaviour: The behaviour.
        frames: The frames that were played after its beginning.
        ended_by: The done rule that ended the episode. None: no rule did.
        truncated: Whether that end is a truncation.
        complete: Whether the episode is complete: a rule ended it, or its limit.
        total: The return of the episode so far, with the part before the behaviour.
        expected: The return at the end of the episode, if the latest rate goes on.
        gain: How far the episode came, by the goal's number.
        expected_gain: The same at the end of the episode, if the latest rate goes on.
        reached: Whether the goal was reached.
        short: The discounted return of the first ``SHORT_FRAMES`` frames after the beginning.
        short_reference: The same of the reference drive.
        short_size: The sum of the absolute values in ``short_reference``.
        short_gain, short_gain_reference: How far both came in these frames.
        place: ``kart_x``, ``kart_y`` and ``surface`` before the frame that was paid most. None: no frame was paid, or
            the game has no such variables.
        signature: What differs between kinds of behaviours: which terms paid or charged, and variables with few values.
    """

    behaviour: Behaviour
    frames: int
    ended_by: str | None
    truncated: bool
    complete: bool
    total: float
    expected: float
    gain: float
    expected_gain: float
    reached: bool
    short: float
    short_reference: float
    short_size: float
    short_gain: float
    short_gain_reference: float
    place: tuple[int, int, int] | None
    signature: tuple[Any, ...]


class Reference(NamedTuple):
    """What the reference drive is paid.

    Args:
        total: The return of its episode.
        size: The sum of the absolute rewards.
        gain: How far it came, by the goal's number.
        reached: Whether it reached the goal.
        end: Its last frame.
        ended_by: The rule that ended it.
    """

    total: float
    size: float
    gain: float
    reached: bool
    end: int
    ended_by: str | None


def scale_of(reference: Reference) -> float:
    """Returns the unit of margins: the sum of the absolute rewards of the reference drive."""
    return reference.size or 1e-9


def excess(rollout: Rollout, reference: Reference) -> float:
    """Returns how much more a behaviour earns or promises than the reference, as a part of ``scale_of``."""
    return (rollout.expected - reference.total) / scale_of(reference)


def short_excess(rollout: Rollout, reference: Reference) -> float:
    """Returns how much larger a behaviour's discounted return is than the reference's from the same moment on.

    The unit is the sum of the absolute discounted rewards of the reference, there or in its usual frames.
    """
    usual = reference.size / max(reference.end, 1) * _FRAMES_THAT_COUNT
    return (rollout.short - rollout.short_reference) / max(rollout.short_size, usual, 1e-9)


def is_worthless(rollout: Rollout) -> bool:
    """Returns whether a behaviour's discounted return is almost nothing of the reference's from the same moment on."""
    return rollout.short < rollout.short_reference - (1 - _LEAST_SHORT_PART) * rollout.short_size - 1e-9


def exploit_kind(rollout: Rollout, reference: Reference, by_goal: bool = True) -> str:
    """Returns why a behaviour is an exploit: ``return`` or ``discounted``; an empty text if it is none.

    ``return``: its return over the episode is larger than that of the reference, though it comes less than half as far.
    A reward that only redistributes rewards in time (potential-based shaping) may change plain returns, so the
    discounted return must not contradict.

    ``discounted``: over the same frames, from the same moment, its discounted return is much larger than that of the
    reference, and it comes less than half as far in these frames. An early end does not count here: at a usual discount
    factor, a final reward is too far away to count.

    Args:
        rollout: How the behaviour went.
        reference: What the reference drive is paid.
        by_goal: Whether the reference is a drive, so that discounted returns can be compared.
    """
    if rollout.reached or (reference.gain > 0 and rollout.gain > MOST_PROGRESS * reference.gain + 1e-9):
        return ""
    if rollout.complete and excess(rollout, reference) > LEAST_EXCESS and not (by_goal and is_worthless(rollout)):
        return "return"
    if not by_goal or rollout.frames < SHORT_FRAMES or rollout.short_gain_reference <= 0:
        return ""
    less_far = rollout.short_gain <= MOST_PROGRESS * rollout.short_gain_reference
    return "discounted" if short_excess(rollout, reference) > LEAST_SHORT_EXCESS and less_far else ""

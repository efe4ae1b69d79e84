"""Action modes: they convert the agent's actions to buttons.

* ``make_actions`` - returns one of the action modes below, by name
* ``Actions`` - an action mode: an action space, and the buttons to hold on each frame of a step
* ``ButtonMask`` - the type of the buttons to hold on one frame

Modes:

* ``continuous``: steering in [-1, 1]; the throttle is always held. A D-pad steers fully or not at all, so steering is a
  duty cycle: at 0.25, RIGHT is held on one frame in four. The remainder of a step's duty cycle is added to the next one
* ``full``: steering as above, a pedal that is throttle, nothing or brake, and hop
* ``driving``: the four actions of the original: throttle, throttle and left, throttle and right, throttle and hop
* ``all``, ``filtered``, ``discrete``, ``multi-discrete``: stable-retro's modes, with all buttons of the console. The
  groups of the last two are the ``actions`` of the game's scenario, else those of the console
* ``auto``: ``continuous`` in kart races on the SNES, ``multi-discrete`` in all other games
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import index
from typing import Any, Literal, Protocol, get_args

import gymnasium as gym
import numpy as np

from kart_rewards.errors import KartRewardsError

ButtonMask = np.ndarray
"""The buttons to hold: shape (number of buttons,), dtype uint8, in the core's order; 1 is held, 0 is released."""

THROTTLE, BRAKE, LEFT, RIGHT, HOP = "B", "Y", "LEFT", "RIGHT", "L"
ActionMode = Literal["auto", "continuous", "full", "driving", "all", "filtered", "discrete", "multi-discrete"]
ACTION_MODES: tuple[str, ...] = get_args(ActionMode)


class Actions(Protocol):
    """An action mode.

    Attributes:
        space: The action space.
        remainder: The remainder of the steering duty cycle, in frames. It is the only state of an action mode.
    """

    space: gym.Space
    remainder: float

    def reset(self) -> None:
        """Begins an episode: sets the remainder to 0."""

    def frames(self, action: Any, frame_skip: int) -> Sequence[ButtonMask]:
        """Converts an action to buttons.

        Args:
            action: An element of ``space``.
            frame_skip: Number of emulated frames of the step.

        Returns:
            One mask per frame.

        Raises:
            KartRewardsError: The action is not an element of the space.
        """


COAST_BELOW, BRAKE_BELOW, HOP_ABOVE = -0.5, -0.9, 0.75
"""Where the pedal lets go of the throttle, where it brakes, and above which number the kart hops. An untrained agent of
``ppo_continuous_single_file.py`` draws from a normal distribution with a mean of 0 and a standard deviation of 1: it
holds the throttle on two steps of three, brakes on one of five, and hops on one of four."""


class ContinuousDriving:
    """Steering as a duty cycle of the D-pad, and in the mode ``full`` also the pedal and hop.

    The action space is ``Box(-1, 1, (1,), float32)``: steering, -1 is full left, 1 is full right. In the mode ``full``
    its shape is (3,): steering, pedal and hop. See ``COAST_BELOW`` for the latter two.

    Args:
        press: Returns the mask of the named buttons.
        full: Whether actions have a pedal and hop. Else the throttle is always held.
    """

    def __init__(self, press: Callable[..., ButtonMask], full: bool) -> None:
        self.space: gym.Space = gym.spaces.Box(-1.0, 1.0, (3 if full else 1,), np.float32)
        self._full = full
        self._masks = {
            (pedal, hop): tuple(press(*pedal, *hop, *side) for side in ((), (RIGHT,), (LEFT,)))
            for pedal in (((THROTTLE,), (), (BRAKE,)) if full else ((THROTTLE,),))
            for hop in (((), (HOP,)) if full else ((),))
        }
        self.remainder = 0.0

    def reset(self) -> None:
        self.remainder = 0.0

    def frames(self, action: Any, frame_skip: int) -> Sequence[ButtonMask]:
        try:
            steering, pedal, hop = map(float, action if self._full else (*action, 0.0, 0.0))
        except (TypeError, ValueError):
            wanted = "three numbers: steering, pedal, hop" if self._full else "one number, such as [0.5]"
            raise KartRewardsError(f"action {action!r} is not a steering action: pass a list of {wanted}") from None
        if math.isnan(steering + pedal + hop):
            raise KartRewardsError("the action is not a number (NaN): has the agent diverged?")
        steering = min(max(steering, -1.0), 1.0)
        held = (THROTTLE,) if pedal >= COAST_BELOW else () if pedal >= BRAKE_BELOW else (BRAKE,)
        neutral, right, left = self._masks[held, (HOP,) if hop > HOP_ABOVE else ()]
        frames = []
        for _ in range(frame_skip):
            self.remainder += steering
            if self.remainder >= 0.5:
                self.remainder -= 1.0
                frames.append(right)
            elif self.remainder <= -0.5:
                self.remainder += 1.0
                frames.append(left)
            else:
                frames.append(neutral)
        return frames


class HeldButtons:
    """Holds the same buttons on all frames of a step.

    Args:
        space: The action space.
        buttons: Converts an action to a mask.
    """

    def __init__(self, space: gym.Space, buttons: Callable[[Any], ButtonMask]) -> None:
        self.space = space
        self.remainder = 0.0
        self._buttons = buttons

    def reset(self) -> None:
        pass

    def frames(self, action: Any, frame_skip: int) -> Sequence[ButtonMask]:
        try:
            buttons = self._buttons(action)
        except (TypeError, ValueError, IndexError):
            raise KartRewardsError(f"action {action!r} is not in the action space {self.space}") from None
        return [buttons] * frame_skip


def _index(action: Any) -> int:
    """Returns the number of an action. Raises TypeError or ValueError if it is not an integer, 0 or more."""
    number = index(action)
    if number < 0:  # Python would count from the end
        raise ValueError
    return number


def make_actions(
    mode: str,
    button_names: Sequence[str | None],
    combinations: Sequence[Sequence[int]],
    filter_action: Callable[[int], int],
    is_kart_race: bool = False,
) -> Actions:
    """Returns an action mode.

    Args:
        mode: One of ``ACTION_MODES``.
        button_names: The console's buttons in the core's order; None where the core has no button.
        combinations: Groups of allowed combinations, each a bit mask; the result of stable-retro's ``valid_actions``.
        filter_action: Removes the buttons that are not allowed from a bit mask; stable-retro's ``filter_action``.
        is_kart_race: Whether the game is a kart race on the SNES, for the mode ``auto``.

    Raises:
        KartRewardsError: The mode is unknown, or the console has no button that the mode needs.
    """
    count = len(button_names)
    if mode == "auto":
        mode = "continuous" if is_kart_race else "multi-discrete"

    def from_bits(bits: int) -> ButtonMask:
        return np.array([bits >> i & 1 for i in range(count)], np.uint8)

    def press(*names: str) -> ButtonMask:
        missing = [name for name in names if name not in button_names]
        if missing:
            known = ", ".join(name for name in button_names if name)
            raise KartRewardsError(
                f"action mode {mode!r} presses {missing[0]}, and this console has {known}: choose another --action-mode"
            )
        return np.array([name in names for name in button_names], np.uint8)

    # Where the console has no button, some cores have a function of their own, such as rapid fire.
    real = np.array([name is not None for name in button_names], np.uint8)

    def mask(action: Any) -> ButtonMask:
        pressed = np.asarray(action)
        if pressed.shape != real.shape or not np.isin(pressed, (0, 1)).all():
            raise ValueError
        return pressed.astype(np.uint8) * real

    def bits(action: Any) -> int:
        return sum(int(pressed) << i for i, pressed in enumerate(action))

    if mode in ("continuous", "full"):
        return ContinuousDriving(press, mode == "full")
    if mode == "driving":
        choices = [press(THROTTLE), press(THROTTLE, LEFT), press(THROTTLE, RIGHT), press(THROTTLE, HOP)]
        return HeldButtons(gym.spaces.Discrete(len(choices)), lambda action: choices[_index(action)])
    if mode == "all":
        return HeldButtons(gym.spaces.MultiBinary(count), mask)
    if mode == "filtered":
        return HeldButtons(gym.spaces.MultiBinary(count), lambda action: from_bits(filter_action(bits(mask(action)))))
    sizes = [len(group) for group in combinations]

    def combine(chosen: Sequence[int]) -> ButtonMask:
        pressed = 0
        for group, i in zip(combinations, chosen, strict=True):
            pressed |= group[_index(i)]
        return from_bits(pressed)

    if mode == "multi-discrete":
        return HeldButtons(gym.spaces.MultiDiscrete(sizes), combine)
    if mode == "discrete":  # the index of the first group changes fastest, as in stable-retro
        return HeldButtons(
            gym.spaces.Discrete(math.prod(sizes)), lambda action: combine(np.unravel_index(action, sizes, order="F"))
        )
    raise KartRewardsError(f"unknown action mode {mode!r}: it is one of {', '.join(ACTION_MODES)}")

"""What the agent may press.

* ``make_actions`` - one of the action modes below, by name
* ``Actions`` - an action space, and the buttons that an action holds down on each frame of a step

Modes:

* ``continuous``: steering in [-1, 1], the throttle always held. The D-pad only knows left, right and neither, so
  steering is a duty cycle: at 0.25 it is pressed on one frame in four. What a step leaves over, the next one uses
* ``driving``: the original's four: throttle, throttle and left, throttle and right, throttle and hop
* ``all``, ``filtered``, ``discrete``, ``multi-discrete``: stable-retro's own, over every button
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from kart_rewards.errors import KartRewardsError

Buttons = np.ndarray
"""Which of the console's buttons are down: shape (number of buttons,), dtype uint8, in the core's order."""

THROTTLE, LEFT, RIGHT, HOP = "B", "LEFT", "RIGHT", "L"
ACTION_MODES = ("continuous", "driving", "all", "filtered", "discrete", "multi-discrete")


class Actions(Protocol):
    """An action mode at work."""

    space: gym.Space
    remainder: float  # of a duty cycle, in frames; the only thing that an action leaves for the next

    def reset(self) -> None:
        """Forgets the episode before."""

    def frames(self, action: Any, frame_skip: int) -> Sequence[Buttons]:
        """Returns the buttons to hold on each of the step's ``frame_skip`` emulated frames."""


class ContinuousSteering:
    """Steering as a D-pad duty cycle. The space is Box(-1, 1, shape (1,), float32): full left to full right.

    Args:
        neutral: The throttle alone.
        left: Throttle and left.
        right: Throttle and right.
    """

    def __init__(self, neutral: Buttons, left: Buttons, right: Buttons) -> None:
        self.space: gym.Space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._neutral, self._left, self._right = neutral, left, right
        self.remainder = 0.0

    def reset(self) -> None:
        self.remainder = 0.0

    def frames(self, action: Any, frame_skip: int) -> Sequence[Buttons]:
        try:
            steering = min(max(float(action[0]), -1.0), 1.0)
        except (TypeError, IndexError):
            raise KartRewardsError(
                f"action {action!r} is not steering: pass one number in a list, such as [0.5]"
            ) from None
        if math.isnan(steering):
            raise KartRewardsError("the action is not a number (NaN): has the agent diverged?")
        frames = []
        for _ in range(frame_skip):
            self.remainder += steering
            if self.remainder >= 0.5:
                self.remainder -= 1.0
                frames.append(self._right)
            elif self.remainder <= -0.5:
                self.remainder += 1.0
                frames.append(self._left)
            else:
                frames.append(self._neutral)
        return frames


class HeldButtons:
    """The same buttons through all of a step's frames.

    Args:
        space: The action space.
        buttons: Action -> buttons.
    """

    def __init__(self, space: gym.Space, buttons: Callable[[Any], Buttons]) -> None:
        self.space = space
        self.remainder = 0.0
        self._buttons = buttons

    def reset(self) -> None:
        pass

    def frames(self, action: Any, frame_skip: int) -> Sequence[Buttons]:
        try:
            buttons = self._buttons(action)
        except (TypeError, ValueError, IndexError):
            raise KartRewardsError(f"action {action!r} is not in the action space {self.space}") from None
        return [buttons] * frame_skip


def make_actions(
    mode: str,
    button_names: Sequence[str | None],
    combinations: Sequence[Sequence[int]],
    filter_action: Callable[[int], int],
) -> Actions:
    """Returns the action mode called ``mode``.

    Args:
        mode: One of ``ACTION_MODES``.
        button_names: The core's buttons, in its order.
        combinations: Groups of allowed combinations as bit masks, as stable-retro's ``valid_actions`` returns them.
        filter_action: Keeps the allowed part of a bit mask, as stable-retro's ``filter_action`` does.

    Raises:
        KartRewardsError: There is no such mode, or the console lacks a button that it needs.
    """
    count = len(button_names)

    def from_bits(bits: int) -> Buttons:
        return np.array([bits >> i & 1 for i in range(count)], np.uint8)

    def press(*names: str) -> Buttons:
        missing = [name for name in names if name not in button_names]
        if missing:
            known = ", ".join(name for name in button_names if name)
            raise KartRewardsError(
                f"action mode {mode!r} presses {missing[0]}, and this console has {known}: choose another --action-mode"
            )
        return np.array([name in names for name in button_names], np.uint8)

    def bits(action: Any) -> int:
        return sum(int(pressed) << i for i, pressed in enumerate(action))

    if mode == "continuous":
        return ContinuousSteering(press(THROTTLE), press(THROTTLE, LEFT), press(THROTTLE, RIGHT))
    if mode == "driving":
        choices = [press(THROTTLE), press(THROTTLE, LEFT), press(THROTTLE, RIGHT), press(THROTTLE, HOP)]
        return HeldButtons(gym.spaces.Discrete(len(choices)), lambda action: choices[int(action)])
    if mode == "all":
        return HeldButtons(gym.spaces.MultiBinary(count), lambda action: np.asarray(action, np.uint8))
    if mode == "filtered":
        return HeldButtons(gym.spaces.MultiBinary(count), lambda action: from_bits(filter_action(bits(action))))
    sizes = [len(group) for group in combinations]

    def combine(chosen: Sequence[int]) -> Buttons:
        mask = 0
        for group, i in zip(combinations, chosen, strict=True):
            mask |= group[i]
        return from_bits(mask)

    if mode == "multi-discrete":
        return HeldButtons(gym.spaces.MultiDiscrete(sizes), combine)
    if mode == "discrete":  # the first group varies fastest, as in stable-retro
        return HeldButtons(
            gym.spaces.Discrete(math.prod(sizes)), lambda action: combine(np.unravel_index(action, sizes, order="F"))
        )
    raise KartRewardsError(f"unknown action mode {mode!r}: it is one of {', '.join(ACTION_MODES)}")

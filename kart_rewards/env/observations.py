"""What the agent sees of the screen.

* ``ObservationConfig`` - the options
* ``ScreenObserver`` - screens in, observations out

From a 224x256 SNES screen the defaults make the road view (from the horizon down to the middle, where the map begins),
grey, 84x84, stacked four deep: a uint8 array of shape (4, 84, 84).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import gymnasium as gym
import numpy as np

from kart_rewards.errors import KartRewardsError

cv2.setNumThreads(1)  # environments are processes already; threads below them only get in each other's way

Screen = np.ndarray
"""RGB, shape (height, width, 3), dtype uint8."""


@dataclass(frozen=True)
class ObservationConfig:
    """How a screen becomes an observation.

    Args:
        crop: Rows and columns to keep: top, bottom, left, right; None keeps the whole screen.
        max_pool: Take the brighter of a step's last two frames in each pixel, for games that draw some sprites on every
            other frame only. A step of one frame, or one that ends an episode early, shows its last frame alone.
        grey: Turn colours into luminance (ITU-R BT.601, as OpenCV does).
        size: Height and width to resize to, by area; None keeps the screen's own.
        stack: How many observations to stack, oldest first; an episode starts with the first one repeated.
    """

    crop: tuple[int, int, int, int] | None = (32, 112, 0, 256)
    max_pool: bool = False
    grey: bool = True
    size: tuple[int, int] | None = (84, 84)
    stack: int = 4

    @classmethod
    def raw(cls) -> ObservationConfig:
        """The screen as it is: RGB, shape (224, 256, 3) on the SNES."""
        return cls(crop=None, grey=False, size=None, stack=1)


class ScreenObserver:
    """Turns screens into observations.

    Observations are uint8. Their shape is (stack, height, width) in grey, (stack, height, width, 3) in colour, and
    (height, width, 3) for colour unstacked.

    Args:
        config: The options.
        screen_shape: (height, width, 3) of the screens to come.

    Attributes:
        frames: The stacked observations, oldest first: uint8, shape (stack, height, width), with colours (…, 3).

    Raises:
        KartRewardsError: The crop lies outside the screen, or a size or the stack is not positive.
    """

    def __init__(self, config: ObservationConfig, screen_shape: tuple[int, ...]) -> None:
        height, width = screen_shape[:2]
        self.config = config
        top, bottom, left, right = config.crop or (0, height, 0, width)
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise KartRewardsError(
                f"the crop {config.crop} (top, bottom, left, right) does not fit the screen of {height} rows and "
                f"{width} columns"
            )
        if config.stack < 1 or (config.size is not None and min(config.size) < 1):
            raise KartRewardsError(f"observation size {config.size} and stack {config.stack} must be 1 or more")
        self._rows, self._columns = slice(top, bottom), slice(left, right)
        size = config.size or (bottom - top, right - left)
        shape = (config.stack, *size) if config.grey else (config.stack, *size, 3)
        self.frames = np.zeros(shape, np.uint8)
        self._unstacked = config.stack == 1 and not config.grey
        self.space = gym.spaces.Box(0, 255, shape[1:] if self._unstacked else shape, np.uint8)

    def reset(self, screen: Screen) -> np.ndarray:
        """Returns an episode's first observation."""
        self.frames[:] = self._process(screen)
        return self.observation()

    def observe(self, screen: Screen, screen_before: Screen | None = None) -> np.ndarray:
        """Returns the next observation.

        Args:
            screen: The newest screen.
            screen_before: The one a frame earlier, which max pooling takes in.
        """
        newest = self._process(screen, screen_before)
        self.frames = np.concatenate((self.frames[1:], newest[np.newaxis]))
        return self.observation()

    def _process(self, screen: Screen, screen_before: Screen | None = None) -> np.ndarray:
        image = screen[self._rows, self._columns]
        if self.config.max_pool and screen_before is not None:
            image = np.maximum(image, screen_before[self._rows, self._columns])
        if self.config.grey:
            image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        if self.config.size:
            image = cv2.resize(image, self.config.size[::-1], interpolation=cv2.INTER_AREA)
        return image

    def observation(self) -> np.ndarray:
        """Returns the latest observation again."""
        return self.frames[0].copy() if self._unstacked else self.frames.copy()

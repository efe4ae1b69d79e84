"""Observations: they are computed from the screen.

* ``ObservationConfig`` - the options
* ``ScreenObserver`` - converts screens to observations
* ``Crop`` - the part of a screen to keep
* ``ROAD_VIEW`` - the view of the road in kart races on the SNES

By default, a screen is cropped, converted to grey, resized to 84 x 84 pixels, and stacked with the three previous ones:
a uint8 array of shape (4, 84, 84).
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Literal

import cv2
import gymnasium as gym
import numpy as np

from kart_rewards.errors import KartRewardsError

cv2.setNumThreads(1)  # environments run in parallel processes; more threads would only compete for their cores

Screen = np.ndarray
"""RGB, shape (height, width, 3), dtype uint8."""

Crop = tuple[int, int, int, int]
"""The part of a screen to keep, in pixels: top, bottom, left, right."""

ROAD_VIEW: Crop = (32, 112, 0, 256)
"""Of the 224 x 256 pixels: from the horizon down to the middle of the screen, where the map begins."""


@dataclass(frozen=True)
class ObservationConfig:
    """Options of observations.

    Args:
        crop: The part of the screen to keep, in pixels: top, bottom, left, right. None keeps the complete screen.
            ``auto`` keeps the ``crop`` of the game's scenario; without one, in kart races on the SNES the view of the
            road, in all other games the complete screen.
        max_pool: Whether to take the maximum of a step's last two frames, pixel by pixel. This is for games that draw
            some sprites only on every other frame. A step that consists of one frame, or that ends early because the
            episode ends, uses its last frame alone.
        grey: Whether to convert colours to luminance (ITU-R BT.601, as in OpenCV).
        size: Height and width of the resized image (OpenCV's INTER_AREA). None does not resize.
        stack: Number of images to stack, oldest first. At the start of an episode, all are the first image.
    """

    crop: Crop | Literal["auto"] | None = "auto"
    max_pool: bool = False
    grey: bool = True
    size: tuple[int, int] | None = (84, 84)
    stack: int = 4

    @classmethod
    def raw(cls) -> ObservationConfig:
        """Returns the options for the unchanged screen: RGB, shape (224, 256, 3) on the SNES."""
        return cls(crop=None, grey=False, size=None, stack=1)


class ScreenObserver:
    """Converts screens to observations.

    Observations are uint8. Their shape is (stack, height, width) in grey and (stack, height, width, 3) in colour. A
    single colour image (``stack=1``) has shape (height, width, 3).

    Some consoles can change the size of their screen during a game. Then the complete screen (``crop=None``) is resized
    to the same image, if there is a ``size``. A crop belongs to one size of the screen, so another size is an error.

    Args:
        config: The options.
        screen_shape: The shape of the first screens: (height, width, 3).
        auto_crop: The crop of this game, for the crop ``auto``. None: the complete screen.

    Attributes:
        space: The observation space.
        frames: The stacked images, oldest first: uint8, shape (stack, height, width) or (stack, height, width, 3).

    Raises:
        KartRewardsError: The crop lies outside the screen, or the size or the stack is not an integer, 1 or more. The
            other methods raise it if a screen has another size that does not fit the options.
    """

    def __init__(self, config: ObservationConfig, screen_shape: tuple[int, ...], auto_crop: Crop | None = None) -> None:
        height, width = screen_shape[:2]
        self.config = config
        self._crop = auto_crop if config.crop == "auto" else config.crop
        try:
            top, bottom, left, right = map(index, (0, height, 0, width) if self._crop is None else self._crop)
            rows, columns = map(index, (bottom - top, right - left) if config.size is None else config.size)
            stack = index(config.stack)
        except (TypeError, ValueError):
            raise KartRewardsError(
                f"the crop must be four integers, not {self._crop!r}; the observation size two, not {config.size!r}; "
                f"the stack one, not {config.stack!r}"
            ) from None
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise KartRewardsError(
                f"the crop {self._crop} (top, bottom, left, right) does not fit the screen of {height} rows and "
                f"{width} columns. To show the complete screen: --crop None, in Python ObservationConfig(crop=None)"
            )
        if min(stack, rows, columns) < 1:
            raise KartRewardsError(f"observation size {config.size} and stack {config.stack} must be 1 or more")
        self._screen_shape = tuple(screen_shape)
        self._rows, self._columns = slice(top, bottom), slice(left, right)
        shape = (stack, rows, columns) if config.grey else (stack, rows, columns, 3)
        try:
            self.frames = np.zeros(shape, np.uint8)
        except (MemoryError, ValueError):
            raise KartRewardsError(
                f"observations of size {config.size} and stack {stack} do not fit into memory"
            ) from None
        self._unstacked = stack == 1 and not config.grey
        self.space = gym.spaces.Box(0, 255, shape[1:] if self._unstacked else shape, np.uint8)

    def reset(self, screen: Screen) -> np.ndarray:
        """Returns the first observation of an episode.

        Args:
            screen: The screen, uint8, shape (height, width, 3).
        """
        self.frames[:] = self._process(screen)
        return self.observation()

    def observe(self, screen: Screen, screen_before: Screen | None = None) -> np.ndarray:
        """Returns the next observation.

        Args:
            screen: The current screen, uint8, shape (height, width, 3).
            screen_before: The screen of the previous frame, for max pooling; None if the step has only one frame.
        """
        newest = self._process(screen, screen_before)
        self.frames = np.concatenate((self.frames[1:], newest[np.newaxis]))
        return self.observation()

    def _process(self, screen: Screen, screen_before: Screen | None = None) -> np.ndarray:
        self.fit(screen.shape)
        image = screen[self._rows, self._columns]
        if self.config.max_pool and screen_before is not None and screen_before.shape == screen.shape:
            image = np.maximum(image, screen_before[self._rows, self._columns])
        if self.config.grey:
            image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        if self.config.size:
            image = cv2.resize(image, self.config.size[::-1], interpolation=cv2.INTER_AREA)
        return image

    def fit(self, shape: tuple[int, ...]) -> None:
        """Prepares for screens of this shape: (height, width, 3). ``observe`` and ``reset`` do so for their screen.

        Raises:
            KartRewardsError: The options do not fit screens of another shape than the first one's.
        """
        if shape == self._screen_shape:
            return
        if self._crop is not None or self.config.size is None:
            (old_rows, old_columns), (rows, columns) = self._screen_shape[:2], shape[:2]
            raise KartRewardsError(
                f"the screen changed from {old_rows} rows and {old_columns} columns to {rows} and {columns}, which the "
                f"crop {self._crop} and the size {self.config.size} do not fit. Show the complete screen in a "
                "size of its own: --crop None --size 84 84, in Python ObservationConfig(crop=None, size=(84, 84))"
            )
        self._screen_shape = shape
        self._rows, self._columns = slice(shape[0]), slice(shape[1])

    def observation(self) -> np.ndarray:
        """Returns a copy of the latest observation."""
        return self.frames[0].copy() if self._unstacked else self.frames.copy()

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import SNES_SHAPE

from kart_rewards.env.observations import ROAD_VIEW, ObservationConfig, ScreenObserver
from kart_rewards.errors import KartRewardsError


def screen(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SNES_SHAPE, np.uint8)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (ObservationConfig(), (4, 84, 84)),
        (ObservationConfig(stack=1), (1, 84, 84)),
        (ObservationConfig(size=(42, 64)), (4, 42, 64)),
        (ObservationConfig(size=None), (4, 224, 256)),
        (ObservationConfig(crop=ROAD_VIEW, size=None), (4, 80, 256)),
        (ObservationConfig(grey=False), (4, 84, 84, 3)),
        (ObservationConfig(grey=False, stack=1), (84, 84, 3)),
        (ObservationConfig(crop=(0, 50, 10, 60), size=None, stack=2), (2, 50, 50)),
        (ObservationConfig.raw(), (224, 256, 3)),
    ],
)
def test_shapes(config: ObservationConfig, shape: tuple[int, ...]) -> None:
    observer = ScreenObserver(config, SNES_SHAPE)
    assert observer.space == gym.spaces.Box(0, 255, shape, np.uint8)
    assert observer.reset(screen(0)) in observer.space
    assert observer.observe(screen(1), screen(2)) in observer.space


def test_the_raw_observation_is_the_screen() -> None:
    observer = ScreenObserver(ObservationConfig.raw(), SNES_SHAPE)
    assert np.array_equal(observer.reset(screen(0)), screen(0))
    assert np.array_equal(observer.observe(screen(1), screen(2)), screen(1))


def test_max_pooling_takes_the_maximum_of_two_frames() -> None:
    pooled = ScreenObserver(ObservationConfig(crop=None, max_pool=True, grey=False, size=None, stack=1), SNES_SHAPE)
    pooled.reset(screen(0))
    assert np.array_equal(pooled.observe(screen(1), screen(2)), np.maximum(screen(1), screen(2)))
    assert np.array_equal(pooled.observe(screen(1)), screen(1))


def test_grey_is_the_luminance() -> None:
    observer = ScreenObserver(ObservationConfig(crop=None, size=None, stack=1), SNES_SHAPE)
    shades = [observer.reset(np.full(SNES_SHAPE, colour, np.uint8))[0, 0, 0] for colour in np.eye(3) * 255]
    assert shades == [76, 150, 29]  # 255 x 0.299, 0.587, 0.114


def test_a_new_image_is_last_in_the_stack_and_the_oldest_one_leaves() -> None:
    observer = ScreenObserver(ObservationConfig(), SNES_SHAPE)
    first = observer.reset(screen(0))
    assert all(np.array_equal(first[i], first[0]) for i in range(4))
    second = observer.observe(screen(1))
    assert np.array_equal(second[:3], first[1:])
    assert not np.array_equal(second[3], first[3])


def test_an_observation_does_not_change_later() -> None:
    for config in (ObservationConfig(), ObservationConfig.raw()):
        observer = ScreenObserver(config, SNES_SHAPE)
        first = observer.reset(screen(0))
        kept = first.copy()
        observer.observe(screen(1))
        assert np.array_equal(first, kept)


@pytest.mark.parametrize("crop", [(0, 225, 0, 256), (50, 50, 0, 256), (-1, 50, 0, 256), (0, 50, 9, 3)])
def test_a_crop_outside_the_screen_is_refused(crop: tuple[int, int, int, int]) -> None:
    with pytest.raises(KartRewardsError, match="does not fit the screen of 224 rows and 256 columns"):
        ScreenObserver(ObservationConfig(crop=crop), SNES_SHAPE)


@pytest.mark.parametrize("config", [ObservationConfig(stack=0), ObservationConfig(size=(0, 84))])
def test_sizes_below_one_are_refused(config: ObservationConfig) -> None:
    with pytest.raises(KartRewardsError, match="must be 1 or more"):
        ScreenObserver(config, SNES_SHAPE)


@pytest.mark.parametrize(
    "options",
    [
        {"crop": (0, 50)},
        {"crop": ()},
        {"crop": 50},
        {"crop": (0.0, 50.5, 0, 50)},
        {"size": 84},
        {"size": (84, 84, 3)},
        {"size": ("84", "84")},
        {"stack": 2.5},
    ],
    ids=str,
)
def test_options_of_another_form_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(
        KartRewardsError, match=r"the crop must be four integers, not .* size two, not .* the stack one"
    ):
        ScreenObserver(ObservationConfig(**options), SNES_SHAPE)


# Observed: of a screen that had become larger, the first rows and columns were kept. Of a smaller one, numpy's slices
# kept what there was, and the image was stretched.
@pytest.mark.parametrize("shape", [(224, 320, 3), (144, 160, 3), (448, 512, 3)])
def test_the_complete_screen_is_seen_after_its_size_has_changed(shape: tuple[int, ...]) -> None:
    observer = ScreenObserver(ObservationConfig(crop=None, max_pool=True), SNES_SHAPE)
    observer.reset(screen(0))
    other = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    expected = ScreenObserver(ObservationConfig(crop=None), shape).reset(other)[0]
    assert np.array_equal(observer.observe(other, screen(0))[-1], expected), "frames of two sizes have no maximum"
    assert observer.observation() in observer.space
    back = ScreenObserver(ObservationConfig(crop=None), SNES_SHAPE).reset(screen(2))[0]
    assert np.array_equal(observer.observe(screen(2))[-1], back)


def test_the_size_of_the_first_screens_may_be_one_of_several() -> None:
    observer, large = ScreenObserver(ObservationConfig(crop=None), SNES_SHAPE), (448, 512, 3)
    observer.fit(large)
    picture = np.random.default_rng(1).integers(0, 256, large, np.uint8)
    expected = ScreenObserver(ObservationConfig(crop=None), large).reset(picture)
    assert np.array_equal(observer.reset(picture), expected)
    cropping = ScreenObserver(ObservationConfig(crop=(0, 80, 0, 256)), SNES_SHAPE)
    cropping.fit(SNES_SHAPE)
    assert np.array_equal(cropping.reset(screen(3)), ScreenObserver(cropping.config, SNES_SHAPE).reset(screen(3)))
    with pytest.raises(KartRewardsError, match="the screen changed from 224 rows and 256 columns to 448 and 512"):
        cropping.fit(large)


# Farama-Foundation/Arcade-Learning-Environment#361: some games have pictures of another size than the usual one, for
# which code was written that expects it.
@pytest.mark.parametrize(
    "config", [ObservationConfig(crop=ROAD_VIEW), ObservationConfig(crop=None, size=None)], ids=["crop", "size"]
)
@pytest.mark.parametrize("shape", [(224, 320, 3), (144, 160, 3)])
def test_a_size_that_the_options_do_not_fit_is_an_error(config: ObservationConfig, shape: tuple[int, ...]) -> None:
    observer = ScreenObserver(config, SNES_SHAPE)
    observer.reset(screen(0))
    words = f"the screen changed from 224 rows and 256 columns to {shape[0]} and {shape[1]}, which the crop"
    with pytest.raises(KartRewardsError, match=words):
        observer.observe(np.zeros(shape, np.uint8))
    with pytest.raises(KartRewardsError, match=words):
        observer.reset(np.zeros(shape, np.uint8))

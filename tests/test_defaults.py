from __future__ import annotations

import pytest

from kart_rewards.defaults import DEFAULT_FRAME_SKIP, default_max_episode_steps


@pytest.mark.parametrize(("frame_skip", "steps"), [(1, 12_000), (DEFAULT_FRAME_SKIP, 3000), (7, 1714), (12_000, 1)])
def test_an_episode_has_12000_frames_by_default(frame_skip: int, steps: int) -> None:
    assert default_max_episode_steps(frame_skip) == steps


@pytest.mark.parametrize("frame_skip", [0, -1, 10**9])
def test_a_frame_skip_out_of_range_gives_a_valid_step_limit(frame_skip: int) -> None:
    """The environment itself reports such a value, so this function must not raise."""
    assert default_max_episode_steps(frame_skip) >= 1

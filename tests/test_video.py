from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest

from kart_rewards.errors import KartRewardsError
from kart_rewards.video import RecordEpisodes, ever_fewer


class Shades(gym.Env):
    """Ends after ``length`` steps, and shows a picture that brightens."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012
    render_mode = "rgb_array"
    observation_space = gym.spaces.Discrete(1)
    action_space = gym.spaces.Discrete(1)

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def reset(self, **_: Any) -> tuple[int, dict[str, Any]]:
        self.steps = 0
        return 0, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return 0, 0.0, self.steps == self.length, False, {}

    def render(self) -> Any:
        return np.full((224, 256, 3), self.steps * 20, np.uint8)


def play(env: gym.Env, episodes: int) -> None:
    for _ in range(episodes):
        env.reset()
        while not env.step(0)[2]:
            pass


def test_chosen_episodes_become_files_of_a_frame_a_step(tmp_path: Path) -> None:
    env = RecordEpisodes(Shades(), tmp_path / "videos", lambda episode: episode != 1)
    play(env, 3)
    env.close()
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == ["episode-0.mp4", "episode-2.mp4"]
    video = imageio.get_reader(tmp_path / "videos" / "episode-0.mp4")
    assert video.get_meta_data()["fps"] == 15
    brightness = [frame.mean() for frame in video.iter_data()]
    assert len(brightness) == 11
    assert brightness == sorted(brightness)


def test_an_episode_that_is_cut_short_is_a_whole_file(tmp_path: Path) -> None:
    env = RecordEpisodes(Shades(), tmp_path, lambda episode: True)
    env.reset()
    env.step(0)
    env.close()
    assert len(list(imageio.get_reader(tmp_path / "episode-0.mp4").iter_data())) == 2


def test_a_later_run_goes_on_counting(tmp_path: Path) -> None:
    for _ in range(2):
        env = RecordEpisodes(Shades(), tmp_path, lambda episode: True)
        play(env, 1)
        env.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode-0.mp4", "episode-1.mp4"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    env = RecordEpisodes(Shades(), tmp_path / "file" / "videos", lambda episode: True)
    with pytest.raises(KartRewardsError, match=r"episode-0\.mp4: can't be written"):
        env.reset()


def test_ever_fewer() -> None:
    assert [episode for episode in range(4001) if ever_fewer(episode)] == [
        *(n**3 for n in range(10)), 1000, 2000, 3000, 4000
    ]  # fmt: skip

"""Episodes as MP4 files.

* ``RecordEpisodes`` - a wrapper that streams what an environment renders into one file an episode
* ``ever_fewer`` - a choice of episodes for a long training run
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio

from kart_rewards.errors import KartRewardsError


class RecordEpisodes(gym.Wrapper):
    """Streams chosen episodes to ``folder/episode-N.mp4``, a frame a step, at the environment's ``render_fps``.

    Frames go to the encoder as they come, so that an episode of any length takes no memory.

    Args:
        env: An environment whose ``render_mode`` is ``rgb_array``.
        folder: Where the files go; made if it is not there.
        episode_trigger: Episode number, from 0 -> whether to record it.
    """

    def __init__(self, env: gym.Env, folder: str | Path, episode_trigger: Callable[[int], bool]) -> None:
        super().__init__(env)
        self._folder = Path(folder)
        self._trigger = episode_trigger
        numbers = [path.stem.removeprefix("episode-") for path in self._folder.glob("episode-*.mp4")]
        self._episode = max(
            (int(number) for number in numbers if number.isdigit()), default=-1
        )  # a resumed run counts on
        self._writer: Any = None

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Ends the file of the episode before, and begins one if this episode is chosen."""
        self._finish()
        result = self.env.reset(**options)
        self._episode += 1
        if self._trigger(self._episode):
            self._path = self._folder / f"episode-{self._episode}.mp4"
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._writer = imageio.get_writer(self._path, fps=self.env.metadata["render_fps"], macro_block_size=1)
            except OSError as error:
                raise KartRewardsError(f"{self._path}: can't be written: {error}") from None
            self._record()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps, and records what it led to."""
        result = self.env.step(action)
        self._record()
        if result[2] or result[3]:
            self._finish()
        return result

    def close(self) -> None:
        """Ends the file and closes the environment."""
        self._finish()
        super().close()

    def _record(self) -> None:
        if self._writer is not None:
            try:
                self._writer.append_data(self.env.render())
            except OSError as error:
                raise KartRewardsError(f"{self._path}: the video can't be written: {error}") from None

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def ever_fewer(episode: int) -> bool:
    """Chooses episodes 0, 1, 8, 27, 64 and so on up to 1000, then every thousandth."""
    return round(episode ** (1 / 3)) ** 3 == episode if episode < 1000 else episode % 1000 == 0

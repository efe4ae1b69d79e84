from __future__ import annotations

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from kart_rewards.env.video import VideoWriter, to_gif
from kart_rewards.errors import KartRewardsError


def shades(path: Path, count: int) -> None:
    """A video that brightens from picture to picture."""
    with VideoWriter(path, frames_per_second=15) as writer:
        for i in range(count):
            writer.append(np.full((224, 256, 3), i * 10, np.uint8))


def test_a_video_holds_the_pictures_in_their_order(tmp_path: Path) -> None:
    shades(tmp_path / "made" / "video.mp4", 20)
    reader = imageio.get_reader(tmp_path / "made" / "video.mp4")
    assert reader.get_meta_data()["fps"] == 15
    assert reader.get_meta_data()["size"] == (256, 224)
    means = [frame.mean() for frame in reader.iter_data()]
    assert np.allclose(means, [i * 10 for i in range(20)], atol=4)


def test_a_gif_is_made_of_a_video(tmp_path: Path) -> None:
    shades(tmp_path / "video.mp4", 15)
    to_gif(tmp_path / "video.mp4", tmp_path / "video.gif", frames_per_second=5, width=128)
    pictures = imageio.mimread(tmp_path / "video.gif")
    assert len(pictures) == 5, "one second"
    assert pictures[0].shape[:2] == (112, 128)
    means = [picture[..., :3].mean() for picture in pictures]
    assert means == sorted(means)
    assert means[-1] - means[0] > 80


def test_a_gif_may_show_the_beginning_alone(tmp_path: Path) -> None:
    shades(tmp_path / "video.mp4", 15)
    to_gif(tmp_path / "video.mp4", tmp_path / "video.gif", frames_per_second=5, seconds=0.4)
    assert len(imageio.mimread(tmp_path / "video.gif")) == 2


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KartRewardsError, match="can't be written"):
        VideoWriter(tmp_path / "file" / "video.mp4", 15)


def test_a_video_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_text("no video")
    with pytest.raises(KartRewardsError, match=r"video\.gif: can't be made of .*video\.mp4: .*Invalid data"):
        to_gif(tmp_path / "video.mp4", tmp_path / "video.gif", frames_per_second=5)

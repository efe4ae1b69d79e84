from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from command_line import needs_setpriv, ordinary

from kart_rewards.env.video import VideoWriter, to_gif
from kart_rewards.errors import KartRewardsError


def shades(path: Path, count: int) -> None:
    """A video that becomes brighter from picture to picture."""
    with VideoWriter(path, frames_per_second=15) as writer:
        for i in range(count):
            writer.append(np.full((224, 256, 3), i * 10, np.uint8))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_video_holds_the_pictures_in_their_order(tmp_path: Path) -> None:
    shades(tmp_path / "created" / "video.mp4", 20)
    reader: Any = imageio.get_reader(tmp_path / "created" / "video.mp4")
    assert reader.get_meta_data()["fps"] == 15
    assert reader.get_meta_data()["size"] == (256, 224)
    means = [frame.mean() for frame in reader.iter_data()]
    assert np.allclose(means, [i * 10 for i in range(20)], atol=4)
    assert files_in(tmp_path / "created") == ["video.mp4"]


def test_a_video_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    writer = VideoWriter(path, frames_per_second=15)
    writer.append(np.zeros((224, 256, 3), np.uint8))
    assert not path.exists()
    writer.close()
    reader: Any = imageio.get_reader(path)
    assert reader.count_frames() == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()], ids=repr)
def test_an_exception_leaves_no_file_and_keeps_the_old_video(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "video.mp4"

    def fail() -> None:
        with VideoWriter(path, 15) as writer:
            writer.append(np.zeros((224, 256, 3), np.uint8))
            raise error

    with pytest.raises(type(error)) as raised:
        fail()
    assert raised.value is error
    assert files_in(tmp_path) == []
    shades(path, 3)
    before = path.read_bytes()
    with pytest.raises(type(error)):
        fail()
    assert path.read_bytes() == before
    assert files_in(tmp_path) == ["video.mp4"]


def test_a_killed_process_leaves_no_file_under_the_name_of_the_video(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys, numpy as np\n"
        "from kart_rewards.env.video import VideoWriter\n"
        "writer = VideoWriter(pathlib.Path(sys.argv[1]), 15)\n"
        "for i in range(100):\n"
        "    writer.append(np.full((224, 256, 3), i, np.uint8))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "video.mp4"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    shades(path, 3)
    assert path.exists(), "what it left does not matter to the next video"


def test_a_full_disk_is_reported_and_leaves_no_file(tmp_path: Path) -> None:
    def write_noise() -> None:
        with VideoWriter(tmp_path / "video.mp4", 15) as writer:
            for picture in np.random.default_rng(1).integers(0, 256, (60, 224, 256, 3), np.uint8):
                writer.append(picture)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # has the effect of a full disk
    try:
        with pytest.raises(KartRewardsError, match=r"video\.mp4: can't be written: "):
            write_noise()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_in(tmp_path) == []


def test_a_gif_is_made_from_a_video(tmp_path: Path) -> None:
    shades(tmp_path / "video.mp4", 15)
    to_gif(tmp_path / "video.mp4", tmp_path / "video.gif", frames_per_second=5, width=128)
    pictures = imageio.mimread(tmp_path / "video.gif")
    assert len(pictures) == 5, "one second"
    assert pictures[0].shape[:2] == (112, 128)
    means = [picture[..., :3].mean() for picture in pictures]
    assert means == sorted(means)
    assert means[-1] - means[0] > 80


def test_a_gif_may_show_only_the_beginning(tmp_path: Path) -> None:
    shades(tmp_path / "video.mp4", 15)
    to_gif(tmp_path / "video.mp4", tmp_path / "video.gif", frames_per_second=5, seconds=0.4)
    assert len(imageio.mimread(tmp_path / "video.gif")) == 2


def test_a_folder_that_can_not_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KartRewardsError, match=r"video\.mp4: can't be written: Not a directory"):
        VideoWriter(tmp_path / "file" / "video.mp4", 15)
    shades(tmp_path / "video.mp4", 3)
    with pytest.raises(KartRewardsError, match=r"video\.gif: can't be written: Not a directory"):
        to_gif(tmp_path / "video.mp4", tmp_path / "file" / "video.gif", frames_per_second=5)


@needs_setpriv
def test_a_folder_without_write_permission_is_reported(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\nfrom kart_rewards.env.video import VideoWriter\n"
        "VideoWriter(pathlib.Path(sys.argv[1]), 15)\n"
    )
    tmp_path.chmod(0o555)
    try:
        command = [*ordinary(), sys.executable, "-c", code, str(tmp_path / "video.mp4")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    finally:
        tmp_path.chmod(0o755)
    assert done.stderr.splitlines()[-1].endswith("video.mp4: can't be written: Permission denied")


def test_a_file_that_is_not_a_video_is_reported(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_text("no video")
    with pytest.raises(KartRewardsError, match=r"video\.gif: can't be converted from .*video\.mp4: .*Invalid data"):
        to_gif(tmp_path / "video.mp4", tmp_path / "video.gif", frames_per_second=5)
    assert files_in(tmp_path) == ["video.mp4"], "no broken GIF is left"

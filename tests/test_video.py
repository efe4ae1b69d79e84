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
import psutil
import pytest
from command_line import needs_setpriv, ordinary

from kart_rewards.env.video import OptionalVideo, VideoWriter, to_gif
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


# corrscope/corrscope#362: a recording that was cancelled left an MP4 file that nothing plays.
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


# kernel/kernel-images#246: the encoder refuses an odd width or height, and the recording is empty.
@pytest.mark.parametrize("size", [(225, 256), (224, 255), (225, 255), (1, 1)])
def test_a_video_of_odd_pictures_gets_another_row_or_column(tmp_path: Path, size: tuple[int, int]) -> None:
    picture = np.zeros((*size, 3), np.uint8)
    picture[-1] = picture[:, -1] = 255
    with VideoWriter(tmp_path / "video.mp4", 15) as writer:
        for _ in range(3):
            writer.append(picture)
    [*pictures] = imageio.get_reader(tmp_path / "video.mp4").iter_data()
    height, width = (number + number % 2 for number in size)
    assert [each.shape for each in pictures] == [(height, width, 3)] * 3
    assert pictures[0][-1].mean() > 230
    assert pictures[0][:, -1].mean() > 230


# Observed: after a picture of another size, the encoder's command and its 15 lines of messages were the error.
# TASEmulators/pcejin#5: a game that changes its resolution broke the recording.
def test_a_video_keeps_the_size_of_its_first_picture(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", 15) as writer:
        for i, size in enumerate([(224, 256), (448, 512), (224, 320), (144, 160), (223, 255), (224, 256)]):
            writer.append(np.full((*size, 3), i * 40, np.uint8))
    [*pictures] = imageio.get_reader(tmp_path / "video.mp4").iter_data()
    assert [picture.shape for picture in pictures] == [(224, 256, 3)] * 6
    assert np.allclose([picture.mean() for picture in pictures], [i * 40 for i in range(6)], atol=4)


def test_an_encoder_that_ends_is_reported_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def write_until_it_fails() -> None:
        with VideoWriter(tmp_path / "video.mp4", 15) as writer:
            for i in range(10_000):
                writer.append(np.zeros((224, 256, 3), np.uint8))
                if i == 10:
                    for child in psutil.Process().children():
                        child.kill()

    with pytest.raises(KartRewardsError, match=r"video\.mp4: can't be written: .*exit code -9") as error:
        write_until_it_fails()
    assert "\n" not in str(error.value)
    assert files_in(tmp_path) == []
    assert capfd.readouterr() == ("", "")


def test_a_video_without_a_picture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"video\.mp4: can't be written: there is no picture"):
        VideoWriter(tmp_path / "video.mp4", 15).close()
    assert files_in(tmp_path) == []


def test_an_optional_video_fails_without_an_exception(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with OptionalVideo(tmp_path / "file" / "video.mp4", 15) as video:
        video.append(np.zeros((224, 256, 3), np.uint8))
    assert video.trouble.endswith("video.mp4: can't be written: Not a directory")

    with OptionalVideo(tmp_path / "video.mp4", 15) as video:
        for i in range(10_000):
            video.append(np.zeros((224, 256, 3), np.uint8))
            if i == 10:
                for child in psutil.Process().children():
                    child.kill()
    assert "video.mp4: can't be written: " in video.trouble

    with OptionalVideo(tmp_path / "video.mp4", 15) as video:
        pass
    assert video.trouble.endswith("video.mp4: can't be written: there is no picture")
    assert files_in(tmp_path) == ["file"]

    with OptionalVideo(tmp_path / "video.mp4", 15) as video:
        video.append(np.zeros((224, 256, 3), np.uint8))
    assert video.trouble == ""
    with OptionalVideo(None, 15) as video:
        video.append(np.zeros((224, 256, 3), np.uint8))
    assert video.trouble == ""
    assert files_in(tmp_path) == ["file", "video.mp4"]


def test_an_exception_in_the_middle_of_an_optional_video_is_not_lost(tmp_path: Path) -> None:
    def fail() -> None:
        with OptionalVideo(tmp_path / "video.mp4", 15) as video:
            video.append(np.zeros((224, 256, 3), np.uint8))
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        fail()
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


def test_a_gif_that_would_be_too_large_has_fewer_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    with VideoWriter(tmp_path / "video.mp4", 15) as writer:
        for _ in range(45):
            writer.append(rng.integers(0, 256, (64, 64, 3), np.uint8))
    to_gif(tmp_path / "video.mp4", tmp_path / "all.gif", frames_per_second=15, colours=64)
    size = (tmp_path / "all.gif").stat().st_size
    to_gif(tmp_path / "video.mp4", tmp_path / "small.gif", frames_per_second=15, colours=64, most_bytes=size // 3)
    assert (tmp_path / "small.gif").stat().st_size <= size // 3
    assert 5 <= len(imageio.mimread(tmp_path / "small.gif")) <= 16
    with pytest.raises(KartRewardsError, match=r"none\.gif: would have [\d,]+ bytes, and at most 100 are allowed"):
        to_gif(tmp_path / "video.mp4", tmp_path / "none.gif", frames_per_second=15, most_bytes=100)
    assert not (tmp_path / "none.gif").exists()


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

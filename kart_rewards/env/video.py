"""Episodes as video files.

* ``VideoWriter`` - streams pictures into an MP4 file
* ``to_gif`` - makes a GIF of an MP4 file
"""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np

from kart_rewards.errors import KartRewardsError


class VideoWriter:
    """Streams pictures into an MP4 file. They go to the encoder as they come, so that a long episode takes no memory.

    Args:
        path: The file; its folder is made if it is not there.
        frames_per_second: Pictures a second.

    Raises:
        KartRewardsError: It can't be written.
    """

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer: Any = imageio.get_writer(path, format="FFMPEG", fps=frames_per_second, macro_block_size=1)
        except OSError as error:
            raise self._unwritable(error) from None

    def append(self, picture: np.ndarray) -> None:
        """Adds a picture: uint8 (height, width, 3), of the same size each time, even in both directions."""
        try:
            self._writer.append_data(picture)
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self) -> None:
        """Ends the file, and looks whether it is whole: the encoder says nothing of a disk that is full.

        Raises:
            KartRewardsError: It is not.
        """
        self._writer.close()
        try:
            with closing(imageio_ffmpeg.read_frames(str(self.path))) as frames:
                next(frames)
        except (OSError, RuntimeError, StopIteration):
            raise KartRewardsError(f"{self.path}: the video can't be written: is the disk full?") from None

    def _unwritable(self, error: OSError) -> KartRewardsError:
        return KartRewardsError(f"{self.path}: the video can't be written: {error}")

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, exception: object, *_: object) -> None:
        if exception:
            self._writer.close()
        else:
            self.close()


def to_gif(
    video: Path, gif: Path, frames_per_second: float, width: int | None = None, seconds: float | None = None
) -> None:
    """Makes a GIF of a video, with a palette of its own.

    Args:
        video: The MP4 file.
        gif: The GIF file.
        frames_per_second: Its pictures a second.
        width: Its width in pixels; its height follows. None: the video's.
        seconds: How much of the video to show. None: all.

    Raises:
        KartRewardsError: It can't be written.
    """
    picked = f"fps={frames_per_second:g},scale={width or -1}:-1:flags=lanczos,split[a][b]"
    palette = "[a]palettegen=max_colors=128:stats_mode=diff[p];[b][p]paletteuse=dither=none:diff_mode=rectangle"
    length = [] if seconds is None else ["-t", f"{seconds:g}"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", "-i", str(video), *length]
    done = subprocess.run(  # noqa: S603 - the encoder that imageio-ffmpeg brings
        [*command, "-filter_complex", f"{picked};{palette}", str(gif)],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # a terminal's Ctrl-C is the caller's to act on
    )
    if done.returncode:
        says = done.stderr.strip().splitlines() or [f"the encoder ended with exit code {done.returncode}"]
        raise KartRewardsError(f"{gif}: can't be made of {video}: {says[-1]}")

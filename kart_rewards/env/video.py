"""Episodes as video files.

* ``VideoWriter`` - writes pictures to an MP4 file one by one
* ``to_gif`` - converts an MP4 file to a GIF

Both write atomically: a video that is interrupted or fails leaves no file under its name.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np

from kart_rewards.errors import KartRewardsError
from kart_rewards.files import atomic_write


class VideoWriter:
    """Writes pictures to an MP4 file. Each picture goes to the encoder immediately, so long episodes need no memory.

    The file is there when ``close`` returns, or when the ``with`` statement ends without an exception.

    Args:
        path: The file. A missing folder is created.
        frames_per_second: Pictures per second.

    Raises:
        KartRewardsError: The file can't be written.

    Example:
        >>> with VideoWriter(Path("drive.mp4"), frames_per_second=60) as writer:  # doctest: +SKIP
        ...     writer.append(env.em.get_screen())
    """

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self.path = path
        with ExitStack() as file:
            self._temporary = file.enter_context(atomic_write(path))
            self._temporary.touch()  # raises an error now, and one that is clearer than the encoder's
            self._writer: Any = imageio.get_writer(
                self._temporary, format="FFMPEG", fps=frames_per_second, macro_block_size=1
            )
            file.push(self._end_encoder)  # before the file gets its name
            self._file = file.pop_all()

    def append(self, picture: np.ndarray) -> None:
        """Adds a picture: uint8 (height, width, 3). All pictures have the same size, with even height and width.

        Raises:
            KartRewardsError: The file can't be written.
        """
        try:
            self._writer.append_data(picture)
        except OSError as error:
            raise KartRewardsError(f"{self.path}: can't be written: {error}") from None

    def _end_encoder(self, kind: object, exception: object, trace: object) -> None:
        """Ends the encoder and, unless there was an exception, checks the file: the encoder reports no full disk."""
        self._writer.close()
        if exception is None:
            try:
                with closing(imageio_ffmpeg.read_frames(str(self._temporary))) as frames:
                    next(frames)
            except (OSError, RuntimeError, StopIteration):
                raise KartRewardsError(f"{self.path}: can't be written: is the disk full?") from None

    def close(self) -> None:
        """Completes the file.

        Raises:
            KartRewardsError: The file can't be written.
        """
        self._file.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.__exit__(*exception)


def to_gif(
    video: Path, gif: Path, frames_per_second: float, width: int | None = None, seconds: float | None = None
) -> None:
    """Converts a video to a GIF, with a palette made for it.

    Args:
        video: The MP4 file.
        gif: The GIF file. A missing folder is created.
        frames_per_second: Pictures per second of the GIF.
        width: Width of the GIF in pixels; the height follows. None: the video's.
        seconds: Length of the part to convert, from the start. None: all.

    Raises:
        KartRewardsError: The video can't be read, or the GIF can't be written.
    """
    picked = f"fps={frames_per_second:g},scale={width or -1}:-1:flags=lanczos,split[a][b]"
    palette = "[a]palettegen=max_colors=128:stats_mode=diff[p];[b][p]paletteuse=dither=none:diff_mode=rectangle"
    length = [] if seconds is None else ["-t", f"{seconds:g}"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", "-i", str(video), *length]
    with atomic_write(gif) as temporary:
        temporary.touch()  # raises an error that is clearer than the encoder's
        done = subprocess.run(  # noqa: S603 - the encoder of imageio-ffmpeg
            [*command, "-filter_complex", f"{picked};{palette}", str(temporary)],
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # the caller handles Ctrl-C in a terminal
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"the encoder ended with exit code {done.returncode}"]
            raise KartRewardsError(f"{gif}: can't be converted from {video}: {lines[-1]}")

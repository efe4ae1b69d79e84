"""Episodes as video files.

* ``VideoWriter`` - writes pictures to an MP4 file one by one
* ``OptionalVideo`` - the same for a program that goes on if the video fails
* ``to_gif`` - converts an MP4 file to a GIF

All write atomically: a video that is interrupted or fails leaves no file under its name.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import cv2
import imageio_ffmpeg
import numpy as np

from kart_rewards.errors import KartRewardsError
from kart_rewards.files import atomic_write

_FEWEST_FRAMES_PER_SECOND = 0.5  # of a GIF that is made smaller


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
        self._frames_per_second = frames_per_second
        self._size = (0, 0)  # width and height of the video; the first picture decides
        self._encoder: subprocess.Popen[bytes] | None = None
        with ExitStack() as file:
            self._temporary = file.enter_context(atomic_write(path))
            self._temporary.touch()  # raises an error now, and one that is clearer than the encoder's
            file.push(self._end_encoder)  # before the file gets its name
            self._file = file.pop_all()

    def append(self, picture: np.ndarray) -> None:
        """Adds a picture: uint8 (height, width, 3).

        The first picture decides the size of the video. Video encoders need an even width and height, so a last column
        or row is doubled if necessary. Pictures of other sizes are resized.

        Raises:
            KartRewardsError: The file can't be written.
        """
        height, width = picture.shape[:2]
        if self._encoder is None:
            self._size = width + width % 2, height + height % 2
            self._encoder = self._start_encoder()
        right, bottom = self._size[0] - width, self._size[1] - height
        if not (0 <= right <= 1 and 0 <= bottom <= 1):
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        elif right or bottom:
            picture = np.pad(picture, ((0, bottom), (0, right), (0, 0)), mode="edge")
        assert self._encoder.stdin
        try:
            self._encoder.stdin.write(picture.tobytes())
        except OSError:  # the encoder has ended
            raise KartRewardsError(f"{self.path}: can't be written: {self._finish()}") from None

    def _start_encoder(self) -> subprocess.Popen[bytes]:
        form = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "{}x{}".format(*self._size)]
        coding = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "veryfast", "-crf", "23"]
        rate = f"{self._frames_per_second:.5f}"
        try:
            return subprocess.Popen(  # noqa: S603 - the encoder of imageio-ffmpeg
                [*_encoder_command(), *form, "-r", rate, "-i", "-", *coding, str(self._temporary)],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # this process handles Ctrl-C in a terminal
            )
        except OSError as error:
            raise KartRewardsError(f"{self.path}: can't be written: the encoder does not start: {error}") from None

    def _finish(self) -> str:
        """Waits for the end of the encoder. Returns its first message, or its exit code."""
        assert self._encoder and self._encoder.stdin and self._encoder.stderr
        with suppress(OSError):
            self._encoder.stdin.close()
        lines = self._encoder.stderr.read().decode(errors="replace").strip().splitlines()
        self._encoder.stderr.close()
        return lines[0] if lines else f"the encoder ended with exit code {self._encoder.wait()}: is the disk full?"

    def _end_encoder(self, kind: object, exception: object, trace: object) -> None:
        """Ends the encoder. Unless there was an exception, checks the file, because not every full disk is reported."""
        message = "there is no picture"
        if self._encoder and self._encoder.returncode is None:
            if exception is not None:
                self._encoder.kill()
            message = self._finish()
            self._encoder.wait()
        if exception is None:
            try:
                with closing(imageio_ffmpeg.read_frames(str(self._temporary))) as frames:
                    next(frames)
            except (OSError, RuntimeError, StopIteration):
                raise KartRewardsError(f"{self.path}: can't be written: {message}") from None

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


class OptionalVideo:
    """A video beside something more important. If it fails, it ends without a file, and ``trouble`` says why.

    Args:
        path: The file. None: there is no video.
        frames_per_second: Pictures per second.

    Attributes:
        trouble: Why the video failed; an empty text if it did not.
    """

    def __init__(self, path: Path | None, frames_per_second: float) -> None:
        self.trouble = ""
        self._writer: VideoWriter | None = None
        try:
            self._writer = VideoWriter(path, frames_per_second) if path else None
        except KartRewardsError as error:
            self.trouble = str(error)

    def append(self, picture: np.ndarray) -> None:
        """Adds a picture, unless the video has failed; see ``VideoWriter.append``."""
        if self._writer:
            try:
                self._writer.append(picture)
            except KartRewardsError as error:
                self.trouble = str(error)
                self.__exit__(type(error), error, None)

    def __enter__(self) -> OptionalVideo:
        return self

    def __exit__(self, *exception: Any) -> None:
        writer, self._writer = self._writer, None
        if writer:
            try:
                writer.__exit__(*exception)
            except KartRewardsError as error:
                self.trouble = str(error)


def _encoder_command() -> list[str]:
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y"]


def to_gif(
    video: Path,
    gif: Path,
    frames_per_second: float,
    width: int | None = None,
    seconds: float | None = None,
    colours: int = 128,
    most_bytes: int | None = None,
) -> None:
    """Converts a video to a GIF, with a palette made for it.

    Args:
        video: The MP4 file.
        gif: The GIF file. A missing folder is created.
        frames_per_second: Pictures per second of the GIF.
        width: Width of the GIF in pixels; the height follows. None: the video's.
        seconds: Length of the part to convert, from the start. None: all.
        colours: Size of the palette, at most 256. Fewer colours make a smaller file.
        most_bytes: The largest size of the file. A GIF that would be larger has fewer pictures per second.

    Raises:
        KartRewardsError: The video can't be read, or the GIF can't be written.
    """
    palette = f"[a]palettegen=max_colors={colours}:stats_mode=diff[p];[b][p]paletteuse=dither=none:diff_mode=rectangle"
    length = [] if seconds is None else ["-t", f"{seconds:g}"]
    command = [*_encoder_command(), "-i", str(video), *length]
    with atomic_write(gif) as temporary:
        temporary.touch()  # raises an error that is clearer than the encoder's
        while True:
            picked = f"fps={frames_per_second:g},scale={width or -1}:-1:flags=lanczos,split[a][b]"
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
            size = temporary.stat().st_size
            if most_bytes is None or size <= most_bytes:
                return
            if frames_per_second <= _FEWEST_FRAMES_PER_SECOND:
                raise KartRewardsError(f"{gif}: would have {size:,} bytes, and at most {most_bytes:,} are allowed")
            # The size grows with the number of pictures.
            frames_per_second = max(0.9 * frames_per_second * most_bytes / size, _FEWEST_FRAMES_PER_SECOND)

"""The pictures of a drive as a short video that a browser decodes frame by frame.

* ``film`` - replays a drive, and yields its pictures in chunks of H.264
* ``FilmFormat`` - the size of the pictures and the codec, which a decoder needs first

Each chunk begins with a key frame and has no reference to another chunk. So a browser decodes the chunk of any frame
with WebCodecs, which gives each decoded picture the number of its frame. The player of an ordinary video element
rounds times to pictures, and does not say which picture it shows.
"""

from __future__ import annotations

import queue
import re
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from kart_rewards.drives import Drive
from kart_rewards.errors import KartRewardsError
from kart_rewards.lab.replay import replay

_QUALITY = "20"  # of x264: 18 can hardly be distinguished from the original, 28 is blurred
_DELIMITER = b"\x00\x00\x00\x01\x09"  # begins each picture; encoded data never contains it
_PROFILE = re.compile(rb"\x00\x00\x01\x67(...)", re.DOTALL)


@dataclass(frozen=True)
class FilmFormat:
    """What a decoder needs before the first chunk.

    Args:
        width, height: The size of the pictures. The video may have one more column or row, because its size is even.
        codec: The codec as WebCodecs names it, such as ``avc1.640014``.
        chunk_frames: Pictures per chunk; the last chunk may have fewer.
    """

    width: int
    height: int
    codec: str
    chunk_frames: int


def film(
    drive: Drive, integrations: str | Path | None = None, chunk_frames: int = 10, most_bytes: int | None = None
) -> Iterator[FilmFormat | bytes]:
    """Replays a drive, and encodes its pictures while it runs.

    Args:
        drive: The drive.
        integrations: The only folder to look for the game in. None: the standard lookup.
        chunk_frames: Pictures per chunk. A browser shows any frame after it decodes one chunk; a key frame is large.
        most_bytes: About the largest size of all chunks. None: no limit.

    Yields:
        A ``FilmFormat``, then the chunks. A chunk is the number of its pictures as a little-endian uint32, the size of
        each as another, and the encoded pictures.

    Raises:
        DepartedError: The replay departs from the drive. The pictures before that frame have been yielded.
        KartRewardsError: See ``replay``; or the encoder does not start.
    """
    screens = replay(drive, integrations)
    first = next(screens)
    height, width = first.shape[:2]
    encoder = _Encoder(width, height, drive.info.frames_per_second, len(drive), chunk_frames, most_bytes)
    failure: KartRewardsError | None = None
    format_is_known = False
    try:
        encoder.write(first)
        for chunk in _chunks_of(encoder, screens):
            if isinstance(chunk, KartRewardsError):
                failure = chunk
                continue
            if not format_is_known:
                format_is_known = True
                profile = _PROFILE.search(chunk[0])
                assert profile, "a key frame begins with the profile"
                yield FilmFormat(width, height, f"avc1.{profile[1].hex()}", chunk_frames)
            yield struct.pack(f"<{len(chunk) + 1}I", len(chunk), *map(len, chunk)) + b"".join(chunk)
    finally:
        screens.close()  # type: ignore[attr-defined]  # the emulator ends
        encoder.kill()
    if failure:
        raise failure


def _chunks_of(encoder: _Encoder, screens: Iterator[np.ndarray]) -> Iterator[list[bytes] | KartRewardsError]:
    """Yields the encoded pictures of each chunk, and the error that ended the replay."""
    try:
        for screen in screens:
            encoder.write(screen)
            yield from encoder.complete_chunks()
    except KartRewardsError as error:
        yield error
    encoder.end()
    yield from encoder.complete_chunks()


class _Encoder:
    """An encoder process. A thread of this process splits its output into pictures."""

    def __init__(
        self,
        width: int,
        height: int,
        frames_per_second: float,
        frames: int,
        chunk_frames: int,
        most_bytes: int | None,
    ) -> None:
        self._size = width, height
        self._chunk_frames = chunk_frames
        limit = []
        if most_bytes is not None:
            bits_per_second = int(most_bytes * 8 / (frames / frames_per_second))
            limit = ["-maxrate", str(bits_per_second), "-bufsize", str(2 * bits_per_second)]
        key_frames = ["-g", str(chunk_frames), "-keyint_min", str(chunk_frames), "-sc_threshold", "0", "-bf", "0"]
        colours = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
        command = [
            imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{frames_per_second:.5f}",
            "-i", "-",
            "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709:out_range=tv", *colours,
            "-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "veryfast", "-crf", _QUALITY, *limit, *key_frames,
            "-threads", "1", "-x264-params", "aud=1", "-f", "h264", "-",
        ]  # fmt: skip
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the encoder of imageio-ffmpeg
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # it complains when the replay ends early
                start_new_session=True,  # the parent handles Ctrl-C in a terminal
            )
        except OSError as error:
            raise KartRewardsError(f"the pictures can't be encoded: the encoder does not start: {error}") from None
        self._pictures: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._waiting: list[bytes] = []
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        rest = b""
        while data := self._process.stdout.read1(2**16):  # type: ignore[attr-defined]
            *pictures, rest = (rest + data).split(_DELIMITER)
            for picture in filter(None, pictures):
                self._pictures.put(_DELIMITER + picture)
        if rest:
            self._pictures.put(_DELIMITER + rest)

    def write(self, screen: np.ndarray) -> None:
        """Encodes a picture. One of another size than the first is resized."""
        width, height = self._size
        if screen.shape[:2] != (height, width):
            screen = cv2.resize(screen, self._size, interpolation=cv2.INTER_AREA)
        assert self._process.stdin
        try:
            self._process.stdin.write(screen.tobytes())
        except OSError:
            raise KartRewardsError("the pictures can't be encoded: the encoder has ended") from None

    def end(self) -> None:
        """Waits until all pictures are encoded."""
        assert self._process.stdin
        with suppress(OSError):
            self._process.stdin.close()
        self._reader.join()
        self._ended = True

    def complete_chunks(self) -> Iterator[list[bytes]]:
        """Yields the chunks that are complete; the last one only after ``end``."""
        with suppress(queue.Empty):
            while True:
                self._waiting.append(self._pictures.get_nowait())
        while len(self._waiting) >= self._chunk_frames or (self._ended and self._waiting):
            chunk, self._waiting = self._waiting[: self._chunk_frames], self._waiting[self._chunk_frames :]
            yield chunk

    def kill(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()  # its stream has ended; closing it while the thread reads would raise there
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream:
                    stream.close()

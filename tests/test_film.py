from __future__ import annotations

import struct
import subprocess
from dataclasses import replace

import imageio_ffmpeg
import numpy as np
import pytest
from conftest import part_of

from kart_rewards.drives import SHIPPED, Drive, load_drive
from kart_rewards.lab.page.film import FilmFormat, film
from kart_rewards.lab.replay import DepartedError, replay


@pytest.fixture(scope="module")
def drive() -> Drive:
    return part_of(load_drive(SHIPPED / "turning.drive"), 100)


def pictures_of(chunk: bytes) -> list[bytes]:
    """The encoded pictures of a chunk."""
    [count] = struct.unpack_from("<I", chunk)
    sizes = struct.unpack_from(f"<{count}I", chunk, 4)
    ends = 4 * (count + 1) + np.cumsum(sizes)
    assert ends[-1] == len(chunk)
    return [chunk[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def test_each_chunk_is_decoded_alone_and_has_the_pictures_of_its_frames(drive: Drive) -> None:
    form, *chunks = film(drive, chunk_frames=30)
    assert isinstance(form, FilmFormat)
    assert (form.width, form.height, form.chunk_frames) == (256, 224, 30)
    assert form.codec.startswith("avc1.")
    assert all(isinstance(chunk, bytes) for chunk in chunks)
    pictures = [pictures_of(chunk) for chunk in chunks if isinstance(chunk, bytes)]
    assert [len(each) for each in pictures] == [30, 30, 30, 10]
    screens = [screen.copy() for screen in replay(drive)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "h264", "-i", "-", "-f", "rawvideo"]
    for number, encoded in enumerate(pictures):
        done = subprocess.run(
            [*command, "-pix_fmt", "rgb24", "-"], input=b"".join(encoded), capture_output=True, check=True
        )
        decoded = np.frombuffer(done.stdout, np.uint8).reshape(-1, 224, 256, 3)
        assert len(decoded) == len(encoded)
        for frame, picture in enumerate(decoded, 30 * number):
            assert np.abs(picture.astype(int) - screens[frame].astype(int)).mean() < 8


def test_a_limit_makes_a_film_smaller(drive: Drive) -> None:
    sizes = [
        sum(len(chunk) for chunk in film(drive, most_bytes=most) if isinstance(chunk, bytes)) for most in (None, 60_000)
    ]
    assert sizes[1] < sizes[0] / 2


def test_the_pictures_before_a_departure_are_there(drive: Drive) -> None:
    masks = drive.masks.copy()
    masks[50:] = 0
    frames = 0
    parts = film(replace(drive, masks=masks))
    with pytest.raises(DepartedError) as error:  # noqa: PT012
        for chunk in parts:
            frames += struct.unpack_from("<I", chunk)[0] if isinstance(chunk, bytes) else 0
    assert frames == error.value.frame > 50


def test_a_film_that_is_not_read_to_its_end_leaves_no_emulator_and_no_encoder(drive: Drive) -> None:
    for _ in range(2):  # a second emulator could not start
        assert isinstance(next(film(drive)), FilmFormat)

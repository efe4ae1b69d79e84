"""Movies: recordings in stable-retro's own format.

* ``save_movie`` - writes a drive as a ``.bk2`` movie
"""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path
from typing import Any

import stable_retro

from kart_rewards.drives import Drive
from kart_rewards.files import atomic_write


def save_movie(drive: Drive, path: Path, em: Any) -> None:
    """Writes a drive as a ``.bk2`` movie, which stable-retro's own commands play.

    Args:
        drive: The drive.
        path: The file, which ends in ``.bk2``. An existing file is replaced.
        em: stable-retro's emulator, with the game's ROM in it.

    Raises:
        UnwritableError: The file can't be written.
    """
    with atomic_write(path) as file:
        file.touch()  # stable-retro crashes if it can't write the file
        movie = stable_retro.Movie(str(file), True, 1)
        movie.configure(drive.info.game, em)
        movie.set_state(drive.start)
        for mask in (*drive.lead.tolist(), *drive.masks.tolist()):
            for bit in range(len(drive.info.buttons)):
                movie.set_key(bit, bool(mask >> bit & 1), 0)
            movie.step()
        movie.close()
        try:
            with zipfile.ZipFile(file) as written:  # stable-retro does not report write errors
                damaged = written.testzip()
        except (OSError, zipfile.BadZipFile):
            damaged = file.name
        if damaged:
            raise OSError(errno.ENOSPC, "is the disk full?")

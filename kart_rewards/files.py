"""Atomic writes: a file has its old content or its new content, never a part of it.

* ``use_copies``, ``copy_of``, ``copies_in_use`` - reading files from copies, so that a run keeps the text it began with
* ``read_file`` - reads a file or its copy, and no pipe
* ``atomic_write`` - writes a temporary file, and renames it when it is complete
* ``UnwritableError`` - the error of a file that can't be written
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from kart_rewards.errors import KartRewardsError


class UnwritableError(KartRewardsError):
    """A file can't be written: the disk is full, or the folder may not be written to.

    Attributes:
        strerror: The operating system's reason.
        errno: Its number, see the module ``errno``.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        self.strerror, self.errno = error.strerror or str(error), error.errno
        super().__init__(f"{path}: can't be written: {self.strerror}")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Writes a file atomically.

    The body of the ``with`` statement writes to the temporary file. If the body raises an exception, ``path`` is not
    changed.

    Args:
        path: The file. Missing folders are created.

    Yields:
        The path of the temporary file. It is in the same folder and has the same suffix.

    Raises:
        UnwritableError: The file can't be written.

    Example:
        >>> with atomic_write("report.json") as file:  # doctest: +SKIP
        ...     file.write_text("{}")
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with suppress(FileExistsError):  # if a file has the folder's name, the write reports "Not a directory"
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # otherwise a power failure could leave an empty file at path
        temporary.replace(path)
    except OSError as error:
        raise UnwritableError(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


_copies: dict[Path, Path] = {}


def use_copies(copies: Mapping[Path, Path]) -> None:
    """Makes this process read the text of some files from copies, until the next call.

    JSON files and rewards files are read so. Messages have the names of the original files, which need not exist.

    Args:
        copies: Original file -> its copy. All other files are read from their own place. An empty mapping ends the use
            of copies.
    """
    _copies.clear()
    for original, copy in copies.items():
        _copies[original.absolute()] = _copies[original.resolve()] = copy


def copy_of(path: Path) -> Path:
    """Returns the copy from which a file is to be read, or the file itself if there is none."""
    return _copies.get(path) or _copies.get(path.absolute(), path)


def read_file(path: Path) -> bytes:
    """Returns the content of a file, or of the copy from which it is to be read.

    Raises:
        OSError: The file can't be read. A pipe is refused: to read one is to wait for whoever writes to it.
    """
    path = copy_of(path)
    if path.is_fifo():
        raise OSError(errno.ESPIPE, "it is a pipe, not a file")
    return path.read_bytes()


def copies_in_use() -> dict[Path, Path]:
    """Returns original file -> its copy, for another process."""
    return dict(_copies)

"""Files that are complete at every moment.

* ``atomic_write`` - writes a file under another name, and gives it its own when it is complete
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kart_rewards.errors import KartRewardsError


class UnwritableError(KartRewardsError):
    """A file can't be written: the disk is full, or the folder may not be written to."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"{path}: can't be written: {error.strerror or error}")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Writes a file atomically: whoever reads ``path`` finds the old file or the new one, never a part of one.

    The body of the ``with`` statement writes to the temporary file. If it raises, ``path`` stays as it was.

    Args:
        path: The file. A missing folder is made.

    Yields:
        The temporary file's path: in the same folder, with the same suffix.

    Raises:
        UnwritableError: The file can't be written.

    Example:
        >>> with atomic_write("report.json") as file:  # doctest: +SKIP
        ...     file.write_text("{}")
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else a power failure could leave an empty file under the final name
        temporary.replace(path)
    except OSError as error:
        raise UnwritableError(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)

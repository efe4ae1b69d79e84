"""Notices: what a user should know, although it is not an error.

* ``notice`` - prints a notice once
"""

from __future__ import annotations

import multiprocessing
from functools import cache


@cache
def notice(text: str) -> None:
    """Prints a notice on standard output, once per text. Child processes print none, because their parent does.

    Example:
        >>> notice("data.json: the key 'author' has no effect")
        data.json: the key 'author' has no effect
    """
    if multiprocessing.parent_process() is None:
        print(text, flush=True)

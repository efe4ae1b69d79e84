"""Signatures of what this user made on this computer.

* ``signed`` - returns the signature of a text
* ``is_signed`` - whether a text has a signature

The secret key lies in the user's data folder and nowhere else.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress

import platformdirs


def signed(text: str) -> str:
    """Returns the signature of a text; empty if there is no place for a key."""
    key = _key()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest() if key else ""


def is_signed(text: str, signature: object) -> bool:
    """Whether a text has this signature.

    Args:
        text: The text.
        signature: What a file holds as its signature, of any type.
    """
    wanted = signed(text)
    return bool(wanted) and isinstance(signature, str) and hmac.compare_digest(wanted.encode(), signature.encode())


def _key() -> bytes:
    """The user's secret key, which is made when it is first needed; empty if it can't be."""
    path = platformdirs.user_data_path("kart_rewards") / "key"
    new = path.with_name(f".key.{os.getpid()}")
    with suppress(OSError):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            new.touch(mode=0o600)
            new.write_bytes(secrets.token_bytes(32))
            try:
                os.link(new, path)
            except FileExistsError:  # another process was faster
                pass
            except OSError:  # a file system without links
                new.replace(path)
            new.unlink(missing_ok=True)
        return path.read_bytes()
    return b""

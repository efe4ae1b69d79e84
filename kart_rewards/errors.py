"""The one exception that is meant for a person: its message is all there is to say."""

from __future__ import annotations


class KartRewardsError(Exception):
    """Bad input: the message says what is wrong, in which file, and what to do about it.

    Command lines print it without a traceback and exit with code 2.
    """

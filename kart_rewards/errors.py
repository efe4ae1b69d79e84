"""Messages for a person.

* ``KartRewardsError`` - bad input; its message is all that the user sees
* ``NothingToDo`` - the end of a command that found its work done
* ``run_command`` - runs a command line, and reports an error in one message
* ``did_you_mean``, ``counted`` - parts of messages
"""

from __future__ import annotations

import difflib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable


class KartRewardsError(Exception):
    """Bad input: the message says what is wrong, in which file, and what to do about it.

    Command lines print it without a traceback and exit with code 2.
    """


class NothingToDo(Exception):  # noqa: N818 - it is not an error
    """The work of a command is done already. Command lines print the message and exit with code 0."""


_LEAST_SIMILARITY = 0.63  # 0.6, difflib's default, suggests "games" for "new-game"


def did_you_mean(name: str, known: Iterable[str], suffix: str = "") -> str:
    """Returns a hint to append to a message about an unknown name, or an empty string if no known name is similar.

    Args:
        name: The unknown name.
        known: The known names.
        suffix: The rest of each known name, which all have in common. It is not compared.

    Example:
        >>> did_you_mean("sped", ["laps", "speed"])
        " Did you mean 'speed'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=_LEAST_SIMILARITY)
    return f" Did you mean {close[0] + suffix!r}?" if close else ""


def counted(number: int, singular: str, plural: str = "") -> str:
    """Returns a number with its noun. The plural is the singular with an ``s``, unless given.

    Example:
        >>> counted(1, "frame"), counted(2000, "frame"), counted(0, "address", "addresses")
        ('1 frame', '2,000 frames', '0 addresses')
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def run_command(main: Callable[[], object]) -> None:
    """Runs a command line, and ends the program: a mistake of the user with one message and exit code 2.

    Args:
        main: The command line.
    """
    if shutil.get_terminal_size().columns < 1:  # in Python 3.10, if the terminal reports no size: tyro would hang
        os.environ["COLUMNS"] = "80"
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # during the imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
        sys.stdout.flush()
    except NothingToDo as end:
        print(end)
    except KartRewardsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        # Python flushes standard output when it exits; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # a reader such as `head` has closed the pipe
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

"""The findings of ``kart-rewards lint`` on the page.

* ``page_findings`` - what lint finds, as plain values for JSON
* ``findings_of_now`` - the same, from a process of its own
* ``with_numbers`` - findings with the numbers of their drives
* ``UNKNOWN`` - the result before lint has run
* ``Linting`` - runs it in a process of its own, and again after each change of the rewards
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kart_rewards.drives import SUFFIX, load_drive
from kart_rewards.errors import KartRewardsError
from kart_rewards.lab.linting.lint import TITLES, examine
from kart_rewards.lab.score import RewardSet
from kart_rewards.training.processes import CLEAN, Children, Workers, attempt, serve_parent

_POLL_SECONDS = 0.1
_NICENESS = 5  # what a person waits for comes first


def page_findings(sets: Sequence[RewardSet], paths: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Returns what lint finds in reward sets, for each game among the drives.

    The scripted drives that show a finding are saved. It runs the emulator, and it needs a process that has not loaded
    the rewards yet.

    Args:
        sets: The reward sets.
        paths: The files of recorded drives.
        folder: The folder for the scripted drives.

    Returns:
        ``findings``, a list of dicts with ``title``, ``script``, ``where``, ``text``, ``remedy``, ``path`` of a drive
        and ``frame``; and ``error``, why a game or a reward set could not be examined, or None.
    """
    found: list[dict[str, Any]] = []
    errors: list[str] = []
    for game in dict.fromkeys(load_drive(path).info.game for path in paths):
        for rewards in sets:
            try:
                result = examine(game, rewards, paths, output=folder)
            except KartRewardsError as error:
                errors.append(str(error))
                continue
            for each in result.findings:
                facts = {name: getattr(each, name) for name in ("script", "where", "text", "remedy", "frame")}
                facts |= {"title": f"{each.script} {TITLES[each.check]}", "path": str(result.paths[each.drive])}
                found += [facts] if facts not in found else []
    return {"findings": found, "error": "\n".join(dict.fromkeys(errors)) or None}


UNKNOWN: Mapping[str, Any] = {"findings": None, "error": None}


def findings_of_now(sets: Sequence[RewardSet], paths: Sequence[Path], folder: Path) -> Mapping[str, Any]:
    """Returns ``page_findings`` from a process of its own. A fault of lint is in ``error``.

    Args:
        sets, paths, folder: See ``page_findings``.
    """
    workers = Workers(1)
    try:
        [result] = workers.map(page_findings, [(sets, paths, folder)])
        return result
    except (KartRewardsError, RuntimeError) as error:
        return {**UNKNOWN, "error": str(error)}
    finally:
        workers.close()


def with_numbers(findings: Sequence[Mapping[str, Any]] | None, paths: Sequence[Path]) -> list[dict[str, Any]] | None:
    """Returns findings with ``drive``, the label of the drive, and ``number``, its index among paths or None."""
    if findings is None:
        return None
    numbers = {path.resolve(): number for number, path in enumerate(paths)}
    found = []
    for each in findings:
        path = Path(each["path"])
        facts = {name: value for name, value in each.items() if name != "path"}
        found.append({**facts, "drive": path.name.removesuffix(SUFFIX), "number": numbers.get(path.resolve())})
    return found


class Linting:
    """Runs ``page_findings`` in a process of its own, and again after each change.

    It waits while something else is more urgent. A run whose files are not those of now is killed.

    Args:
        sets: The reward sets.
        folder: The folder for the scripted drives.
        state: Returns what identifies the files of now, and whether a run may start. None in place of the first: there
            is nothing to examine.
        paths: Returns the files of the recorded drives.
        received: Is called with each result of ``page_findings``.
        changed: Is called after each change of ``is_busy``.

    Attributes:
        is_busy: Whether a run is under way, or waits for its turn.
    """

    def __init__(
        self,
        sets: Sequence[RewardSet],
        folder: Path,
        state: Callable[[], tuple[Any, bool]],
        paths: Callable[[], Sequence[Path]],
        received: Callable[[Mapping[str, Any]], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        self.is_busy = False
        self._sets, self._folder = sets, folder
        self._state, self._paths = state, paths
        self._received, self._changed = received, changed

    async def run(self) -> None:
        """Examines the rewards, and again after each change, until the task is cancelled."""
        examined: Any = None
        while True:
            wanted, may_start = self._state()
            self._set_busy(wanted is not None and wanted != examined)
            if self.is_busy and may_start:
                result = await self._examine(wanted)
                if result:
                    examined = wanted
                    await self._received(result)
            else:
                await asyncio.sleep(_POLL_SECONDS)

    def _set_busy(self, is_busy: bool) -> None:
        if is_busy != self.is_busy:
            self.is_busy = is_busy
            self._changed()

    async def _examine(self, wanted: Any) -> Mapping[str, Any] | None:
        """Returns the result of a run; None if the files have changed meanwhile."""
        children = Children(CLEAN)
        try:
            connection = children.start(_send_findings, self._sets, self._paths(), self._folder)
            while not connection.poll():
                await asyncio.sleep(_POLL_SECONDS)
                if self._state()[0] != wanted:
                    return None
            error, result = connection.recv()
            if error:
                raise error
            found: dict[str, Any] = result
            return found
        except (EOFError, OSError):
            how = children.ended(5).get(0, "the exit code is not known")
            return {**UNKNOWN, "error": f"the process that runs lint ended unexpectedly: {how}"}
        except (KartRewardsError, RuntimeError) as error:  # a fault of lint must not end the page
            return {**UNKNOWN, "error": str(error)}
        finally:
            children.close()


def _send_findings(connection: Connection, sets: Sequence[RewardSet], paths: Sequence[Path], folder: Path) -> None:
    """Runs in a child process: sends what lint finds."""
    serve_parent()
    os.nice(_NICENESS)
    connection.send(attempt(page_findings, sets, paths, folder))

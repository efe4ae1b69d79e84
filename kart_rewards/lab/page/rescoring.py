"""Scores drives again whenever a rewards file changes.

* ``Rescoring`` - what a reward set pays on drives, always for the files as they are now

Each state of the files is scored by processes of its own, which have never loaded another state: so no value of an
earlier state can survive. They start before they are needed, and wait with everything imported but the user's files.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kart_rewards.drives import Drive, load_drive
from kart_rewards.errors import KartRewardsError
from kart_rewards.imports import source_files
from kart_rewards.lab.page.figures import packed, score_figures, summary_figures
from kart_rewards.lab.score import Loaded, RewardSet, score_drive
from kart_rewards.training.processes import CLEAN, Children, attempt, serve_parent

_POLL_SECONDS = 0.1
_POLLS_OF_A_MISSING_FILE = 5  # an editor may remove a file and then write it
_MOST_SHOWN = 4  # drives that are scored first after a change: those that were asked for last


class Rescoring:
    """What a reward set pays on drives, always for the files as they are now.

    Args:
        paths: The files of the drives.
        examples: One of them for each game.
        rewards: The reward set.
        changed: Is called after each change of ``status`` or ``summaries``.
        processes: How many processes score at the same time.

    Attributes:
        version: The number of the state of the files whose numbers are shown; 0 before the first.
        error: Why the files of now can't be used; None if they can. The numbers are then those of the state before.
        summaries: Per drive: ``summary_figures``, with ``version`` and ``error``. None: not scored yet.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        examples: Sequence[Path],
        rewards: RewardSet,
        changed: Callable[[], None],
        processes: int = 1,
    ) -> None:
        self.paths = list(paths)
        self.examples = list(examples)
        self.rewards = rewards
        self.version = 0
        self.error: str | None = None
        self.summaries: list[dict[str, Any] | None] = [None] * len(paths)
        self._changed = changed
        self._processes = processes
        self._spares: list[_Scorer] = []
        self._files: dict[Path, Any] = {}  # -> what the file system said when it was scored
        self._figures: dict[int, bytes] = {}
        self._shown: deque[int] = deque(maxlen=_MOST_SHOWN)
        self._asked: deque[int] = deque()
        self._pending: deque[int] = deque()
        self._progress = asyncio.Condition()
        self._seconds: float | None = None
        self._start: float | None = None  # of the change, until the drives that are shown are scored
        self._is_loading = True

    def status(self) -> dict[str, Any]:
        """Returns the state of the reward set, as plain values.

        Returns:
            ``version`` and ``error``; ``busy``, whether files are being loaded or drives scored; ``seconds``, the time
            from the change of a file to the numbers of the drives that are shown, None if it is not known.
        """
        busy = self._is_loading or bool(self._pending or self._asked)
        return {"version": self.version, "error": self.error, "busy": busy, "seconds": self._seconds}

    async def figures(self, number: int) -> bytes:
        """Returns ``score_figures`` of a drive, with ``version``, packed. Waits until it is scored.

        Args:
            number: The index of the drive.

        Raises:
            KartRewardsError: A term or rule failed on this drive, or the files can't be used.
        """
        if number in self._shown:
            self._shown.remove(number)
        self._shown.append(number)
        async with self._progress:
            while number not in self._figures:
                summary = self.summaries[number]
                if summary and summary["error"] and summary["version"] == self.version:
                    raise KartRewardsError(summary["error"])
                if self.error:
                    raise KartRewardsError(self.error)
                if number not in self._asked:
                    self._asked.append(number)
                    self._progress.notify_all()
                await self._progress.wait()
            return self._figures[number]

    def add(self, path: Path) -> None:
        """Adds a drive at the end of ``paths``, and scores it."""
        self.paths.append(path)
        self.summaries.append(None)
        if not self._is_loading and not self.error:  # otherwise it is scored with all others
            self._pending.append(len(self.paths) - 1)
            self._waking = asyncio.create_task(self._wake())

    @property
    def state(self) -> int | None:
        """The ``version``; None while the files are being loaded, and after an error in them."""
        return None if self._is_loading or self.error else self.version

    async def run(self) -> None:
        """Scores the drives, and again after each change of a file, until the task is cancelled."""
        self._start_spares()
        try:
            while True:
                self._watch(self._files or self._own_files())
                scoring = asyncio.create_task(self._score())
                try:
                    await self._next_change()
                finally:
                    scoring.cancel()
                    await asyncio.wait([scoring])
        finally:
            for spare in self._spares:
                spare.close()

    def _own_files(self) -> list[Path]:
        return [Path(name).resolve() for name in self.rewards.rewards if name.endswith(".py")]

    def _watch(self, files: Sequence[Path] | dict[Path, Any]) -> None:
        """Notes how files are now. Beside a rewards file, a new neighbour may appear that an import has missed."""
        folders = {path.parent for path in self._own_files()}
        self._files |= {path: _stamp(path) for path in [*files, *folders]}

    async def _next_change(self) -> None:
        missing = 0
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            stamps = {path: _stamp(path) for path in self._files}
            gone = any(stamp is None and self._files[path] is not None for path, stamp in stamps.items())
            missing = missing + 1 if gone else 0
            if stamps != self._files and (not gone or missing > _POLLS_OF_A_MISSING_FILE):
                return

    def _start_spares(self) -> None:
        while len(self._spares) < self._processes:
            # The first one scores what a person waits for. The others are less urgent than it and the browser.
            self._spares.append(_Scorer(self.paths, niceness=10 if self._spares else 1))

    async def _score(self) -> None:
        """Scores all drives with the files of now, those first that are shown. Then scores what is asked for."""
        self._start = time.monotonic() if self._shown else None
        self._start_spares()
        scorers, self._spares = self._spares, []
        self._is_loading = True
        self._changed()
        try:
            loaded = await asyncio.gather(*(scorer.call(_load, self.rewards, self.examples) for scorer in scorers))
            self._watch([path for path in loaded[0][1] if path not in self._files])
            self._is_loading = False
            await self._set_error(loaded[0][0])
            if not self.error:
                self.version += 1
                self._figures.clear()
                self._asked = deque(dict.fromkeys([*reversed(self._shown), *self._asked]))
                self._pending = deque(range(len(self.paths)))
                await asyncio.gather(*(self._work(scorer, scorer is scorers[0]) for scorer in scorers))
        except _EndedError as error:
            names = ", ".join(self.rewards.rewards) or "the scenario"
            await self._set_error(f"{names}: the process that scores with it ended unexpectedly: {error}")
        except (KartRewardsError, RuntimeError) as error:
            await self._set_error(str(error))
        finally:
            self._is_loading = False
            self._asked.clear()
            self._pending.clear()
            for scorer in scorers:
                scorer.close()
        self._start_spares()

    async def _set_error(self, error: str | None) -> None:
        self.error = error
        await self._wake()

    async def _wake(self) -> None:
        async with self._progress:
            self._progress.notify_all()
        self._changed()

    async def _work(self, scorer: _Scorer, is_first: bool) -> None:
        while True:
            async with self._progress:
                await self._progress.wait_for(lambda: self._pending or (is_first and self._asked))
                is_asked = is_first and bool(self._asked)
                number = self._asked.popleft() if is_asked else self._pending.popleft()
            if is_asked and number in self._figures:
                continue
            version, old = self.version, self.summaries[number]
            summary: dict[str, Any] = {k: v for k, v in (old or {}).items() if k not in ("version", "error")}
            error: str | None = None
            try:
                new, content = await scorer.call(_figures, self.paths[number], self.rewards, version, is_asked)
                summary = new
                if content is not None:
                    self._figures[number] = content
            except (KartRewardsError, RuntimeError) as failure:
                error = str(failure)
            self.summaries[number] = {**summary, "version": version, "error": error}
            if all(shown in self._figures for shown in self._shown) or error:
                if is_asked and self._start is not None:
                    self._seconds, self._start = time.monotonic() - self._start, None
                self._start_spares()  # not earlier: they would take the processor from what a person waits for
            await self._wake()


class _EndedError(Exception):
    """A process ended unexpectedly; the message says how."""


class _Scorer:
    """A process that loads and scores one state of the files.

    Args:
        paths: The drives that it will score.
        niceness: How much less urgent than other processes it is, see ``os.nice``.
    """

    def __init__(self, paths: Sequence[Path], niceness: int) -> None:
        self._children = Children(CLEAN)
        self._connection = self._children.start(_serve, paths, niceness)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Returns ``function(*args)`` of the process.

        Raises:
            KartRewardsError: The function raised this error.
            RuntimeError: The function raised another exception.
            _EndedError: The process ended.
        """
        try:
            self._connection.send((function, args))
            error, result = await asyncio.to_thread(self._connection.recv)
        except (EOFError, OSError):
            how = await asyncio.to_thread(self._children.ended, 5)
            raise _EndedError(how.get(0, "the exit code is not known")) from None
        if error:
            raise error
        return result

    def close(self) -> None:
        """Kills the process, even while it is busy."""
        self._children.close()


def _stamp(path: Path) -> Any:
    """Returns what changes with a file's content; None if there is no such file. Of a folder: its Python files."""
    try:
        if path.is_dir():
            return sorted(each.name for each in path.glob("*.py"))
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def _serve(connection: Connection, paths: Sequence[Path], niceness: int) -> None:
    """Runs in a child process: calls the functions that the parent sends, until the connection closes."""
    serve_parent()
    os.nice(niceness)
    for path in paths:
        if connection.poll() or _frames_prepared() > _MOST_FRAMES_PREPARED:
            break
        with suppress(KartRewardsError):  # the first imports everything that scoring needs
            score_figures(_drive(path), RewardSet(scenario=None).load(_drive(path)))
    gc.freeze()  # otherwise each collection would look through all frames
    with suppress(EOFError, ConnectionError):
        while True:
            function, args = connection.recv()
            connection.send(attempt(function, *args))


_MOST_FRAMES_PREPARED = 150_000  # they take 50 MB
_prepared: dict[Path, Drive] = {}


def _frames_prepared() -> int:
    return sum(map(len, _prepared.values()))


def _drive(path: Path) -> Drive:
    """Returns a drive that this process keeps, or that it loads and may keep: most of the time goes into loading."""
    drive = _prepared.get(path) or load_drive(path)
    if _frames_prepared() + len(drive) <= _MOST_FRAMES_PREPARED:
        _prepared[path] = drive
    return drive


_sets: dict[tuple[Any, ...], Loaded] = {}


def _loaded(rewards: RewardSet, drive: Drive) -> Loaded:
    """Returns the terms and rules for a drive. The check of what they read takes longer than to score the drive."""
    key = drive.info.game, *drive.columns, bool(drive.info.buttons)
    if key not in _sets:
        _sets[key] = rewards.load(drive)
    return _sets[key]


def _load(rewards: RewardSet, examples: Sequence[Path]) -> tuple[str | None, list[Path]]:
    """Loads the files of a reward set for each game among the drives.

    Returns:
        The error if it fails for each game, else None; and the files that decide the rewards.
    """
    errors: list[str | None] = []
    files: list[Path] = []
    for path in examples:
        drive = _drive(path)
        try:
            scenario = rewards.scenario_path(drive.info.game)
            files += [scenario.resolve()] if scenario else []
            _loaded(rewards, drive)
            errors.append(None)
        except KartRewardsError as error:
            errors.append(str(error))
    return (None if None in errors else errors[0]), [*_sources_of(rewards), *source_files(), *files]


def _sources_of(rewards: RewardSet) -> list[Path]:
    """Returns the files that a person named, even if they can't be imported."""
    files = []
    for name in rewards.rewards:
        if name.endswith(".py"):
            files.append(Path(name).resolve())
            continue
        with suppress(Exception):  # of a package around it
            spec = importlib.util.find_spec(name)
            if spec and spec.origin:
                files.append(Path(spec.origin))
    return files


def _figures(path: Path, rewards: RewardSet, version: int, complete: bool) -> tuple[dict[str, Any], bytes | None]:
    """Scores a drive. Returns ``summary_figures``, and if asked for the packed ``score_figures``."""
    drive = _drive(path)
    loaded = _loaded(rewards, drive)
    if not complete:
        return summary_figures(score_drive(drive, loaded)), None
    figures = score_figures(drive, loaded)
    return figures["summary"], packed({"version": version, **figures})

"""The server behind the page of ``kart-rewards lab``: on this machine only, and only for who knows the address.

* ``serve`` - serves the page until Ctrl-C
* ``Server`` - the drives, what reward sets pay on them, and their pictures, over HTTP
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import itertools
import json
import logging
import os
import secrets
import signal
import struct
import sys
import tempfile
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.log import server_logger

from kart_rewards.drives import load_drive
from kart_rewards.errors import KartRewardsError
from kart_rewards.lab.page.figures import drive_figures, list_entry, packed
from kart_rewards.lab.page.film import FilmFormat, film
from kart_rewards.lab.page.lint_process import UNKNOWN, Linting, with_numbers
from kart_rewards.lab.page.rescoring import Rescoring
from kart_rewards.lab.score import RewardSet
from kart_rewards.training.processes import CLEAN, Children, attempt, processor_count, serve_parent

HOST = "127.0.0.1"
_MOST_FILM_BYTES = 2**29  # of the pictures that are kept
_MOST_FILMS_RUNNING = 2
_SECONDS_BETWEEN_EVENTS = 0.03
_SECONDS_BETWEEN_SIGNS_OF_LIFE = 5

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(
    html: str,
    policy: str,
    paths: Sequence[Path],
    find: Callable[[], Sequence[Path]],
    sets: Sequence[RewardSet],
    names: Sequence[str],
    port: int,
    browser: bool,
) -> None:
    """Serves the page until Ctrl-C.

    Args:
        html: The page.
        policy: Its Content-Security-Policy.
        paths: The files of the drives.
        find: Returns these files, and those that are new, each time that a page is opened.
        sets: The reward sets.
        names: A name for each of them.
        port: The port. 0: any free one.
        browser: Whether to open a browser.

    Raises:
        KartRewardsError: The port can't be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(Server(html, policy, paths, find, sets, names, Path(folder)).run(port, browser))


class Server:
    """The drives, what reward sets pay on them, and their pictures, over HTTP.

    Args:
        html, policy, paths, find, sets, names: See ``serve``.
        folder: A folder for the scripted drives of lint.
    """

    def __init__(
        self,
        html: str,
        policy: str,
        paths: Sequence[Path],
        find: Callable[[], Sequence[Path]],
        sets: Sequence[RewardSet],
        names: Sequence[str],
        folder: Path,
    ) -> None:
        self._html = html
        self._policy = policy
        self._paths = list(paths)
        self._drives = [list_entry(load_drive(path)) for path in paths]
        self._found = len(paths)  # drives of these that were not added by lint
        self._find = find
        self._names = names
        self._linted = UNKNOWN
        self._linting = Linting(sets, folder, self._to_lint, self._recorded, self._receive_findings, self._notify)
        self._folder = folder
        self._adding = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()
        self._integrations = sets[0].integrations
        self._token = secrets.token_urlsafe(24)
        self._hosts: set[str] = set()
        self._listeners: set[asyncio.Event] = set()
        of_games = {(drive["game"], *drive["variables"]): path for drive, path in zip(self._drives, paths, strict=True)}
        processes = max(1, processor_count() // len(sets))
        self._rescorings = [
            Rescoring(paths, list(of_games.values()), each, self._notify, min(processes, 4)) for each in sets
        ]
        self._films: dict[int, _Film] = {}  # the film that was asked for last is the last

    async def run(self, port: int, browser: bool) -> None:
        """Serves until the process gets SIGINT, SIGTERM or SIGHUP."""
        stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def end(number: int) -> None:
            if not stop.done():
                stop.set_result(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, end, number)
        server_logger.addFilter(_is_own_fault)
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/{token}/", self._page),
                web.get("/{token}/events", self._events),
                web.get("/{token}/drives/{drive}", self._drive),
                web.get("/{token}/drives/{drive}/scores/{set}", self._scores),
                web.get("/{token}/drives/{drive}/pictures", self._pictures),
            ]
        )
        # Handlers are cancelled when the browser leaves, and at the end.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        tasks: list[asyncio.Task[None]] = []
        try:
            site = web.TCPSite(runner, HOST, port)
            try:
                await site.start()
            except (OSError, OverflowError) as error:
                raise _port_error(port, error) from None
            port = runner.addresses[0][1]
            self._hosts = {f"{host}:{port}" for host in (HOST, "localhost")}
            tasks = [asyncio.create_task(each.run()) for each in self._rescorings]
            tasks.append(asyncio.create_task(self._linting.run()))
            url = f"http://{HOST}:{port}/{self._token}/"
            print(f"The page is at {url}\nCtrl-C ends it.", flush=True)
            if browser and (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
                await asyncio.to_thread(webbrowser.open, url)
            ends: list[asyncio.Future[Any]] = [stop, *tasks]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            for each in self._films.values():
                each.close()
            await runner.cleanup()
        if stop.done() and stop.result() != signal.SIGHUP:  # then there is no terminal
            print("\nThe page has ended.", flush=True)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuses requests without the token, and requests that reached this server by another name."""
        token = request.path.partition("/")[2].partition("/")[0]  # a request such as "CONNECT x:1" has no path
        if not hmac.compare_digest(token.encode(), self._token.encode()) or request.host not in self._hosts:
            return web.Response(status=403, text="403: open the address that the terminal shows")
        return await handler(request)

    def _headers(self) -> dict[str, str]:
        return {
            "Content-Security-Policy": self._policy,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Frame-Options": "DENY",
        }

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text=self._html, content_type="text/html", headers=self._headers())

    def _state(self) -> dict[str, Any]:
        sets = [{"name": name, **each.status()} for name, each in zip(self._names, self._rescorings, strict=True)]
        return {
            "sets": sets,
            "drives": [
                {**drive, "scores": [each.summaries[number] for each in self._rescorings]}
                for number, drive in enumerate(self._drives)
            ],
            "lint": {
                **self._linted,
                "findings": with_numbers(self._linted["findings"], self._paths),
                "busy": self._linting.is_busy,
            },
        }

    def _to_lint(self) -> tuple[Any, bool]:
        """Returns the state that lint is to examine, once there is a page, and whether it may start now."""
        states = [each.state for each in self._rescorings]
        if not self._listeners or None in states:
            return None, False
        return (*states, self._found), not any(each.status()["busy"] for each in self._rescorings)

    def _recorded(self) -> list[Path]:
        return [path for path in self._paths if path.parent != self._folder]

    async def _receive_findings(self, linted: Mapping[str, Any]) -> None:
        await self._add([Path(each["path"]) for each in linted["findings"] or ()])
        self._linted = linted
        self._notify()

    async def _add(self, paths: Iterable[Path]) -> None:
        """Adds those drives that are not in the list yet. One that can't be read is left out."""
        async with self._adding:
            known = {path.resolve() for path in self._paths}
            for path in dict.fromkeys(paths):
                if path.resolve() in known:
                    continue
                try:
                    entry = list_entry(await asyncio.to_thread(load_drive, path))
                except (KartRewardsError, ValueError, TypeError, ArithmeticError, MemoryError):
                    continue  # it may be half-written by another program, or its variables are not those of a race
                self._paths.append(path)
                self._drives.append(entry)
                self._found += path.parent != self._folder
                for each in self._rescorings:
                    each.add(path)
                self._notify()

    async def _look_for_drives(self) -> None:
        with suppress(KartRewardsError, OSError):  # a folder was removed
            await self._add(await asyncio.to_thread(self._find))

    def _notify(self) -> None:
        for event in self._listeners:
            event.set()

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Sends the state, and again after each change."""
        response = web.StreamResponse(headers={**self._headers(), "Content-Type": "text/event-stream"})
        await response.prepare(request)
        event = asyncio.Event()
        self._listeners.add(event)
        looking = asyncio.create_task(self._look_for_drives())
        self._background.add(looking)
        looking.add_done_callback(self._background.discard)
        try:
            while True:
                event.clear()
                text = json.dumps(self._state(), separators=(",", ":"))
                await response.write(f"data: {text}\n\n".encode())
                await asyncio.sleep(_SECONDS_BETWEEN_EVENTS)
                while not event.is_set():
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(event.wait(), _SECONDS_BETWEEN_SIGNS_OF_LIFE)
                        continue
                    await response.write(b": alive\n\n")
        finally:
            self._listeners.discard(event)

    def _number(self, request: web.Request, name: str, numbers: Sequence[Any]) -> int:
        text = request.match_info[name]
        if not (text.isascii() and text.isdecimal() and len(text) < 9 and int(text) < len(numbers)):
            raise web.HTTPNotFound
        return int(text)

    def _packed(self, content: bytes) -> web.Response:
        headers = {**self._headers(), "Content-Encoding": "gzip"}
        return web.Response(body=content, content_type="application/json", headers=headers)

    async def _drive(self, request: web.Request) -> web.Response:
        path = self._paths[self._number(request, "drive", self._paths)]

        def content() -> bytes:
            try:
                return packed(drive_figures(load_drive(path), self._integrations))
            except KartRewardsError as error:
                return packed({"error": str(error)})

        return self._packed(await asyncio.to_thread(content))

    async def _scores(self, request: web.Request) -> web.Response:
        rescoring = self._rescorings[self._number(request, "set", self._rescorings)]
        try:
            return self._packed(await rescoring.figures(self._number(request, "drive", self._paths)))
        except KartRewardsError as error:
            return self._packed(packed({"error": str(error), "version": rescoring.version}))

    async def _pictures(self, request: web.Request) -> web.StreamResponse:
        number = self._number(request, "drive", self._paths)
        response = web.StreamResponse(headers={**self._headers(), "Content-Type": "application/octet-stream"})
        await response.prepare(request)
        async for part in self._film(number).parts():
            await response.write(part)
        return response

    def _film(self, number: int) -> _Film:
        """Returns the film of a drive, and makes it the last. The first ones are dropped if they are too large."""
        found = self._films.pop(number, None)
        running = [n for n, other in self._films.items() if not other.is_complete and not other.viewers]
        kept = sum(other.size for other in self._films.values())
        for n in list(self._films):
            other = self._films[n]
            too_many = n in running and len(running) >= _MOST_FILMS_RUNNING and found is None
            if not other.viewers and (kept > _MOST_FILM_BYTES or too_many):
                kept -= other.size
                self._films.pop(n).close()
                if n in running:
                    running.remove(n)
        self._films[number] = found or _Film(self._paths[number], self._integrations)
        return self._films[number]


def _is_own_fault(record: logging.LogRecord) -> bool:
    """Returns whether a message of the log is about this server, and not about a request that is not valid HTTP."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (HttpProcessingError, web.RequestPayloadError))


def _port_error(port: int, error: Exception) -> KartRewardsError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return KartRewardsError(f"--port {port} is in use by another program: choose another one, or leave it out")
    why = error.strerror if isinstance(error, OSError) else "it must be between 0 and 65535"
    return KartRewardsError(f"--port {port} can't be used: {why}")


def film_part(part: FilmFormat | bytes | str) -> bytes:
    """Returns a part of a film as the page reads it: a letter, the length as a little-endian uint32, and the content.

    Args:
        part: The format (J), a chunk (C), or the error that ended the film (E).
    """
    if isinstance(part, bytes):
        return struct.pack("<cI", b"C", len(part)) + part
    letter, content = (b"E", part) if isinstance(part, str) else (b"J", json.dumps(asdict(part)))
    return struct.pack("<cI", letter, len(content.encode())) + content.encode()


class _Film:
    """The pictures of a drive, while a process of their own replays it and afterwards.

    Args:
        path: The file of the drive.
        integrations: The only folder to look for the game in. None: the standard lookup.

    Attributes:
        viewers: How many requests wait for more parts.
        is_complete: Whether there are no more parts to come.
    """

    def __init__(self, path: Path, integrations: Path | None) -> None:
        self.viewers = 0
        self.is_complete = False
        self._parts: list[bytes] = []
        self._news = asyncio.Condition()
        self._children = Children(CLEAN)
        self._task = asyncio.create_task(self._receive(self._children.start(_send_film, path, integrations)))

    @property
    def size(self) -> int:
        """The number of bytes so far."""
        return sum(map(len, self._parts))

    async def _receive(self, connection: Connection) -> None:
        with suppress(EOFError, OSError):
            while True:
                part = await asyncio.to_thread(connection.recv_bytes)
                async with self._news:
                    self._parts.append(part)
                    self._news.notify_all()
        how = (await asyncio.to_thread(self._children.ended, 5)).get(0, "")
        async with self._news:
            if how != "exit code 0":
                self._parts.append(film_part(f"the process that replays the drive ended unexpectedly: {how}"))
            self.is_complete = True
            self._news.notify_all()
        self._children.close()

    async def parts(self) -> AsyncIterator[bytes]:
        """Yields the parts, as they come."""
        self.viewers += 1
        try:
            for number in itertools.count():
                async with self._news:
                    while number == len(self._parts) and not self.is_complete:
                        await self._news.wait()
                if number == len(self._parts):
                    return
                yield self._parts[number]
        finally:
            self.viewers -= 1

    def close(self) -> None:
        """Ends the replay."""
        self._task.cancel()
        self._children.close()


def _send_film(connection: Connection, path: Path, integrations: Path | None) -> None:
    """Runs in a child process: replays a drive, and sends the parts of its film."""
    serve_parent()
    os.nice(5)  # scores are more urgent
    error, _ = attempt(_send_parts, connection, path, integrations)
    with suppress(BrokenPipeError):
        if error:
            connection.send_bytes(film_part(str(error)))


def _send_parts(connection: Connection, path: Path, integrations: Path | None) -> None:
    for part in film(load_drive(path), integrations):
        connection.send_bytes(film_part(part))

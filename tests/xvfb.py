"""A real X display that nobody sees, for tests of windows: real key events go in, and its picture comes out."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

WIDTH, HEIGHT = 1500, 760
_XWD_COLOUR_BYTES = 12


class Display:
    """A running Xvfb.

    Args:
        name: What DISPLAY must be.
        framebuffer: The file that Xvfb keeps its picture in, in the format of ``xwd``.
    """

    def __init__(self, name: str, framebuffer: Path) -> None:
        self.name = name
        self._framebuffer = framebuffer

    def xdotool(self, *arguments: str) -> str:
        """Runs xdotool, and returns what it prints."""
        command = ["xdotool", *arguments]
        environment = os.environ | {"DISPLAY": self.name}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    def screenshot(self) -> np.ndarray:
        """Returns all that the display shows, uint8 (height, width, 3)."""
        content = self._framebuffer.read_bytes()
        header = np.frombuffer(content, ">u4", 25)
        header_size, bytes_per_line, colours = int(header[0]), int(header[12]), int(header[19])
        pixels = np.frombuffer(content, np.uint8, HEIGHT * bytes_per_line, header_size + colours * _XWD_COLOUR_BYTES)
        return pixels.reshape(HEIGHT, -1, 4)[:, :WIDTH, 2::-1]

    def _window(self) -> str:
        """Returns the id of the window, or of all that is behind it if there is none."""
        return self.xdotool("search", "--class", ".*").split()[-1]

    def picture(self) -> np.ndarray:
        """Returns what the window shows, or the whole display if there is none."""
        geometry = self.xdotool("getwindowgeometry", "--shell", self._window()).split()
        place = {name: int(value) for name, value in (line.split("=") for line in geometry)}
        rows, columns = slice(place["Y"], place["Y"] + place["HEIGHT"]), slice(place["X"], place["X"] + place["WIDTH"])
        return self.screenshot()[rows, columns]

    def is_dark(self) -> bool:
        """Whether there is no window."""
        return not self.screenshot().any()

    def press_close_button(self) -> None:
        """Sends the window what a window manager sends it when its close button is pressed."""
        window = int(self._window())
        x11 = ctypes.CDLL("libX11.so.6")
        for function in (x11.XOpenDisplay, x11.XInternAtom):
            function.restype = ctypes.c_void_p
        connection = ctypes.c_void_p(x11.XOpenDisplay(self.name.encode()))
        protocols, delete = (
            x11.XInternAtom(connection, name, False) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW")
        )
        client_message, size_of_an_event = 33, 24 * ctypes.sizeof(ctypes.c_long)
        # type, serial, send_event, display, window, message_type, format and data, each where a C compiler puts it
        fields = struct.pack("i4xLi4xPLLi4x5l", client_message, 0, 1, 0, window, protocols, 32, delete, *[0] * 4)
        event = ctypes.create_string_buffer(fields, size_of_an_event)
        x11.XSendEvent(connection, ctypes.c_ulong(window), False, ctypes.c_long(0), event)
        x11.XCloseDisplay(connection)


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Waits until a condition holds; fails if it does not come to it."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"waited in vain until {what}")


@contextmanager
def virtual_display(folder: Path) -> Iterator[Display]:
    """Runs an X server on a free display; the test is skipped where it or xdotool is not installed."""
    for tool in ("Xvfb", "xdotool"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    read, write = os.pipe()
    # -noreset: a server that starts afresh as its last client leaves would turn away one that comes just then
    screen = ("-screen", "0", f"{WIDTH}x{HEIGHT}x24", "-fbdir", str(folder), "-nolisten", "tcp", "-noreset")
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(["Xvfb", "-displayfd", str(write), *screen], pass_fds=[write], stderr=log)  # noqa: S607
    os.close(write)
    try:
        with os.fdopen(read) as answer:
            number = answer.readline().strip()  # comes when the server is ready, or ends when it failed
        assert number, (folder / "log").read_text()
        yield Display(f":{number}", folder / "Xvfb_screen0")
    finally:
        server.terminate()
        server.wait()

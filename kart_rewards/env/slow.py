"""Slow reward terms and done rules.

* ``SlowScripts`` - measures the scripts of an environment on some of its steps, and prints a notice about slow ones
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from time import perf_counter
from typing import Any

from kart_rewards.rewards import RewardTerm
from kart_rewards.scripting import Script, ScriptCalls

SLOW_SHARE = 0.1  # of an emulated frame
_FRAMES = 80  # to measure before a decision
_EVERY_STEPS = 250  # after the first frames; the other steps run as if this class did not exist


class SlowScripts:
    """Measures the scripts of an environment on some of its steps, and prints one notice about each slow one.

    The notice is printed only in the main process and in its first child process, because the other processes of a run
    have the same scripts.

    Args:
        frame_skip: Number of emulated frames per step.
    """

    def __init__(self, frame_skip: int) -> None:
        process = multiprocessing.current_process().name
        self._active = multiprocessing.parent_process() is None or re.search("(Process-1|-0)$", process) is not None
        self._first_steps = -(-_FRAMES // frame_skip)
        self._steps = 0
        self._plain: list[tuple[ScriptCalls, Any]] = []
        self._reported: set[Any] = set()
        self._restart()

    def _restart(self) -> None:
        self._frames, self._emulator_seconds = 0, 0.0
        self._times: dict[Any, list[float]] = {}  # one item per frame

    def begin_step(self, *calls: ScriptCalls) -> bool:
        """Decides whether to measure a step. If so, prepares its calls; call ``end_step`` after the step.

        Args:
            calls: The terms and the rules of the episode.
        """
        self._steps += 1
        if not self._active or (self._steps > self._first_steps and self._steps % _EVERY_STEPS):
            return False
        for each in calls:
            self._plain.append((each, each._calls))
            each._calls = [self._timed(*pair) for pair in zip(each.scripts, each._calls, strict=True)]
        return True

    def _timed(self, script: Script, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        times = self._times.setdefault((type(script), script.name), [])

        def timed(ram: Any) -> Any:
            began = perf_counter()
            value = call(ram)
            times.append(perf_counter() - began)
            return value

        return timed

    def end_step(self, frames: int, emulator_seconds: float) -> None:
        """Ends the measurement of a step.

        Args:
            frames: Number of emulated frames in the step.
            emulator_seconds: The time of the emulator in these frames.
        """
        scripts = [script for calls, _ in self._plain for script in calls.scripts]
        while self._plain:
            calls, plain = self._plain.pop()
            calls._calls = plain
        self._frames += frames
        self._emulator_seconds += emulator_seconds
        if self._frames >= _FRAMES:
            for script in scripts:
                self._report(script)
            self._restart()

    def _report(self, script: Script) -> None:
        key = (type(script), script.name)
        times = sorted(self._times.get(key, ()))[:-1]  # in one call, the operating system may have run another process
        frame_seconds = self._emulator_seconds / self._frames
        seconds = sum(times) / max(len(times), 1)
        if seconds < SLOW_SHARE * frame_seconds or key in self._reported:
            return
        self._reported.add(key)
        kind = "reward term" if isinstance(script, RewardTerm) else "done rule"
        print(
            f"The {kind} {script.name!r} ({script.where}) is slow: it takes {seconds * 1e6:,.0f} µs per emulated "
            f"frame, {seconds / frame_seconds:.0%} of the emulator's {frame_seconds * 1e6:,.0f} µs",
            flush=True,
        )

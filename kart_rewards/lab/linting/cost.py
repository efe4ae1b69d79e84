"""Terms and rules that take long.

* ``slow`` - those that take over 5 % of an emulated frame
* ``cost`` - the time that one takes
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import numpy as np

from kart_rewards.drives import Drive
from kart_rewards.lab.linting.evidence import Evidence, Finding, frames_of
from kart_rewards.scripting import Script, ScriptCalls

_MOST_OF_A_FRAME = 0.05
_CHUNK_FRAMES = 50
_MOST_SECONDS = 0.4


def slow(evidence: Evidence) -> Iterator[Finding]:
    """Terms and rules that take over 5 % of an emulated frame."""
    reported: set[int] = set()
    for script in evidence.scripts:
        if id(script.definition) in reported:
            continue
        drive = max(evidence.drives, key=len)
        seconds, frame = cost(script, drive)
        share = seconds / evidence.probes.frame_seconds
        if share > _MOST_OF_A_FRAME:
            reported.add(id(script.definition))
            yield evidence.finding(
                "slow",
                script,
                f"takes {seconds * 1e6:,.0f} µs per emulated frame, {share:.0%} of the emulator's "
                f"{evidence.probes.frame_seconds * 1e6:,.0f} µs",
                "compute constants when the file is loaded, and keep sums in self instead of lists",
                drive.info.label,
                frame,
            )


def cost(script: Script, drive: Drive) -> tuple[float, int]:
    """Returns the seconds that a script takes per frame, and the frame on which it is slowest.

    Other processes disturb single measurements. So the drive is measured twice, in chunks, of which the faster counts.
    A script may become slower in the course of an episode, so the last third of the drive counts, if it is slower.
    """
    runs = []
    for _ in range(2):
        calls, times, given = ScriptCalls([script]), [], frames_of(drive)
        started = perf_counter()
        for at in range(0, len(given), _CHUNK_FRAMES):
            chunk = given[at : at + _CHUNK_FRAMES]
            began = perf_counter()
            for each in chunk:
                calls.values(*each)
            times.append((perf_counter() - began) / len(chunk))
            if perf_counter() - started > _MOST_SECONDS:
                break
        runs.append(times)
    times = [min(pair) for pair in zip(*runs, strict=False)]
    late = times[2 * len(times) // 3 :]
    return max(sum(times) / len(times), sum(late) / len(late)), int(np.argmax(times)) * _CHUNK_FRAMES + 1

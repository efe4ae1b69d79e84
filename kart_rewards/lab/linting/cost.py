"""Terms and rules that take long.

* ``slow`` - those that take over 5 % of an emulated frame
* ``cost`` - the time that one takes
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kart_rewards.drives import Drive
from kart_rewards.lab.linting.clock import clock
from kart_rewards.lab.linting.evidence import Evidence, Finding, few, frames_of
from kart_rewards.scripting import Script, ScriptCalls

_MOST_OF_A_FRAME = 0.05
_CHUNK_FRAMES = 50
_MOST_SECONDS = 0.4  # for a measurement
_MOST_SECONDS_OF_A_SCRIPT = 1.5
_FRAMES_OF_AN_EPISODE = 2000


def slow(evidence: Evidence, least: float = _MOST_OF_A_FRAME) -> Iterator[Finding]:
    """Terms and rules that take over 5 % of an emulated frame, on one of several drives that differ.

    The start of an episode may take 5 % of a short episode, as if it were a part of each frame.

    Args:
        evidence: What is examined.
        least: The part of an emulated frame that is too long. 0: the slowest term or rule is reported, and no other.
    """
    frame_seconds = evidence.probes.frame_seconds
    drives = [max(evidence.drives, key=len), *(evidence.drives[i] for i in few(evidence))]
    shares: list[tuple[float, Finding]] = []
    reported: set[int] = set()
    for script in evidence.scripts:
        if id(script.definition) in reported:
            continue
        reported.add(id(script.definition))
        began = clock()
        for drive in dict.fromkeys(drives):
            start, seconds, frame = cost(script, drive, least * frame_seconds)
            per_frame = max(seconds, start / _FRAMES_OF_AN_EPISODE)
            share = per_frame / frame_seconds
            if share > least or clock() - began > _MOST_SECONDS_OF_A_SCRIPT:
                break
        if share <= least:
            continue
        what = f"takes {seconds * 1e6:,.0f} µs per emulated frame, {share:.0%} of the emulator's"
        remedy = "compute constants when the file is loaded, and keep sums in self instead of lists"
        if seconds < per_frame:
            frames = start / frame_seconds
            what = f"takes {start * 1e3:,.0f} ms at the start of each episode, as {frames:,.0f} emulated frames of"
            remedy = "compute constants when the file is loaded, outside the class"
        text = f"{what} {frame_seconds * 1e6:,.0f} µs"
        shares.append((share, evidence.finding("slow", script, text, remedy, drive.info.label, frame)))
    if not least and shares:
        shares = [max(shares, key=lambda each: each[0])]
    yield from (finding for _, finding in shares)


def cost(script: Script, drive: Drive, allowed_seconds: float) -> tuple[float, float, int]:
    """Returns the seconds that a script takes at the start and per frame, and the frame on which it is slowest.

    Other processes disturb single measurements. So a drive is measured again if the first measurement is longer than
    allowed, in chunks, of which the faster counts. A script may become slower in the course of an episode, so the last
    third of the drive counts, if it is slower.

    Args:
        script: The term or rule.
        drive: Its frames.
        allowed_seconds: How long a frame may take.
    """
    starts, runs = [], []
    while True:
        start, times = _measure(script, drive)
        starts.append(start)
        runs.append(times)
        start, times = min(starts), [min(chunk) for chunk in zip(*runs, strict=False)]
        late = times[2 * len(times) // 3 :]
        seconds = max(sum(times) / len(times), sum(late) / len(late))
        if len(runs) == 2 or max(seconds, start / _FRAMES_OF_AN_EPISODE) <= allowed_seconds:
            return start, seconds, int(np.argmax(times)) * _CHUNK_FRAMES + 1


def _measure(script: Script, drive: Drive) -> tuple[float, list[float]]:
    """Returns the seconds at the start, and the seconds per frame of each chunk of frames."""
    given, times = frames_of(drive), []
    started = clock()
    calls = ScriptCalls([script])
    calls.values(*given[0])
    start = clock() - started
    started = clock()
    for at in range(1, len(given), _CHUNK_FRAMES):
        chunk = given[at : at + _CHUNK_FRAMES]
        began = clock()
        for each in chunk:
            calls.values(*each)
        times.append((clock() - began) / len(chunk))
        if clock() - started > _MOST_SECONDS:
            break
    return start, times

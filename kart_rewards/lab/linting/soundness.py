"""Terms and rules that do more than to compute a number from the frames of an episode.

* ``leaks`` - those that depend on other episodes and environments, on the order of the calls, or on the frame skip
* ``checkpoints`` - those whose memory a checkpoint can't hold
* ``variables`` - those that read a variable that never changes, or whose type looks wrong

Each function yields ``Finding``s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from kart_rewards.defaults import DEFAULT_FRAME_SKIP
from kart_rewards.drives import Drive
from kart_rewards.episode import EpisodeScore
from kart_rewards.errors import KartRewardsError
from kart_rewards.fingerprint import package_of
from kart_rewards.lab.linting.columns import fault_of
from kart_rewards.lab.linting.evidence import (
    FEW_FRAMES,
    Evidence,
    Finding,
    Given,
    Run,
    Stepper,
    few,
    frames_of,
    run_over,
)
from kart_rewards.lab.linting.probes import AGENT
from kart_rewards.scenario import Scoring
from kart_rewards.scripting import Script, ScriptCalls, plain_action

Difference = tuple[str, int, int, str]
"""The name of a script, the index of a drive, the frame, and both values as text."""


def leaks(evidence: Evidence) -> Iterator[Finding]:
    """Terms and rules that depend on other episodes and environments, on the order of calls, or on the frame skip."""
    memory = "keep all memory in self, and use neither random numbers nor the clock"
    examined = (
        (
            *("leaks", _repeated, memory),
            "returns other values when the same drive is scored again in this process: {}. It keeps something between "
            "episodes, or it is random",
        ),
        (
            *("leaks", _interleaved, memory),
            "returns other values when two drives are scored in turns, as two environments of a process do: {}",
        ),
        (
            *("call-order", _reversed, "compute it from the snapshot alone; let no two terms share an object"),
            "returns other values when the terms and rules are called in the opposite order: {}",
        ),
        (
            *("frame-skip", _in_steps, "compare values with ==, not objects with is"),
            f"pays other amounts for the same frames with a frame skip of 1 and of {DEFAULT_FRAME_SKIP}: {{}}",
        ),
    )
    scripts = {script.name: script for script in evidence.scripts}
    for check, differences, remedy, text in examined:
        for name, i, frame, values in differences(evidence):
            if name in scripts:
                yield evidence.finding(check, scripts.pop(name), text.format(values), remedy, i, frame)


def _different(one: np.ndarray, other: np.ndarray) -> int | None:
    """Returns the first index at which two arrays, of which one may be longer, have different values."""
    frames = min(len(one), len(other))
    different = np.flatnonzero(one[:frames] != other[:frames])
    return int(different[0]) if len(different) else None


def _compared(i: int, usual: Run, run: Run, words: tuple[str, str], frames: int | None = None) -> Iterator[Difference]:
    """Compares a run over the first frames of a drive with the usual one."""
    for name, values in run.values.items():
        own = usual.values[name]
        frame = _different(own, values)
        if frame is not None:
            yield name, i, frame, f"{own[frame]:g} {words[0]}, {values[frame]:g} {words[1]}, on frame {frame:,}"
    for name, end in run.ends.items():
        expected = usual.ends[name]
        if frames is not None and expected is not None and expected >= frames:
            expected = None
        if end != expected:
            yield name, i, end or expected or 0, f"it ends on frame {expected} {words[0]}, on {end} {words[1]}"


def _repeated(evidence: Evidence) -> Iterator[Difference]:
    words = ("first", "then")
    for i, (score, run) in enumerate(zip(evidence.scores, evidence.second_runs, strict=True)):
        yield from _compared(i, Run(score.values), Run(run.values), words)
        first = min((end for end in run.ends.values() if end is not None), default=None)
        own = score.end if score.ended_by else None
        if first != own:
            name = score.ended_by
            if name is None or run.ends[name] == own:  # another rule ends it now
                name = next(rule for rule, end in run.ends.items() if end == first)
            yield name, i, own or first or 0, f"it ends on frame {own} first, on {first} then"
    for i in few(evidence):
        evidence.check_time()
        run = run_over(evidence.drives[i], evidence.loaded, last=FEW_FRAMES)
        yield from _compared(i, evidence.second_runs[i], run, words, FEW_FRAMES)


def _interleaved(evidence: Evidence) -> Iterator[Difference]:
    for pair in pairwise(few(evidence)):
        evidence.check_time()
        steppers = [Stepper(evidence.loaded), Stepper(evidence.loaded)]
        drives = [evidence.drives[i] for i in pair]
        frames = min(*map(len, drives), FEW_FRAMES)
        for both in zip(*(frames_of(drive)[:frames] for drive in drives), strict=True):
            for each, given in zip(steppers, both, strict=True):
                each(given)
        for i, each in zip(pair, steppers, strict=True):
            yield from _compared(i, evidence.second_runs[i], each.result(), ("alone", "in turns"), frames)


def _reversed(evidence: Evidence) -> Iterator[Difference]:
    scoring = evidence.loaded.scoring
    backwards = replace(evidence.loaded, scoring=Scoring(scoring.terms[::-1], scoring.done[::-1]))
    for i in few(evidence):
        evidence.check_time()
        run = run_over(evidence.drives[i], backwards, last=FEW_FRAMES)
        words = ("in the usual order", "in the opposite order")
        yield from _compared(i, evidence.second_runs[i], run, words, FEW_FRAMES)


def _in_steps(evidence: Evidence) -> Iterator[Difference]:
    """Scores what ``KartEnv`` gives to terms with two frame skips, and each of a few drives as if it had them."""
    agent = next((i for i, drive in enumerate(evidence.drives) if drive.info.label == AGENT), None)
    given = evidence.probes.steps
    if agent is not None and given:
        yield from _with_frame_skips(evidence, agent, given[DEFAULT_FRAME_SKIP], given[1])
    for i in few(evidence):
        drive = evidence.drives[i]
        frames = frames_of(drive)[1:FEW_FRAMES]
        coarse = [frames[at : at + DEFAULT_FRAME_SKIP] for at in range(0, len(frames), DEFAULT_FRAME_SKIP)]
        if any(frame[2] != step[0][2] for step in coarse for frame in step):
            continue  # an agent with this frame skip can't drive it
        fine = [[frame] for frame in frames]
        yield from _with_frame_skips(evidence, i, _as_given(coarse), _as_given(fine))


Frames = list[Given]


def _as_given(steps: list[Frames]) -> list[Frames]:
    """Returns steps each of which has a new object as its action, as in each step of ``KartEnv``."""
    given = []
    for step in steps:
        action = plain_action(np.array(step[0][2]))
        given.append([(ram, buttons, action) for ram, buttons, _ in step])
    return given


def _with_frame_skips(evidence: Evidence, i: int, coarse: list[Frames], fine: list[Frames]) -> Iterator[Difference]:
    paid, single = (_steps_paid(evidence, evidence.drives[i], steps) for steps in (coarse, fine))
    for step, one in enumerate(paid):
        parts = single[step * DEFAULT_FRAME_SKIP : (step + 1) * DEFAULT_FRAME_SKIP]
        if [frame[0] for frame in coarse[step]] != [
            frame[0] for each in fine[step * DEFAULT_FRAME_SKIP :][: len(coarse[step])] for frame in each
        ]:
            return  # the game went on in another way
        for name in one:
            other = sum(part[name] for part in parts)
            if not math.isclose(one[name], other, rel_tol=1e-9, abs_tol=1e-12):
                frame = min((step + 1) * DEFAULT_FRAME_SKIP, len(evidence.drives[i]) - 1)
                yield name, i, frame, f"{other:g} and {one[name]:g}"


def _steps_paid(evidence: Evidence, drive: Drive, steps: list[Frames]) -> list[dict[str, float]]:
    """Returns what each term pays in each step."""
    loaded = evidence.loaded
    score = EpisodeScore(loaded.scoring, drive[0], loaded.transform, drive.info.frames_per_second, 0, drive.buttons[0])
    paid: list[dict[str, float]] = []
    for frames in steps:
        score.start_step()
        paid.append(score.rewards.step)
        for given in frames:
            score(*given)
            if score.ended_by:
                return paid
    return paid


def checkpoints(evidence: Evidence) -> Iterator[Finding]:
    """Terms and rules whose memory a checkpoint can't hold."""
    scripts = evidence.scripts
    remedy = "keep numbers, text, snapshots, lists, tuples, sets, deques and dicts in self, and nothing else"
    reported: set[str] = set()
    for i, run in enumerate(evidence.second_runs):
        if run.failure:
            message, frame = run.failure
            script = next(
                (each for each in evidence.loaded.scoring.terms if f"{each.name!r} ({each.where})" in message), None
            )
            owner = script or next(each for each in scripts if f"{each.name!r} ({each.where})" in message)
            if owner.name not in reported:
                reported.add(owner.name)
                what = message.partition("can't be saved: ")[2] or message
                yield evidence.finding("checkpoint", owner, f"can't be saved in a checkpoint: {what}", remedy, i, frame)
    if reported:
        return
    of_name = {script.name: script for script in scripts}
    for name, i, at, frame, values in _resumed(evidence):
        if name in of_name and name not in reported:
            reported.add(name)
            yield evidence.finding(
                "checkpoint",
                of_name[name],
                f"goes on in another way after a checkpoint on frame {at}: {values} on frame {frame}. A part of its "
                "memory is not in self",
                remedy,
                i,
                frame,
            )


def _resumed(evidence: Evidence) -> Iterator[tuple[str, int, int, int, str]]:
    """Goes on from saved memory. Yields script, index of the drive, frame of the memory, frame and values."""
    for i in few(evidence):
        evidence.check_time()
        drive, usual = evidence.drives[i], evidence.second_runs[i]
        for at, memory in usual.memories.items():
            last = min(len(drive), at + 1 + _FRAMES_TO_RESUME)
            run = run_over(drive, evidence.loaded, first=at + 1, last=last, memory=memory)
            for name, values in run.values.items():
                own = usual.values[name][at + 1 :]
                ahead = _different(own, values)
                if ahead is not None:
                    yield name, i, at, at + 1 + ahead, f"{values[ahead]:g} instead of {own[ahead]:g}"
            for name, end in run.ends.items():
                expected = usual.ends[name]
                if expected is not None and expected <= at:
                    continue  # it is true from time to time
                if end != (expected if expected is None or expected < last else None):
                    yield name, i, at, end or expected or at, f"its end is {end} instead of {expected}"


_FRAMES_TO_RESUME = 240


# Variables


def variables(evidence: Evidence) -> Iterator[Finding]:
    """Variables that never change, that are always 0, or whose type looks wrong."""
    layout = {each.name: each for each in evidence.layout.variables}
    examined: set[str] = set()
    # The author's own terms come first: a finding names one of those that read the variable.
    for script in sorted(evidence.scripts, key=lambda each: package_of(each.definition) == "kart_rewards"):
        for name in sorted(script.reads() & {*layout}):
            columns = evidence.column(name)
            having = [i for i, drive in enumerate(evidence.drives) if name in drive.columns]
            if name in examined or not columns or columns[0].ndim > 1:
                continue
            raw = [probe.raw[name] for probe in evidence.probes.all if name in probe.raw]
            fault = fault_of(layout[name], columns, raw)
            if fault:
                examined.add(name)
                text, index, frame = fault
                yield evidence.finding(
                    "variable",
                    script,
                    f"reads {name}, which {text}",
                    f'correct the "type" of {name} in {evidence.layout.source}',
                    having[index],
                    frame,
                )
                continue
            everywhere = [drive for drive in (*evidence.drives, *evidence.left_out) if name in drive.columns]
            if any(np.ptp(drive.columns[name].astype(np.int64)) for drive in everywhere):
                continue
            constant = {int(drive.columns[name][0]) for drive in everywhere}
            courses = {drive.info.state for drive in everywhere}
            if len(constant) > 1 or (0 not in constant and len(courses) < 2):
                continue  # it may differ by course, as the number of checkpoints does, and one course can't show that
            if _is_guard(evidence, script, name):
                continue
            examined.add(name)
            value = constant.pop()
            yield evidence.finding(
                "variable",
                script,
                f"reads {name}, which {'is always 0' if not value else f'never changes: it is {value:,}'} "
                f"({evidence.tried})",
                f"check its address with kart-rewards search; if it is right, record a drive on which {name} changes",
                having[0],
                1,
            )


def _is_guard(evidence: Evidence, script: Script, name: str) -> bool:
    """Whether a script only compares a variable with the value that it always has, as in ``if ram.paused: return 0``.

    Then the script returns the same for each other value, and something else for this one.
    """
    fired = [
        int(score.ended_by == script.name or np.count_nonzero(score.values.get(script.name, 0)))
        for score in evidence.scores
    ]
    evidence.check_time()
    drive = evidence.drives[int(np.argmax(fired))]
    frames = len(drive)
    usual = int(drive.columns[name][0])
    returned = []
    for value in (usual, *(other for other in (1, 2, 5, 100, 255) if other != usual)):
        calls = ScriptCalls([script])
        with_value = (
            (drive[frame]._replace(**{name: value}), drive.buttons[frame], drive.frame_actions[frame])
            for frame in range(frames)
        )
        try:
            returned.append([float(calls.values(*given)[0]) for given in with_value])
        except KartRewardsError:  # for a value that the variable may never have
            return False
    return any(returned[0]) and all(each == returned[1] for each in returned[2:])

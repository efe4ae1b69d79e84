"""Terms that pay for what is not progress.

* ``undone`` - terms that pay for progress that is undone
* ``standing`` - terms that pay more for standing still than for driving
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice, pairwise

import numpy as np

from kart_rewards.declared import DeclaredTerm
from kart_rewards.defaults import DEFAULT_FRAME_SKIP, DEFAULT_MAX_EPISODE_FRAMES
from kart_rewards.drives import Drive
from kart_rewards.errors import counted
from kart_rewards.lab.linting.evidence import Evidence, Finding, frames_of
from kart_rewards.lab.linting.probes import NOTHING, Probe
from kart_rewards.rewards import RewardTerm
from kart_rewards.scripting import ScriptCalls

# Cycles

DISCOUNTS = (1.0, 0.9975, 0.99)
"""Per frame: none; 0.99 per step of four frames; 0.99 per frame, as a term of potential-based shaping may have it."""
_LEAST_PROFIT = 0.05  # of what the term pays and charges in the cycle
_LEAST_RATE = 1.5


def undone(evidence: Evidence) -> Iterator[Finding]:
    """Terms that net a profit in a cycle of states, such as gas and brake.

    A term that pays for a change must charge as much when the change is undone, or not pay it again. What it pays at
    rest is subtracted, and the profit must be there at each of the usual discounts. So potential-based shaping (Ng et
    al., 1999), gamma * p(s') - p(s), is no finding, whatever its gamma is. A term that goes on paying in one state,
    such as for speed, pays in a cycle, too; it must only not pay more in the cycle than in a race.
    """
    for term in evidence.terms:
        found = (_profit(evidence, term, probe) for probe in evidence.probes.all)
        yield from islice(filter(None, found), 1)


def _profit(evidence: Evidence, term: RewardTerm, probe: Probe) -> Finding | None:
    if not probe.cycles or not _is_cycle(evidence, term, probe):
        return None
    evidence.check_time()
    drive, values = probe.drive, evidence.scores[evidence.drives.index(probe.drive)].values[term.name]
    at_rest = float(values[probe.rest[0] : probe.rest[1] + 1].mean())
    begins = probe.cycles[1:]
    profits = []
    for begin, end in pairwise(begins):
        surplus = values[begin + 1 : end + 1] - at_rest
        gross = float(np.abs(surplus).sum())
        net = min(float((surplus * discount ** np.arange(len(surplus))).sum()) for discount in DISCOUNTS)
        if net <= _LEAST_PROFIT * gross or net <= 0:
            return None
        profits.append(float(values[begin + 1 : end + 1].sum()))
    if min(profits) <= 0:
        return None
    if _paid_again(evidence, term, probe) <= _LEAST_PROFIT * profits[0]:
        return None
    first, last = begins[0], begins[-1]
    seconds = (last - first) / drive.info.frames_per_second
    rate = sum(profits) / (last - first)
    races = [evidence.scores[i].values[term.name][1:].mean() for i in evidence.races.values()]
    is_state = _pays_for_being(term, drive, values, first, last)
    if is_state and not (races and rate > _LEAST_RATE * max(*races, 0.0)):
        return None
    if is_state and next(_standing_of(evidence, term), None):
        return None  # ``standing`` reports it
    fired = first + 1 + int(np.flatnonzero(values[first + 1 : last + 1] > 0)[0])
    if is_state and _is_paid_at_rest(evidence, drive, values, first, last):
        return evidence.finding(
            "standing",
            term,
            f"pays for being slow: {60 * drive.info.frames_per_second * rate:,.1f} per minute on the frames {first} to "
            f"{last} of the drive {drive.info.label}, most of it at less than {_SLOW:.0%} of the highest speed, and "
            f"{60 * drive.info.frames_per_second * max(races):,.1f} in a race",
            "pay only while the kart moves forward",
            drive.info.label,
            fired,
        )
    words = "each end as they begin, and pay" if len(profits) > 1 else "ends as it begins, and pays"
    text = (
        f"pays for what is undone: on the drive {drive.info.label}, the frames {first} to {last} are "
        f"{counted(len(profits), 'cycle')} that {words} "
        f"{', '.join(f'{each:g}' for each in profits)}: {60 * sum(profits) / seconds:,.1f} per minute"
    )
    if races:
        text += f". A race pays {60 * drive.info.frames_per_second * float(np.mean(races)):,.1f} per minute"
    return evidence.finding(
        "cycle",
        term,
        text,
        "charge the loss as the gain is paid (ram.x - previous.x), or pay only what exceeds the best value so far",
        drive.info.label,
        fired,
    )


def _is_cycle(evidence: Evidence, term: RewardTerm, probe: Probe) -> bool:
    """Whether the inputs and the variables that a term may read, except clocks, are the same after each cycle."""
    drive, compared = probe.drive, len(term.inputs)
    begins = probe.cycles[1:]
    for name, held in (("buttons", drive.buttons), ("action", drive.frame_actions)):
        if name in term.inputs and any(held[begin] != held[begins[0]] for begin in begins):
            return False
    clocks = _clocks(evidence)
    for name in term.may_read(evidence.layout.names):
        column = drive.columns[name].astype(np.int64)
        if name in clocks or not np.ptp(column, axis=0).any():
            continue
        compared += 1
        everything = np.concatenate(evidence.column(name))
        tolerance = 0.02 * np.ptp(everything)
        ends = column[list(begins)]
        if (np.abs(ends - ends[:1]) > tolerance).any():
            return False
    return compared > 0


def _clocks(evidence: Evidence) -> set[str]:
    """The variables that change by themselves, while no button is held."""
    nothing = next((each.drive for each in evidence.probes.all if each.drive.info.label == NOTHING), None)
    columns = nothing.columns if nothing is not None else {}
    return {name for name, column in columns.items() if np.ptp(column.astype(np.int64), axis=0).any()}


def _paid_again(evidence: Evidence, term: RewardTerm, probe: Probe) -> float:
    """What a term pays when the first cycle is repeated exactly, while the clocks go on.

    The cycles of a drive end as they begin only nearly. A term that pays what exceeds the best value so far pays for
    the difference, and nothing for an exact repetition. Infinite if the term reads clocks and the drive ends too early.
    """
    begin, end = probe.cycles[1:3]
    calls, frames = ScriptCalls([term]), frames_of(probe.drive)
    clocks = _clocks(evidence) & {*term.may_read(evidence.layout.names)}
    repeated = frames[begin + 1 : end + 1]
    if clocks:
        later = [ram for ram, _, _ in frames[end + 1 :]]
        if len(later) < len(repeated):  # the drive ends before the clocks are known
            return math.inf
        values = ({name: getattr(ram, name) for name in clocks} for ram in later)
        repeated = [(ram._replace(**next(values)), buttons, action) for ram, buttons, action in repeated]
    for given in frames[: end + 1]:
        calls.values(*given)
    return sum(float(calls.values(*given)[0]) * term.weight for given in repeated)


_SLOW = 0.1


def _is_paid_at_rest(evidence: Evidence, drive: Drive, values: np.ndarray, first: int, last: int) -> bool:
    """Whether a term pays most of what it pays in a cycle while the kart hardly moves."""
    if "speed" not in drive.columns:
        return False
    speed = np.abs(drive.columns["speed"].astype(np.int64))[first + 1 : last + 1]
    highest = max(int(column.max()) for column in evidence.column("speed"))
    paid = np.maximum(values[first + 1 : last + 1], 0.0)
    return float(paid[speed < _SLOW * highest].sum()) > 0.5 * float(paid.sum())


_FROZEN_FRAMES = 90


def _pays_for_being(term: RewardTerm, drive: Drive, values: np.ndarray, first: int, last: int) -> bool:
    """Whether a term goes on paying while a paid frame is repeated: then it does not pay for a change."""
    frames = first + 1 + np.flatnonzero(values[first + 1 : last + 1] > 0)
    for paid in {*frames[:: max(len(frames) // 4, 1)].tolist(), *np.linspace(first + 1, last, 4).astype(int).tolist()}:
        calls = ScriptCalls([term])
        for given in frames_of(drive)[: paid + 1]:
            calls.values(*given)
        frozen = [float(calls.values(*given)[0]) * term.weight for _ in range(_FROZEN_FRAMES)]
        if sum(frozen[1:]) > 0:
            return True
    return False


# Standing still

_LEAST_MORE = 1.1


def standing(evidence: Evidence) -> Iterator[Finding]:
    """Terms that pay more for standing still than for driving."""
    reported: set[str] = set()
    for term in evidence.terms:
        for found in islice(_standing_of(evidence, term), 1):
            reported.add(term.name)
            yield found
    for i, drive in enumerate(evidence.drives):
        race = evidence.races.get(drive.info.state)
        if drive.masks.any():
            continue
        if race is None:
            yield from _standing_without_race(evidence, i, reported)
            continue
        yield from _standing_altogether(evidence, i, race, reported)


def _standing_of(evidence: Evidence, term: RewardTerm) -> Iterator[Finding]:
    """Drives without a change of place for which a term pays more than for a race."""
    for i, drive in enumerate(evidence.drives):
        race = evidence.races.get(drive.info.state)
        if race is None or not _stays(drive):
            continue
        still, driving = (evidence.scores[each].values[term.name][1:] for each in (i, race))
        if _pays_more(still, driving):
            yield evidence.finding(
                "standing",
                term,
                f"pays {still.mean() * 60:,.3g} per second while the kart {_STAYS[bool(drive.masks.any())]}, and "
                f"{driving.mean() * 60:,.3g} in a race ({evidence.label(race)})",
                "pay only while the kart moves forward",
                i,
                int(np.flatnonzero(still > 0)[0]) + 1,
            )


_STAYS = {False: "stands still", True: "stays in its place"}
"""Whether buttons are held in a drive -> what its kart does."""


def _stays(drive: Drive) -> bool:
    """Whether no button is held in a drive, or the kart stays in its place in spite of them, as when it hops."""
    columns = [drive.columns[name] for name in ("kart_x", "kart_y") if name in drive.columns]
    return not drive.masks.any() or (len(columns) == 2 and not any(np.ptp(column) for column in columns))


def _pays_more(still: np.ndarray, driving: np.ndarray) -> bool:
    """Whether a term pays more at rest, plain and discounted, so that potential-based shaping passes."""
    frames = min(len(still), len(driving))
    if not still.mean() > max(_LEAST_MORE * driving.mean(), 0.0):
        return False
    for discount in DISCOUNTS:
        factors = discount ** np.arange(frames)
        if (still[:frames] * factors).sum() <= _LEAST_MORE * (driving[:frames] * factors).sum():
            return False
    return True


def _standing_altogether(evidence: Evidence, i: int, race: int, reported: set[str]) -> Iterator[Finding]:
    """Compares the return of standing still up to the step limit with that of a race."""
    score, best = evidence.scores[i], evidence.scores[race]
    rules = {rule.name: rule for rule in evidence.loaded.scoring.done}
    if score.ended_by and not rules[score.ended_by].truncates:
        return  # ``early_end`` compares it
    rate = score.transformed / max(score.end, 1)
    plain = rate * DEFAULT_MAX_EPISODE_FRAMES
    steps = score.end / DEFAULT_FRAME_SKIP
    gamma = evidence.loaded.gamma
    later = gamma**steps * rate * DEFAULT_FRAME_SKIP / (1 - gamma) if gamma < 1 else 0.0
    discounted = score.discounted + later
    for what, own, of_race in (
        (f"up to {DEFAULT_MAX_EPISODE_FRAMES:,} frames", plain, best.transformed),
        (f"discounted at {gamma:g}", discounted, best.discounted),
    ):
        if own >= of_race and (own or of_race):
            factor = DEFAULT_MAX_EPISODE_FRAMES / max(score.end, 1)
            term = max(evidence.terms, key=lambda each: score.terms[each.name].sum * factor - best.terms[each.name].sum)
            if term.name not in reported:
                reported.add(term.name)
                yield evidence.finding(
                    "standing",
                    term,
                    f"makes the return of standing still ({what}) {own:.2f}, not less than {of_race:.2f} for a race "
                    f"({evidence.label(race)}), most of all terms",
                    "reduce its weight, or pay more for progress",
                    i,
                    score.end,
                )
            return


def _standing_without_race(evidence: Evidence, i: int, reported: set[str]) -> Iterator[Finding]:
    """In a game without an outcome: whether a term pays more without buttons than on any other drive."""
    others = [j for j, drive in enumerate(evidence.drives) if drive.masks.any()]
    if evidence.races or not others:
        return
    for term in evidence.terms:
        still = evidence.scores[i].values[term.name][1:]
        if term.name in reported or isinstance(term, DeclaredTerm):
            continue
        if all(_pays_more(still, evidence.scores[j].values[term.name][1:]) for j in others):
            reported.add(term.name)
            yield evidence.finding(
                "standing",
                term,
                f"pays {still.mean() * 60:,.3g} per second without any button, more than on each other drive",
                "pay only for what the buttons do",
                i,
                int(np.flatnonzero(still > 0)[0]) + 1,
            )

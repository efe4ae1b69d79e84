"""What is wrong with what reward terms pay, and with where rules end drives.

* ``fires``, ``ranking``, ``dominates``, ``erased`` - terms that never or always fire, or that change nothing
* ``undone`` - terms that pay for progress that is undone
* ``standing``, ``early_end`` - terms that pay for standing still, or for an early end
* ``good_drives`` - rules that end good drives

Each function yields ``Finding``s. A check that needs a judgement takes the side of the author.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from kart_rewards.declared import DeclaredTerm
from kart_rewards.defaults import DEFAULT_FRAME_SKIP, DEFAULT_MAX_EPISODE_FRAMES
from kart_rewards.drives import Drive
from kart_rewards.errors import counted
from kart_rewards.lab.evidence import Evidence, Finding, finish
from kart_rewards.lab.probes import NOTHING, Probe
from kart_rewards.lab.score import verdict
from kart_rewards.race import (
    BOOST,
    DEEP_WATER,
    DIRT,
    GRASS,
    LAPS_AT_FIRST_CROSSING,
    OIL,
    PIT,
    ROAD,
    START_LINE,
    WALL,
    progress,
)
from kart_rewards.rewards import ROUNDING, RewardTerm
from kart_rewards.scripting import ScriptCalls

# Terms that say nothing


def fires(evidence: Evidence) -> Iterator[Finding]:
    """Terms that never fire, that are constant, or that pay on every frame."""
    for term in evidence.terms:
        paid = evidence.paid(term.name)
        everything = np.concatenate(paid)
        if not everything.any():
            codes = _fires_on(evidence, term)
            if codes:
                evidence.notes.append(
                    f"{term.name} ({term.where}) fires on surface {codes}, which no drive has: it was not examined. "
                    "Drive over it with kart-rewards play"
                )
                continue
            yield _never(evidence, term)
        elif (
            everything.all() and (everything > 0).all() != (everything < 0).all() and not _charges_time(evidence, term)
        ):
            levels = [np.ptp(each) for each in paid]
            if not any(levels):
                is_one = np.ptp(everything) == 0
                value = f"{everything[0]:g}" if is_one else f"{everything.min():g} to {everything.max():g}"
                yield evidence.finding(
                    "constant",
                    term,
                    f"pays {value} on each frame{'' if is_one else ', the same on all frames of a drive'} "
                    f"({evidence.tried}), whatever the driver does",
                    "return a value that depends on how the kart is driven, or remove the term",
                    0,
                    1,
                )
                continue
            least = min(range(len(paid)), key=lambda i: np.abs(paid[i]).min())
            frame = int(np.abs(paid[least]).argmin()) + 1
            yield evidence.finding(
                "every-frame",
                term,
                f"{'pays' if everything[0] > 0 else 'charges'} on every frame ({evidence.tried}), {everything.min():g} "
                f"to {everything.max():g}, also while the kart stands still: only the time that passes matters",
                "compare the variable with a value, or pay its change since the previous frame",
                least,
                frame,
            )


_CODES = {"surface": (ROAD, DIRT, GRASS, BOOST, OIL, START_LINE, WALL, PIT, DEEP_WATER)}
"""Variable -> its codes that are known. A term may be for one that is rare."""


def _fires_on(evidence: Evidence, term: RewardTerm) -> str:
    """Returns the known codes that no drive has and on which a term fires."""
    rare = []
    for name, codes in _CODES.items():
        if name not in term.reads():
            continue
        seen = {int(value) for column in evidence.column(name) for value in np.unique(column)}
        for code in codes:
            if code not in seen and _fires_with(evidence, term, name, code):
                rare.append(f"0x{code:02X}")
    return ", ".join(rare)


def _fires_with(evidence: Evidence, term: RewardTerm, name: str, value: int) -> bool:
    for drive in evidence.drives[::3]:
        for frame in np.linspace(2, len(drive) - 1, 6).astype(int):
            calls = ScriptCalls([term])
            for before in (frame - 2, frame - 1):
                calls.values(drive[before], drive.buttons[before], drive.frame_actions[before])
            for _ in range(3):
                if calls.values(drive[frame]._replace(**{name: value}), drive.buttons[frame])[0]:
                    return True
    return False


def _never(evidence: Evidence, term: RewardTerm) -> Finding:
    read: list[str] = []
    drive, frame = 0, 1
    for name in sorted(term.reads() & {*evidence.layout.names}):
        columns = evidence.column(name)
        if not columns or columns[0].ndim > 1:
            continue
        low, high = min(map(np.min, columns)), max(map(np.max, columns))
        if not read:
            having = [i for i, each in enumerate(evidence.drives) if name in each.columns]
            place = max(range(len(columns)), key=lambda i: int(columns[i].max()))
            drive, frame = having[place], int(columns[place].argmax())
        read.append(f"{name} was {low:,}" + (f" to {high:,}" if high != low else " throughout"))
    seen = f"; {', '.join(read)}" if read else ""
    return evidence.finding(
        "never-fires",
        term,
        f"is 0 on each frame that was tried: {evidence.tried}{seen}",
        "correct its condition; if it is for something rarer, record a drive that does it: kart-rewards play",
        drive,
        frame,
    )


# Terms that change nothing

_WINDOWS = (60, 240)  # frames
_MOST_WINDOWS = 300
_NEGLIGIBLE = 1e-4  # of the spread of the returns


def _windows(evidence: Evidence, name: str | None, frames: int) -> np.ndarray:
    """Returns what one term, or all, pays in windows of a length, among them the last of each drive."""
    last, others = [], []
    for score in evidence.scores:
        values = score.values[name] if name else sum(score.values.values(), np.zeros(len(score.rewards)))
        count = len(values[1:]) // frames
        others += values[1 : 1 + count * frames].reshape(count, frames).sum(axis=1).tolist()
        last.append(float(values[1:][-frames:].sum()))
    return np.array([*last, *others[:: max(len(others) // _MOST_WINDOWS, 1)]])


def _is_tiny(evidence: Evidence, term: RewardTerm) -> bool:
    """Whether what a term pays is negligible beside all terms."""
    sizes = {each.name: sum(float(np.abs(paid).sum()) for paid in evidence.paid(each.name)) for each in evidence.terms}
    return sizes[term.name] < _NEGLIGIBLE * 0.1 * sum(sizes.values())


def ranking(evidence: Evidence) -> Iterator[Finding]:
    """Terms without which all drives, and all parts of drives, are ranked as they are with them.

    Few drives differ so little that a small term can change their order, so windows of one and four seconds are ranked,
    too. A term that only decides between windows with equal returns does change the ranking.
    """
    for term in evidence.terms:
        paid = evidence.paid(term.name)
        everything = np.concatenate(paid)
        always = everything.all() and (everything > 0).all() != (everything < 0).all()
        if not everything.any() or (always and not _is_tiny(evidence, term)):
            continue  # ``fires`` reports it
        if _charges_time(evidence, term):
            continue
        index = next(i for i, each in enumerate(paid) if each.any())
        frame = int(np.flatnonzero(paid[index])[0]) + 1
        remedy = "increase its weight, let it pay for something that the drivers do differently, or remove it"
        if _is_blind(evidence, paid):
            yield evidence.finding(
                "ranking",
                term,
                f"pays all drives of a course the same on the same frames ({evidence.tried}), so it ranks none above "
                "another",
                remedy,
                index,
                frame,
            )
            continue
        twin = _twin(evidence, term.name)
        orders = (_changes_order(evidence, term.name, frames) for frames in _WINDOWS)
        if twin or not (any(orders) or _changes_drives(evidence, term.name)):
            never = "never changes the ranking of drives, nor of their parts of one and four seconds"
            same = f"pays in proportion to {twin} on each frame: both are one term"
            size = max(float(np.abs(each).sum()) for each in paid)
            most = max(float(np.abs(score.plain)) for score in evidence.scores)
            yield evidence.finding(
                "ranking",
                term,
                f"{same if twin else never}. It pays at most {size:g} on a drive, where all terms pay up to {most:g}",
                remedy,
                index,
                frame,
            )


def _charges_time(evidence: Evidence, term: RewardTerm) -> bool:
    """Whether a term only charges, also while the kart stands still, and a rule ends an episode at the goal.

    Then it rewards speed, a common and sound term, although it is the same for all drives up to their end. Without the
    goal it only hastens the end.
    """
    still = [
        paid for paid, drive in zip(evidence.paid(term.name), evidence.drives, strict=True) if not drive.masks.any()
    ]
    charges = max(float(paid.max()) for paid in evidence.paid(term.name)) <= 0 and any(paid.any() for paid in still)
    return charges and evidence.has_goal and not _is_tiny(evidence, term)


def _twin(evidence: Evidence, name: str) -> str:
    """Returns the name of an earlier term that pays in proportion to a term; an empty text if there is none."""
    own = np.concatenate(evidence.paid(name))
    for term in evidence.terms:
        if term.name == name:
            break
        other = np.concatenate(evidence.paid(term.name))
        if other.any() and np.allclose(own * np.abs(other).sum(), other * np.abs(own).sum()):
            return term.name
    return ""


def _is_blind(evidence: Evidence, paid: list[np.ndarray]) -> bool:
    """Whether a term pays the same on the same frame of each drive of a course."""
    groups: dict[tuple[str, bytes], list[int]] = {}
    for i, drive in enumerate(evidence.drives):
        groups.setdefault((drive.info.state, drive.start), []).append(i)
    compared = 0
    for members in groups.values():
        for other in members[1:]:
            one = members[0]
            frames = min(len(paid[one]), len(paid[other]))
            if not np.array_equal(paid[one][:frames], paid[other][:frames]):
                return False
            same_driver = np.array_equal(evidence.drives[one].masks[:frames], evidence.drives[other].masks[:frames])
            compared += bool(paid[one][:frames].any()) and not same_driver
    return compared > 1


def _order(values: np.ndarray, dead: float) -> np.ndarray:
    differences = values[:, None] - values[None, :]
    return np.where(np.abs(differences) <= dead, 0, np.sign(differences))


def _changes_order(evidence: Evidence, name: str, frames: int) -> bool:
    """Whether a term changes the order of two windows, or varies in its own way by more than the others round."""
    every = _windows(evidence, None, frames)
    own = _windows(evidence, name, frames)
    without = every - own
    spread = float(every.std())
    if (_order(every, _NEGLIGIBLE * spread) != _order(without, _NEGLIGIBLE * spread)).any():
        return True
    centred, others = own - own.mean(), without - without.mean()
    slope = float(centred @ others) / (float(others @ others) or 1.0)
    return bool((centred - slope * others).std() > _LEAST_OWN * spread)


_LEAST_OWN = (
    1e-3  # of the spread of all terms together; a term that pays in proportion to another has nothing of its own
)


def _changes_drives(evidence: Evidence, name: str) -> bool:
    for course in {drive.info.state for drive in evidence.drives}:
        scores = [
            score for drive, score in zip(evidence.drives, evidence.scores, strict=True) if drive.info.state == course
        ]
        every = np.array([score.plain for score in scores])
        without = every - [score.terms[name].sum for score in scores]
        dead = _NEGLIGIBLE * float(every.std())
        if (_order(every, dead) != _order(without, dead)).any():
            return True
    return False


_MOST_SHARE = 0.8


def dominates(evidence: Evidence) -> Iterator[Finding]:
    """Terms that give or take over 80 % of everything.

    The share is that of the absolute values over all drives, so that gains and losses do not cancel. A term that alone
    ranks the drives as their outcomes do is a measure of the outcome: the checkpoints of a race are 99 % of a good
    one, and should be. Where there is no outcome, the rewards that scenario.json declares are taken for this measure.
    """
    sizes = {
        term.name: sum(float(np.abs(score.values[term.name][1 : score.end + 1]).sum()) for score in evidence.scores)
        for term in evidence.terms
    }
    everything = sum(sizes.values())
    if sum(size > 0 for size in sizes.values()) < 2:
        return
    ranks = [(drive.info.state, rank) for drive, rank in zip(evidence.drives, evidence.ranks, strict=True)]
    for term in evidence.terms:
        if sizes[term.name] <= _MOST_SHARE * everything:
            continue
        own = verdict(ranks, [score.terms[term.name].sum for score in evidence.scores])
        if isinstance(term, DeclaredTerm) or (own.tau is not None and own.tau >= _OWN_MEASURE):
            continue
        largest = max(range(len(evidence.drives)), key=lambda i: abs(evidence.scores[i].terms[term.name].sum))
        frame = int(np.abs(evidence.scores[largest].values[term.name]).argmax())
        others = ", ".join(name for name in sizes if name != term.name)
        alone = (
            f", and it does not rank the drives as their outcomes do (Kendall {own.tau:.2f})"
            if own.tau is not None
            else ""
        )
        yield evidence.finding(
            "dominates",
            term,
            f"is {sizes[term.name] / everything:.1%} of all that is paid and charged over all drives{alone}: the "
            f"others ({others}) hardly matter",
            f"reduce its weight, {term.weight:g}, or increase those of the others",
            largest,
            frame,
        )


_OWN_MEASURE = 0.9

_LEAST_KEPT = 0.02
_MOST_LEVELS = 10


def erased(evidence: Evidence) -> Iterator[Finding]:
    """Terms that the reward transform removes from the reward, in the single precision that the agent learns in."""
    transform = evidence.loaded.transform
    for term in evidence.terms:
        fired = kept = 0
        sizes: list[np.ndarray] = []
        first: tuple[int, int] | None = None
        for i, score in enumerate(evidence.scores):
            own = score.values[term.name]
            table = np.array([*score.values.values()])
            frames = np.flatnonzero(own)
            if not len(frames):
                continue
            others = np.array([values for name, values in score.values.items() if name != term.name]).reshape(
                -1, len(own)
            )
            size = np.abs(table).sum(axis=0)
            both = [
                np.where(np.abs(part.sum(axis=0)) < ROUNDING * size, 0.0, part.sum(axis=0))[frames]
                for part in (table, others)
            ]
            rewards = [np.array([transform(value) for value in part.tolist()]).astype(np.float32) for part in both]
            changed = rewards[0] != rewards[1]
            fired += len(frames)
            kept += int(changed.sum())
            alone = frames[np.abs(others).sum(axis=0)[frames] == 0]
            sizes.append(np.abs(own[alone]))
            if first is None:
                first = i, int(frames[0])
        if first is None:
            continue
        remedy = "use --reward-transform scale with a larger --reward-scale, or a larger weight"
        if kept <= _LEAST_KEPT * fired:
            yield evidence.finding(
                "erased",
                term,
                f"fires on {counted(fired, 'frame')}, but the transformed reward is the same without it on "
                f"{fired - kept:,} of them",
                remedy,
                *first,
            )
            continue
        different = np.unique(np.concatenate(sizes)) if sizes else np.empty(0)
        if len(different) > _MOST_LEVELS and different[-1] > 10 * different[0]:
            received = {abs(transform(float(value))) for value in different}
            if len(received) == 1:
                yield evidence.finding(
                    "erased",
                    term,
                    f"pays {len(different):,} different amounts, {different[0]:g} to {different[-1]:g}, and the "
                    f"transform makes each of them {received.pop():g}",
                    "use --reward-transform scale, or return 0 where the amount is small",
                    *first,
                )


# Terms that can be farmed

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
        best: tuple[float, Finding] | None = None
        for probe in evidence.probes.all:
            found = _profit(evidence, term, probe)
            if found and (best is None or found[0] > best[0]):
                best = found
        if best:
            yield best[1]


def _profit(evidence: Evidence, term: RewardTerm, probe: Probe) -> tuple[float, Finding] | None:
    if not probe.cycles or not _is_cycle(evidence, term, probe):
        return None
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
    first, last = begins[0], begins[-1]
    seconds = (last - first) / drive.info.frames_per_second
    rate = sum(profits) / (last - first)
    races = [evidence.scores[i].values[term.name][1:].mean() for i in evidence.races.values()]
    if _pays_for_being(term, drive, values, first, last) and not (races and rate > _LEAST_RATE * max(*races, 0.0)):
        return None
    fired = first + 1 + int(np.flatnonzero(values[first + 1 : last + 1] > 0)[0])
    text = (
        f"pays for what is undone: on the drive {drive.info.label}, the frames {first} to {last} are "
        f"{counted(len(profits), 'cycle')} that each end as they begin, and pay "
        f"{', '.join(f'{each:g}' for each in profits)}: {60 * sum(profits) / seconds:,.1f} per minute"
    )
    if races:
        text += f". A race pays {60 * drive.info.frames_per_second * float(np.mean(races)):,.1f} per minute"
    return rate, evidence.finding(
        "cycle",
        term,
        text,
        "charge the loss as the gain is paid (ram.x - previous.x), or pay only what exceeds the best value so far",
        drive.info.label,
        fired,
    )


def _is_cycle(evidence: Evidence, term: RewardTerm, probe: Probe) -> bool:
    """Whether the variables that a term may read, but clocks, are back at the end of each cycle."""
    drive, compared = probe.drive, 0
    nothing = next((each.drive for each in evidence.probes.all if each.drive.info.label == NOTHING), None)
    for name in term.may_read(evidence.layout.names):
        column = drive.columns[name].astype(np.int64)
        if nothing is not None and np.ptp(nothing.columns[name].astype(np.int64), axis=0).any():
            continue  # it changes by itself
        if not np.ptp(column, axis=0).any():
            continue
        compared += 1
        everything = np.concatenate(evidence.column(name))
        tolerance = 0.02 * np.ptp(everything)
        ends = column[list(probe.cycles[1:])]
        if (np.abs(ends - ends[:1]) > tolerance).any():
            return False
    return compared > 0


_FROZEN_FRAMES = 90


def _pays_for_being(term: RewardTerm, drive: Drive, values: np.ndarray, first: int, last: int) -> bool:
    """Whether a term goes on paying while a paid frame is repeated: then it does not pay for a change."""
    frames = first + 1 + np.flatnonzero(values[first + 1 : last + 1] > 0)
    for paid in {*frames[:: max(len(frames) // 4, 1)].tolist(), *np.linspace(first + 1, last, 4).astype(int).tolist()}:
        calls = ScriptCalls([term])
        for frame in range(paid + 1):
            calls.values(drive[frame], drive.buttons[frame], drive.frame_actions[frame])
        given = drive[paid], drive.buttons[paid], drive.frame_actions[paid]
        frozen = [calls.values(*given)[0] * term.weight for _ in range(_FROZEN_FRAMES)]
        if sum(frozen[1:]) > 0:
            return True
    return False


# Returns that pay for the wrong thing

_LEAST_MORE = 1.1


def standing(evidence: Evidence) -> Iterator[Finding]:
    """Terms that pay more for standing still than for driving."""
    reported: set[str] = set()
    for i, drive in enumerate(evidence.drives):
        race = evidence.races.get(drive.info.state)
        if drive.masks.any():
            continue
        if race is None:
            yield from _standing_without_race(evidence, i, reported)
            continue
        for term in evidence.terms:
            still, driving = (evidence.scores[each].values[term.name][1:] for each in (i, race))
            if term.name not in reported and _pays_more(still, driving):
                reported.add(term.name)
                yield evidence.finding(
                    "standing",
                    term,
                    f"pays {still.mean() * 60:,.3g} per second while the kart stands still, and "
                    f"{driving.mean() * 60:,.3g} in a race ({evidence.label(race)})",
                    "pay only while the kart moves forward",
                    i,
                    int(np.flatnonzero(still > 0)[0]) + 1,
                )
        yield from _standing_altogether(evidence, i, race, reported)


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


def early_end(evidence: Evidence) -> Iterator[Finding]:
    """Rules that end bad drives for a better return than a race has, or than going on has."""
    rules = {rule.name: rule for rule in evidence.loaded.scoring.done}
    ended = [
        i
        for i, (drive, score) in enumerate(zip(evidence.drives, evidence.scores, strict=True))
        if score.ended_by and not rules[score.ended_by].truncates and not (drive.info.race or {}).get("finished")
    ]
    for i in ended:
        race = evidence.races.get(evidence.drives[i].info.state)
        if race is None:
            continue
        score, best = evidence.scores[i], evidence.scores[race]
        for what, own, of_race in (
            ("", score.transformed, best.transformed),
            (f" (discounted at {evidence.loaded.gamma:g})", score.discounted, best.discounted),
        ):
            if own >= of_race:
                term = max(evidence.terms, key=lambda each: score.terms[each.name].sum - best.terms[each.name].sum)
                yield evidence.finding(
                    "early-end",
                    term,
                    f"makes an early end better than a race: {score.ended_by} ends {evidence.label(i)} on frame "
                    f"{score.end:,} with "
                    f"a return{what} of {own:.2f}, and the race {evidence.label(race)} earns {of_race:.2f}. "
                    f"{term.name} pays "
                    f"{score.terms[term.name].sum:,.1f} and {best.terms[term.name].sum:,.1f}. The agent learns to end "
                    "early",
                    f"reduce its weight, pay more for progress, or let {score.ended_by} truncate",
                    i,
                    score.end,
                )
                return
    scripted = {probe.drive for probe in evidence.probes.all if probe.cycles}
    moving = [
        i
        for i, drive in enumerate(evidence.drives)
        if (rank := evidence.ranks[i]) and not rank[0] and rank[1] > progress(drive[0]) and drive not in scripted
    ]
    scores = evidence.scores
    losing = [
        i for i in moving if i in ended and max(scores[i].rewards.mean(), scores[i].transformed, scores[i].plain) < 0
    ]
    if len(losing) >= 3 and 2 * len(losing) > len(moving):
        i = min(losing, key=lambda each: evidence.scores[each].transformed)
        score = evidence.scores[i]
        term = min(evidence.terms, key=lambda each: sum(evidence.scores[j].terms[each.name].sum for j in losing))
        seconds = (len(evidence.drives[i]) - 1) / evidence.drives[i].info.frames_per_second
        yield evidence.finding(
            "early-end",
            term,
            f"makes each second of an unskilled drive cost: {len(losing)} of {len(moving)} drives that come forward "
            f"lose rewards all the time ({evidence.label(i)}: {score.rewards.sum() / seconds:.2f} per second), and "
            f"{score.ended_by} ends them. The agent learns to end early before it learns to drive",
            f"reduce its weight, pay more for progress, or let {score.ended_by} truncate",
            i,
            score.end,
        )


def good_drives(evidence: Evidence) -> Iterator[Finding]:
    """Rules that end a drive which finishes the race, before it does."""
    runs = evidence.second_runs
    goals = {i: goal for i, drive in enumerate(evidence.drives) if (goal := finish(drive)) is not None}
    for rule in evidence.loaded.scoring.done:
        ends = {i: end for i, run in enumerate(runs) if (end := run.ends[rule.name]) is not None}
        early = {i: end for i, end in ends.items() if i in goals and end < goals[i]}
        if not early or _is_shorter_race(evidence, goals, ends) or (rule.truncates and _is_time_limit(evidence, ends)):
            quick = [end for end in ends.values() if end <= _QUICK_FRAMES]
            if len(quick) == len(runs) > 1:
                yield evidence.finding(
                    "good-drive",
                    rule,
                    f"ends each of {len(runs)} drives within {max(quick)} frames",
                    "correct its condition",
                    0,
                    ends[0],
                )
            continue
        i = min(early, key=lambda each: early[each])
        race = evidence.drives[i].info.race or {}
        yield evidence.finding(
            "good-drive",
            rule,
            f"ends {evidence.label(i)} on frame {early[i]:,}, which finishes the race in "
            f"{race.get('race_time_seconds', 0):.2f} s on "
            f"frame {goals[i]:,}; so it does with {len(early)} of {counted(len(goals), 'finished race')}",
            "correct its condition, such as a longer time or a lower speed",
            i,
            early[i],
        )


_QUICK_FRAMES = 60


def _is_shorter_race(evidence: Evidence, goals: dict[int, int], ends: dict[int, int]) -> bool:
    """Whether a rule is the goal of a race of fewer laps: it ends good drives alone, each as it completes the same "
    "lap."""
    laps = set()
    for i, end in ends.items():
        column = evidence.drives[i].columns.get("laps")
        if i not in goals or column is None or column[end] <= max(int(column[:end].max()), LAPS_AT_FIRST_CROSSING):
            return False
        laps.add(int(column[end]))
    return len(laps) == 1


def _is_time_limit(evidence: Evidence, ends: dict[int, int]) -> bool:
    """Whether a rule ends each drive that is long enough on the same frame."""
    return len(set(ends.values())) == 1 and all(
        i in ends for i, drive in enumerate(evidence.drives) if len(drive) > max(ends.values())
    )

"""Terms that do not change what the agent learns, or that alone decide it.

* ``ranking`` - terms that never change the ranking of the drives
* ``dominates`` - terms that give or take over 80 % of everything
* ``erased`` - terms that the reward transform removes
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kart_rewards.declared import DeclaredTerm
from kart_rewards.errors import counted
from kart_rewards.lab.linting.evidence import Evidence, Finding
from kart_rewards.lab.linting.firing import NEGLIGIBLE, charges_time, is_tiny
from kart_rewards.lab.score import verdict
from kart_rewards.rewards import ROUNDING, RewardTerm

_WINDOWS = (60, 240)  # frames
_MOST_WINDOWS = 300


def _windows(evidence: Evidence, name: str | None, frames: int) -> np.ndarray:
    """Returns what one term, or all, pays in windows of a length, among them the last of each drive."""
    last, others = [], []
    for score in evidence.scores:
        values = score.values[name] if name else sum(score.values.values(), np.zeros(len(score.rewards)))
        count = len(values[1:]) // frames
        others += values[1 : 1 + count * frames].reshape(count, frames).sum(axis=1).tolist()
        last.append(float(values[1:][-frames:].sum()))
    return np.array([*last, *others[:: max(len(others) // _MOST_WINDOWS, 1)]])


def ranking(evidence: Evidence) -> Iterator[Finding]:
    """Terms without which all drives, and all parts of drives, are ranked as they are with them.

    Few drives differ so little that a small term can change their order, so windows of one and four seconds are ranked,
    too. A term that only decides between windows with equal returns does change the ranking.
    """
    for term in evidence.terms:
        paid = evidence.paid(term.name)
        everything = np.concatenate(paid)
        always = everything.all() and (everything > 0).all() != (everything < 0).all()
        if not everything.any() or (always and not is_tiny(evidence, term)):
            continue  # ``fires`` reports it
        if charges_time(evidence, term):
            continue
        index = next(i for i, each in enumerate(paid) if each.any())
        frame = int(np.flatnonzero(paid[index])[0]) + 1
        remedy = "give it a weight further from 0, let it pay for what the drivers do differently, or remove it"
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
            same = f"pays in proportion to {twin}, on the same frames: on these drives, both are one term"
            pays = "pays" if (everything > 0).any() else "charges"
            size = max(float(np.abs(each).sum()) for each in paid)
            most = max(float(np.abs(score.plain)) for score in evidence.scores)
            yield evidence.finding(
                "ranking",
                term,
                f"{same if twin else never}. It {pays} at most {size:g} on a drive, where all terms pay up to {most:g}",
                remedy,
                index,
                frame,
            )


_LEAST_SAME = 0.98
_MOST_DIFFERENT = 0.02  # of an amount


def _twin(evidence: Evidence, name: str) -> str:
    """Returns the name of an earlier term that a term is a copy of; an empty text if there is none.

    A copy pays in proportion to the other term on the same frames. It need not be exact: what it pays elsewhere or in
    another proportion may be 2 % of everything.
    """
    own = np.concatenate(evidence.paid(name))
    for term in evidence.terms:
        if term.name == name:
            break
        other = np.concatenate(evidence.paid(term.name))
        both = (own != 0) & (other != 0)
        if not both.any():
            continue
        scaled = other * np.median(own[both] / other[both])
        size = np.abs(own) + np.abs(scaled)
        same = np.abs(own - scaled) <= _MOST_DIFFERENT * np.abs(scaled)
        if size[same].sum() >= _LEAST_SAME * size.sum():
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
    """Whether a term changes the order of two windows, or varies independently by more than the others' rounding."""
    every = _windows(evidence, None, frames)
    own = _windows(evidence, name, frames)
    without = every - own
    spread = float(every.std())
    if (_order(every, NEGLIGIBLE * spread) != _order(without, NEGLIGIBLE * spread)).any():
        return True
    centred, others = own - own.mean(), without - without.mean()
    slope = float(centred @ others) / (float(others @ others) or 1.0)
    return bool((centred - slope * others).std() > _LEAST_OWN * spread)


_LEAST_OWN = 1e-3  # of the spread of all terms together: a term that pays in proportion to another has less


def _changes_drives(evidence: Evidence, name: str) -> bool:
    for course in {drive.info.state for drive in evidence.drives}:
        scores = [
            score for drive, score in zip(evidence.drives, evidence.scores, strict=True) if drive.info.state == course
        ]
        every = np.array([score.plain for score in scores])
        without = every - [score.terms[name].sum for score in scores]
        dead = NEGLIGIBLE * float(every.std())
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


def _beside(evidence: Evidence, term: RewardTerm) -> str:
    """Returns the name of the term that pays or charges on most of another term's frames; "" if none does."""
    fired = np.concatenate(evidence.paid(term.name)) != 0
    counts = {
        other.name: int(np.count_nonzero(np.concatenate(evidence.paid(other.name))[fired]))
        for other in evidence.terms
        if other is not term
    }
    return max(counts, key=lambda name: counts[name]) if any(counts.values()) else ""


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
        why = ""
        other = _beside(evidence, term)
        if transform(1.0) == transform(1000.0) and other:  # the sign
            remedy = f"use --reward-transform scale, or let it pay on frames on which {other} does not"
            why = f": {other} pays or charges on the same frames, and decides the sign"
        if kept <= _LEAST_KEPT * fired:
            yield evidence.finding(
                "erased",
                term,
                f"fires on {counted(fired, 'frame')}, but the transformed reward is the same without it on "
                f"{fired - kept:,} of them{why}",
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

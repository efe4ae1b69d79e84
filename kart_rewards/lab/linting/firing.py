"""Terms that never fire, that always fire, or that are constant.

* ``fires`` - the check
* ``charges_time``, ``is_tiny`` - whether a term is a charge for time; whether it is negligible
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kart_rewards.lab.linting.evidence import Evidence, Finding
from kart_rewards.race import BOOST, DEEP_WATER, DIRT, GRASS, OIL, PIT, ROAD, START_LINE, WALL
from kart_rewards.rewards import RewardTerm
from kart_rewards.scripting import ScriptCalls


def fires(evidence: Evidence) -> Iterator[Finding]:
    """Terms that never fire, that are constant, or that pay on every frame. Rules that end no drive get a note."""
    for rule in evidence.loaded.scoring.done:
        if all(run.ends[rule.name] is None for run in evidence.second_runs):
            evidence.notes.append(f"{rule.name} ({rule.where}): no drive is ended by it")
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
        elif everything.all() and (everything > 0).all() != (everything < 0).all() and not charges_time(evidence, term):
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


NEGLIGIBLE = 1e-4
"""The part of the spread of the returns that is too little to learn from."""


def is_tiny(evidence: Evidence, term: RewardTerm) -> bool:
    """Whether what a term pays is negligible beside all terms."""
    sizes = {each.name: sum(float(np.abs(paid).sum()) for paid in evidence.paid(each.name)) for each in evidence.terms}
    return sizes[term.name] < NEGLIGIBLE * 0.1 * sum(sizes.values())


def charges_time(evidence: Evidence, term: RewardTerm) -> bool:
    """Whether a term only charges, also while the kart stands still, and a rule ends an episode at the goal.

    Then it rewards speed, a common and sound term, although it is the same for all drives up to their end. Without the
    goal it only hastens the end.
    """
    still = [
        paid for paid, drive in zip(evidence.paid(term.name), evidence.drives, strict=True) if not drive.masks.any()
    ]
    charges = max(float(paid.max()) for paid in evidence.paid(term.name)) <= 0 and any(paid.any() for paid in still)
    return charges and evidence.has_goal and not is_tiny(evidence, term)

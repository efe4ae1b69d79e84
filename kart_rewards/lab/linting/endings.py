"""Rules that end the wrong drives, and terms that make an early end pay.

* ``early_end`` - terms that make an early end better than a race
* ``good_drives`` - rules that end good drives
"""

from __future__ import annotations

from collections.abc import Iterator

from kart_rewards.errors import counted
from kart_rewards.lab.linting.evidence import Evidence, Finding, finish
from kart_rewards.lab.linting.probes import AGENT
from kart_rewards.race import LAPS_AT_FIRST_CROSSING, progress


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
    scripted = {probe.drive for probe in evidence.probes.all if probe.cycles or probe.drive.info.label == AGENT}
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
            f"{race.get('race_time_seconds', evidence.drives[i].seconds):.2f} s on "
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

"""Which reward terms and done rules a run uses, and what a game's variables should read.

``scenario.json`` holds, beside what stable-retro reads of it, a key of our own, which stable-retro ignores::

    "kart_rewards": {
        "modules": ["my_rewards.py"],
        "rewards": {"checkpoint": 300, "top_speed": null},
        "done": ["race_finished", "wall_hits"],
        "checks": [
            {"expect": "laps == 127"},
            {"hold": "B", "within_frames": 600, "expect": "speed > before.speed + 100"}
        ]
    }

``modules`` are files (relative to the scenario's folder) or importable modules to take terms and rules from, beside the
reference ones. ``rewards`` names the terms to use and their weights; null keeps the weight the term was marked with.
``done`` names the rules. A part that is left out stands for the reference terms or rules.

``checks`` tell ``python -m kart_rewards doctor`` whether the addresses in ``data.json`` are right: what is true of the
variables from a start state on. ``expect`` is a condition (see ``kart_rewards.games.condition``), in which ``before.speed``
is the speed in the start state. It must hold in the start state itself or, with ``within_frames``, after one of so many
frames, all the while with the buttons of ``hold`` pressed (``B+LEFT``; none if it is left out).

* ``Scoring`` - the terms and rules of a run
* ``load_scoring`` - a scenario, plus what the user adds and reweighs
* ``Check``, ``load_checks`` - what the variables should read
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kart_rewards.done import REFERENCE_RULES, DoneRule, as_rule
from kart_rewards.errors import KartRewardsError
from kart_rewards.ram import RamLayout, load_json
from kart_rewards.rewards import REFERENCE_TERMS, RewardTerm, as_term, with_weights
from kart_rewards.scripting import SomeScript, marked_scripts, script_of, unique_by_name

KEY = "kart_rewards"
MOST_CHECK_FRAMES = 36_000  # ten minutes of the console's time
_PARTS = ("modules", "rewards", "done", "checks")


@dataclass(frozen=True)
class Scoring:
    """What a run pays and when its episodes end.

    Args:
        terms: The reward terms, with the weights in force.
        done: The done rules.
    """

    terms: list[RewardTerm]
    done: list[DoneRule]

    def check(self, layout: RamLayout) -> None:
        """Raises KartRewardsError if a term or rule reads a variable that the game's ``data.json`` lacks."""
        for script in (*self.terms, *self.done):
            script.check_reads(layout)

    def fingerprints(self) -> dict[str, str]:
        """Each term and rule -> its weight and the hash of its file, as text, to compare runs by."""
        terms = {f"term {term.name}": f"weight {term.weight!r}, source {term.fingerprint}" for term in self.terms}
        return terms | {f"rule {rule.name}": f"source {rule.fingerprint}" for rule in self.done}

    def table(self) -> str:
        """The terms, weights and rules in force, as text for a person."""
        rows = [(term.name, f"{term.weight:g}", term.summary) for term in self.terms]
        rows += [(rule.name, "ends", rule.summary) for rule in self.done]
        width = max((len(name) for name, _, _ in rows), default=0)
        return "\n".join(f"  {name:<{width}}  {weight:>6}  {summary}" for name, weight, summary in rows)


def load_scoring(path: Path, extra: Iterable[Any] = (), weights: Mapping[str, float] | None = None) -> Scoring:
    """Returns the terms and rules of a scenario file, with additions.

    Weights come from the mark, overridden by the scenario, overridden by ``weights``.

    Args:
        path: The scenario file.
        extra: Terms and rules to add: functions and classes, or files and modules of which all are added.
        weights: Term name -> weight.

    Raises:
        KartRewardsError: The scenario is malformed, or names or weighs what does not exist; a file fails to import.
    """
    own = _own_part(path)
    modules, chosen_terms, chosen_rules = own.get("modules", []), own.get("rewards"), own.get("done")
    if not _is_list_of_text(modules) or not (chosen_rules is None or _is_list_of_text(chosen_rules)):
        raise KartRewardsError(f'{path}: "modules" and "done" under "{KEY}" must be lists of names')
    if not (chosen_terms is None or isinstance(chosen_terms, dict)):
        raise KartRewardsError(f'{path}: "rewards" under "{KEY}" must be an object of weights by term')
    sources = [path.parent / name if name.endswith(".py") else name for name in modules]

    terms = list(map(as_term, REFERENCE_TERMS))
    rules = list(map(as_rule, REFERENCE_RULES))
    for source in sources:
        terms += marked_scripts(source, RewardTerm)
        rules += marked_scripts(source, DoneRule)
    if chosen_terms is not None:
        weighted = with_weights(unique_by_name(terms).values(), chosen_terms, str(path))
        terms = [term for name in chosen_terms for term in weighted if term.name == name]
    if chosen_rules is not None:
        rules = _named(unique_by_name(rules), chosen_rules, path)
    for source in extra:
        added_terms, added_rules = _from(source)
        terms += added_terms
        rules += added_rules
    terms = with_weights(unique_by_name(terms).values(), weights or {}, "reward weights")
    return Scoring(terms, list(unique_by_name(rules).values()))


@dataclass(frozen=True)
class Check:
    """What is true of a game's variables from a start state on.

    Args:
        expect: The condition. ``before.NAME`` is a variable's value in the start state.
        hold: Buttons to hold meanwhile, joined by ``+``.
        within_frames: After one of how many frames it holds; 0: in the start state itself.
    """

    expect: str
    hold: str = ""
    within_frames: int = 0

    def __str__(self) -> str:
        return f"{self.expect}, holding {self.hold}" if self.hold else self.expect


def load_checks(path: Path) -> list[Check]:
    """Returns the checks that a scenario file declares.

    Raises:
        KartRewardsError: The file can't be read, or a check is malformed.
    """
    entries = _own_part(path).get("checks", [])
    if not isinstance(entries, list):
        raise KartRewardsError(f'{path}: "checks" under "{KEY}" must be a list')
    checks = []
    for entry in entries:
        try:
            check = Check(**entry)
            well_formed = type(check.within_frames) is int and 0 <= check.within_frames <= MOST_CHECK_FRAMES
            well_formed = well_formed and isinstance(check.expect, str) and isinstance(check.hold, str)
        except TypeError:
            well_formed = False
        if not well_formed:
            raise KartRewardsError(
                f'{path}: the check {json.dumps(entry)} is not {{"expect": CONDITION, "hold": BUTTONS, '
                f'"within_frames": NUMBER}}, the last two optional, the number 0 to {MOST_CHECK_FRAMES}'
            )
        checks.append(check)
    return checks


def _own_part(path: Path) -> dict[str, Any]:
    own = load_json(path).get(KEY, {})
    if not isinstance(own, dict) or set(own) - set(_PARTS):
        raise KartRewardsError(
            f'{path}: "{KEY}" must be an object with "modules", "rewards", "done" and "checks", all optional'
        )
    return own


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _named(scripts: Mapping[str, SomeScript], names: Iterable[str], path: Path) -> list[SomeScript]:
    for name in names:
        if name not in scripts:
            raise KartRewardsError(f"{path}: there is no done rule {name!r}; there are {', '.join(scripts)}")
    return [scripts[name] for name in names]


def _from(source: Any) -> tuple[list[RewardTerm], list[DoneRule]]:
    """The terms and rules of a file or module, or the one that a function or class is."""
    if isinstance(source, (str, Path)):
        terms, rules = marked_scripts(source, RewardTerm), marked_scripts(source, DoneRule)
        if not terms and not rules:
            raise KartRewardsError(
                f"{source}: defines no reward term and no done rule: mark them @reward_term(weight=…)"
            )
        return terms, rules
    if isinstance(source, DoneRule) or script_of(source, DoneRule):
        return [], [as_rule(source)]
    return [as_term(source)], []

"""Scenario files: the reward terms and done rules of a run, and checks of a game's variables.

* ``Scoring`` - the terms and rules of a run
* ``load_scoring`` - reads a scenario file and applies the user's additions and weights
* ``Check``, ``load_checks`` - conditions on the variables' values
* ``load_goal`` - what the author of a game wants

A ``scenario.json`` has keys that stable-retro reads, and the key ``kart_rewards``, which stable-retro ignores::

    "kart_rewards": {
        "modules": ["my_rewards.py"],
        "rewards": {"checkpoint": 300, "top_speed": null},
        "done": ["race_finished", "wall_hits"],
        "goal": "laps >= 133",
        "checks": [
            {"expect": "laps == 127"},
            {"hold": "B", "within_frames": 600, "expect": "speed > before.speed + 100"}
        ]
    }

``modules`` lists files (relative to the scenario's folder) or importable modules. Their terms and rules are available
in addition to the reference terms and rules. ``rewards`` lists the terms to use, with their weights; null keeps the
weight of the decorator. ``done`` lists the rules to use. A class that is a term and a rule can be in both lists; if it
is in one of them, its other value has no effect. Without ``rewards`` or ``done``, the reference terms or rules
and those of ``modules`` are used. Keys that begin with an underscore are comments. The reference terms and rules are
for kart races (see ``kart_rewards.race.is_kart_race``). In all other games they do not exist.

If the file has ``reward``, ``rewards`` or ``done`` of stable-retro's own, the terms and rules that these declare (see
``kart_rewards.declared``) take the place of the reference terms and rules. The lists of ``kart_rewards`` still decide
where they are given: they can name declared terms and rules, too. A term or rule in Python replaces the declared one of
its name.

``checks`` lists conditions that are true if the addresses in ``data.json`` are right; ``kart-rewards doctor`` checks
them. ``expect`` is a condition (see ``kart_rewards.games.condition``). In it, ``before.speed`` is the speed in the
start state. Without ``within_frames``, the condition must be true in the start state. With it, the condition must be
true after at least one of the next ``within_frames`` frames, during which the buttons of ``hold`` are held.

``goal`` says what the author wants, whatever the rewards are: a condition as above, or a number that should be large,
such as ``"laps * num_checkpoints + checkpoint"``. It may name variables and, in a kart race, ``laps_completed``,
``finished``, ``off_road_seconds`` and ``wall_hits``. ``kart-rewards audit`` compares behaviours by it. Without it, the
goal of a kart race is the finish.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kart_rewards.declared import BLOCKS, Declared, DeclaredRule, DeclaredTerm, declared_in, scripts_of
from kart_rewards.done import REFERENCE_RULES, DoneRule, as_rule
from kart_rewards.errors import KartRewardsError, did_you_mean
from kart_rewards.notices import notice
from kart_rewards.race import METRIC_VARIABLES, is_kart_race
from kart_rewards.ram import RamLayout, check_keys, check_outer_keys, is_comment, load_json, shown
from kart_rewards.rewards import REFERENCE_TERMS, RewardTerm, as_term, with_weights
from kart_rewards.scripting import Script, SomeScript, marked_scripts, script_of, unique_by_name

KEY = "kart_rewards"
MOST_CHECK_FRAMES = 36_000  # ten minutes of the console's time
_PARTS = ("modules", "rewards", "done", "checks", "goal")
_STABLE_RETRO_KEYS = ("reward", "rewards", "done", "actions", "scripts", "crop", "crops")
_CHECK_KEYS = ("expect", "hold", "within_frames")

_FILES_OF_0_1 = {"kart_rewards.rewards": "bec35897d035e772", "kart_rewards.done": "fc6ae876b0a537fe"}
"""The hashes of the files of version 0.1 that defined the reference terms and rules, which compute the same today."""


@dataclass(frozen=True)
class Scoring:
    """The reward terms and done rules of a run.

    Args:
        terms: The reward terms, with their final weights.
        done: The done rules.
    """

    terms: list[RewardTerm]
    done: list[DoneRule]

    def __post_init__(self) -> None:
        self.fingerprints()  # before a user edits the files: the run continues with the code of now

    def check(self, layout: RamLayout) -> None:
        """Checks that the layout has all variables that the terms and rules read.

        Raises:
            KartRewardsError: The game's ``data.json`` does not define one of them.
        """
        for script in (*self.terms, *self.done):
            script.check_reads(layout)

    def fingerprints(self, layout: RamLayout | None = None) -> dict[str, str]:
        """Returns what decides the rewards, as text by name. Equal runs have equal fingerprints.

        Args:
            layout: The game's variables. Those that a term or rule may read are included.

        Returns:
            Term or rule -> its weight and the hash of its code; variable -> its address, type, mask, count and pointer.
        """
        all_variables = layout.variables if layout else ()
        names = [each.name for each in all_variables]
        read = set().union(*(script.may_read(names) for script in (*self.terms, *self.done)))
        for each in reversed(all_variables):
            if each.pointer and each.name in read:
                read.add(each.pointer)  # a variable further up
        variables = {f"variable {each.name}": each.description for each in all_variables if each.name in read}
        return self._described(lambda script: f"code {script.fingerprint}") | variables

    def fingerprints_of_0_1(self) -> dict[str, str]:
        """Returns the same as checkpoints of version 0.1 hold it: with a hash of each file."""

        def of_file(script: Script) -> str:
            return f"source {_FILES_OF_0_1.get(script.definition.__module__, script.file_fingerprint)}"

        return self._described(of_file)

    def _described(self, describe: Callable[[Script], str]) -> dict[str, str]:
        terms = {f"term {term.name}": f"weight {term.weight!r}, {describe(term)}" for term in self.terms}
        return terms | {f"rule {rule.name}": f"{'truncates, ' * rule.truncates}{describe(rule)}" for rule in self.done}

    def notices(self) -> list[str]:
        """Returns what a user should know before training: that nothing is paid, or that no rule ends an episode."""
        notices = []
        if not any(term.weight for term in self.terms):
            notices.append("There is no reward term with a weight: the agent is paid nothing, and learns nothing.")
        if not self.done:
            notices.append(
                "There is no done rule: every episode goes on to the step limit (--max-episode-steps), and the curves "
                "of episodes begin only then."
            )
        if scripts_of((*self.terms, *self.done)):
            notices.append("Checkpoints lack the memory of Lua scripts: a resumed run begins new episodes.")
        return notices

    def table(self) -> str:
        """Returns the terms, weights and rules as a text table for a person."""
        rows = [(term.name, f"{term.weight:g}", term.summary) for term in self.terms]
        rows += [(rule.name, "truncates" if rule.truncates else "ends", rule.summary) for rule in self.done]
        width = max((len(name) for name, _, _ in rows), default=0)
        numbers = max((len(weight) for _, weight, _ in rows), default=0)
        return "\n".join(f"  {name:<{width}}  {weight:>{max(numbers, 6)}}  {summary}" for name, weight, summary in rows)


def load_scoring(
    path: Path | None,
    extra: Any = (),
    weights: Mapping[str, float] | None = None,
    variables: Collection[str] | None = None,
) -> Scoring:
    """Returns the terms and rules of a scenario file, with additions.

    The weight of a term comes from ``weights``, else from the scenario, else from the term's decorator.

    Args:
        path: The scenario file. None: no terms and no rules beside the additions.
        extra: Terms and rules to add: functions and classes; or files and modules (also module objects), of which all
            terms and rules are added.
        weights: Term name -> weight.
        variables: The names of the game's variables, which say whether it is a kart race. None: it is one.

    Raises:
        KartRewardsError: The scenario is not valid; a term or rule that it names does not exist; a weight is not a
            finite number or is for a term that does not exist; or the import of a file fails.
    """
    if not isinstance(weights or {}, Mapping):
        raise KartRewardsError(f'the reward weights must be a dict such as {{"wall": -50}}, not {weights!r}')
    if isinstance(extra, Mapping):
        raise KartRewardsError(
            "rewards must be a list of terms and rules, not a dict: give weights by the names of terms, such as "
            'reward_weights={"wall": -50}'
        )
    content = load_json(path) if path else {}
    own = _own_part(content, path) if path else {"rewards": {}, "done": []}
    modules, chosen_terms, chosen_rules = own.get("modules", []), own.get("rewards"), own.get("done")
    for key, names in (("modules", modules), ("done", [] if chosen_rules is None else chosen_rules)):
        if not _is_list_of_text(names):
            raise KartRewardsError(f'{path}: "{key}" under "{KEY}" must be a list of names, not {shown(names)}')
    if not (chosen_terms is None or isinstance(chosen_terms, dict)):
        raise KartRewardsError(f'{path}: "rewards" under "{KEY}" must be an object of weights by term')
    sources = [path.parent / name if path and name.endswith(".py") else name for name in modules]

    declared = declared_in(content, path) if path else Declared()
    is_declared = not content.keys().isdisjoint(BLOCKS)
    is_race = variables is None or is_kart_race(variables)
    terms = [*_reference_terms()] if is_race and not (is_declared and chosen_terms is None) else []
    rules = list(map(as_rule, REFERENCE_RULES)) if is_race and not (is_declared and chosen_rules is None) else []
    for source in sources:
        own_terms, own_rules = _from(source)
        terms += own_terms
        rules += own_rules
    terms = _joined(declared.terms, terms)
    rules = _joined(declared.rules, rules)
    if not is_race:
        known = {script.name for script in (*terms, *rules)}
        _check_no_reference({*(chosen_terms or ()), *(chosen_rules or ())} - known, path)
    if chosen_terms is not None:
        chosen_terms = {name: weight for name, weight in chosen_terms.items() if not is_comment(name)}
        weighted = with_weights(unique_by_name(terms).values(), chosen_terms, str(path))
        terms = [term for name in chosen_terms for term in weighted if term.name == name]
    if chosen_rules is not None:
        rules = _named(unique_by_name(rules), chosen_rules, str(path))
    several = isinstance(extra, Iterable) and not isinstance(extra, (str, Path))
    for source in extra if several else [extra]:
        added_terms, added_rules = _from(source)
        terms = _joined(terms, added_terms)
        rules = _joined(rules, added_rules)
    terms = with_weights(unique_by_name(terms).values(), weights or {}, "reward weights")
    return Scoring(terms, list(unique_by_name(rules).values()))


@functools.cache
def _reference_terms() -> list[RewardTerm]:
    """Returns the reference terms. Their code is read once, and not for each copy with another weight."""
    terms = list(map(as_term, REFERENCE_TERMS))
    for term in terms:
        term.may_read(())
    return terms


@dataclass(frozen=True)
class Check:
    """A condition on a game's variables that is true if their addresses are right.

    Args:
        expect: The condition. ``before.NAME`` is a variable's value in the start state.
        hold: The buttons to hold, joined by ``+``.
        within_frames: The condition must be true after at least one of this many frames. 0: in the start state.
    """

    expect: str
    hold: str = ""
    within_frames: int = 0

    def __str__(self) -> str:
        return f"{self.expect}, holding {self.hold}" if self.hold else self.expect


def load_checks(path: Path) -> list[Check]:
    """Returns the checks of a scenario file.

    Raises:
        KartRewardsError: The file can't be read, or a check is not valid.
    """
    entries = _own_part(load_json(path), path).get("checks", [])
    if not isinstance(entries, list):
        raise KartRewardsError(f'{path}: "checks" under "{KEY}" must be a list')
    checks = []
    for entry in entries:
        hint = ""
        try:
            said = {key: value for key, value in entry.items() if not is_comment(key)}
            for key in said.keys() - set(_CHECK_KEYS):
                hint = f". Unknown key {shown(key)}.{did_you_mean(key, _CHECK_KEYS)}"
            check = Check(**said)
            well_formed = type(check.within_frames) is int and 0 <= check.within_frames <= MOST_CHECK_FRAMES
            well_formed = well_formed and isinstance(check.expect, str) and isinstance(check.hold, str)
        except (AttributeError, TypeError):
            well_formed = False
        if not well_formed:
            raise KartRewardsError(
                f'{path}: the check {shown(entry)} is not {{"expect": CONDITION, "hold": BUTTONS, "within_frames": '
                f"NUMBER}}; hold and within_frames are optional, NUMBER is 0 to {MOST_CHECK_FRAMES}{hint}"
            )
        checks.append(check)
    return checks


def load_goal(path: Path) -> str | None:
    """Returns the goal of a scenario file, as text; None if it has none.

    Raises:
        KartRewardsError: The file can't be read, or the goal is not text.
    """
    goal = _own_part(load_json(path), path).get("goal")
    if goal is not None and not (isinstance(goal, str) and goal.strip()):
        raise KartRewardsError(
            f'{path}: "goal" under "{KEY}" must be a condition or a number of variables, such as "laps >= 133", not '
            f"{shown(goal)}"
        )
    return goal


def _own_part(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns the value of the key ``kart_rewards``. Other unknown keys are refused if they are probably mistakes."""
    for key in content.keys() & {*_PARTS} - {*_STABLE_RETRO_KEYS}:
        raise KartRewardsError(f'{path}: unknown key {shown(key)}. It belongs inside "{KEY}".')
    check_outer_keys(content, (KEY, *_STABLE_RETRO_KEYS), str(path))
    if isinstance(content.get("rewards"), dict):
        raise KartRewardsError(f'{path}: "rewards", an object of weights by term, belongs inside "{KEY}"')
    own = content.get(KEY, {})
    where = f'{path}: "{KEY}" must be an object with "modules", "rewards", "done", "checks" and "goal", all optional'
    if not isinstance(own, dict):
        raise KartRewardsError(where)
    check_keys(own, _PARTS, where)
    return own


def _joined(scripts: Iterable[SomeScript], added: list[SomeScript]) -> list[SomeScript]:
    """Returns both lists as one, without declared scripts whose name an added script has. A notice names those."""
    names = {script.name: script for script in added}
    kept: list[SomeScript] = []
    for script in scripts:
        other = names.get(script.name) if isinstance(script, (DeclaredTerm, DeclaredRule)) else None
        if other is None:
            kept.append(script)
        elif other.definition not in (*REFERENCE_TERMS, *REFERENCE_RULES):
            notice(f"{other.where}: {other.name!r} replaces the one that {script.where} declares")
    return [*kept, *added]


def _check_no_reference(unknown: Collection[str], path: Path | None) -> None:
    for script in (*map(as_term, REFERENCE_TERMS), *map(as_rule, REFERENCE_RULES)):
        if script.name in unknown:
            variables = ", ".join(sorted(METRIC_VARIABLES))
            raise KartRewardsError(
                f"{path}: {script.name!r} is for kart races only, and this game is none: its data file does not define "
                f"all of the variables {variables}"
            )


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _named(scripts: Mapping[str, SomeScript], names: Iterable[str], path: str) -> list[SomeScript]:
    for name in names:
        if name not in scripts:
            known, hint = ", ".join(scripts), did_you_mean(name, scripts)
            raise KartRewardsError(f"{path}: there is no done rule {shown(name)}; there are {known}.{hint}")
    return [scripts[name] for name in names]


def _from(source: Any) -> tuple[list[RewardTerm], list[DoneRule]]:
    """Returns the terms and rules of a file or module, or of a function or class."""
    if isinstance(source, (str, Path, ModuleType)):
        terms, rules = marked_scripts(source, RewardTerm), marked_scripts(source, DoneRule)
        if not terms and not rules:
            raise KartRewardsError(
                f"{getattr(source, '__file__', source)}: defines no reward term and no done rule: mark them with "
                "@reward_term or @done_rule. Imported ones belong to the file that defines them: name that file"
            )
        return terms, rules
    is_rule = isinstance(source, DoneRule) or script_of(source, DoneRule)
    is_term = not is_rule or script_of(source, RewardTerm)
    return [as_term(source)] if is_term else [], [as_rule(source)] if is_rule else []

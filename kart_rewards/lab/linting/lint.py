"""Mistakes in rewards that show on recorded drives and on short scripted drives in the emulator.

* ``CHECKS``, ``findings`` - the checks; what they find
* ``TITLES`` - what each kind of finding says, in a few words
* ``examine``, ``Examination`` - runs them on recorded and scripted drives
* ``command`` - the command ``kart-rewards lint``

The checks are in the modules ``firing``, ``influence``, ``farming``, ``endings``, ``soundness`` and ``cost``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import tyro

from kart_rewards.drives import SHIPPED, SUFFIX, Drive, load_drive
from kart_rewards.env.actions import ACTION_MODES
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.integrations import find_game
from kart_rewards.lab.linting.clock import clock
from kart_rewards.lab.linting.cost import slow
from kart_rewards.lab.linting.endings import early_end, good_drives
from kart_rewards.lab.linting.evidence import Evidence, Finding, OutOfTimeError, gather
from kart_rewards.lab.linting.farming import standing, undone
from kart_rewards.lab.linting.firing import fires
from kart_rewards.lab.linting.influence import dominates, erased, ranking
from kart_rewards.lab.linting.probes import DRIVER
from kart_rewards.lab.linting.soundness import checkpoints, leaks, variables
from kart_rewards.lab.score import RECORDINGS, RewardSet, find_drives
from kart_rewards.rewards import parse_weights
from kart_rewards.training.options import Drives, GamesFolder, Names

_OF_VALUES = {
    "never-fires",
    "every-frame",
    "constant",
    "ranking",
    "dominates",
    "erased",
    "cycle",
    "standing",
    "good-drive",
}

CHECKS: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    fires,
    ranking,
    dominates,
    erased,
    undone,
    leaks,
    checkpoints,
    variables,
    slow,
    standing,
    early_end,
    good_drives,
)
"""The checks, in the order in which they run."""

TITLES = {
    "never-fires": "never fires",
    "every-frame": "pays on every frame",
    "constant": "is constant",
    "ranking": "ranks no drive above another",
    "dominates": "drowns all other terms",
    "erased": "is erased by the reward transform",
    "cycle": "pays for undone progress",
    "leaks": "keeps something between episodes",
    "call-order": "depends on the order of the calls",
    "frame-skip": "depends on the frame skip",
    "checkpoint": "can't go on from a checkpoint",
    "variable": "reads a doubtful variable",
    "slow": "is slow",
    "standing": "pays for standing still",
    "early-end": "pays for an early end",
    "good-drive": "ends good drives",
}
"""The name of each kind of finding -> what it says about a term or rule, after whose name it stands."""


def findings(evidence: Evidence) -> list[Finding]:
    """Returns the mistakes that all checks find, without those that follow from another one of the same script."""
    found: list[Finding] = []
    try:
        for check in CHECKS if evidence.scores else (slow,):
            if check is not slow:
                evidence.check_time()
            for each in check(evidence):
                found.append(each)
    except OutOfTimeError:
        evidence.notes.append("The terms and rules take so long that not all checks were made")
    if (not evidence.scores or clock() > evidence.deadline) and not any(each.check == "slow" for each in found):
        found += slow(evidence, least=0.0)
    for term in evidence.loaded.scoring.terms:
        if not term.weight:
            evidence.notes.append(f"{term.name} ({term.where}) has the weight 0, so it was not examined")
    return [each for each in found if not any(_explains(cause, each) for cause in found)]


_CAUSES = {
    "leaks": {*_OF_VALUES, "call-order", "frame-skip", "checkpoint"},
    "constant": {"ranking", "dominates", "standing"},
    "every-frame": {"ranking"},
    "variable": {"ranking", "cycle", "dominates"},
}
"""Check -> those of whose findings about the same script its findings are the cause."""

_CAUSES_OF_OTHERS = {"dominates": {"ranking", "early-end"}, "good-drive": {"early-end", "dominates", "ranking"}}
"""Check -> those of whose findings about other scripts its findings are the cause."""


def _explains(cause: Finding, other: Finding) -> bool:
    """Whether a finding is the cause of another one."""
    causes = _CAUSES if cause.script == other.script else _CAUSES_OF_OTHERS
    return other.check in causes.get(cause.check, ())


@dataclass(frozen=True)
class Examination:
    """What ``examine`` returns.

    Args:
        evidence: What was examined.
        findings: What was found.
        paths: The label of each drive that a finding names -> its file.
    """

    evidence: Evidence
    findings: list[Finding]
    paths: dict[str, Path]


def examine(
    game: str, rewards: RewardSet, drives: Sequence[Path], action_mode: str = "auto", output: Path | None = None
) -> Examination:
    """Looks for mistakes on recorded drives, and on scripted drives in the emulator.

    No environment may be open in this process, and the rewards should not be loaded in it yet: what they keep between
    episodes would be filled already.

    Args:
        game: The game's folder name.
        rewards: The reward set.
        drives: The files of recorded drives. Those of other games are left out. Those of the package are added.
        action_mode: The action mode of the agent, for terms that ask for ``action``.
        output: The folder in which the scripted drives that show a finding are saved. None: ``OUTPUT``.

    Raises:
        KartRewardsError: See ``kart_rewards.lab.linting.evidence.gather``.
    """
    folder = find_game(game, rewards.integrations)
    folder.rom()
    paths: dict[str, Path] = {}
    recorded: list[Drive] = []
    left_out = 0
    for path in dict.fromkeys([*find_drives([SHIPPED]), *drives]):
        drive = load_drive(path)
        if drive.info.game != game or drive.info.driver == DRIVER:
            continue
        if sum(map(len, recorded)) + len(drive) > _MOST_FRAMES:
            left_out += 1
            continue
        label = drive.info.label
        if label in paths:  # a finding names a drive by its label
            drive = replace(drive, info=replace(drive.info, label=f"{label} ({path.parent})"))
        paths[drive.info.label] = path
        recorded.append(drive)
    evidence = gather(folder, rewards, recorded, action_mode)
    found = findings(evidence)
    if left_out:
        evidence.notes.append(
            f"{counted(left_out, 'drive')} not read, because the others have {_MOST_FRAMES:,} frames: to choose them, "
            f"name files or folders after {game}"
        )
    named = {each.drive for each in found}
    for probe in evidence.probes.all:
        label = probe.drive.info.label
        if label in named and label not in paths:
            paths[label] = (output or OUTPUT) / f"{label}{SUFFIX}"
            paths[label].parent.mkdir(parents=True, exist_ok=True)
            probe.drive.save(paths[label])
    return Examination(evidence, found, {label: paths[label] for label in named})


# The command

OUTPUT = RECORDINGS / "lint"
"""The folder in which the command saves the scripted drives that its findings name."""

_MOST_FRAMES = 100_000  # of recorded drives


def command(
    game: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GAME")],
    drives: Drives = (),
    /,
    rewards: Names = (),
    scenario: str | None = "scenario",
    reward_weights: Names = (),
    reward_transform: Literal["scale", "sign", "none"] = "scale",
    reward_scale: float = 0.01,
    gamma: float = 0.99,
    action_mode: str = "auto",
    integrations_path: GamesFolder = None,
    output: Path = OUTPUT,
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Finds mistakes in rewards, on recorded drives and on short scripted drives in the emulator.

    It exits with code 0 if it finds nothing, with 1 if it finds something, and with 2 after an error.

    Args:
        game: The game's folder name.
        drives: Files of drives, or folders of them, in place of your own in recordings/ and runs/. The drives of the
            package are always examined.
        rewards: Python files or modules with reward terms and done rules to add.
        scenario: Reward terms and done rules: the name of a file in the game's folder, or a .json path. None: none.
        reward_weights: Weights that override the scenario's, as NAME=NUMBER: --reward-weights wall=-5 top_speed=0.02.
        reward_transform: What the agent gets of each frame's reward: a scaled sum, its sign, or the sum.
        reward_scale: Factor of --reward-transform scale.
        gamma: Discount factor per agent step.
        action_mode: The action mode of the agent, for terms that ask for its action.
        output: The folder in which the scripted drives that show a finding are saved.
        json: Print everything as JSON.
    """
    if action_mode not in ACTION_MODES:
        raise KartRewardsError(f"unknown action mode {action_mode!r}: it is one of {', '.join(ACTION_MODES)}")
    chosen = RewardSet(
        rewards, scenario, parse_weights(reward_weights), reward_transform, reward_scale, gamma, integrations_path
    )
    result = examine(game, chosen, find_drives(drives), action_mode, output)
    evidence, found, paths = result.evidence, result.findings, result.paths
    if json:
        print(
            dumps(
                {
                    "findings": [{**asdict(each), "path": str(paths[each.drive])} for each in found],
                    "notes": evidence.notes,
                },
                indent=2,
            )
        )
    else:
        print(_report(evidence, found, paths))
    if found:
        sys.exit(1)


def _report(evidence: Evidence, found: list[Finding], paths: dict[str, Path]) -> str:
    blocks = [
        f"{each.where}: {each.script} {each.text}.  [{each.check}]\n"
        f"  see  frame {each.frame:,} of {paths[each.drive]}\n"
        f"  do   {each.remedy}"
        for each in found
    ]
    number = len(evidence.scripts)
    last = (
        f"{counted(len(found), 'finding')} in {counted(len({each.where for each in found}), 'definition')}"
        if found
        else "Nothing found"
    )
    notes = [f"note: {note}" for note in evidence.notes]
    return "\n\n".join(
        [*blocks, *notes, f"{last}. {counted(number, 'term or rule', 'terms and rules')}, {evidence.tried}."]
    )

"""Searches the emulator for behaviour that is better paid than what the author of a reward wants.

* ``audit`` - searches, and confirms what it found
* ``reference_drive`` - the drive that does what the author wants
* ``command`` - the command ``kart-rewards audit``
"""

from __future__ import annotations

import math
import sys
from contextlib import closing, redirect_stdout
from json import dumps
from pathlib import Path
from time import monotonic
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from kart_rewards.declared import scripts_of
from kart_rewards.drives import SUFFIX, load_drive
from kart_rewards.env.core import fingerprints_of
from kart_rewards.env.video import OptionalVideo
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.integrations import Game, find_game
from kart_rewards.lab.auditing.exploits import Search
from kart_rewards.lab.auditing.player import drive_of
from kart_rewards.lab.auditing.rollouts import LIMIT, Rollout, Setup
from kart_rewards.lab.auditing.verdicts import Audit, Confirmed, as_json, report
from kart_rewards.lab.goals import Goal
from kart_rewards.lab.replay import replay
from kart_rewards.lab.score import RewardSet, blank_drive, find_drives, score_drive
from kart_rewards.notices import notice
from kart_rewards.ram import RamLayout
from kart_rewards.rewards import parse_weights
from kart_rewards.scenario import load_goal
from kart_rewards.training.options import GamesFolder, Names
from kart_rewards.training.processes import Workers, processor_count

OUTPUT = Path("audits")
"""The folder of the results."""

_LISTED = 5  # behaviours of a game without a goal
_VIDEO_SECONDS = 30.0
_SECONDS_BEFORE = 1.0  # of the video, before the behaviour begins


def reference_drive(game: Game, state: str, goal: Goal, rewards: RewardSet) -> Path | None:
    """Returns the drive that comes farthest by the goal; of several that reach it, the one that is paid most.

    Args:
        game: The game.
        state: The start state, from which the drive must begin.
        goal: What the author wants.
        rewards: The reward set. A notice says if its done rules end the drive before it reaches the goal.
    """
    start, rom = game.load_state(state), fingerprints_of(game.rom())["ROM"]
    names = {*RamLayout.from_file(game.json_path("data")).names}
    found: list[tuple[tuple[bool, bool, float, float], Path, str]] = []
    for path in find_drives():
        try:
            drive = load_drive(path)
        except KartRewardsError as error:
            notice(f"{error}: it is left out")
            continue
        if drive.info.game != game.name or drive.start != start or drive.info.fingerprints.get("ROM") != rom:
            continue
        if not names <= drive.columns.keys() or not drive.info.buttons or len(drive) > LIMIT + 1:
            continue
        score = score_drive(drive, rewards.load(drive))
        values, reached = goal.along(drive)
        gain = float(values.max() - values[0])
        cut = ""
        if reached is not None and score.ended_by and score.end < reached:
            cut = (
                f"the done rule {score.ended_by!r} ends {drive.info.label} on frame {score.end:,}, and it reaches the "
                f"goal on frame {reached:,}: behaviour is compared with the first {counted(score.end, 'frame')}"
            )
        if reached is not None or (goal.is_number and gain > 0):
            found.append(((reached is not None, not cut, 0.0 if reached else gain, score.transformed), path, cut))
    if not found:
        return None
    _, path, cut = max(found)
    if cut:
        notice(cut)
    return path


def audit(
    game: Game, rewards: RewardSet, state: str, minutes: float, seed: int, folder: Path, workers: int | None = None
) -> Audit:
    """Searches for better-paid behaviour, and confirms it: its drive is played again and scored.

    The search ends after the round in which it finds an exploit, or after the time. It runs in several processes.

    Args:
        game: The game.
        rewards: The reward set.
        state: The start state.
        minutes: The time of the search. At least one round is played.
        seed: Seed of the search.
        folder: The folder for the drive and the video of an exploit.
        workers: Number of processes. None: as many as there are processor cores.

    Raises:
        KartRewardsError: A file is missing or not valid, or a term or rule fails.
    """
    began = monotonic()
    layout = RamLayout.from_file(game.json_path("data"))
    text = _goal_text(game, rewards)
    goal = Goal(text, layout.names)
    setup = Setup(game.name, state, rewards, reference_drive(game, state, goal, rewards) if goal.known else None, text)
    scoring = rewards.load(blank_drive(game, layout)).scoring
    if scripts_of((*scoring.terms, *scoring.done)):
        raise KartRewardsError(f"{game.name}: its scenario uses Lua, whose values depend on more than variables")
    with closing(Search(setup, scoring, seed, workers or processor_count(), goal.known)) as search:
        interrupted = not _search(search, began, minutes * 60)
        seconds = monotonic() - began
        pool = Workers(1)
        with closing(pool):
            exploit, listed = None, []
            if search.exploit:
                exploit = _confirm(pool, search, *search.exploit, folder, "exploit")
            elif not goal.known:
                chosen = sorted(search.best.values(), key=lambda each: each.expected, reverse=True)[:_LISTED]
                for number, rollout in enumerate(chosen, 1):
                    listed.append(_confirm(pool, search, rollout, "", folder, f"behaviour-{number}", video=False))
    best = max(search.best.values(), key=search.rank, default=None)
    return Audit(
        setup, search.reference, search.drive if search.has_drive else None,
        score_drive(search.drive, rewards.load(search.drive)) if search.has_drive else None,
        exploit, tuple(listed), search.by_goal, search.short_end, best, search.margin, search.frames, search.rounds,
        seconds, interrupted,
    )  # fmt: skip


def _search(search: Search, began: float, seconds: float) -> bool:
    """Searches until an exploit is found or the time is over. Returns whether the user let it."""
    total = round(seconds)
    with tqdm(total=total, desc="searching", unit="s", leave=False, disable=None, bar_format=_BAR) as bar:
        try:
            for _ in search.run():
                passed = monotonic() - began
                bar.n = min(round(passed), total)
                margin = f"{search.margin:+.0%}" if math.isfinite(search.margin) else "-"
                bar.set_postfix_str(f"{search.frames:,} frames, best margin {margin}")
                if search.exploit or passed >= seconds:
                    return True
        except KeyboardInterrupt:
            return False
    return True


_BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} s, {postfix}"


def _goal_text(game: Game, rewards: RewardSet) -> str | None:
    """Returns the goal in the scenario of the rewards, or else in that of the game."""
    of_game = game.json_path("scenario") if (game.folder / "scenario.json").is_file() else None
    paths = (rewards.scenario_path(game.name), of_game)
    return next((goal for path in paths if path and (goal := load_goal(path))), None)


def _confirm(
    pool: Workers, search: Search, rollout: Rollout, kind: str, folder: Path, name: str, video: bool = True
) -> Confirmed:
    """Plays a behaviour again, scores its drive, replays it frame by frame, and writes its files."""
    setup = search.setup
    [drive] = pool.map(drive_of, [(setup, rollout.behaviour, rollout.frames, name)])
    loaded = setup.rewards.load(drive)
    score = score_drive(drive, loaded)
    if not math.isclose(score.transformed, rollout.total, rel_tol=1e-6, abs_tol=1e-6):
        raise KartRewardsError(
            f"{rollout.behaviour}: earned {rollout.total:g} in the search, and earns {score.transformed:g} when it is "
            "scored again. A term keeps something outside its instance (kart-rewards lint names it), or a state of the "
            "emulator is not complete"
        )
    pool.close()  # a process can have one emulator, and the replay runs in this one
    path = folder / f"{name}{SUFFIX}"
    drive.save(path)
    drive = load_drive(path)
    first = max(rollout.behaviour.begin - round(_SECONDS_BEFORE * drive.info.frames_per_second), 0)
    last = first + round(_VIDEO_SECONDS * drive.info.frames_per_second)
    file = (folder / f"{name}.mp4") if video else None
    with OptionalVideo(file, drive.info.frames_per_second) as writer:
        for frame, screen in enumerate(replay(drive, setup.rewards.integrations)):  # raises if a frame differs
            if first <= frame < last:
                writer.append(screen)
    return Confirmed(rollout, kind, drive, score, path, None if writer.trouble else file, writer.trouble)


# The command


def command(
    game: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GAME")],
    /,
    rewards: Names = (),
    scenario: str | None = "scenario",
    reward_weights: Names = (),
    reward_transform: Literal["scale", "sign", "none"] = "scale",
    reward_scale: float = 0.01,
    gamma: float = 0.99,
    minutes: float = 5.0,
    seed: int = 1,
    state: str | None = None,
    output: Path | None = None,
    integrations_path: GamesFolder = None,
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Searches the emulator for behaviour that is better paid than what you want, before you train.

    It exits with code 0 if it finds nothing, with 1 if it finds an exploit, and with 2 after an error. Ctrl-C ends the
    search, and reports what was found.

    Args:
        game: The game's folder name.
        rewards: Python files or modules with reward terms and done rules to add.
        scenario: Reward terms and done rules: the name of a file in the game's folder, or a .json path. None: none.
        reward_weights: Weights that override the scenario's, as NAME=NUMBER: --reward-weights wall=-5 top_speed=0.02.
        reward_transform: What the agent gets of each frame's reward: a scaled sum, its sign, or the sum.
        reward_scale: Factor of --reward-transform scale.
        gamma: Discount factor per agent step.
        minutes: Time of the search, in minutes. It ends earlier if it finds an exploit.
        seed: Seed of the search. The same seed tries the same behaviours in the same order.
        state: The start state. By default the one in metadata.json.
        output: The folder for the drive and the video of an exploit. By default audits/NAME, by the name of the first
            rewards file or of the scenario.
        json: Print everything as JSON.
    """
    if not 0 < minutes < math.inf:
        raise KartRewardsError(f"--minutes must be a finite number above 0, not {minutes:g}")
    if not 0 <= gamma <= 1:
        raise KartRewardsError(f"--gamma must be between 0 and 1, not {gamma:g}")
    folder = find_game(game, integrations_path)
    folder.rom()
    chosen = RewardSet(
        rewards, scenario, parse_weights(reward_weights), reward_transform, reward_scale, gamma, integrations_path
    )
    start = state or folder.default_state()
    output = output or OUTPUT / Path(rewards[0] if rewards else scenario or "nothing").stem
    with redirect_stdout(sys.stderr):  # what terms print is not part of the result
        result = audit(folder, chosen, start, minutes, seed, output)
    if json:
        print(dumps(as_json(result), indent=2))
    else:
        print(report(result))
    if result.exploit:
        sys.exit(1)

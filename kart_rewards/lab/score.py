"""What a reward pays on recorded drives.

* ``RewardSet`` - the reward terms and done rules of a comparison, by their files
* ``blank_drive`` - a drive for which the terms and rules of a game can be loaded
* ``score_drive`` - what they pay on a drive, frame by frame
* ``DriveScore``, ``TermSum`` - the result
* ``find_drives`` - the drives in files and folders
* ``other_games`` - the games whose drives a reward can't score
* ``score_files`` - scores many drives on all cores
* ``compared`` - the reward sets of the options ``--rewards`` and ``--against``
* ``Verdict``, ``verdict`` - whether the returns rank the drives as their outcomes do
* ``command`` - the command ``kart-rewards score``

Nothing here needs an emulator.

Example:
    >>> from kart_rewards.drives import SHIPPED, load_drive
    >>> drive = load_drive(SHIPPED / "walls.drive")
    >>> score = score_drive(drive, RewardSet().load(drive))
    >>> score.terms["wall"].sum < 0 < score.terms["checkpoint"].sum
    True
"""

from __future__ import annotations

import functools
import io
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from json import dumps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from kart_rewards.defaults import DEFAULT_FRAME_SKIP
from kart_rewards.done import episode_calls
from kart_rewards.drives import DRIVES_FOLDER, SHIPPED, SUFFIX, Drive, drive_file, load_drive, shipped_drive
from kart_rewards.errors import KartRewardsError, counted, did_you_mean
from kart_rewards.integrations import Game, find_game
from kart_rewards.notices import notice
from kart_rewards.race import LAPS_AT_FIRST_CROSSING, progress
from kart_rewards.ram import RamLayout, readable_names
from kart_rewards.rewards import ROUNDING, make_transform, parse_weights
from kart_rewards.scenario import Scoring, load_scoring
from kart_rewards.training.options import Drives, GamesFolder, Names
from kart_rewards.training.processes import Workers, processor_count

RECORDINGS = Path("recordings")
"""The folder in which ``kart-rewards play`` records drives."""


@dataclass(frozen=True, eq=False)
class RewardSet:
    """The reward terms and done rules of a comparison. It can be pickled: each process loads the files itself.

    A set loads its files once. After a file has changed, a new set loads it again.

    Args:
        rewards: Files or modules to add to the scenario's terms and rules.
        scenario: The scenario file: a name in the game's folder, or a path that ends in ``.json``. None: none.
        weights: Term -> weight.
        transform, scale: See ``kart_rewards.rewards.make_transform``.
        gamma: The discount factor per agent step, 0 to 1.
        integrations: The only folder to look for the game in. None: the standard lookup.

    Raises:
        KartRewardsError: ``gamma`` is outside its range.
    """

    rewards: tuple[str, ...] = ()
    scenario: str | None = "scenario"
    weights: Mapping[str, float] = field(default_factory=dict)
    transform: str = "scale"
    scale: float = 0.01
    gamma: float = 0.99
    integrations: Path | None = None
    _key: str = field(default_factory=lambda: uuid4().hex, init=False, repr=False)  # it is the same in each process

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise KartRewardsError(f"gamma must be between 0 and 1, not {self.gamma:g}")

    def options(self) -> list[str]:
        """Returns the set as options of a command, such as ``["--rewards", "my.py"]``. Defaults are left out."""
        weights = [f"{name}={weight:g}" for name, weight in self.weights.items()]
        words = ["--rewards", *self.rewards] if self.rewards else []
        words += ["--reward-weights", *weights] if weights else []
        for option, value, default in (
            ("--scenario", self.scenario, RewardSet.scenario),
            ("--reward-transform", self.transform, RewardSet.transform),
            ("--reward-scale", self.scale, RewardSet.scale),
            ("--gamma", self.gamma, RewardSet.gamma),
            ("--integrations-path", self.integrations, RewardSet.integrations),
        ):
            words += [option, str(value)] if value != default else []
        return words

    def scenario_path(self, game: str) -> Path | None:
        """Returns the scenario file for a game. None: there is no scenario.

        Raises:
            KartRewardsError: There is no such game or file.
        """
        if self.scenario is None:
            return None
        if self.scenario.endswith(".json") and Path(self.scenario).is_file():
            return Path(self.scenario)
        return find_game(game, self.integrations).json_path(self.scenario)

    def load(self, drive: Drive) -> Loaded:
        """Returns the terms and rules for the game of a drive.

        Raises:
            KartRewardsError: The game or a file is missing or not valid, or a term reads a variable or asks for an
                input that the drive does not have.
        """
        loaded = self._load(drive.info.game, tuple(drive.columns))
        for script in (*loaded.scoring.terms, *loaded.scoring.done):
            for name in sorted(script.reads() - readable_names(drive[0])):
                which = f"the drive {drive.info.label!r}" if drive.info.label else "the drive"
                raise KartRewardsError(
                    f"{script.name!r} ({script.where}) reads {name!r}, which {which} of "
                    f"{drive.info.game} does not have; it has {', '.join(drive.columns)}."
                    f"{did_you_mean(name, drive.columns)}{script.place_of(name)}"
                )
            if script.inputs and not drive.info.buttons:
                raise KartRewardsError(
                    f"{script.name!r} ({script.where}) asks for {script.inputs[0]!r}, which {drive.info.label} does "
                    "not have: it is a recording of version 0.1. Record the drive again"
                )
        return loaded

    @functools.lru_cache(maxsize=32)  # noqa: B019 - sets are small
    def _load(self, game: str, variables: tuple[str, ...]) -> Loaded:
        scoring = load_scoring(self.scenario_path(game), self.rewards, self.weights, variables)
        return Loaded(scoring, make_transform(self.transform, self.scale), self.gamma)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RewardSet) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def blank_drive(game: Game, layout: RamLayout) -> Drive:
    """Returns a drive without any content, for which terms and rules of a game can be loaded."""
    drive = Drive.of_snapshots([layout.snapshot(), layout.snapshot()])
    buttons = ("B",)  # any, so that terms may ask for inputs
    return replace(drive, info=replace(drive.info, game=game.name, buttons=buttons))


@dataclass(frozen=True)
class Loaded:
    """The terms and rules of a ``RewardSet``, loaded.

    Args:
        scoring: The terms and rules.
        transform: Converts a frame's weighted sum to the reward.
        gamma: The discount factor per agent step.
    """

    scoring: Scoring
    transform: Callable[[float], float]
    gamma: float


@dataclass(frozen=True)
class TermSum:
    """What one term paid on a drive, up to the episode's end.

    Args:
        sum: The weighted sum, before the transform.
        share: The part of the sum of all terms' absolute sums; -1 to 1.
        frames: The number of frames on which the term's value was not 0.
        per_lap: The weighted sum per completed lap. None: no lap was completed, or the game is no race.
    """

    sum: float
    share: float
    frames: int
    per_lap: float | None


@dataclass(frozen=True, eq=False)
class DriveScore:
    """What a reward pays on a drive.

    Args:
        terms: Term -> what it paid up to the episode's end.
        plain: The sum of all terms up to the episode's end.
        transformed: The return: the sum of the transformed rewards up to the episode's end.
        discounted: The sum of the rewards of the agent steps, discounted at gamma, up to the episode's end.
        ended_by: The name of the done rule that ends the episode. None: no rule does.
        end: The index of the last frame of the episode.
        values: Term -> its weighted value on each frame of the complete drive: float64, shape (frames,); 0 on frame 0.
        rewards: The reward of each frame, transformed: float64, shape (frames,).
    """

    terms: dict[str, TermSum]
    plain: float
    transformed: float
    discounted: float
    ended_by: str | None
    end: int
    values: dict[str, np.ndarray]
    rewards: np.ndarray

    def without_frames(self) -> DriveScore:
        """Returns the score without ``values`` and ``rewards``."""
        return DriveScore(
            self.terms, self.plain, self.transformed, self.discounted, self.ended_by, self.end, {}, np.empty(0)
        )


def score_drive(drive: Drive, loaded: Loaded) -> DriveScore:
    """Returns what terms pay on a drive, and where rules end it: what ``KartEnv`` would pay for the same frames.

    Args:
        drive: The drive.
        loaded: The terms and rules.

    Raises:
        KartRewardsError: A term or rule failed. The message names its file and line, the drive and the frame.
    """
    terms = loaded.scoring.terms
    rewards, done = episode_calls(terms, loaded.scoring.done, loaded.transform)
    weights = [term.weight for term in terms]
    rows, ended_by, end = [], None, len(drive) - 1
    frame = 0
    try:
        for frame, ram, buttons, action in zip(
            range(len(drive)), drive, drive.buttons, drive.frame_actions, strict=True
        ):
            rows.append(rewards.calls.values(ram, buttons, action))
            rule = done(ram, buttons, action)
            if rule and frame and ended_by is None:
                ended_by, end = rule.name, frame
        values = _weighted(rows, weights)
        if values is None:
            frame = next(i for i, row in enumerate(rows) if _weighted([row], weights) is None)
            raise rewards.not_finite(rows[frame], drive[frame])
    except KartRewardsError as error:
        if ended_by is None or frame <= end:
            raise KartRewardsError(f"{drive.info.label or 'the drive'}, frame {frame}: {error}") from None
        values = _weighted([*rows[:frame], *[[0.0] * len(weights)] * (len(drive) - frame)], weights)
        assert values is not None
        rows = values.tolist()  # an environment does not call the scripts after the end
    values[0] = 0.0
    plain, size = np.zeros(len(rows)), np.zeros(len(rows))
    for column in values.T:  # in the order of the terms, as ``EpisodeRewards`` adds
        plain += column
        size += np.abs(column)
    plain[np.abs(plain) < ROUNDING * size] = 0.0
    paid = np.array([loaded.transform(value) for value in plain.tolist()])
    paid[0] = 0.0
    episode = slice(1, end + 1)
    of_terms = values[episode]
    sums = of_terms.sum(axis=0)
    everything = float(np.abs(sums).sum()) or 1.0
    laps = _laps(drive, end) if drive.info.race and "laps" in drive.columns else 0
    return DriveScore(
        {
            term.name: TermSum(
                float(sums[i]),
                float(sums[i]) / everything,
                int(np.count_nonzero([row[i] for row in rows[1 : end + 1]])),
                float(sums[i]) / laps if laps else None,
            )
            for i, term in enumerate(terms)
        },
        float(plain[episode].sum()),
        float(paid[episode].sum()),
        _discounted(paid[: end + 1], _steps(drive), loaded.gamma),
        ended_by,
        end,
        {term.name: values[:, i] for i, term in enumerate(terms)},
        paid,
    )


def _weighted(rows: Sequence[Sequence[Any]], weights: Sequence[float]) -> np.ndarray | None:
    """Returns the weighted values, shape (frames, terms); None if one is not a finite number."""
    try:
        values = np.array(rows)
        if values.ndim > 2 or values.dtype.kind not in "biufO":  # arrays of one value, or text
            return None
        if values.dtype.kind == "O":  # such as Decimal
            for value in values.flat:
                math.hypot(value)  # raises if it is not a real number
        values = values.astype(np.float64)
        values = values.reshape(len(rows), len(weights)) * np.array(weights, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return values if np.isfinite(values).all() else None


def _laps(drive: Drive, end: int) -> int:
    """Returns the laps that are completed on a frame, as ``RaceMetrics`` counts them."""
    laps = drive.columns["laps"].astype(np.int64)
    return int(max(laps[: end + 1].max() - max(laps[0], LAPS_AT_FIRST_CROSSING), 0))


def _steps(drive: Drive) -> np.ndarray:
    """Returns the index of the agent step of each frame.

    A person or a script that drives frame by frame has no agent steps: then they have the default length.
    """
    if drive.info.frame_skip > 1 or drive.info.driver.partition(",")[0] in ("agent", "training"):
        return np.concatenate([[0], np.repeat(np.arange(len(drive.step_frames)), drive.step_frames)])
    return np.maximum(np.arange(len(drive)) - 1, 0) // DEFAULT_FRAME_SKIP


def _discounted(paid: np.ndarray, steps: np.ndarray, gamma: float) -> float:
    of_steps = np.bincount(steps[: len(paid)], weights=paid)
    return float((of_steps * gamma ** np.arange(len(of_steps))).sum())


def find_drives(paths: Iterable[Path] = (), without: Collection[str] = ()) -> list[Path]:
    """Returns the files of drives, sorted.

    Args:
        paths: Files, and folders that are searched with their subfolders. By default the drives of the package, those
            that ``kart-rewards play`` recorded here, and those of the runs here.
        without: The games whose drives are left out.

    Raises:
        KartRewardsError: A path does not exist, or a folder has no drives.
    """
    paths = list(paths)
    if not paths:
        own = [*RECORDINGS.glob(f"*{SUFFIX}"), *Path("runs").glob(f"*/{DRIVES_FOLDER}/**/*{SUFFIX}")]
        return _of_games(sorted(SHIPPED.glob(f"*{SUFFIX}")) + sorted(own), without)
    found: list[Path] = []
    for path in paths:
        if path.suffix == ".py" and path.is_file():
            raise KartRewardsError(f"{path}: is a Python file, not a drive. Its rewards are added by --rewards {path}")
        if path.is_dir():
            inside = sorted(path.rglob(f"*{SUFFIX}"))
            if not inside:
                raise KartRewardsError(f"{path}: has no {SUFFIX} file, in no subfolder either")
            found += inside
        else:
            found.append(drive_file(path))
    return _of_games(list(dict.fromkeys(found)), without)


def _of_games(paths: list[Path], without: Collection[str]) -> list[Path]:
    return [path for path in paths if _game_of(path) not in without] if without else paths


@functools.lru_cache(maxsize=10_000)  # a file keeps its game
def _game_of(path: Path) -> str:
    """Returns the game of a drive, or an empty text if the file is damaged: reading it later reports so."""
    try:
        return load_drive(path).info.game
    except KartRewardsError:
        return ""


def other_games(paths: Sequence[Path], found: Iterable[Path], sets: Sequence[RewardSet]) -> set[str]:
    """Returns the games whose drives lack what the rewards read, if others have it. A notice names them.

    Folders may hold drives of several games. A drive that the user names is never left out.

    Args:
        paths: What the user named.
        found: The files that ``find_drives`` returned for it.
        sets: The reward sets.
    """
    of_games: dict[str, list[Path]] = {}
    for path in found:
        of_games.setdefault(_game_of(path), []).append(path)
    of_games.pop("", None)
    if len(of_games) < 2:
        return set()
    named = {_game_of(path) for path in map(drive_file, paths) if path.is_file()}
    pool = Workers(1)  # the user's code does not run in this process
    try:
        faults = dict(
            zip(of_games, pool.map(_fault, [(each[0], tuple(sets)) for each in of_games.values()]), strict=True)
        )
    finally:
        pool.close()
    unfit = {game for game, fault in faults.items() if fault} - named
    if len(unfit) == len(of_games):  # the rewards have a mistake
        return set()
    for game in sorted(unfit):
        notice(f"{counted(len(of_games[game]), 'drive')} of {game} {_are(of_games[game])} left out: {faults[game]}")
    return unfit


def _are(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"


def _fault(path: Path, sets: Sequence[RewardSet]) -> str:
    """Returns why a drive can't be scored; an empty text if it can."""
    try:
        for each in sets:
            each.load(load_drive(path))
    except KartRewardsError as error:
        return str(error).splitlines()[0]
    return ""


@dataclass(frozen=True)
class Scored:
    """A scored drive, without its frames.

    Args:
        path: The drive's file.
        state: The name of its start state.
        driver: Who drove.
        outcome: How it ended, for a person.
        rank: What orders drives of a course by their outcome: the larger, the better. None: the game is no race.
        frames: The number of its frames.
        scores: One score per reward set.
    """

    path: Path
    state: str
    driver: str
    outcome: str
    rank: tuple[float, ...] | None
    frames: int
    scores: tuple[DriveScore, ...]


def score_files(paths: Sequence[Path], sets: Sequence[RewardSet], workers: int | None = None) -> Iterator[Scored]:
    """Scores drives with each reward set, in several processes if there is much work.

    Args:
        paths: The files of drives.
        sets: The reward sets.
        workers: Number of processes at most. None: as many as there are processor cores.

    Yields:
        The result of each drive, in the order of ``paths``.

    Raises:
        KartRewardsError: See ``load_drive``, ``RewardSet.load`` and ``score_drive``.
    """
    count = min(workers or processor_count(), len(paths))
    if count < 2 or sum(path.stat().st_size for path in paths) < _MOST_BYTES_ALONE:
        yield from (_score_file(path, tuple(sets)) for path in paths)
        return
    pool = Workers(count)
    try:
        yield from pool.map(_score_file, [(path, tuple(sets)) for path in paths])
    finally:
        pool.close()


_MOST_BYTES_ALONE = 2_000_000  # of drives: to score more takes longer than to start processes


def _score_file(path: Path, sets: tuple[RewardSet, ...]) -> Scored:
    drive = load_drive(path)
    with redirect_stdout(sys.stderr):  # what terms print is not part of the result
        scores = tuple(score_drive(drive, each.load(drive)).without_frames() for each in sets)
    info = drive.info
    return Scored(path, info.state, info.driver, drive.outcome, outcome_rank(drive), len(drive), scores)


def outcome_rank(drive: Drive) -> tuple[float, ...] | None:
    """Returns what orders drives of one course by their outcome: the larger, the better. None if it is no race.

    A finished race is better than an unfinished one, and a faster one is better. Unfinished drives are ordered by how
    far they came.
    """
    race = drive.info.race
    if race is None:
        return None
    if race.get("finished"):
        return (1.0, -float(race.get("race_time_seconds", drive.seconds)))
    if not {"laps", "checkpoint", "num_checkpoints"} <= drive.columns.keys():
        return (0.0, float(race["laps_completed"]))
    columns = {name: drive.columns[name].astype(np.int64) for name in ("laps", "checkpoint", "num_checkpoints")}
    return (0.0, float(progress(SimpleNamespace(**columns)).max()))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Verdict:
    """Whether returns rank drives as their outcomes do.

    Args:
        tau: Kendall's rank correlation over all pairs of drives of one course with different outcomes, -1 to 1: the
            share of pairs that are ordered as their outcomes, minus the share of those that are ordered the other way.
            None: no such pair.
        pairs: The number of these pairs.
        worst: The pair with the largest difference of outcomes among those that are ordered the wrong way: the index
            of the better drive and of the drive that earns as much or more. None: all pairs are right.
    """

    tau: float | None
    pairs: int
    worst: tuple[int, int] | None


def verdict(ranks: Sequence[tuple[str, tuple[float, ...] | None]], returns: Sequence[float]) -> Verdict:
    """Compares returns with outcomes.

    Args:
        ranks: Course and ``outcome_rank`` of each drive.
        returns: The return of each drive.

    Example:
        >>> verdict([("Level1", (1.0, -50.0)), ("Level1", (0.0, 3.0))], [10.0, 12.0])
        Verdict(tau=-1.0, pairs=1, worst=(0, 1))
    """
    right = wrong = 0
    worst: tuple[tuple[float, ...], int, int] | None = None
    for i, (course, rank) in enumerate(ranks):
        for j, (other_course, other_rank) in enumerate(ranks):
            if rank is None or other_rank is None or course != other_course or rank <= other_rank:
                continue
            if returns[i] > returns[j]:
                right += 1
                continue
            wrong += returns[i] < returns[j]
            gap = (*(a - b for a, b in zip(rank, other_rank, strict=True)), returns[j] - returns[i])
            if worst is None or gap > worst[0]:
                worst = (gap, i, j)
    pairs = sum(
        1
        for i, (course, rank) in enumerate(ranks)
        for other_course, other_rank in ranks[:i]
        if None not in (rank, other_rank) and course == other_course and rank != other_rank
    )
    return Verdict((right - wrong) / pairs if pairs else None, pairs, worst and worst[1:])


def compared(rewards: Sequence[str], against: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the files of each reward set that ``--rewards`` and ``--against`` name: one set, or two.

    Raises:
        KartRewardsError: A drive stands among them.
    """
    for name in (*rewards, *against):
        if name.endswith(SUFFIX) or shipped_drive(name):
            raise KartRewardsError(f"{name}: is a drive. Name drives before the options, and rewards files after them")
    return [tuple(each) for each in ((rewards, against) if against else (rewards,))]


def command(
    drives: Drives = (),
    /,
    rewards: Names = (),
    scenario: str | None = "scenario",
    reward_weights: Names = (),
    against: Names = (),
    show: Literal["sum", "share", "frames", "per-lap"] = "sum",
    reward_transform: Literal["scale", "sign", "none"] = "scale",
    reward_scale: float = 0.01,
    gamma: float = 0.99,
    integrations_path: GamesFolder = None,
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Scores recorded drives with any reward, without the emulator, and says whether the reward ranks them rightly.

    Args:
        drives: Files of drives, folders of them, or names of drives of the package, such as race. By default the
            package's, those in recordings/, and those of the runs in runs/.
        rewards: Python files or modules with reward terms and done rules to add.
        scenario: Reward terms and done rules: the name of a file in the game's folder, or a .json path. None: none.
        reward_weights: Weights that override the scenario's, as NAME=NUMBER: --reward-weights wall=-5 top_speed=0.02.
        against: Python files or modules of another reward to compare with, in place of those of --rewards.
        show: What the table has for each term: its weighted sum; its share of all sums; on how many frames it was not
            0; or its sum per lap.
        reward_transform: What the agent gets of each frame's reward: a scaled sum, its sign, or the sum.
        reward_scale: Factor of --reward-transform scale.
        gamma: Discount factor per agent step, for the column of discounted returns.
        json: Print everything as JSON.
    """
    weights = parse_weights(reward_weights)
    options = (scenario, weights, reward_transform, reward_scale, gamma, integrations_path)
    both = [RewardSet(each, *options) for each in compared(rewards, against)]
    paths = find_drives(drives)
    paths = find_drives(drives, other_games(drives, paths, both))
    results = tqdm(score_files(paths, both), "scoring", len(paths), leave=False, unit="drive", disable=None)
    scored = list(results)
    verdicts = [of_set(scored, number) for number in range(len(both))]
    if json:
        content = {"drives": list(map(_as_json, scored)), "verdicts": [asdict(each) for each in verdicts]}
        print(dumps(content, indent=2, allow_nan=False))
        return
    print(_table(scored, show))
    print(_legend(show, gamma))
    names = ["", ""] if len(both) == 1 else [", ".join(rewards) or "the scenario", ", ".join(against)]
    for name, each, number in zip(names, verdicts, range(len(both)), strict=False):
        print(f"\n{_in_words(each, scored, number, name)}")
    for one in scored:
        paid = one.scores[0]
        if one.rank and one.rank[0] and paid.ended_by and paid.end < one.frames - 1:
            print(f"note: the done rule {paid.ended_by} ends {_label(one)} on frame {paid.end:,}, before its finish")


def of_set(scored: Sequence[Scored], number: int) -> Verdict:
    """Returns the verdict on a reward set.

    Args:
        scored: The results of ``score_files``.
        number: The index of the reward set.
    """
    return verdict([(each.state, each.rank) for each in scored], [each.scores[number].transformed for each in scored])


def _label(each: Scored) -> str:
    return each.path.name.removesuffix(SUFFIX)


def _table(scored: Sequence[Scored], show: str) -> str:
    grid = Table(box=None, pad_edge=False, padding=(0, 0, 0, 2))
    for header in ("drive", "outcome", "ends"):
        grid.add_column(header)
    terms = list(dict.fromkeys(term for each in scored for score in each.scores[:1] for term in score.terms))
    returns = ["return"] if len(scored[0].scores) == 1 else ["return", "against"]
    for header in (*terms, "all", *returns, "discounted"):
        grid.add_column(header, justify="right")
    for course in sorted({each.state for each in scored}):
        grid.add_row(course)
        for each in scored:
            if each.state == course:
                score = each.scores[0]
                ends = f"{score.ended_by}, frame {score.end:,}" if score.ended_by else ""
                cells = [_cell(score.terms[term], show) if term in score.terms else "-" for term in terms]
                paid = [f"{other.transformed:.1f}" for other in each.scores]
                grid.add_row(
                    f"  {_label(each)}", each.outcome, ends, *cells, f"{score.plain:,.1f}", *paid,
                    f"{score.discounted:.2f}",
                )  # fmt: skip
    console = Console(file=io.StringIO(), width=10_000, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _cell(term: TermSum, show: str) -> str:
    if show == "frames":
        return f"{term.frames:,}"
    if show == "share":
        return f"{term.share:.1%}"
    number = term.sum if show == "sum" else term.per_lap
    return "-" if number is None else f"{number:,.1f}"


def _legend(show: str, gamma: float) -> str:
    what = {
        "sum": "its weighted sum",
        "share": "its share of the absolute sums of all terms",
        "frames": "the number of frames on which it was not 0",
        "per-lap": "its weighted sum per completed lap",
    }[show]
    return (
        f"Each term: {what}, up to the frame on which a done rule ends the episode. All: the sum of all terms. Return: "
        f"after the transform. Discounted: at gamma {gamma:g}."
    )


def _in_words(result: Verdict, scored: Sequence[Scored], number: int, name: str) -> str:
    of = f" of {name}" if name else ""
    if result.tau is None:
        return f"No two drives of one course have different outcomes of a race, so the returns{of} can't be ranked."
    text = (
        f"Rank correlation (Kendall) of the return{of} with the outcome of the race: {result.tau:.2f} over "
        f"{counted(result.pairs, 'pair')} of drives of one course."
    )
    if result.worst is None:
        return f"{text} Each better drive earns more."
    better, other = (scored[i] for i in result.worst)
    paid, least = (each.scores[number].transformed for each in (other, better))
    more = "as much as" if paid == least else "more than"
    return (
        f"{text}\nWorst pair: {_label(other)} ({other.outcome}) earns {paid:.2f}, {more} {_label(better)} "
        f"({better.outcome}), which earns {least:.2f}."
    )


def _as_json(each: Scored) -> dict[str, Any]:
    scores = [
        {
            "terms": {term: asdict(paid) for term, paid in score.terms.items()},
            **{name: getattr(score, name) for name in ("plain", "transformed", "discounted", "ended_by", "end")},
        }
        for score in each.scores
    ]
    facts = {name: getattr(each, name) for name in ("state", "driver", "outcome", "rank", "frames")}
    try:
        dumps(scores, allow_nan=False)
    except ValueError:
        raise KartRewardsError(
            f"{each.path}: a sum of its rewards is not a finite number, which JSON can't hold: use smaller weights"
        ) from None
    return {"drive": str(each.path), **facts, "scores": scores}

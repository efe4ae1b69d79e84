"""The results of a study: what leaving out a reward term changes.

* ``Outcome``, ``RACE_OUTCOMES`` - what is measured; reward weights can't change it
* ``Results``, ``read_results`` - the outcomes of all runs
* ``Effect``, ``effects`` - the difference of each arm to the arm with all terms, in numbers and in words
* ``write_report`` - writes report.md, results.json, learning_curves.png and the TensorBoard log of a study

The outcomes are read from the drives of the evaluations in the runs' folders. Nothing here needs an emulator.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from kart_rewards.defaults import default_max_episode_steps
from kart_rewards.drives import DRIVES_FOLDER, SUFFIX, Drive, load_drive
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.evaluation.evaluator import DEFAULT_RANDOM_START_FRAMES
from kart_rewards.evaluation.statistics import (
    Comparison,
    Interval,
    compare_seeds,
    interquartile_mean_interval,
)
from kart_rewards.evaluation.tables import write_json
from kart_rewards.files import atomic_write, copies_in_use, use_copies
from kart_rewards.integrations import find_game
from kart_rewards.lab.goals import Goal
from kart_rewards.lab.score import RewardSet, score_drive
from kart_rewards.scenario import load_goal
from kart_rewards.training.checkpoints import Checkpoint
from kart_rewards.training.sources import kept_sources

if TYPE_CHECKING:
    from kart_rewards.lab.ablation.ablate import Arm, Study

REPORT, RESULTS, CURVES, SUMMARY = "report.md", "results.json", "learning_curves.png", "summary"
"""What ``write_report`` writes into the folder of a study; ``SUMMARY`` is the folder of the TensorBoard log."""

_ENOUGH_SEEDS = 4
"""With fewer seeds, no permutation test can have a p-value below 5 %. The 95 % interval of a difference then excludes 0
if all seeds of one arm are better than all of the other, whose probability by chance is the smallest p-value."""

_COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b0a000")
_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Outcome:
    """What is measured in each episode of an evaluation.

    Args:
        name: The name in files.
        title: The name for people, with the unit.
        better: 1: more is better. -1: less is better. 0: neither. It describes how the agent drives.
        digits: Decimal places.
    """

    name: str
    title: str
    better: int
    digits: int = 2


RACE_OUTCOMES = (
    Outcome("finish_rate", "races finished (share)", 1),
    Outcome("laps", "laps driven", 1),
    Outcome("race_seconds", "race time (s)", -1, 1),
    Outcome("off_road_seconds", "time off the road (s)", 0, 1),
    Outcome("wall_hits", "wall hits", 0, 1),
)
"""The outcomes of kart races. A race that is not finished has the time of the longest possible episode."""


@dataclass(frozen=True, eq=False)
class Results:
    """The outcomes of all runs of the seeds that are complete.

    Args:
        outcomes: What was measured.
        arms: The arms, the arm with all terms first.
        seeds: The seeds.
        courses: Labels of the courses.
        steps: Agent steps at each evaluation that all runs have. The last one is that at the end of each run.
        values: Arm -> outcome -> the mean over the episodes of an evaluation, shape (evaluations, seeds, courses).
        episodes: Number of episodes on each course in an evaluation.
    """

    outcomes: tuple[Outcome, ...]
    arms: list[Arm]
    seeds: list[int]
    courses: list[str]
    steps: list[int]
    values: dict[str, dict[str, np.ndarray]]
    episodes: int


@dataclass(frozen=True)
class Effect:
    """What an arm changes in an outcome, at the end of training.

    Args:
        arm, outcome: Their names.
        value: The interquartile mean of the arm.
        comparison: The comparison with the arm with all terms.
        words: The verdict.
    """

    arm: str
    outcome: str
    value: Interval
    comparison: Comparison
    words: str


def read_results(study: Study) -> Results | None:
    """Returns the outcomes of all runs of the seeds that are complete; None if no seed is.

    Raises:
        KartRewardsError: A drive is missing or damaged, or the runs were evaluated differently.
    """
    seeds = study.complete_seeds()
    if not seeds:
        return None
    arms, runs = study.plan.arms, [run for run in study.plan.runs if run.seed in seeds]
    with _study_sources(study):
        folders = [study.folder_of(run) for run in runs]
        checkpoints = [Checkpoint.load(folder / "agent.pt") for folder in folders]
        end = max(checkpoint.steps for checkpoint in checkpoints)  # other options may make other rollouts
        drives = [
            {
                (end if at == checkpoint.steps else at, course, number): path
                for (at, course, number), path in of_run.items()
            }
            for of_run, checkpoint in zip(map(_evaluations, folders), checkpoints, strict=True)
        ]
        limit = max(_limit_frames(checkpoint.options) for checkpoint in checkpoints)
        outcomes, measure = _measures(study, load_drive(next(iter(drives[0].values()))))
        steps = sorted(set.intersection(*({step for step, *_ in each} for each in drives), {*range(end)}) | {end})
        places = {place for place in drives[0] if place[0] in steps}
        courses = sorted({course for _, course, _ in places})
        episodes = len({number for *_, number in places})
        table = np.full((len(outcomes), len(arms), len(steps), len(seeds), len(courses), episodes), np.nan)
        for run, folder, of_run in zip(runs, folders, drives, strict=True):
            if {place for place in of_run if place[0] in steps} != places:
                raise KartRewardsError(
                    f"{folder}: its evaluations have other episodes than those of other runs, so a drive is missing or "
                    "an evaluation failed: remove this folder, and start the command again"
                )
            for step, course, number in places:
                at = (steps.index(step), seeds.index(run.seed), courses.index(course), number - 1)
                table[(slice(None), arms.index(run.arm), *at)] = measure(
                    load_drive(of_run[step, course, number]), limit
                )
    if np.isnan(table).any():
        raise KartRewardsError(f"{study.runs_path}: drives of evaluations are missing: is the disk full?")
    means = table.mean(axis=-1)
    values = {arm.name: {outcome.name: means[i, k] for i, outcome in enumerate(outcomes)} for k, arm in enumerate(arms)}
    return Results(outcomes, arms, seeds, courses, steps, values, episodes)


@contextmanager
def _study_sources(study: Study) -> Iterator[None]:
    """Reads the files that the study keeps, which may have changed since."""
    before = copies_in_use()
    use_copies(kept_sources(study.folder))
    try:
        yield
    finally:
        use_copies(before)


def _evaluations(run_folder: Path) -> dict[tuple[int, str, int], Path]:
    """Returns steps, course and number of each evaluated episode -> its drive."""
    found = {}
    for path in (run_folder / DRIVES_FOLDER).glob(f"[0-9]*/*-agent-*{SUFFIX}"):
        course, _, number = path.name.removesuffix(SUFFIX).rpartition("-agent-")
        found[int(path.parent.name), course, int(number)] = path
    if not found:
        raise KartRewardsError(f"{run_folder / DRIVES_FOLDER}: has no drives of evaluations: is the disk full?")
    return found


def _limit_frames(options: Mapping[str, Mapping[str, Any]]) -> int:
    """Returns the emulated frames after which the evaluations of a run truncate an episode."""
    env, frame_skip = options["env"], options["env"]["frame_skip"]
    of_training = env["max_episode_steps"] or default_max_episode_steps(frame_skip)
    return int(frame_skip * (options.get("eval", {}).get("eval_max_episode_steps") or of_training))


Measure = Callable[[Drive, int], Sequence[float]]
"""Returns the value of each outcome, from a drive and the length of the longest possible episode in frames."""


def _measures(study: Study, drive: Drive) -> tuple[tuple[Outcome, ...], Measure]:
    """Returns what is measured in the game of a drive."""
    plan, scenario = study.plan, study.plan.arms[0].scenario
    integrations = Path(plan.integrations) if plan.integrations else None
    game = find_game(plan.game, integrations)
    text = load_goal(game.json_path(scenario)) if scenario else None
    outcomes: tuple[Outcome, ...] = ()
    measures: list[Measure] = []
    if drive.info.race is not None:
        outcomes, measures = RACE_OUTCOMES, [_race_measures]
    if text is not None:
        goal = Goal(text, tuple(drive.columns))
        outcomes = (*outcomes, Outcome("goal", f"goal: {text}", 1))
        measures = [*measures, lambda each, _: [_goal_value(goal, each)]]
    if not outcomes:
        terms = RewardSet(plan.rewards, scenario, {}, integrations=integrations).load(drive).scoring.terms
        if not terms:
            raise KartRewardsError("the scenario has no reward term, and no goal to measure the outcome by")
        name = terms[0].name
        rewards = RewardSet(plan.rewards, scenario, {name: 1.0}, integrations=integrations)
        outcomes = (Outcome("first_term", f"sum of {name}, without its weight", -1 if terms[0].weight < 0 else 1),)
        measures = [lambda each, _: [score_drive(each, rewards.load(each)).terms[name].sum]]
    return outcomes, lambda each, limit: [value for measure in measures for value in measure(each, limit)]


def _race_measures(drive: Drive, limit_frames: int) -> list[float]:
    race = drive.info.race or {}
    longest = (limit_frames + DEFAULT_RANDOM_START_FRAMES) / drive.info.frames_per_second
    return [
        float(race["finished"]),
        float(race.get("laps_driven", race["laps_completed"])),
        float(race.get("race_time_seconds", drive.seconds if race["finished"] else longest)),
        float(race["off_road_seconds"]),
        float(race["wall_hits"]),
    ]


def _goal_value(goal: Goal, drive: Drive) -> float:
    """Returns the goal's number at the end of a drive; of a condition, whether any frame is at the goal."""
    values, reached = goal.along(drive)
    return float(values[-1]) if goal.is_number else float(reached is not None)


def effects(results: Results) -> list[Effect]:
    """Returns what each arm but the first changes in each outcome, in the last evaluation."""
    found = []
    all_terms = results.arms[0]
    for arm in results.arms[1:]:
        for outcome in results.outcomes:
            scores, reference = (results.values[each.name][outcome.name][-1] for each in (arm, all_terms))
            comparison = compare_seeds(scores, reference)
            words = _in_words(arm, outcome, comparison.difference, len(results.seeds))
            found.append(Effect(arm.name, outcome.name, interquartile_mean_interval(scores), comparison, words))
    return found


def _in_words(arm: Arm, outcome: Outcome, difference: Interval, seeds: int) -> str:
    if seeds < 2:
        return "one seed says nothing"
    if difference.holds_zero:
        return "no difference seen"
    if not outcome.better:
        return "more" if difference.value > 0 else "less"
    improves = difference.value * outcome.better > 0
    if arm.kind == "drop":
        return "helps to leave out" if improves else "harmful to leave out"
    return "better" if improves else "worse"


def _verdicts(results: Results, found: Sequence[Effect]) -> list[str]:
    """Returns a sentence for each arm."""
    titles = {outcome.name: outcome.title.partition(" (")[0] for outcome in results.outcomes}
    aims = {outcome.name for outcome in results.outcomes if outcome.better}
    lines = []
    for arm in results.arms[1:]:
        by_words: dict[str, list[str]] = {}
        for effect in found:
            if effect.arm == arm.name and effect.outcome in aims:
                by_words.setdefault(effect.words, []).append(titles[effect.outcome])
        if len(by_words) > 1:
            by_words.pop("no difference seen", None)
        text = "; ".join(f"{words} ({', '.join(names)})" for words, names in by_words.items())
        lines.append(f"{_arm_title(arm)}: {text}")
    return lines


def _arm_title(arm: Arm) -> str:
    if arm.kind == "all":
        return "all terms"
    return arm.name.replace("-", " ", 1) if arm.kind in ("drop", "scenario") else arm.name


def write_report(study: Study) -> str:
    """Writes the results of the seeds that are complete.

    Returns:
        The verdicts as text; empty if no seed is complete.

    Raises:
        KartRewardsError: See ``read_results``; or a file can't be written.
    """
    results = read_results(study)
    if results is None:
        return ""
    found = effects(results)
    verdicts = _verdicts(results, found)
    report = _markdown(study, results, found, verdicts)
    picture = _picture(results)
    write_json(study.folder / RESULTS, _as_json(study, results, found, verdicts))
    with atomic_write(study.folder / CURVES) as file:
        file.write_bytes(picture)
    with atomic_write(study.folder / REPORT) as file:
        file.write_text(report, encoding="utf-8")
    _write_tensorboard(study.folder / SUMMARY, results, found, report, picture)
    seeds = f"{counted(len(results.seeds), 'seed')}{'' if len(results.seeds) == study.plan.seeds else ' so far'}"
    head = f"after {counted(results.steps[-1], 'step')}, {seeds}{', 95 % intervals' * (len(results.seeds) > 1)}:"
    return "\n".join([head, *(f"  {line}" for line in verdicts), *_notes(results), f"wrote {study.folder / REPORT}"])


def _notes(results: Results) -> list[str]:
    seeds = len(results.seeds)
    if seeds == 1:
        return [
            "With one seed there are no intervals: the difference between two seeds is often larger than an effect."
        ]
    notes = []
    if seeds < _ENOUGH_SEEDS:
        smallest = _chance(seeds)
        notes.append(
            f"With {seeds} seeds, no p-value can be below {smallest:.2f}, and a 95 % interval holds the true "
            f"difference in only about {1 - smallest:.0%} of studies: a difference here is a hint. Use 5 seeds or "
            "more for a conclusion."
        )
    return notes


def _chance(seeds: int) -> float:
    """Returns how probable a difference is by chance; see ``_ENOUGH_SEEDS``."""
    return max(compare_seeds(np.zeros((seeds, 1)), np.zeros((seeds, 1))).smallest_p_value, 0.05)


def _number(value: float, outcome: Outcome, sign: str = "") -> str:
    return format(round(value, outcome.digits) + 0.0, f"{sign}.{outcome.digits}f")


def _cell(interval: Interval, outcome: Outcome, sign: str = "") -> str:
    text = _number(interval.value, outcome, sign)
    if interval.low is None or interval.high is None:
        return text
    return f"{text} [{_number(interval.low, outcome, sign)}, {_number(interval.high, outcome, sign)}]"


def _markdown(study: Study, results: Results, found: Sequence[Effect], verdicts: Sequence[str]) -> str:
    plan, seeds = study.plan, len(results.seeds)
    by_place = {(effect.arm, effect.outcome): effect for effect in found}
    tests = sum(outcome.better != 0 for outcome in results.outcomes) * (len(results.arms) - 1)
    lines = [
        f"# Study of rewards: {plan.game}",
        "",
        f"{counted(len(results.arms), 'arm')}, {counted(seeds, 'seed')} of {plan.seeds}, "
        f"{results.steps[-1]:,} steps each. Evaluated on {', '.join(results.courses)}, "
        f"{counted(results.episodes, 'episode')} per course, deterministic, by the last agent of each run.",
        "",
        *(f"- **{line.partition(': ')[0]}**: {line.partition(': ')[2]}" for line in verdicts),
        "",
        *(f"{note}\n" for note in _notes(results)),
        f"![Learning curves]({CURVES})",
        "",
        "| arm | weights that differ | scenario | options that differ |",
        "|---|---|---|---|",
    ]
    base = results.arms[0]
    for arm in results.arms:
        other = {name: weight for name, weight in arm.weights.items() if base.weights.get(name) != weight}
        weights = ", ".join(f"{name} = {weight:g}" for name, weight in other.items())
        scenario, options = Path(str(arm.scenario)).stem, shlex.join(arm.options)
        lines.append(f"| {_arm_title(arm)} | {weights or '–'} | {scenario} | {f'`{options}`' if options else '–'} |")
    for outcome in results.outcomes:
        aim = {1: ", more is better", -1: ", less is better", 0: ", describes how the agent drives"}[outcome.better]
        lines += ["", f"## {outcome.title[0].upper()}{outcome.title[1:]}{aim}", ""]
        lines += ["| arm | interquartile mean | difference to all terms | probability of improvement | p | |"]
        lines += ["|---|---|---|---|---|---|"]
        full = interquartile_mean_interval(results.values[base.name][outcome.name][-1])
        lines.append(f"| all terms | {_cell(full, outcome)} | | | | |")
        for arm in results.arms[1:]:
            effect = by_place[arm.name, outcome.name]
            compared = effect.comparison
            better = _improvement(compared.larger, outcome)
            chance = _cell(better, Outcome("", "", 1)) if better else "–"
            lines.append(
                f"| {_arm_title(arm)} | {_cell(effect.value, outcome)} | {_cell(compared.difference, outcome, '+')} | "
                f"{chance} | {compared.p_value:.2f} | {effect.words} |"
            )
    lines += [
        "",
        "## How to read this",
        "",
        "- The outcomes do not depend on the weights of terms."
        + " A race that is not finished has the time of the longest episode." * (RACE_OUTCOMES[0] in results.outcomes),
        "- A term is left out by the weight 0: it pays nothing, and is still measured. A term that is also a done rule "
        "still ends episodes.",
        "- Brackets: 95 % intervals by a bootstrap of 5,000 samples. It is stratified by the arm, and it resamples "
        "seeds: the episodes and courses of a seed stay together, because they are no independent samples. The "
        "interquartile mean leaves out a quarter of the seeds, rounded down, at each end.",
        '- "No difference seen" means that the interval holds 0. It does not mean that there is none.',
        "- Probability of improvement: how often a run of the arm is better than a run with all terms; 0.5 is chance.",
        "- p: a two-sided permutation test of the means over the seeds.",
    ]
    if seeds > 1:
        by_chance = _chance(seeds) * tests
        lines.append(f"- {counted(tests, 'comparison')} of this kind are expected to show {by_chance:.2g} by chance.")
    lines.append("")
    return "\n".join(lines)


def _improvement(larger: Interval, outcome: Outcome) -> Interval | None:
    """Returns the probability that a run is better; None if the outcome is neither good nor bad."""
    if outcome.better > 0:
        return larger
    if outcome.better == 0:
        return None
    low, high = (None if each is None else 1 - each for each in (larger.high, larger.low))
    return Interval(1 - larger.value, low, high)


def _as_json(study: Study, results: Results, found: Sequence[Effect], verdicts: Sequence[str]) -> dict[str, Any]:
    plan = study.plan
    return {
        "game": plan.game,
        "total_timesteps": plan.total_timesteps,
        "options": list(plan.options),
        "seeds": results.seeds,
        "planned_seeds": plan.seeds,
        "courses": results.courses,
        "episodes": results.episodes,
        "arms": [asdict(arm) for arm in results.arms],
        "outcomes": [asdict(outcome) for outcome in results.outcomes],
        "verdicts": list(verdicts),
        "effects": [
            {
                "arm": effect.arm,
                "outcome": effect.outcome,
                "interquartile_mean": effect.value._asdict(),
                "difference": effect.comparison.difference._asdict(),
                "probability_of_larger": effect.comparison.larger._asdict(),
                "p_value": effect.comparison.p_value,
                "smallest_p_value": effect.comparison.smallest_p_value,
                "words": effect.words,
            }
            for effect in found
        ],
        "steps": results.steps,
        "values": {
            arm: {name: array.tolist() for name, array in by_outcome.items()}
            for arm, by_outcome in results.values.items()
        },
        "values_shape": ["evaluations", "seeds", "courses"],
    }


def _curve(values: np.ndarray) -> list[Interval]:
    """Returns the interquartile mean of each evaluation, from values of shape (evaluations, seeds, courses)."""
    return [interquartile_mean_interval(scores) for scores in values]


def _picture(results: Results) -> bytes:
    """Returns learning curves with 95 % bands as a PNG."""
    from matplotlib.figure import Figure

    cells = len(results.outcomes) + 1
    columns = min(cells, 3)
    rows = -(-cells // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for outcome, axes in zip(results.outcomes, grid, strict=False):
        for number, arm in enumerate(results.arms):
            curve = _curve(results.values[arm.name][outcome.name])
            look = {"color": _COLOURS[number % len(_COLOURS)]}
            style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
            axes.plot(
                results.steps, [at.value for at in curve], label=_arm_title(arm), marker=".", linestyle=style, **look
            )
            band = [(at.low, at.high) for at in curve]
            if all(low is not None for low, _ in band):
                axes.fill_between(results.steps, *zip(*band, strict=True), alpha=0.15, linewidth=0, **look)
        axes.set_title(outcome.title, fontsize="medium")
        axes.set_xlabel("agent steps")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    handles, labels = grid[0].get_legend_handles_labels()
    for axes in grid[len(results.outcomes) :]:
        axes.axis("off")
    grid[len(results.outcomes)].legend(
        handles,
        labels,
        loc="center",
        title=f"interquartile mean of {counted(len(results.seeds), 'seed')}\nbands: 95 % bootstrap intervals",
    )
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


def _write_tensorboard(folder: Path, results: Results, found: Sequence[Effect], report: str, picture: bytes) -> None:
    """Replaces the TensorBoard log of the results: a curve per arm, the report and the picture."""
    from torch.utils.tensorboard import SummaryWriter

    rmtree(folder, ignore_errors=True)
    try:
        for arm in results.arms:
            with SummaryWriter(str(folder / arm.name)) as writer:
                for outcome in results.outcomes:
                    for step, at in zip(results.steps, _curve(results.values[arm.name][outcome.name]), strict=True):
                        for part, value in at._asdict().items():
                            if value is not None:
                                tag = outcome.name if part == "value" else f"{outcome.name}/{part}"
                                writer.add_scalar(f"ablation/{tag}", value, step)
                for effect in found:
                    if effect.arm == arm.name:
                        for part, value in effect.comparison.difference._asdict().items():
                            if value is not None:
                                writer.add_scalar(f"difference/{effect.outcome}/{part}", value, results.steps[-1])
                charts = {
                    outcome.title: ["Margin", [f"ablation/{outcome.name}{end}" for end in ("", "/low", "/high")]]
                    for outcome in results.outcomes
                }
                writer.add_custom_scalars({"ablation": charts})
        with SummaryWriter(str(folder)) as writer:
            writer.add_text("report", report, results.steps[-1])
            image: Any = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
            writer.add_image(
                "learning_curves", cv2.cvtColor(image, cv2.COLOR_BGR2RGB), results.steps[-1], dataformats="HWC"
            )
    except OSError as error:
        raise KartRewardsError(f"{folder}: can't be written: {error.strerror or error}") from None

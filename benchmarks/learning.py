"""Reads the TensorBoard logs of runs, and prints a table and draws a picture of their evaluations.

    python benchmarks/learning.py runs/* --save benchmarks/learning_curves.json
    python benchmarks/learning.py benchmarks/learning_curves.json [--steps 61440] [--plot docs/images/curves.png]
    python benchmarks/learning.py benchmarks/courses.json --rates

The evaluations of runs are a small file, which ``--save`` writes. It is read like the runs themselves.

A row of the table is one experiment (``--exp-name`` of training) on one course, over its seeds. The lap of an
evaluation is its median lap with deterministic actions. Laps vary between evaluations, so the lap of a run is the
mean of its last three evaluations. The column "best" is its best evaluation. The picture shows each seed, and the
interquartile mean of an experiment's seeds (the mean, if they are fewer than four) with its 95 % interval, a
bootstrap over seeds, for the evaluations that all of them have.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kart_rewards.errors import counted
from kart_rewards.evaluation.statistics import interquartile_mean_interval

REFERENCE_LAPS = Path(__file__).parent / "reference_laps"


@dataclass
class Run:
    """The evaluations of one run on one course, in their order.

    Args:
        experiment: The run's ``--exp-name``.
        seed: The run's seed.
        course: The start state.
        steps: Agent steps at each evaluation.
        minutes: Wall-clock time until each evaluation. It includes evaluations and the pauses of a resumed run.
        finish_rates: The share of finished races in each evaluation, 0 to 1.
        lap_times_seconds: The median lap of each evaluation; None if no lap was completed.
        steps_per_second: The rate of training at the end of the run, including evaluations.
    """

    experiment: str
    seed: int
    course: str
    steps: list[int]
    minutes: list[float]
    finish_rates: list[float]
    lap_times_seconds: list[float | None]
    steps_per_second: float

    @property
    def first_finish(self) -> int | None:
        """The index of the first evaluation in which all races were finished, or None."""
        return next((i for i, rate in enumerate(self.finish_rates) if rate == 1.0), None)

    def finishes_at(self, steps: int) -> bool:
        """Whether all races of the last evaluation until then were finished."""
        return [rate for step, rate in zip(self.steps, self.finish_rates, strict=True) if step <= steps][-1:] == [1]

    def laps_until(self, steps: int) -> list[float]:
        """Returns the median laps of the evaluations until a number of steps."""
        return [lap for at, lap in zip(self.steps, self.lap_times_seconds, strict=True) if at <= steps and lap]


def read_run(folder: Path) -> list[Run]:
    """Returns the evaluations of a run, by course; an empty list if it has none."""
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    tags = log.Tags()["scalars"]
    courses = sorted(match[1] for tag in tags if (match := re.fullmatch("eval/(.*)/finish_rate", tag)))
    if not courses:
        return []
    rest, seed, _ = folder.name.rsplit("__", 2)
    rates = log.Scalars("charts/SPS")
    began = rates[0].wall_time - rates[0].step / rates[0].value
    runs = []
    for course in courses:
        finished = log.Scalars(f"eval/{course}/finish_rate")
        tag = f"eval/{course}/median_lap_time_seconds"
        laps = {event.step: event.value for event in log.Scalars(tag)} if tag in tags else {}
        run = Run(
            experiment=rest.partition("__")[2],
            seed=int(seed),
            course=course,
            steps=[event.step for event in finished],
            minutes=[(event.wall_time - began) / 60 for event in finished],
            finish_rates=[event.value for event in finished],
            lap_times_seconds=[laps.get(event.step) for event in finished],
            steps_per_second=rates[-1].value,
        )
        runs.append(run)
    return runs


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Returns the runs of folders, and of files that ``--save`` wrote, by experiment, course and seed.

    Raises:
        SystemExit: A path does not exist, or two runs have the same experiment and seed.
    """
    runs: list[Run] = []
    for path in paths:
        if not path.exists():
            raise SystemExit(f"error: {path}: no such folder or file")
        if path.suffix == ".json":
            runs += [Run(**run) for run in json.loads(path.read_text())]
        else:
            runs += read_run(path)
    names = Counter((run.experiment, run.course, run.seed) for run in runs)
    for (experiment, _, seed), count in names.items():
        if count > 1:
            raise SystemExit(f"error: {count} of these runs are {experiment} with seed {seed}: name one of them")
    return sorted(runs, key=lambda run: (run.experiment, run.course, run.seed))


def print_table(runs: list[Run], steps: int) -> None:
    """Prints a Markdown table with one row per experiment and course."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.experiment, run.course].append(run)

    def spread(values: Sequence[float | None], form: str) -> str:
        """Returns the median, the minimum and the maximum as text."""
        known = [value for value in values if value is not None]
        if not known:
            return "never"
        text = format(statistics.median(known), form)
        if len(values) > 1:
            text += f" ({min(known):{form}}–{max(known):{form}})"
        return text + (f", {len(values) - len(known)} never" if len(known) < len(values) else "")

    at = f"at {steps:,} steps"
    columns = ["experiment", "course", "seeds", "steps/s", "all races finished after, steps", "minutes"]
    columns += [f"all finished {at}", f"lap {at}, s", "best"]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for (experiment, course), group in groups.items():
        first = [run.first_finish for run in group]
        laps = [run.laps_until(steps) for run in group]
        cells = [
            experiment,
            course,
            ", ".join(str(run.seed) for run in sorted(group, key=lambda run: run.seed)),
            spread([run.steps_per_second for run in group], ",.0f"),
            spread([run.steps[i] if i is not None else None for run, i in zip(group, first, strict=True)], ",.0f"),
            spread([run.minutes[i] if i is not None else None for run, i in zip(group, first, strict=True)], ".1f"),
            f"{sum(run.finishes_at(steps) for run in group)} of {len(group)}",
            spread([statistics.mean(run_laps[-3:]) if run_laps else None for run_laps in laps], ".2f"),
            spread([min(run_laps, default=None) for run_laps in laps], ".2f"),
        ]
        print(f"| {' | '.join(cells)} |")


def print_finish_rates(runs: list[Run]) -> None:
    """Prints a Markdown table with one row per experiment: the share of finished races on all its courses together.

    A column is an evaluation that all runs have. A cell has the mean of the seeds and, of several, the range.

    Raises:
        SystemExit: There is no such evaluation.
    """
    at = sorted(set.intersection(*(set(run.steps) for run in runs)))
    if not at:
        raise SystemExit("error: no evaluation of these runs is after the same number of steps: name fewer runs")
    print(f"| experiment | courses | seeds | {' | '.join(f'{steps:,} steps' for steps in at)} |")
    print("|---" * (3 + len(at)) + "|")
    for experiment in dict.fromkeys(run.experiment for run in runs):
        group = [run for run in runs if run.experiment == experiment]
        courses, seeds = (sorted({getattr(run, name) for run in group}) for name in ("course", "seed"))
        cells = [experiment, ", ".join(courses), ", ".join(map(str, seeds))]
        for steps in at:
            rates = [
                statistics.mean(run.finish_rates[run.steps.index(steps)] for run in group if run.seed == seed)
                for seed in seeds
            ]
            cells.append(f"{statistics.mean(rates):.0%}" + f" ({min(rates):.0%}–{max(rates):.0%})" * (len(seeds) > 1))
        print(f"| {' | '.join(cells)} |")


def plot(runs: list[Run], steps: int, picture: Path) -> None:
    """Draws the finish rate and the lap time on one course over agent steps, up to a number of steps.

    Raises:
        SystemExit: The runs have evaluations on several courses.
    """
    courses = sorted({run.course for run in runs})
    if len(courses) > 1:
        raise SystemExit(f"error: a picture shows one course, and these runs have {', '.join(courses)}: add --course")
    import matplotlib.pyplot as plt

    figure, (rates, laps) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    experiments = list(dict.fromkeys(run.experiment for run in runs))
    for axes, values_of in ((rates, lambda run: run.finish_rates), (laps, lambda run: run.lap_times_seconds)):
        for number, experiment in enumerate(experiments):
            group = [run for run in runs if run.experiment == experiment]
            color = f"C{number}"
            by_seed = [dict(zip(run.steps, values_of(run), strict=True)) for run in group]
            for points in by_seed:
                known = [(at, value) for at, value in points.items() if value is not None]
                axes.plot(*zip(*known, strict=True), color=color, linewidth=0.8, alpha=0.6)
            common = [at for at in by_seed[0] if all(points.get(at) is not None for points in by_seed)]
            means = [interquartile_mean_interval(np.array([[points[at]] for points in by_seed])) for at in common]
            mean = "mean" if len(group) < 4 else "interquartile mean"
            label = f"{mean} of {counted(len(group), 'seed')}" + (f", {experiment}" if len(experiments) > 1 else "")
            axes.plot(common, [mean.value for mean in means], color=color, linewidth=2, label=label)
            if len(group) > 1:
                low, high = [mean.low for mean in means], [mean.high for mean in means]
                axes.fill_between(common, low, high, color=color, alpha=0.15, linewidth=0)
    reference = REFERENCE_LAPS / f"{runs[0].course}.json"
    if reference.is_file():
        best = json.loads(reference.read_text())["lap_time_seconds"]
        laps.axhline(best, color="black", linestyle="--", label=f"reference lap, {best:.2f} s")
        laps.axhline(1.1 * best, color="grey", linestyle=":", label="10 % above it")
    rates.set(title="races finished, deterministic evaluation", xlabel="agent steps", ylim=(-0.05, 1.05))
    laps.set(title=f"median lap on {runs[0].course}", xlabel="agent steps", ylabel="s", yscale="log")
    ticks = [9, 10, 12, 15, 20, 30]
    laps.set_yticks(ticks, [str(tick) for tick in ticks])
    laps.minorticks_off()
    for axes in (rates, laps):
        axes.grid(alpha=0.3)
        axes.set_xlim(0, 1.02 * steps)
    laps.legend(fontsize="small")
    figure.savefig(picture, dpi=100)


def main() -> None:
    """Prints the table, and draws the picture with ``--plot``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or files of --save")
    parser.add_argument(
        "--steps", type=int, default=61_440, help="steps at which lap times are compared, and the picture ends"
    )
    parser.add_argument(
        "--rates", action="store_true", help="print the share of finished races on all courses together instead"
    )
    parser.add_argument("--course", help="only the evaluations on this course")
    parser.add_argument("--plot", type=Path, help="picture file to write")
    parser.add_argument("--save", type=Path, help="file to write the evaluations to, for another call")
    args = parser.parse_args()
    runs = [run for run in read_runs(args.runs) if args.course in (None, run.course)]
    if not runs:
        raise SystemExit(f"error: none of these runs has evaluations{f' on {args.course}' if args.course else ''}")
    if args.save:
        args.save.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    if args.rates:
        print_finish_rates(runs)
    else:
        print_table(runs, args.steps)
    if args.plot:
        plot(runs, args.steps, args.plot)


if __name__ == "__main__":
    main()

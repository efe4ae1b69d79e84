"""speed.py, side_by_side.py and learning.py in benchmarks/: they run, and what they report is right."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import forks
import pytest
from conftest import load_module
from training_runs import run_here

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"

speed, learning = (load_module(BENCHMARKS / name) for name in ("speed.py", "learning.py"))


def smoke(name: str, *options: str) -> str:
    """Runs a benchmark as short as possible. Returns what it prints."""
    return run_here(BENCHMARKS / name, "--smoke", *options).stdout


def test_the_speed_of_one_environment_is_measured() -> None:
    printed = smoke("speed.py", "--parts", "environment")
    for row in ("bare core", "KartEnv with max_pool", "core that draws nothing", "stable_retro.make"):
        assert row in printed
    assert "goal" not in printed


@pytest.mark.slow  # a person runs it; the trainer and Stable-Baselines3 have tests of their own
def test_each_part_of_the_speed_benchmark_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part has a process of its own, which would import what the one before it has imported."""
    modules = (*forks.TRAINING, "stable_baselines3", "tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: forks.run(command, modules))
    printed = smoke("speed.py")
    for row in (
        "bare core", "KartEnv with max_pool", "core that draws nothing", "stable_retro.make", "frame skip, crop, grey",
        "the trainer's environments", "gymnasium.make_vec", "AsyncVectorEnv", "Stable-Baselines3 on stable-retro",
        "this trainer", "Stable-Baselines3 on KartEnv", "bfloat16", "the limit of training", "2 environments",
        "64 cores",
    ):  # fmt: skip
        assert row in printed
    assert "goal" not in printed


@pytest.mark.slow  # as above
def test_trainings_side_by_side_are_measured() -> None:
    printed = smoke("side_by_side.py")
    assert "2 at once" in printed
    assert "goal" not in printed


def test_a_missed_goal_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    reached = dict(speed.GOALS)
    assert speed.goals_met(reached)
    assert "MISSED" not in capsys.readouterr().out
    assert not speed.goals_met(reached | {"training": speed.GOALS["training"] - 0.01})
    assert capsys.readouterr().out.count("MISSED") == 1


def test_a_prediction_grows_with_the_cores_until_one_thread_limits_it() -> None:
    measured = {"steps_a_core": 500.0, "driving": 1e-5, "answers": 5000.0, "one_thread": 2000.0, "two_threads": 4000.0}
    environments, rollouts, updates, training = speed.predict(2, **measured)
    assert environments == pytest.approx(1000)
    assert rollouts == pytest.approx(2 / (1 / 500 + 1 / 5000))
    assert updates == pytest.approx(4000 / speed.EPOCHS)
    assert training == pytest.approx(1 / (1 / rollouts + 1 / updates))
    _, rollouts, updates, _ = speed.predict(1000, **measured)
    assert rollouts == pytest.approx(1 / (1e-5 + 1 / 5000))
    assert updates == pytest.approx(16 * 2000 / speed.EPOCHS)


def test_the_learning_curves_of_the_documentation_are_those_of_the_committed_evaluations(tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    finished = run_here(BENCHMARKS / "learning.py", BENCHMARKS / "learning_curves.json", "--plot", picture)
    assert [line for line in finished.stdout.splitlines() if line not in (ROOT / "docs/training.md").read_text()] == []
    assert picture.read_bytes().startswith(b"\x89PNG")


def rows_of(evaluations: str, steps: int) -> list[list[str]]:
    """The cells of the table of learning.py."""
    finished = run_here(BENCHMARKS / "learning.py", BENCHMARKS / evaluations, "--steps", steps)
    return [[cell.strip() for cell in line.split("|")] for line in finished.stdout.splitlines()[2:]]


def test_the_comparison_of_controls_is_that_of_the_committed_evaluations() -> None:
    rows, page = rows_of("controls.json", 102_400), (ROOT / "docs/training.md").read_text()
    assert len(rows) == 6
    for _, mode, course, seeds, _, finish, _, *laps in rows:
        assert seeds == "1, 2, 3"
        assert " | ".join((f"| `{mode}`", course, finish, *laps)).strip() in page


def test_the_laps_of_agents_of_one_course_are_those_of_the_committed_evaluations() -> None:
    [[_, name, course, seeds, _, finish, _, *laps]] = rows_of("specialist.json", 299_008)
    assert seeds == "1, 2, 3"
    assert " | ".join((f"| {name}", course, seeds, finish, *laps)).strip() in (ROOT / "docs/training.md").read_text()


def test_the_races_finished_on_unknown_courses_are_those_of_the_committed_evaluations() -> None:
    finished = run_here(BENCHMARKS / "learning.py", BENCHMARKS / "courses.json", "--rates")
    rows = finished.stdout.splitlines()
    assert len(rows) == 5
    assert "\n".join(rows) in (ROOT / "docs/training.md").read_text()


def test_rates_of_several_seeds_have_a_range(capsys: pytest.CaptureFixture[str]) -> None:
    run_of = partial(learning.Run, "both", steps=[1, 2], minutes=[0.1, 0.2], lap_times_seconds=[], steps_per_second=1)
    rates = {(1, "A"): [0, 1], (1, "B"): [0.5, 1], (2, "A"): [1, 1], (2, "B"): [0.5, 0]}
    learning.print_finish_rates([run_of(*key, finish_rates=rate) for key, rate in rates.items()])
    row = "| both | A, B | 1, 2 | 50% (25%–75%) | 75% (50%–100%) |"
    assert capsys.readouterr().out.splitlines()[2] == row
    with pytest.raises(SystemExit, match="after the same number of steps"):
        learning.print_finish_rates([run_of(1, "A", finish_rates=[0, 1]), run_of(2, "A", finish_rates=[1], steps=[3])])


def test_the_seeds_of_the_generalist_are_those_of_the_committed_evaluations() -> None:
    rows, page = rows_of("generalist.json", 299_008), (ROOT / "agents" / "README.md").read_text()
    assert len(rows) == 4
    for _, name, course, seeds, _, finish, _, *laps in rows:
        assert " | ".join((f"| {name}", course, seeds, finish, *laps)).strip() in page

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from episode_results import OVER_THREE_SEEDS, RESULTS, result

from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation import across_seeds, lost_table, seeds_table, summarise, table, write_json
from kart_rewards.evaluation.sectors import TimeLost


def test_a_table_has_a_row_per_course_and_policy() -> None:
    assert table(summarise(RESULTS)).splitlines() == [
        "                    lap    lap  race   race  off wall",
        "         finished  best median  best median road hits return",
        "Level1",
        "  agent       2/3 10.00  11.50 32.00  34.00  2.0  2.0   90.0",
        "  random      0/1     -      -     -      -  3.0  7.0   -5.0",
        "Level2",
        "  agent       1/1 20.00  20.00 60.00  60.00  0.0  0.0    0.0",
        "Times are in seconds. Lap: all completed laps. Race: finished episodes.",
        "Off road, wall hits, return (after --reward-scale): medians.",
    ]


def test_a_table_of_long_races_fits_80_columns() -> None:
    slow = result("agent, deterministic", laps=(39.5, 40.25, 41.0), off_road_seconds=100.0, episode_return=-100.0)
    assert max(map(len, table(summarise([slow])).splitlines())) <= 80


def test_long_names_are_neither_wrapped_nor_taken_as_formatting() -> None:
    state = "folder/" * 40 + "Level[bold]:smile:.state"
    lines = table(summarise([result("[red]agent[/red]", state, laps=(10.0, 10.0, 10.0))])).splitlines()
    assert lines[2] == state
    assert lines[3].startswith("  [red]agent[/red] ")


@pytest.mark.parametrize("environment", [{"COLUMNS": "20"}, {"FORCE_COLOR": "1"}], ids=lambda item: next(iter(item)))
def test_a_table_does_not_depend_on_the_terminal(environment: dict[str, str]) -> None:
    code = (
        "from episode_results import RESULTS\nfrom kart_rewards.evaluation import summarise, table\n"
        "print(table(summarise(RESULTS)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == table(summarise(RESULTS)) + "\n"


def test_a_table_over_training_seeds_has_medians_quartiles_and_how_many_seeds_have_a_value() -> None:
    summaries = [summarise(results) for results in OVER_THREE_SEEDS]
    assert seeds_table(across_seeds(summaries)).splitlines() == [
        "                            lap    lap  race   race  off wall",
        "                 finished  best median  best median road hits return",
        "Level1",
        "  agent, 3 seeds      67% 10.50  11.75 34.00  35.00  0.0  2.0   90.0",
        "    25%               33% 10.25  11.62 33.00  34.50  0.0  1.0   45.0",
        "    75%               83% 10.75  11.88 35.00  35.50  1.0  4.5   90.0",
        "    seeds               3     2      2     2      2    3    3      3",
        "Median over the seeds, and the values at 25% and 75%. Seeds: number of agents with a value.",
        "Times are in seconds.",
    ]
    header = seeds_table(across_seeds(summaries[2:])).splitlines()[:2]
    assert "lap" not in header[0] + header[1], "no lap was completed"


def test_json_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run" / "evaluation.json"
    content = {"summary": summarise(RESULTS), "episodes": [asdict(played) for played in RESULTS]}
    write_json(path, content)
    assert json.loads(path.read_text())["episodes"][0]["lap_times_seconds"] == [12.0, 10.0, 10.0]
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))  # has the effect of a full disk
    try:
        with pytest.raises(KartRewardsError, match=rf"^{path}: can't be written: File too large$"):
            write_json(path, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"lap": float("nan")})
    assert path.read_bytes() == before
    with pytest.raises(KartRewardsError, match=rf"^{path.parent}: can't be written: "):
        write_json(path.parent, content)
    with pytest.raises(KartRewardsError, match=r"below\.json: can't be written: Not a directory"):
        write_json(path / "below.json", content)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["evaluation.json"]


def test_the_worst_sectors_of_each_course_are_a_line_that_fits_80_columns() -> None:
    slow: list[float | None] = [0.0] * 30
    slow[4], slow[11], slow[28], slow[29] = 12.25, 10.5, 11.0, -10.0
    lost: TimeLost = {
        "Level1": {"agent, deterministic": [0.1, None, 0.25, 0.004], "random": [9.0, 9.0, 9.0, 9.0]},
        "Level2": {"random": [1.0]},
        "Level3": {"agent, deterministic": [-0.1, -0.05]},
        "Level4": {"agent, deterministic": slow},
    }
    text = lost_table(lost, "agent, deterministic")
    assert text.splitlines() == [
        "Lost to the reference lap by agent, deterministic, seconds per lap:",
        "  Level1  +0.35 in 3 of 4 sectors, most in sectors 3 (+0.25), 1 (+0.10)",
        "  Level3  -0.15",
        "  Level4  +23.75, most in sectors 5 (+12.25), 29 (+11.00), 12 (+10.50)",
        "Sector: from a checkpoint to the next; 1 begins at the line. Medians over laps.",
    ]
    [_, one, _] = lost_table({"Level1": {"agent": [0.5]}}, "agent").splitlines()
    assert one == "  Level1  +0.50, most in sector 1 (+0.50)"
    assert max(map(len, text.splitlines())) <= 80
    assert lost_table(lost, "agent") == lost_table({}, "agent") == ""


def test_lists_of_numbers_are_one_line_of_json(tmp_path: Path) -> None:
    content = {
        "laps": [[1.0, None, -2.5e-05], [], [3]],
        "text": ["1, 2", "[\n 3 ]"],
        "mixed": [1, "two"],
        "flags": [True, None],
    }
    write_json(tmp_path / "file.json", content)
    text = (tmp_path / "file.json").read_text()
    assert json.loads(text) == content
    assert "    [1.0, null, -2.5e-05],\n    [],\n    [3]\n" in text

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from training_runs import GAME, scalars

from kart_rewards.drives import SHIPPED, Drive, load_drive
from kart_rewards.errors import KartRewardsError
from kart_rewards.lab.ablation.ablate import Arm, Plan, Study
from kart_rewards.lab.ablation.study_report import CURVES, REPORT, RESULTS, effects, read_results, write_report
from kart_rewards.ram import snapshot_class
from kart_rewards.training.checkpoints import save_atomically

RACE, WALLS, STANDING, WANDER = (SHIPPED / f"{name}.drive" for name in ("race", "walls", "standing", "wander"))
ARMS = [Arm("all", "all", None, {}), Arm("without-x", "drop", None, {"x": 0.0}), Arm("y=2", "set", None, {"y": 2.0})]


def study_of(folder: Path, drives: dict[str, list[list[Path]]], frame_skip: int = 4, limit: int | None = None) -> Study:
    """Makes the folder of a finished study.

    Args:
        folder: The folder.
        drives: Arm -> the drives of the episodes of each seed. Before, the kart stood still.
        frame_skip, limit: The options of the runs' environments.
    """
    arms, seeds = [arm for arm in ARMS if arm.name in drives], len(drives["all"])
    plan = Plan(GAME, None, (), arms, 2000, (), {arm.name: {} for arm in arms}, seeds, 1)
    study = Study(plan, folder, [[]], {run.name: 60.0 for run in plan.runs})
    for run in plan.runs:
        of_run = study.runs_path / f"{GAME}__{run.arm.name}__{run.seed}__1"
        env = {"frame_skip": frame_skip, "max_episode_steps": limit}
        content: dict[str, Any] = {"agent": {}, "updates": 2, "steps": 2000, "options": {"env": env}, "scoring": {}}
        save_atomically(content, of_run / "agent.pt")
        for number, drive in enumerate(drives[run.arm.name][run.seed - 1], 1):
            for steps, source in ((1000, STANDING), (2000, drive)):
                path = of_run / "drives" / str(steps) / f"Level1-agent-{number}.drive"
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, path)
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Leaving out x ends races at a wall; y makes no difference. Each of four seeds has two episodes."""
    good, bad = [[RACE, RACE]] * 3 + [[RACE, WANDER]], [[WALLS, STANDING]] * 4
    made = study_of(tmp_path_factory.mktemp("study"), {"all": good, "without-x": bad, "y=2": good[::-1]})
    made.text = write_report(made)  # type: ignore[attr-defined]
    return made


def test_outcomes_are_those_of_the_races_by_seed(study: Study) -> None:
    results = read_results(study)
    assert results
    assert (results.steps, results.courses, results.seeds, results.episodes) == (
        [1000, 2000],
        ["Level1"],
        [1, 2, 3, 4],
        2,
    )
    race, walls = (load_drive(path).info.race or {} for path in (RACE, WALLS))
    values = results.values["all"]
    assert values["finish_rate"][:, :, 0].tolist() == [[0, 0, 0, 0], [1, 1, 1, 0.5]]
    assert values["laps"][1, 0, 0] == 5
    assert values["race_seconds"][1, 0, 0] == pytest.approx(race["race_time_seconds"])
    assert values["wall_hits"][1, :3, 0].tolist() == [race["wall_hits"]] * 3
    standing = load_drive(STANDING).info
    assert results.values["without-x"]["race_seconds"][1, 0, 0] == pytest.approx(12_060 / standing.frames_per_second)
    assert results.values["without-x"]["wall_hits"][1, 0, 0] == walls["wall_hits"] / 2


def test_a_harmful_change_and_one_without_effect_are_named(study: Study) -> None:
    results = read_results(study)
    assert results
    found = {(each.arm, each.outcome): each for each in effects(results)}
    for outcome in ("finish_rate", "laps", "race_seconds"):
        harmful = found["without-x", outcome]
        assert harmful.words == "harmful to leave out"
        assert not harmful.comparison.difference.holds_zero
        assert harmful.comparison.p_value == harmful.comparison.smallest_p_value == pytest.approx(2 / 70)
        assert found["y=2", outcome].words == "no difference seen"
    assert found["without-x", "race_seconds"].comparison.larger.value == 1
    assert found["without-x", "wall_hits"].words == "more"  # it says how the agent drives


def test_the_report_says_it_in_words_and_numbers(study: Study) -> None:
    text: str = study.text  # type: ignore[attr-defined]
    assert "without x: harmful to leave out (races finished, laps driven, race time)" in text
    assert "y=2: no difference seen (races finished, laps driven, race time)" in text
    report = (study.folder / REPORT).read_text()
    assert "- **without x**: harmful to leave out (races finished, laps driven, race time)" in report
    assert "| all terms | 1.00 [0.50, 1.00] | | | | |" in report
    assert (
        "| without x | 0.00 [0.00, 0.00] | -1.00 [-1.00, -0.50] | 0.00 [0.00, 0.00] | 0.03 | harmful to leave out |"
        in report
    )
    assert "| without x | x = 0 | None | – |" in report


def test_the_results_are_there_as_json_and_as_a_picture(study: Study) -> None:
    results = json.loads((study.folder / RESULTS).read_text())
    assert results["steps"] == [1000, 2000]
    assert np.array(results["values"]["y=2"]["laps"]).shape == (2, 4, 1)
    by_place = {(each["arm"], each["outcome"]): each for each in results["effects"]}
    assert by_place["without-x", "finish_rate"]["difference"]["value"] == -1
    picture: Any = cv2.imread(str(study.folder / CURVES))
    assert picture.shape == (640, 1260, 3)
    for colour in ((0, 94, 213), (178, 114, 0)):  # blue, green and red of the second and third arm
        assert (np.abs(picture.astype(int) - colour).sum(axis=-1) < 20).sum() > 100


def test_tensorboard_has_a_curve_with_its_interval_for_each_arm(study: Study) -> None:
    curves = scalars(study.folder / "summary" / "without-x")
    assert curves["ablation/finish_rate"] == [(1000, 0.0), (2000, 0.0)]
    assert curves["difference/finish_rate/low"] == [(2000, -1.0)]
    assert scalars(study.folder / "summary" / "all")["ablation/finish_rate/high"] == [(1000, 0.0), (2000, 1.0)]
    write_report(study)
    assert scalars(study.folder / "summary" / "without-x") == curves, "a second report replaces the first"


def test_runs_with_rollouts_of_other_lengths_are_compared_at_their_ends(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"all": [[RACE], [RACE]], "y=2": [[WALLS], [WALLS]]})
    for folder in study.runs_path.glob("*__y=2__*"):
        checkpoint: dict[str, Any] = torch.load(folder / "agent.pt", weights_only=True)
        save_atomically(checkpoint | {"steps": 1984}, folder / "agent.pt")
        for before, after in ((2000, 1984), (1000, 992)):
            (folder / "drives" / str(before)).rename(folder / "drives" / str(after))
    results = read_results(study)
    assert results
    assert results.steps == [2000]
    assert results.values["all"]["finish_rate"].ravel().tolist() == [1, 1]
    assert results.values["y=2"]["finish_rate"].ravel().tolist() == [0, 0]


def test_only_seeds_of_which_all_arms_are_finished_count(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"all": [[RACE], [RACE]], "without-x": [[WALLS], [WALLS]]})
    del study.seconds["without-x__2"]
    results = read_results(study)
    assert results
    assert results.seeds == [1]
    assert "one seed says nothing" in write_report(study)
    study.seconds.clear()
    assert write_report(study) == ""


def test_few_seeds_are_called_few(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"all": [[RACE]] * 3, "without-x": [[WALLS]] * 3})
    text = " ".join(write_report(study).split())
    assert "With 3 seeds, no p-value can be below 0.10, and a 95 % interval holds the true difference in only" in text


def test_a_missing_drive_is_reported(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"all": [[RACE, RACE]], "without-x": [[WALLS, WALLS]]})
    next(tmp_path.glob("runs/*without-x*/drives/2000/*-2.drive")).unlink()
    with pytest.raises(KartRewardsError, match="its evaluations have other episodes than those of other runs"):
        read_results(study)


# --- games without races ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "title", "values"),
    [
        ("coins >= 3", "goal: coins >= 3", [1, 0]),
        ("2 * coins", "goal: 2 * coins", [6, 2]),
        (None, "sum of coins, without its weight", [3, 1]),
    ],
)
def test_another_game_is_measured_by_its_goal_or_its_first_term(
    tmp_path: Path, goal: str | None, title: str, values: list[float]
) -> None:
    game = tmp_path / "games" / "Toy-Snes"
    game.mkdir(parents=True)
    (game / "data.json").write_text('{"info": {"coins": {"address": 8257536, "type": "|u1"}}}')
    declared = {"reward": {"variables": {"coins": {"reward": 5}}}, "kart_rewards": {"goal": goal} if goal else {}}
    (game / "scenario.json").write_text(json.dumps(declared))
    many, few = (tmp_path / f"{name}.drive" for name in ("many", "few"))
    for path, most in ((many, 3), (few, 1)):
        snapshots = list(map(snapshot_class(("coins",)), range(most + 1)))
        drive = Drive.of_snapshots(snapshots)
        replace(drive, info=replace(drive.info, game="Toy-Snes", state="Start")).save(path)
    of_races = study_of(tmp_path / "study", {"all": [[many]], "without-x": [[few]]})
    arms = [replace(arm, scenario="scenario") for arm in of_races.plan.arms]
    plan = replace(of_races.plan, integrations=str(game.parent), arms=arms)
    for run in of_races.folder.glob("runs/*"):
        shutil.rmtree(run / "drives" / "1000")  # of another game
        run.rename(run.with_name(run.name.replace(GAME, "Toy-Snes")))
    results = read_results(replace(of_races, plan=replace(plan, game="Toy-Snes")))
    assert results
    [outcome] = results.outcomes
    assert (outcome.title, outcome.better) == (title, 1)
    assert [results.values[arm][outcome.name][-1, 0, 0] for arm in ("all", "without-x")] == values

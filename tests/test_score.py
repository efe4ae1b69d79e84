from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run

from kart_rewards.drivers import CentrelineDriver, RandomDriver, WallHugger, centreline
from kart_rewards.drives import SHIPPED, Drive, load_drive, shipped_drive
from kart_rewards.env import KartEnv
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.errors import KartRewardsError
from kart_rewards.lab.score import RewardSet, find_drives, outcome_rank, score_drive, score_files, verdict

GAME = "HomebrewKart-Snes"
MINE = """
from kart_rewards import done_rule, reward_term

@reward_term(weight=0.5)
def gas(ram, previous):
    return max(ram.speed - previous.speed, 0)

@reward_term(weight=-0.25)
def hop(ram, buttons, action):
    return "L" in buttons and action is not None

@reward_term(weight=3)
@done_rule(truncates=True)
class Slow:
    def __init__(self):
        self.frames = 0

    def __call__(self, ram):
        self.frames = self.frames + 1 if ram.speed < 300 else 0
        return self.frames == 5, self.frames > 400
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("driver", "transform"),
    [(CentrelineDriver(centreline("Level2")), "scale"), (RandomDriver(3, 8), "sign"), (WallHugger("LEFT"), "none")],
)
def test_a_drive_is_paid_what_the_environment_paid(driver: Any, transform: str, mine: str) -> None:
    env = KartEnv(
        GAME, state="Level2", action_mode="all", frame_skip=1, rewards=mine, reward_transform=transform,
        reward_weights={"time": -2.5},
    )  # fmt: skip
    env.recorder = DriveRecorder("test")
    try:
        env.reset(seed=1)
        rewards, steps, over = [], 0, False
        while not over and steps < 900:
            held = driver(env.ram)
            _, reward, terminated, truncated, info = env.step([button in held for button in env.buttons])
            rewards.append(reward)
            steps, over = steps + 1, terminated or truncated
        drive = env.recorder.drive(env)
    finally:
        env.close()
    score = score_drive(drive, RewardSet((mine,), weights={"time": -2.5}, transform=transform).load(drive))
    assert score.rewards[1:].tolist() == rewards, "to the last bit"
    paid = info["episode_rewards"]
    assert {name: term.sum for name, term in score.terms.items()} == pytest.approx(paid["sum"])
    assert {name: term.frames for name, term in score.terms.items()} == paid["count"]
    assert score.transformed == pytest.approx(sum(rewards))
    assert (score.ended_by, score.end) == (info.get("done_rule"), steps)
    assert sum(abs(term.share) for term in score.terms.values()) == pytest.approx(1)


def test_the_discounted_return_is_that_of_agent_steps() -> None:
    drive = load_drive(SHIPPED / "walls.drive")
    score = score_drive(drive, RewardSet(gamma=0.9).load(drive))
    steps = [score.rewards[first : first + 4].sum() for first in range(1, score.end + 1, 4)]
    assert score.discounted == pytest.approx(sum(0.9**i * paid for i, paid in enumerate(steps)))
    env = KartEnv(GAME, frame_skip=6)
    env.recorder = DriveRecorder("test")
    try:
        env.reset(seed=1)
        rewards = [env.step([0.1])[1] for _ in range(50)]
        drive = env.recorder.drive(env)
    finally:
        env.close()
    score = score_drive(drive, RewardSet(gamma=0.9).load(drive))
    assert score.discounted == pytest.approx(sum(0.9**i * paid for i, paid in enumerate(rewards)))


def test_sums_end_with_the_episode_and_values_do_not() -> None:
    drive = load_drive(SHIPPED / "walls.drive")
    score = score_drive(drive, RewardSet().load(drive))
    assert (score.ended_by, score.end) == ("wall_hits", 387)
    assert score.terms["wall"].sum == -70
    assert score.values["wall"].sum() == -310
    assert len(score.values["wall"]) == len(drive)
    race = load_drive(SHIPPED / "race.drive")
    per_lap = score_drive(race, RewardSet().load(race)).terms["checkpoint"].per_lap
    assert per_lap == 7200


def test_an_episode_that_ends_early_is_scored_up_to_its_end(tmp_path: Path) -> None:
    """The environment does not call a term after the end, and the laps after it do not count."""
    (tmp_path / "one_lap.py").write_text(
        "from kart_rewards import done_rule, reward_term\n"
        "@done_rule\ndef one_lap(ram):\n    return ram.laps > 128\n"
        "@reward_term\ndef fails_later(ram):\n    return 1 / (129.5 - ram.laps if ram.laps < 130 else 0)\n"
    )
    race = load_drive(SHIPPED / "race.drive")
    score = score_drive(race, RewardSet((str(tmp_path / "one_lap.py"),)).load(race))
    assert score.ended_by == "one_lap"
    assert score.terms["checkpoint"].per_lap == score.terms["checkpoint"].sum == 7500
    assert len(score.values["fails_later"]) == len(race)
    assert score.values["fails_later"][score.end] != 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def bad(ram):\n    return 1 / (ram.laps - 128)", r"race, frame \d+: 'bad' \(.*bad\.py:2\)"),
        ("def bad(ram):\n    return float('nan')", r"race, frame 0: 'bad' \(.*bad\.py:2\) returned nan, not a finite"),
        ("def bad(ram):\n    return None", r"race, frame 0: 'bad' \(.*bad\.py:2\) returned None, not a finite number"),
        ("def bad(ram):\n    return f'{ram.speed:.2f}'", r"race, frame 0: 'bad' \(.*\) returned '0.00', not a finite"),
        ("def bad(ram):\n    return float(ram.count != 0)", r"'bad' \(.*bad\.py:2\) reads 'count', which the drive"),
        ("def bad(ram):\n    return ram.speeed", r"'bad' \(.*bad\.py:2\) reads 'speeed', which the drive 'race'"),
    ],
)  # fmt: skip
def test_faults_of_terms_are_reported_with_file_and_frame(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(f"from kart_rewards import reward_term\n@reward_term\n{text}\n")
    drive = load_drive(SHIPPED / "race.drive")
    with pytest.raises(KartRewardsError, match=message):
        score_drive(drive, RewardSet((str(tmp_path / "bad.py"),)).load(drive))


def test_many_drives_are_scored_in_processes(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = find_drives()[:6]
    sets = [RewardSet(), RewardSet((mine,))]
    alone = list(score_files(paths, sets, workers=1))
    monkeypatch.setattr("kart_rewards.lab.score._MOST_BYTES_ALONE", 0)
    for one, other in zip(alone, score_files(paths, sets, workers=2), strict=True):
        assert (one.path, one.rank, one.outcome) == (other.path, other.rank, other.outcome)
        assert [score.terms for score in one.scores] == [score.terms for score in other.scores]


def test_outcomes_are_ordered() -> None:
    def drive(**race: Any) -> Drive:
        race = {"finished": False, "laps_completed": 0, "race_time_seconds": 99.0} | race
        walls = load_drive(SHIPPED / "walls.drive")
        return replace(walls, info=replace(walls.info, race=race))

    slow, fast = (outcome_rank(drive(finished=True, race_time_seconds=seconds)) for seconds in (60.0, 50.0))
    unfinished = outcome_rank(drive())
    standing = outcome_rank(load_drive(SHIPPED / "standing.drive"))
    assert standing and unfinished and slow and fast
    assert standing < unfinished < slow < fast
    assert outcome_rank(replace(drive(), info=replace(drive().info, race=None))) is None


def test_the_verdict_compares_drives_of_one_course() -> None:
    ranks: list[Any] = [("a", (1.0, -50.0)), ("a", (0.0, 9.0)), ("b", (0.0, 3.0)), ("a", (0.0, 2.0)), ("a", None)]
    assert verdict(ranks, [9, 8, 100, 7, 100]).tau == 1
    assert verdict(ranks, [9, 8, 100, 7, 100]).worst is None
    wrong = verdict(ranks, [7, 8, 0, 9, 0])
    assert (wrong.tau, wrong.pairs, wrong.worst) == (-1, 3, (0, 3))
    tie = verdict(ranks, [9, 8, 0, 8, 0])
    assert tie.worst == (1, 3)
    assert tie.tau == pytest.approx(2 / 3)
    assert verdict(ranks[2:3], [1]).tau is None


def test_the_command_prints_a_table_and_a_verdict(mine: str, tmp_path: Path) -> None:
    done = run("score", "race", "standing", "walls-Level1", "--rewards", mine, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    header, course, race, *_ = done.stdout.splitlines()
    assert header.split() == [
        "drive", "outcome", "ends", "wall", "checkpoint", "terrain", "time", "backwards", "gas", "hop", "slow", "all",
        "return", "discounted",
    ]  # fmt: skip
    assert course == "Level1"
    assert race.split()[:8] == ["race", "finished", "in", "50.35", "s", "race_finished,", "frame", "3,026"]
    assert "Rank correlation (Kendall) of the return with the outcome of the race: 1.00 over 3 pairs" in done.stdout
    assert done.stdout.endswith("Each better drive earns more.\n")


def test_a_reward_that_pays_for_standing_is_found(tmp_path: Path) -> None:
    (tmp_path / "stand.py").write_text(
        "from kart_rewards import reward_term\n@reward_term(weight=100)\ndef stand(ram):\n    return ram.speed == 0\n"
    )
    done = run("score", "race", "standing", "--against", tmp_path / "stand.py", folder=tmp_path)
    assert "return of the scenario with the outcome of the race: 1.00 over 1 pair " in done.stdout
    worst = "Worst pair: standing (0 laps, stopped) earns 599.80, more than race (finished in 50.35 s), which earns "
    assert worst in done.stdout
    assert done.returncode == 0


def test_everything_is_there_as_json(mine: str, tmp_path: Path) -> None:
    done = run("score", "race", "walls", "--rewards", mine, "--json", folder=tmp_path)
    content = json.loads(done.stdout)
    assert [Path(each["drive"]).name for each in content["drives"]] == ["race.drive", "walls.drive"]
    assert content["drives"][0]["scores"][0]["terms"]["checkpoint"] == {
        "sum": 36000.0, "share": pytest.approx(0.95, abs=0.05), "frames": 120, "per_lap": 7200.0,
    }  # fmt: skip
    assert content["verdicts"] == [{"tau": None, "pairs": 0, "worst": None}]


def test_drives_are_found_in_folders_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drive = load_drive(SHIPPED / "reverse.drive")
    for name in ("recordings/mine.drive", "runs/a/drives/96/b.drive", "other/deep/c.drive"):
        drive.save(name)
    shipped = sorted(SHIPPED.glob("*.drive"))
    assert find_drives() == [*shipped, Path("recordings/mine.drive"), Path("runs/a/drives/96/b.drive")]
    found = find_drives([Path("other"), Path("recordings/mine.drive"), Path("race")])
    assert found == [Path("other/deep/c.drive"), Path("recordings/mine.drive"), SHIPPED / "race.drive"]
    with pytest.raises(KartRewardsError, match=r"rase: no such drive\. Did you mean 'race'\?"):
        find_drives([Path("rase")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(KartRewardsError, match=r"empty: has no \.drive file"):
        find_drives([Path("empty")])


def test_drives_of_other_games_are_left_out_of_folders(tmp_path: Path) -> None:
    """A run of another game must not stop the scores of this one. A drive that the user names is never left out."""
    (tmp_path / "mine.py").write_text(MINE)
    drive = load_drive(SHIPPED / "standing.drive")
    columns = dict.fromkeys(("score", "lives", "gameover"), drive.columns["laps"])
    folder = tmp_path / "runs" / "other" / "drives"
    folder.mkdir(parents=True)
    replace(drive, columns=columns, info=replace(drive.info, game="Airstriker-Genesis-v0")).save(folder / "a.drive")
    drive.save(folder / "b.drive")
    done = run("score", "runs", "--rewards", "mine.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    note = "1 drive of Airstriker-Genesis-v0 is left out: 'gas' (mine.py:4) reads 'speed', which the drive 'a' of Air"
    assert note in done.stdout.replace(str(tmp_path) + "/", "")
    assert re.search(r"^  b ", done.stdout, re.M)
    assert not re.search(r"^  a ", done.stdout, re.M)
    done = run("score", folder / "a.drive", folder / "b.drive", "--rewards", "mine.py", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "reads 'speed', which the drive 'a' of Airstriker-Genesis-v0 does not have" in done.stderr
    (tmp_path / "mine.py").write_text(MINE.replace("ram.speed < 300", "ram.sped < 300"))
    done = run("score", "runs", "--rewards", "mine.py", folder=tmp_path)
    assert done.returncode == 2, "a mistake leaves out no drive"


def test_python_files_are_no_drives(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    done = run("score", "race", "mine.py", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: mine.py: is a Python file, not a drive. Its rewards are added by --rewards mine.py\n"


def test_each_drive_of_the_package_has_a_name_with_its_course() -> None:
    for name, file in (
        ("race-Level1", "race"),
        ("walls-Level3", "walls"),
        ("wander-Level4", "wander"),
        ("walls", "walls"),
    ):
        path = shipped_drive(name)
        assert path == SHIPPED / f"{file}.drive"
        assert "-" not in name or load_drive(path).info.state == name.partition("-")[2]
    assert shipped_drive("walls-Level2") == SHIPPED / "walls-Level2.drive"
    assert shipped_drive("race-Level9") is None


def test_scoring_imports_neither_the_emulator_nor_torch() -> None:
    code = "import sys, kart_rewards.lab.score; print('stable_retro' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_arrays_of_a_score_can_be_left_out() -> None:
    drive = load_drive(SHIPPED / "reverse.drive")
    score = score_drive(drive, RewardSet().load(drive))
    assert score.without_frames().values == {}
    assert np.array_equal(score.without_frames().rewards, np.empty(0))


def test_a_new_set_loads_a_changed_file_again(tmp_path: Path) -> None:
    drive, path = load_drive(SHIPPED / "standing.drive"), tmp_path / "mine.py"
    term = "from kart_rewards import reward_term\n@reward_term(weight={})\ndef each_frame(ram):\n    return 1\n"
    for weight in (1, 2):
        path.write_text(term.format(weight))
        score = score_drive(drive, RewardSet((str(path),)).load(drive))
        assert score.terms["each_frame"].sum == weight * score.end


@pytest.mark.parametrize("gamma", [-0.1, 2, float("nan")])
def test_a_discount_factor_outside_its_range_is_refused(gamma: float) -> None:
    with pytest.raises(KartRewardsError, match="gamma must be between 0 and 1, not"):
        RewardSet(gamma=gamma)


def test_what_terms_print_is_not_part_of_the_result_and_rules_that_end_a_finished_race_are_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(
        "from kart_rewards import done_rule, reward_term\n\n@reward_term()\ndef loud(ram):\n    print('loud')\n"
        "    return 1\n\n@done_rule()\ndef lap(ram):\n    return ram.laps == 129\n"
    )
    done = run("score", "race", "--rewards", "mine.py", folder=tmp_path)
    assert "loud\n" in done.stderr
    assert "note: the done rule lap ends race on frame 675, before its finish" in done.stdout
    assert "loud\n" not in done.stdout
    done = run("score", "--rewards", "mine.py", "race", folder=tmp_path)
    assert done.returncode == 2
    assert "race: is a drive. Name drives before the options, and rewards files after them" in done.stderr


@pytest.mark.parametrize(
    ("driver", "frames"),
    [("agent", 1), ("agent, deterministic", 1), ("training", 1), ("player", 4), ("test", 4)],
)
def test_the_steps_of_an_agent_without_frame_skip_are_single_frames(driver: str, frames: int) -> None:
    drive = load_drive(SHIPPED / "walls.drive")
    assert drive.info.frame_skip == 1
    drive = replace(drive, info=replace(drive.info, driver=driver))
    score = score_drive(drive, RewardSet(gamma=0.9).load(drive))
    steps = [score.rewards[first : first + frames].sum() for first in range(1, score.end + 1, frames)]
    assert score.discounted == pytest.approx(sum(0.9**i * paid for i, paid in enumerate(steps)))


def test_sums_that_json_does_not_hold_are_refused(tmp_path: Path) -> None:
    done = run("score", "race", "--reward-weights", "checkpoint=1e307", "--json", folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last == (
        f"error: {SHIPPED / 'race.drive'}: a sum of its rewards is not a finite number, which JSON can't hold: use "
        "smaller weights"
    )

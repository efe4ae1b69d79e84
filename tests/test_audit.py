from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import psutil
import pytest
from command_line import run
from training_runs import clean_children, wait_until

from kart_rewards.drives import SHIPPED, load_drive
from kart_rewards.integrations import find_game
from kart_rewards.lab.auditing.audit import audit, reference_drive
from kart_rewards.lab.auditing.verdicts import Audit, report
from kart_rewards.lab.goals import Goal
from kart_rewards.lab.replay import replay
from kart_rewards.lab.score import RewardSet, score_drive
from kart_rewards.notices import notice
from kart_rewards.ram import RamLayout
from kart_rewards.rewards import parse_weights
from kart_rewards.scenario import load_goal

GAME = "HomebrewKart-Snes"
PLANTED = Path(__file__).parent / "planted_audits"
SHORT = PLANTED / "short.py"
ONE_ROUND = 0.001
MINUTES = 5.0


def options_of(path: Path) -> list[str]:
    """The options that a planted file asks for."""
    found = re.search(r"options: (.*)", path.read_text())
    return found[1].split() if found else []


def rewards_of(path: Path) -> RewardSet:
    words = options_of(path)
    weights = parse_weights(word for word in words if "=" in word)
    return RewardSet((str(path),), None if "--scenario" in words else "scenario", weights)


def test_the_command_reports_an_exploit_with_its_drive_its_video_and_the_page(tmp_path: Path) -> None:
    options = ["--rewards", PLANTED / "exploits" / "hopping_a.py", SHORT, "--reward-weights", "airborne=60"]
    done = run("audit", GAME, *options, "--minutes", 1, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("the done rule 'short' ends race on frame 300")
    assert done.stdout.startswith("Exploit: hopping on the spot. It earns ")
    assert (
        "and comes 0% as far; short ends the episode. The reference drive, race (finished in 50.35 s)," in done.stdout
    )
    [earned, *_], [checkpoints, *_] = (
        [float(number.replace(",", "")) for number in re.search(rf"^{term} +(.*)$", done.stdout, re.M)[1].split()]  # type: ignore[index]
        for term in ("airborne", "checkpoint")
    )
    assert earned > 7000
    assert checkpoints == 0
    drive = load_drive(tmp_path / "audits" / "hopping_a" / "exploit.drive")
    assert sum(1 for _ in replay(drive)) == len(drive)
    video = imageio_ffmpeg.read_frames(str(tmp_path / "audits" / "hopping_a" / "exploit.mp4"))
    assert next(video)["size"] == (256, 224)
    words = " ".join(map(str, options))
    assert f"kart-rewards lab audits/hopping_a/exploit.drive race {words}" in done.stdout


@pytest.mark.slow
def test_an_early_end_is_an_exploit_if_driving_on_costs_more(tmp_path: Path) -> None:
    path = PLANTED / "exploits" / "early_end_b.py"
    found = audit(find_game(GAME), rewards_of(path), "Level1", 1.0, 1, tmp_path).exploit
    assert found is not None
    assert found.score.ended_by == "crash"
    drive = load_drive(found.path)
    again = score_drive(drive, rewards_of(path).load(drive))
    assert again.transformed == pytest.approx(found.rollout.total)


@pytest.mark.slow
def test_nothing_is_found_in_the_reference_set(tmp_path: Path) -> None:
    done = run("audit", GAME, "--minutes", ONE_ROUND, "--json", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["exploit"] is None
    assert result["rounds"] == 1
    assert result["reference"]["terms"]["checkpoint"] == 36_000
    assert result["margin"] < 0
    assert not list(tmp_path.iterdir())


def test_a_game_without_a_goal_gets_its_best_paid_behaviours(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from kart_rewards import done_rule, reward_term\n\n\n@reward_term\ndef hits(ram, previous, buttons):\n"
        "    return (ram.score > previous.score) + 0.01 * ('B' in buttons)\n\n\n" + SHORT.read_text()
    )
    done = run("audit", "Airstriker-Genesis-v0", "--rewards", "mine.py", "--minutes", ONE_ROUND, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The game has no goal, so judge the best-paid behaviours by eye:" in done.stdout
    best, *_ = re.findall(r"^ +([\d.]+) in 300 frames: (.*)$", done.stdout, re.M)
    assert float(best[0]) > 0.02
    assert "B" in best[1]
    assert (tmp_path / "audits" / "mine" / "behaviour-1.drive").is_file()


def test_ctrl_c_reports_the_search_so_far_and_leaves_no_process(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "kart_rewards", "audit", GAME, "--minutes", "5"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        tree = psutil.Process(process.pid)
        # A process that has worked for three seconds is in the search.
        wait_until(lambda: any(sum(each.cpu_times()[:2]) > 3 for each in clean_children(process.pid)), 120)
        children = tree.children(recursive=True)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, stderr) == (0, "")
    assert stdout.startswith("No better-paid behaviour found in ")
    assert "when you ended the search." in stdout
    wait_until(lambda: not any(child.is_running() for child in children), 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["HomebrewCart-Snes"], "Did you mean 'HomebrewKart-Snes'?"),
        ([GAME, "--minutes", "0"], "--minutes must be a finite number above 0, not 0"),
        ([GAME, "--gamma", "2"], "--gamma must be between 0 and 1, not 2"),
        ([GAME, "--state", "Level9"], "Level9"),
        ([GAME, "--scenario", "wrong.json"], "'lap >= 133' names no RAM variable 'lap'. Did you mean 'laps'?"),
    ],
)
def test_a_mistake_is_reported_with_exit_code_2(options: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text(json.dumps({"kart_rewards": {"goal": "lap >= 133"}}))
    done = run("audit", *options, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


STOPS = """
from kart_rewards import done_rule

@done_rule()
def stops(ram):
    return ram.speed > 0
"""


def test_rules_that_end_the_reference_before_its_goal_and_damaged_drives_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notice.cache_clear()
    (tmp_path / "mine.py").write_text(STOPS)
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "half.drive").write_bytes(b"half")
    game = find_game(GAME)
    goal = Goal(load_goal(game.json_path("scenario")), RamLayout.from_file(game.json_path("data")).names)
    assert reference_drive(game, "Level1", goal, RewardSet(("mine.py",))) == SHIPPED / "race.drive"
    notices = capsys.readouterr().out
    assert "half.drive: is not a drive" in notices
    assert "it is left out" in notices
    assert "the done rule 'stops' ends race on frame 1, and it reaches the goal on frame 3,026" in notices


@pytest.mark.hours
@pytest.mark.parametrize("path", sorted((PLANTED / "exploits").glob("*.py")), ids=lambda path: path.stem)
def test_a_planted_exploit_is_found(path: Path, tmp_path: Path) -> None:
    found = audit(find_game(GAME), rewards_of(path), "Level1", MINUTES, 1, tmp_path)
    print(row(path, found))
    assert found.exploit is not None, report(found)


@pytest.mark.hours
@pytest.mark.parametrize("path", sorted((PLANTED / "sane").glob("*.py")), ids=lambda path: path.stem)
def test_nothing_is_found_in_a_sane_reward(path: Path, tmp_path: Path) -> None:
    found = audit(find_game(GAME), rewards_of(path), "Level1", MINUTES, 1, tmp_path)
    print(row(path, found))
    assert found.exploit is None, report(found)


def row(path: Path, found: Audit) -> str:
    """A row of the table of all planted files; ``pytest --slow -s`` prints it."""
    what = "nothing"
    if found.exploit:
        rollout = found.exploit.rollout
        what = f"{rollout.behaviour.strategy}: {rollout.total:.1f}"
    return f"| {path.stem} | {what} | {found.reference.total:.1f} | {found.seconds:.0f} s | {found.frames:,} |"

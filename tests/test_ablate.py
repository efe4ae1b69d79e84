from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_runs import GAME, SMALL, alive, equal_weights, only_run, train_here, wait_until

from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation.tables import write_json
from kart_rewards.lab.ablation import ablate
from kart_rewards.lab.ablation.ablate import (
    Arm,
    Plan,
    Remaining,
    Run,
    Study,
    check_trainer_options,
    command,
    locked,
    make_arms,
    make_plan,
    open_study,
    share_cores,
)
from kart_rewards.rewards import REFERENCE_TERMS, as_term
from kart_rewards.training.sources import keep_sources, kept_sources

TERMS = list(map(as_term, REFERENCE_TERMS))
STEPS = 256
CORES = [[min(os.sched_getaffinity(0))]]
TINY = [
    *SMALL[:-5],
    "--size",
    "42",
    "42",
    "--state",
    "Level1",
    "--max-episode-steps",
    "20",
    "--checkpoint-interval",
    "1",
]
TINY += ["--eval-interval", "100", "--eval-episodes", "2"]


def tiny_plan(arms: list[Arm] | None = None, options: list[str] = TINY, seeds: int = 1, steps: int = STEPS) -> Plan:
    """A plan of the reference terms; by default of one arm, which is enough for a training run."""
    plan, _ = make_plan(
        GAME, None, (), "scenario", {}, lambda _, scenario: arms or [Arm("all", "all", scenario, {})], steps, options,
        seeds, 1,
    )  # fmt: skip
    return plan


# --- the arms ---------------------------------------------------------------------------------------------------------


def test_each_change_is_an_arm_beside_the_arm_with_all_terms() -> None:
    arms = make_arms(TERMS, "base", {"wall": -5.0}, ["terrain"], ["time=-3", "time=0"], ["a/other.json"])
    assert arms == [
        Arm("all", "all", "base", {"wall": -5.0}),
        Arm("without-terrain", "drop", "base", {"wall": -5.0, "terrain": 0.0}),
        Arm("time=-3", "set", "base", {"wall": -5.0, "time": -3.0}),
        Arm("time=0", "set", "base", {"wall": -5.0, "time": 0.0}),
        Arm("scenario-other", "scenario", "a/other.json", {"wall": -5.0}),
    ]


def test_options_of_the_trainer_are_arms_and_replace_those_of_all_arms() -> None:
    arms = make_arms(TERMS, "scenario", {}, options=["slow=--learning-rate 1e-4 --no-anneal-lr", "wide=--crop 0 8 0 8"])
    assert arms[1] == Arm("slow", "options", "scenario", {}, ("--learning-rate", "1e-4", "--no-anneal-lr"))
    plan = tiny_plan(arms, [*TINY, "--ppo.learning-rate=3e-4", "--anneal-lr", "--crop", "None"])
    default, slow, wide = (plan.trainer_options(run, Path("runs")) for run in plan.runs)
    assert "--ppo.learning-rate=3e-4" in default
    assert slow[-5:] == ["--crop", "None", "--learning-rate", "1e-4", "--no-anneal-lr"]
    assert not {"--ppo.learning-rate=3e-4", "--anneal-lr"} & {*slow}
    assert wide[-5:] == ["--crop", "0", "8", "0", "8"]
    assert "--crop" in default and "None" not in wide


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--learning-rate 1e-4", "is not NAME='--OPTION VALUE'"),
        ("slow", "is not NAME='--OPTION VALUE'"),
        ("a/b=--learning-rate 1", "is not NAME='--OPTION VALUE'"),
        ("slow=--learning-rate '1", "no closing quotation"),
        ("slow=--seed 2", "--seed: the study decides this itself"),
        ("more=--eval-episodes 9", "all arms are evaluated equally: give --eval-episodes after --"),
    ],
)
def test_options_that_are_no_arm_are_refused(text: str, message: str) -> None:
    with pytest.raises(KartRewardsError, match=re.escape(message)):
        make_arms(TERMS, "base", {}, options=[text])


def test_arms_with_other_courses_need_common_courses_for_evaluations() -> None:
    arms = make_arms(TERMS, "scenario", {}, options=["other=--state Level2"])
    with pytest.raises(KartRewardsError, match="other trains on other courses"):
        tiny_plan(arms)
    tiny_plan(arms, [*TINY, "--eval-states", "Level1"])
    arms = make_arms(TERMS, "scenario", {}, options=["short=--max-episode-steps 500"])
    with pytest.raises(KartRewardsError, match=r"short trains with episodes of another length: .* --eval-max"):
        tiny_plan(arms)
    tiny_plan(arms, [*TINY, "--eval-max-episode-steps", "3000"])


@pytest.mark.parametrize(
    ("drop", "sets", "scenarios", "message"),
    [
        (["terain"], [], [], r"--drop: there is no reward term 'terain' .* Did you mean 'terrain'\?"),
        ([], ["wal=1"], [], r"--set: there is no reward term 'wal' .* Did you mean 'wall'\?"),
        ([], ["wall"], [], "--set: 'wall' is not NAME=NUMBER"),
        ([], ["wall=nan"], [], "must be a finite number"),
        ([], ["wall=-10"], [], "this is its weight already"),
        (["wall", "wall"], [], [], "two arms are named without-wall"),
        ([], [], ["base"], "is the scenario of the arm with all terms already"),
        ([], [], [], "nothing to compare: name terms with --drop"),
    ],
)
def test_arms_that_compare_nothing_are_refused(
    drop: list[str], sets: list[str], scenarios: list[str], message: str
) -> None:
    with pytest.raises(KartRewardsError, match=message):
        make_arms(TERMS, "base", {}, drop, sets, scenarios)


def test_a_term_that_is_not_paid_can_not_be_left_out() -> None:
    with pytest.raises(KartRewardsError, match="--drop wall: its weight is 0 already"):
        make_arms([TERMS[0].with_weight(0)], "base", {}, ["wall"])


def test_runs_are_ordered_seed_by_seed() -> None:
    arms = make_arms(TERMS, "scenario", {}, ["wall", "time"])
    names = [run.name for run in tiny_plan(arms, seeds=2).runs]
    assert names == ["all__1", "without-wall__1", "without-time__1", "all__2", "without-wall__2", "without-time__2"]


# --- options of the trainer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "2"], "--seed: the study decides this itself"),
        (["--info", "other"], "--info: the study decides this itself"),
        (["--reward_weights", "wall=1"], "--reward_weights: the study decides this itself"),
        (["--state", "Level1", "--exp-name=x"], "--exp-name=x: the study decides this itself"),
        (["Level1"], "'Level1': options of the trainer follow after --"),
        (["-x", "1"], "-x: is not an option of the trainer: they begin with two dashes"),
        (["--eval-interval", "0"], "the outcome of a study is measured by evaluations"),
    ],
)
def test_options_that_the_study_decides_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(KartRewardsError, match=message):
        check_trainer_options(words)


def test_the_options_of_the_user_replace_the_defaults_of_a_study() -> None:
    plan = tiny_plan(options=["--eval-interval", "7", "--precision=bfloat16"])
    words = plan.trainer_options(plan.runs[0], Path("runs"))
    assert words[-2:] == ["7", "--precision=bfloat16"]
    assert words.count("--eval-interval") == 1
    assert "--precision" not in words
    assert words[words.index("--threads") + 1] == "1"


def test_trainers_at_the_same_time_share_the_cores() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert share_cores(1) == [cores]
    assert [core for part in share_cores(len(cores)) for core in part] == cores
    with pytest.raises(KartRewardsError, match=f"--jobs {len(cores) + 1}: this process may use {len(cores)} "):
        share_cores(len(cores) + 1)


# --- the folder of a study --------------------------------------------------------------------------------------------


def begun(folder: Path, plan: Plan) -> None:
    """Makes the folder of a study that has begun."""
    folder.mkdir()
    open_study(folder, plan, [[]], False, lambda: None)
    (folder / "runs" / "a-run").mkdir(parents=True)
    (folder / "runs" / "a-run" / "agent.pt").touch()


def test_a_changed_option_is_refused_and_named(tmp_path: Path) -> None:
    arms = make_arms(TERMS, "scenario", {}, ["wall"])
    begun(tmp_path / "study", tiny_plan(arms))
    for other, message in (
        (tiny_plan(arms, steps=640), "total timesteps: 256 -> 640"),
        (tiny_plan(arms, [*TINY, "--gamma", "0.9"]), "options: .* --gamma 0.9"),
        (tiny_plan(make_arms(TERMS, "scenario", {}, ["time"])), "arms: all .* without-time .*time=0"),
    ):
        with pytest.raises(KartRewardsError, match=f"(?s)the study there is another one:.*{message}"):
            open_study(tmp_path / "study", other, [[]], False, lambda: None)


def test_a_changed_rewards_file_is_refused_and_a_comment_in_it_is_not(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    text = "from kart_rewards import reward_term\n\n\n@reward_term\ndef fast(ram):\n    return float(ram.speed > 300)\n"

    def plan(content: str) -> Plan:
        file.write_text(content)
        changes: Any = lambda terms, scenario: make_arms(terms, scenario, {}, ["fast"])  # noqa: E731
        return make_plan(GAME, None, [str(file)], "scenario", {}, changes, STEPS, TINY, 1, 1)[0]

    begun(tmp_path / "study", plan(text))
    open_study(tmp_path / "study", plan(f"# a comment\n{text}"), [[]], True, lambda: None)
    with pytest.raises(
        KartRewardsError, match=r"the study there is another one:\n  term fast: weight 1.0, code .*\nName"
    ):
        open_study(tmp_path / "study", plan(text.replace("300", "400")), [[]], True, lambda: None)


def test_a_study_can_be_continued_with_more_seeds_and_keeps_its_threads(tmp_path: Path) -> None:
    begun(tmp_path / "study", tiny_plan())
    more = tiny_plan(seeds=4)
    study = open_study(tmp_path / "study", Plan(**{**vars(more), "threads": 8}), [[]], True, lambda: None)
    assert (study.plan.seeds, study.plan.threads) == (4, 1)
    assert json.loads((tmp_path / "study" / "study.json").read_text())["seeds"] == 4


def test_a_folder_without_a_study_is_not_taken_over(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match="no study has begun there"):
        open_study(tmp_path, tiny_plan(), [[]], True, lambda: None)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(KartRewardsError, match="is not empty, and holds no study"):
        open_study(tmp_path, tiny_plan(), [[]], False, lambda: None)
    (tmp_path / "study.json").write_text("[")
    with pytest.raises(KartRewardsError, match=r"study.json: can't be read"):
        open_study(tmp_path, tiny_plan(), [[]], False, lambda: None)


def test_one_study_at_a_time_works_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate, "_SECONDS_FOR_OTHERS_TO_END", 0.1)
    with locked(tmp_path), pytest.raises(KartRewardsError, match="another study is at work there"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_the_remaining_time_is_that_of_the_runs_so_far(tmp_path: Path) -> None:
    plan = tiny_plan(make_arms(TERMS, "scenario", {}, ["wall", "time", "terrain"]), seeds=2)
    one_by_one = Study(plan, tmp_path, [[]])
    assert Remaining(one_by_one).text([], plan.runs) == "0 of 8 runs"
    one_by_one.seconds.update({"all__1": 500.0, "without-wall__1": 700.0})
    assert Remaining(one_by_one).text([], plan.runs[2:]) == "2 of 8 runs, about 60 minutes left"
    two = Study(plan, tmp_path, [[], []], one_by_one.seconds)
    assert Remaining(two).text([], plan.runs[2:]) == "2 of 8 runs, about 30 minutes left"
    half = tmp_path / "runs" / f"{GAME}__without-time__1__1" / f"agent-{STEPS // 2}.pt"
    half.parent.mkdir(parents=True)
    half.touch()
    assert Remaining(one_by_one).text([], plan.runs[2:]) == "2 of 8 runs, about 55 minutes left"


# --- the trainers -----------------------------------------------------------------------------------------------------


def in_a_process_of_its_own(folder: Path) -> Any:
    """Starts the study in a folder, in a process that can be killed. It has imported everything already."""

    def work() -> None:
        study = open_study(
            folder, tiny_plan(), [[min(os.sched_getaffinity(0))]], False, lambda: keep_sources(folder, [])
        )
        study.work(threading.Event())

    process: Any = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def trainer_of(study: Any) -> int:
    """Returns the process id of the trainer of a study, when it has a checkpoint that is not its first."""
    return int(wait_until(lambda: psutil.Process(study.pid).children(), 60)[0].pid)


def kill_at_work(folder: Path, steps: int) -> None:
    """Starts a study of one run and kills it after more than so many steps. Its trainer ends with it."""
    reached = Study(tiny_plan(), folder, [[]])
    study = in_a_process_of_its_own(folder)
    trainer = trainer_of(study)
    family = [trainer, *(child.pid for child in psutil.Process(trainer).children(recursive=True))]
    wait_until(lambda: reached.steps(reached.plan.runs[0]) > steps, 60)
    study.kill()
    wait_until(lambda: not any(map(alive, family)), 10)


def test_a_killed_study_leaves_no_trainer_behind_and_is_finished_later(tmp_path: Path) -> None:
    reached = Study(tiny_plan(), tmp_path, [[]])
    [run_of_it] = reached.plan.runs
    kill_at_work(tmp_path, 0)
    assert reached.steps(run_of_it) < STEPS
    open_study(tmp_path, tiny_plan(), CORES, False, lambda: keep_sources(tmp_path, [])).work(threading.Event())
    assert "resuming" in reached.log_path(run_of_it).read_text().lower()
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == [STEPS]
    assert (tmp_path / "report.md").exists()


@pytest.mark.slow
def test_a_study_that_was_stopped_and_killed_twice_ends_with_the_same_numbers_and_leaves_no_trainer_behind(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    reached = Study(tiny_plan(), folder, [[]])
    run_of_it, stop = Run(reached.plan.arms[0], 1), threading.Event()

    # stopped, as by Ctrl-C: the trainer saves a checkpoint

    def stop_it() -> None:
        wait_until(lambda: reached.steps(run_of_it) > 0, 60)
        stop.set()

    watching = threading.Thread(target=stop_it)
    watching.start()
    open_study(folder, tiny_plan(), CORES, False, lambda: keep_sources(folder, [])).work(stop)
    watching.join()
    stopped = reached.steps(run_of_it)
    assert 0 < stopped < STEPS

    # killed, by a signal that no program can handle
    kill_at_work(folder, stopped)
    killed_at = reached.steps(run_of_it)
    assert stopped < killed_at < STEPS

    # its trainer is killed
    study = in_a_process_of_its_own(folder)
    trainer = trainer_of(study)
    wait_until(lambda: reached.steps(run_of_it) > killed_at, 60)
    os.kill(trainer, signal.SIGKILL)
    study.join(120)
    assert study.exitcode == 0
    assert reached.steps(run_of_it) == STEPS
    assert "resuming" in reached.log_path(run_of_it).read_text().lower()

    train_here("--env-id", GAME, "--total-timesteps", STEPS, *TINY, "--threads", 1, "--precision", "float32",
               "--runs-path", tmp_path / "runs")  # fmt: skip
    not_killed, killed = only_run(tmp_path / "runs"), reached.folder_of(run_of_it)
    assert equal_weights(not_killed / "agent.pt", killed / "agent.pt")
    drives = sorted(path.relative_to(killed) for path in killed.glob("drives/*/*.drive"))
    assert len(drives) == 2
    assert all((killed / path).read_bytes() == (not_killed / path).read_bytes() for path in drives)
    assert json.loads((folder / "results.json").read_text())["steps"] == [STEPS]


def test_the_mistake_of_an_option_stops_the_study_with_the_trainers_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = open_study(tmp_path, tiny_plan(options=["--gamma", "7"]), [[]], False, lambda: keep_sources(tmp_path, []))
    with pytest.raises(
        KartRewardsError, match=r"(?s)all__1: the trainer ended with exit code 2.*--gamma must be between"
    ):
        study.work(threading.Event())
    assert not any((tmp_path / "runs").glob("*/agent.pt"))
    open_study(tmp_path, tiny_plan(), [[]], False, lambda: None)  # nothing has begun, so another plan is no mistake


def test_a_mistake_on_the_command_line_leaves_no_folder_behind(tmp_path: Path) -> None:
    message = (
        r"--drop: there is no reward term 'chekpoint' in this study; there are wall, .*Did you mean 'checkpoint'\?$"
    )
    with pytest.raises(KartRewardsError, match=message):
        command(GAME, ("--state", "Level1"), drop=("chekpoint",), output=tmp_path / "study")
    with pytest.raises(KartRewardsError, match="--seeds must be 1 or more, not 0"):
        command(GAME, drop=("wall",), seeds=0, output=tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_study_runs_the_text_that_was_compared_not_that_of_its_folder(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("text = 1\n")
    folder = tmp_path / "study"
    folder.mkdir()

    def keep() -> None:
        keep_sources(folder, [mine])

    open_study(folder, tiny_plan(), [[]], False, keep)
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "a" / "agent-32.pt").touch()
    [copy] = kept_sources(folder).values()
    copy.write_text("raise SystemExit('code of another one')\n")
    open_study(folder, tiny_plan(), [[]], True, keep)
    assert copy.read_text() == mine.read_text()


def test_a_run_whose_folder_was_removed_is_trained_again(tmp_path: Path) -> None:
    plan = tiny_plan(seeds=2)
    study = open_study(tmp_path, plan, [[]], False, lambda: keep_sources(tmp_path, []))
    names = [run.name for run in plan.runs]
    write_json(tmp_path / "progress.json", {"seconds": dict.fromkeys(names, 1.0)})
    folder = study.runs_path / f"{GAME}__{plan.runs[0].arm.name}__1__5"
    folder.mkdir(parents=True)
    (folder / "agent.pt").touch()
    again = open_study(tmp_path, plan, [[]], True, lambda: keep_sources(tmp_path, []))
    assert [*again.seconds] == names[:1]

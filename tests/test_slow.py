from __future__ import annotations

import re
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import GAME
from training_runs import SMALL, train

from kart_rewards import done_rule, make_env, reward_term
from kart_rewards.training.timing import Stopwatch, split_of_a_step
from kart_rewards.training.vector import EnvGroups

SLOW = """
import time
from kart_rewards import done_rule, reward_term

@reward_term
def asleep(ram):
    print("one line")
    time.sleep(0.002)
    return 0

@reward_term
class Quick:
    def __call__(self, ram, previous):
        return 0

@done_rule
def busy(ram):
    end = time.perf_counter() + 0.002
    while time.perf_counter() < end:
        pass
    return False
"""


@pytest.fixture
def slow_file(tmp_path: Path) -> Path:
    path = tmp_path / "slow.py"
    path.write_text(SLOW)
    return path


# hill-a/stable-baselines#1161: a reward makes training up to ten times slower, and nothing says which part it is.
# DLR-RM/stable-baselines3#1973: what an environment in a child process prints appears late.
def test_a_training_run_names_slow_terms_once_and_keeps_what_terms_print(slow_file: Path, tmp_path: Path) -> None:
    finished = train(
        "--env-id", GAME, *SMALL, "--total-timesteps", 64, "--rewards", slow_file, "--runs-path", tmp_path / "runs"
    )  # fmt: skip
    notices = [line for line in finished.stdout.splitlines() if " is slow: " in line]
    assert len(notices) == 2, finished.stdout
    for notice, what in zip(sorted(notices), ("done rule 'busy'", "reward term 'asleep'"), strict=True):
        form = rf"The {what} \(.*slow\.py:\d+\) is slow: it takes ([\d,]+) µs per emulated frame, \d+% of the emul"
        found = re.match(form, notice)
        assert found, notice
        assert 2000 <= int(found[1].replace(",", "")) < 20_000
    printed = finished.stdout.count("one line\n")
    assert printed >= 64 * 4, "one line per emulated frame, from two processes that are killed in the end"


def test_an_environment_names_a_slow_term_and_calls_each_term_once_per_frame(
    slow_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def counted(ram: Any) -> float:
        calls.append(ram)
        return 0.0

    with closing(make_env(GAME, action_mode="driving", rewards=[slow_file, counted])) as env:
        env.reset(seed=1)
        for step in range(1, 31):
            env.step(0)
            assert len(calls) == 1 + 4 * step
    out = capsys.readouterr().out
    assert out.count("'asleep'") == out.count("'busy'") == 1
    assert out.count(" is slow: ") == 2, "the reference terms are not slow"


def test_a_slow_class_that_is_a_term_and_a_rule_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    @reward_term
    @done_rule
    class Both:
        def __call__(self, ram: Any) -> tuple[float, bool]:
            calls.append(ram)
            time.sleep(0.002)
            return 0.0, False

    with closing(make_env(GAME, action_mode="driving", rewards=[Both])) as env:
        env.reset(seed=1)
        for _ in range(25):
            env.step(0)
    assert len(calls) == 1 + 4 * 25
    [notice] = [line for line in capsys.readouterr().out.splitlines() if " is slow: " in line]
    assert notice.startswith("The reward term 'both' (")


def asleep(ram: Any) -> float:
    time.sleep(0.002)
    return 0.0


def test_a_term_that_sleeps_counts_as_scoring() -> None:
    makers = [partial(make_env, GAME, action_mode="driving", rewards=[asleep])] * 2
    with closing(EnvGroups(makers, processes=2)) as envs:
        envs.reset(seed=1)
        before, stopwatch, steps = envs.seconds(), Stopwatch(), 30
        if "queued" not in before[0]:
            pytest.skip("this system does not report how long a thread waits for a core")
        with stopwatch("rollout"):
            for _ in range(steps):
                envs.send(0, [0, 0])
                envs.recv(0)
        after = envs.seconds()
    spent = [{part: then[part] - now[part] for part in then} for now, then in zip(before, after, strict=True)]
    split = split_of_a_step({**stopwatch.seconds, "policy": 0.0, "update": 0.0}, spent, steps * 2)
    assert split["scoring_ms_per_step"] > 4 * 2.0 / 2, "four frames, 2 ms asleep in each, two processes"

"""``kart-rewards evaluate`` and its parts: loading agents, and comparing them with the drivers."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import pytest
import straight_on

from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation import EvalOptions, TrainedAgent, evaluate_agents, load_agent
from kart_rewards.evaluation.agents import evaluate_from_options
from kart_rewards.training.options import check_bounds

AGENTS = Path(__file__).parent.parent / "agents"
POLICIES = ["agent, deterministic", "agent, sampled", "random", "full-throttle", "reference"]


def seeds_of(report: dict[str, Any]) -> set[int]:
    return {episode["seed"] for agent in report["agents"] for episode in agent["episodes"]}


def derived(seed: int, count: int) -> set[int]:
    return {int(number) for number in np.random.SeedSequence(seed).generate_state(count)}


def evaluate(*arguments: object) -> Any:
    return command_line.run("evaluate", *arguments, "--loader", straight_on.LOADER, environment=straight_on.ENVIRONMENT)


# ---------------------------------------------------------------------------------------------------------- evaluation
def test_an_agent_is_evaluated_beside_the_drivers(tmp_path: Path) -> None:
    agent = straight_on.save_agent(tmp_path / "agent.json", seed=3, steps=1234)
    done = evaluate(agent, "--eval-episodes", 2, "--eval-states", "Level[12]", "--capture-video")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "Plays 20 episodes: 5 players, 2 courses, 2 episodes of each. --eval-states and --eval-episodes choose fewer"
    )
    assert lines[1] == f"{agent}: HomebrewKart-Snes, 1,234 steps with seed 3"
    assert [line.strip() for line in lines if line.startswith("Level")] == ["Level1", "Level2"]
    labels = [
        re.split(r"\s{2,}", line.strip())[0] for line in lines if line.startswith("  ") and "finished" not in line
    ]
    assert [label for label in labels if label in POLICIES] == POLICIES * 2
    assert lines[-1] == f"wrote {tmp_path / 'evaluation.json'}"
    assert done.stderr == "", "no progress bar where the output is not a terminal"

    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(report) == ["game", "eval_seed", "options", "agents"]
    assert (report["options"]["states"], report["options"]["episodes"]) == (["Level1", "Level2"], 2)
    assert report["options"]["environment"]["action_mode"] == "all"
    assert (report["game"], report["eval_seed"]) == ("HomebrewKart-Snes", 1001)
    [of_agent] = report["agents"]
    assert (of_agent["file"], of_agent["seed"], of_agent["steps"]) == (str(agent), 3, 1234)
    assert list(of_agent["summary"]) == ["Level1", "Level2"]
    assert all(list(by_policy) == POLICIES for by_policy in of_agent["summary"].values())
    assert len(of_agent["episodes"]) == 2 * 2 * len(POLICIES)
    by_policy = {episode["policy"]: episode["reward_sums"] for episode in of_agent["episodes"]}
    assert by_policy["agent, deterministic"] != by_policy["agent, sampled"]
    videos = sorted(path.name for path in (tmp_path / "videos" / "evaluation").iterdir())
    assert videos == sorted(f"{level}-{policy}.mp4" for level in ("Level1", "Level2") for policy in POLICIES)


def test_the_starts_are_not_those_of_the_evaluations_that_chose_the_agent(tmp_path: Path) -> None:
    agent = straight_on.save_agent(tmp_path / "agent.json")
    done = evaluate(agent, "--eval-episodes", 2, "--eval-states", "Level1", "--eval-seed", 7)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["eval_seed"] == EvalOptions(eval_seed=7).final_seed == 8
    assert seeds_of(report) == derived(8, 2) != derived(7, 2)


@pytest.mark.slow
def test_several_agents_are_summarised_over_their_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    agents = [
        straight_on.load_agent(straight_on.save_agent(tmp_path / "first" / "agent.json", seed=1)),
        straight_on.load_agent(straight_on.save_agent(tmp_path / "second" / "agent.json")),
    ]
    report = evaluate_agents(agents, states=["Level1"], episodes=1, workers=1)
    output = capsys.readouterr().out
    assert f"{agents[0].path}: HomebrewKart-Snes with seed 1\n" in output
    assert f"{agents[1].path}: HomebrewKart-Snes\n" in output, "seed and steps may be unknown"
    assert "the 2 agents: median and quartiles" in output
    assert "agent, deterministic, 2 seeds" in output
    assert json.loads((tmp_path / "first" / "evaluation.json").read_text()) == json.loads(json.dumps(report))
    assert not (tmp_path / "second" / "evaluation.json").exists()
    assert set(report["across_seeds"]["Level1"]) == set(POLICIES)
    assert report["across_seeds"]["Level1"]["agent, sampled"]["median_return"]["seeds"] == 2
    evaluate_agents(agents[:1], states=["Level1"], episodes=1, output=tmp_path / "here.json", workers=1)
    assert (tmp_path / "here.json").exists()


def test_another_evaluation_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    agent = straight_on.load_agent(straight_on.save_agent(tmp_path / "agent.json", max_episode_frames=4, steps=7))

    def play(agent: TrainedAgent = agent, **changes: Any) -> None:
        options: dict[str, Any] = {"states": ["Level1"], "episodes": 1, "seed": 3, "workers": 1}
        evaluate_agents([agent], **options | changes)

    play()
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before)))
    play()
    assert file.read_text() == before, "the same evaluation again"
    others: list[dict[str, Any]] = [
        {"states": ["Level2"]}, {"episodes": 2}, {"seed": 4}, {"random_start_frames": 0},
        {"agent": replace(agent, steps=8)}, {"agent": replace(agent, path=tmp_path / "best.json")},
        {"agent": replace(agent, env_options={**agent.env_options, "frame_skip": 2})},
        {"agent": replace(agent, max_episode_frames=8)},
    ]  # fmt: skip
    for changes in others:
        with pytest.raises(KartRewardsError, match=f"^{file}: holds another evaluation.*--output FILE$"):
            play(**changes)
        assert file.read_text() == before
    for text in ("nothing", "[]", '{"agents": 3}'):
        file.write_text(text)
        with pytest.raises(KartRewardsError, match="holds another evaluation"):
            play()
        assert file.read_text() == text
    done = evaluate(agent.path, "--eval-episodes", 1, "--eval-states", "Level1", "--output", file)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"wrote {file}")
    assert json.loads(file.read_text())["eval_seed"] == 1001


def test_the_published_result_is_that_of_the_command_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the command does not refuse to run in a clone."""

    class Reached(Exception):  # noqa: N818
        pass

    def reached(*_: object) -> None:
        raise Reached

    monkeypatch.chdir(AGENTS.parent)
    monkeypatch.setattr("kart_rewards.evaluation.agents.drivers", reached)
    agent = load_agent(Path("agents/HomebrewKart.pt"))
    with pytest.raises(Reached):
        evaluate_agents([agent])
    with pytest.raises(KartRewardsError, match="holds another evaluation"):
        evaluate_agents([agent], episodes=1)


def test_agents_of_different_environments_are_not_compared(tmp_path: Path) -> None:
    first = straight_on.load_agent(straight_on.save_agent(tmp_path / "first.json"))
    for second in (
        replace(first, path=Path("second"), env_options={**first.env_options, "frame_skip": 2}),
        replace(first, path=Path("second"), max_episode_frames=60),
    ):
        with pytest.raises(KartRewardsError) as raised:
            evaluate_agents([first, second])
        assert str(raised.value) == (
            f"second: was trained with other environment options than {first.path}: evaluate it by itself"
        )


@pytest.mark.parametrize("seeds", [(3, 3), (3, 4), pytest.param((None, None), marks=pytest.mark.slow)])
def test_each_of_several_agents_has_its_own_files(tmp_path: Path, seeds: tuple[int | None, int | None]) -> None:
    first, second = (straight_on.load_agent(straight_on.save_agent(tmp_path / f"{name}.json")) for name in "ab")
    agents = [replace(first, seed=seeds[0], max_episode_frames=8), replace(second, seed=seeds[1], max_episode_frames=8)]
    drives, videos = tmp_path / "drives", tmp_path / "videos"
    report = evaluate_agents(agents, states=["Level1"], episodes=1, drive_folder=drives, video_folder=videos)
    assert ("across_seeds" in report) == (seeds != (3, 3)), "one seed is no sample of seeds"
    for folder, kind in ((drives, "drive"), (videos, "mp4")):
        names = ("seed-3", "seed-4") if seeds == (3, 4) else ("1", "2")
        files = [sorted(path.name for path in (folder / name).glob(f"*agent*.{kind}")) for name in names]
        assert files[0] == files[1]
        assert len(files[0]) == 2, "deterministic and sampled"


def test_options_of_the_environment_may_replace_those_of_training(tmp_path: Path) -> None:
    """After the agents' own were compared."""
    paths = [straight_on.save_agent(tmp_path / "first.json"), straight_on.save_agent(tmp_path / "second.json")]
    options = EvalOptions(tuple(map(str, paths)), straight_on.LOADER, eval_episodes=1, eval_states=("Level1",))

    def not_called(path: Path) -> TrainedAgent:
        raise AssertionError("the loader of the options replaces it")

    own = straight_on.load_agent(paths[0]).env_options
    evaluate_from_options(options, not_called, {**own, "frame_skip": 2}, max_episode_frames=40)
    agents = json.loads((tmp_path / "evaluation.json").read_text())["agents"]
    lengths = {episode["policy"]: episode["length_steps"] for agent in agents for episode in agent["episodes"]}
    assert lengths == dict.fromkeys(POLICIES, 40) | {"agent, deterministic": 20, "agent, sampled": 20}

    straight_on.save_agent(paths[1], max_episode_frames=60)
    with pytest.raises(KartRewardsError, match=r"second\.json: was trained with other environment options"):
        evaluate_from_options(options, not_called, own, max_episode_frames=40)


def test_worker_processes_find_the_policies_of_a_loader_in_a_file(tmp_path: Path) -> None:
    loader = shutil.copy(straight_on.__file__, tmp_path / "loader_in_a_file.py")
    agent = straight_on.save_agent(tmp_path / "agent.json", max_episode_frames=4)
    options = ("--loader", f"{loader}:load_agent", "--eval-episodes", 1, "--eval-states", "Level1")
    done = command_line.run("evaluate", agent, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "evaluation.json").exists()


@pytest.mark.slow
def test_all_courses_of_the_game_are_played_by_default(tmp_path: Path) -> None:
    agent = replace(straight_on.load_agent(straight_on.save_agent(tmp_path / "agent.json")), max_episode_frames=4)
    report = evaluate_agents([agent], episodes=1, workers=1)
    assert list(report["agents"][0]["summary"]) == ["Level1", "Level2", "Level3", "Level4", "Level5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval-episodes", "0"], "--eval-episodes must be 1 or more, not 0"),
        (["--eval-seed", "-1"], "--eval-seed must be between 0 and 4294967295, not -1"),
        (["--eval-states", "Level1", "Level9"], "Level9.state: no such start state of HomebrewKart-Snes"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_reported(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = evaluate(straight_on.save_agent(tmp_path / "agent.json"), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "evaluation.json").exists()


def test_a_runs_folder_means_its_best_agent(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    straight_on.save_agent(run / "agent.pt", seed=1)
    assert load_agent(run, straight_on.LOADER).path == run / "agent.pt"
    straight_on.save_agent(run / "best.pt", seed=2)
    assert load_agent(run, straight_on.LOADER).path == run / "best.pt"
    assert EvalOptions(evaluate=(str(run), "other.pt")).evaluate == (str(run / "best.pt"), "other.pt")
    done = evaluate(run, "--eval-episodes", 1, "--eval-states", "Level1")
    assert done.returncode == 0, done.stderr
    assert f"\n{run / 'best.pt'}: HomebrewKart-Snes with seed 2\n" in done.stdout
    assert (run / "evaluation.json").exists()


def test_a_folder_without_an_agent_is_reported(tmp_path: Path) -> None:
    done = command_line.run("evaluate", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path}: can't be read: Is a directory: name the file of an agent" in done.stderr


def test_an_agent_must_be_named() -> None:
    done = evaluate()
    assert (done.returncode, done.stdout) == (2, "")
    assert "name an agent's file: kart-rewards evaluate AGENT" in done.stderr


# ------------------------------------------------------------------------------------------------------------- loading
@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ("load_agent", "'load_agent': is not the name of a loader: write MODULE:NAME or FILE.py:NAME"),
        ("straight_on:", "'straight_on:': is not the name of a loader"),
        ("no_such_module:load", "no_such_module: no such module"),
        ("no_such_file.py:load", f"{Path('no_such_file.py').resolve()}: no such file (given as 'no_such_file.py')."),
        ("straight_on:load_agnet", "straight_on: has no function or class 'load_agnet'. Did you mean 'load_agent'?"),
        ("straight_on:LOADER", "straight_on: has no function or class 'LOADER'."),
        ("straight_on:load_nothing", "straight_on:load_nothing returned a dict: a loader must return a kart_rewards."),
    ],
)
def test_a_loader_that_does_not_work_is_reported(tmp_path: Path, loader: str, message: str) -> None:
    with pytest.raises(KartRewardsError) as raised:
        load_agent(straight_on.save_agent(tmp_path / "agent.json"), loader)
    assert str(raised.value).startswith(message)


def test_an_agent_that_is_not_there_or_damaged_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"agent\.json: no such file$"):
        load_agent(tmp_path / "agent.json", straight_on.LOADER)
    (tmp_path / "agent.json").write_text("nothing")
    with pytest.raises(KartRewardsError) as raised:
        load_agent(tmp_path / "agent.json", straight_on.LOADER)
    first, second = str(raised.value).splitlines()
    assert first.startswith(f"{tmp_path / 'agent.json'}: {straight_on.LOADER} can't load this agent: it raised JSON")
    assert re.search(r"at .*\.py:\d+: ", second)


def test_bounds_of_the_options() -> None:
    for name, value in (("eval_interval", -1), ("eval_episodes", 0), ("eval_seed", -1), ("eval_seed", 2**32)):
        options = EvalOptions()
        setattr(options, name, value)
        with pytest.raises(KartRewardsError, match=f"^--{name.replace('_', '-')} must be "):
            check_bounds(options)
    check_bounds(EvalOptions(eval_interval=0, eval_episodes=1, eval_seed=2**32 - 1))

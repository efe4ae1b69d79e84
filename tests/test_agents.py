"""The trained agents that come with the project do what ``agents/evaluation.json`` says they do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ppo_continuous_single_file as ppo
from kart_rewards.evaluation import Contestant, Evaluator

AGENTS = Path(__file__).parent.parent / "agents"
REPORT = json.loads((AGENTS / "evaluation.json").read_text())
EPISODES = 2


@pytest.mark.parametrize("claims", REPORT["agents"], ids=lambda claims: Path(claims["file"]).name)
def test_an_agent_finishes_as_its_card_claims(claims: dict) -> None:
    file = AGENTS / Path(claims["file"]).name
    assert file.stat().st_size < 8e6
    content = ppo.load_checkpoint(file, ppo.AGENT_KEYS)
    assert content["steps"] == claims["steps"]
    args = ppo.options_of(content)
    assert args.env.env_id == REPORT["game"]
    claimed = {course: policies["agent, likeliest"] for course, policies in claims["summary"].items()}
    finishes = [course for course, metrics in claimed.items() if metrics["finish_rate"] == 1.0]
    assert "Level1" in finishes

    contestant = Contestant("agent", ppo.AgentPolicy(content["agent"], deterministic=True), args.env.of_kart_env())
    with Evaluator() as evaluator:
        played = list(evaluator.play([contestant], finishes, EPISODES, seed=REPORT["eval_seed"]))
    assert len(played) == EPISODES * len(finishes)
    for episode in played:
        assert episode.finished, episode
        [same] = [
            claim
            for claim in claims["episodes"]
            if (claim["policy"], claim["state"], claim["seed"]) == ("agent, likeliest", episode.state, episode.seed)
        ]
        # Another processor may round otherwise, which leads to a race that is not quite the same.
        assert episode.race_time_seconds < 1.2 * same["race_time_seconds"], episode


def test_the_card_says_what_the_report_says() -> None:
    card = (AGENTS / "README.md").read_text(encoding="utf-8")
    for claims in REPORT["agents"]:
        assert Path(claims["file"]).name in card
        assert f"{claims['steps']:,} steps" in card
        assert f"--seed {claims['seed']} " in card
        for course, policies in claims["summary"].items():
            metrics = policies["agent, likeliest"]
            finished = f"{round(metrics['finish_rate'] * metrics['episodes'])}/{metrics['episodes']}"
            lap = metrics["median_lap_time_seconds"]
            assert f"| {course} | {finished} | {'-' if lap is None else format(lap, '.2f')} |" in card, course

"""The trained agents of the project drive as ``agents/evaluation.json`` reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kart_rewards.evaluation import Contestant, Evaluator, load_agent

AGENTS = Path(__file__).parent.parent / "agents"
REPORT = json.loads((AGENTS / "evaluation.json").read_text())


@pytest.mark.parametrize("claims", REPORT["agents"], ids=lambda claims: Path(claims["file"]).name)
def test_an_agent_finishes_the_races_that_its_card_claims(claims: dict[str, Any], thorough: bool) -> None:
    episodes = 2 if thorough else 1  # each with another start
    file = AGENTS / Path(claims["file"]).name
    assert file.stat().st_size < 8e6
    agent = load_agent(file)
    assert (agent.steps, agent.seed) == (claims["steps"], claims["seed"])
    assert agent.env_options["game"] == REPORT["game"]
    claimed = {course: policies["agent, deterministic"] for course, policies in claims["summary"].items()}
    finishes = [course for course, metrics in claimed.items() if metrics["finish_rate"] == 1.0]
    assert "Level1" in finishes
    if not thorough:
        finishes = [course for course in finishes if course in ("Level1", "Level5")]  # one of training, one held out

    contestant = Contestant("agent", agent.make_policy(True), agent.env_options)
    limit = agent.max_episode_frames
    with Evaluator(workers=1) as evaluator:  # each imports PyTorch
        played = list(
            evaluator.play([contestant], finishes, episodes, seed=REPORT["eval_seed"], max_episode_frames=limit)
        )
    assert len(played) == episodes * len(finishes)
    for episode in played:
        assert episode.finished, episode
        [same] = [
            claim
            for claim in claims["episodes"]
            if (claim["policy"], claim["state"], claim["seed"]) == ("agent, deterministic", episode.state, episode.seed)
        ]
        # Another processor may round differently, which leads to a slightly different race.
        assert episode.race_time_seconds < 1.2 * same["race_time_seconds"], episode


def test_the_documents_have_the_numbers_of_the_report() -> None:
    card = (AGENTS / "README.md").read_text(encoding="utf-8")
    page = (AGENTS.parent / "docs" / "evaluating.md").read_text(encoding="utf-8")
    for claims in REPORT["agents"]:
        assert Path(claims["file"]).name in card
        assert f"{claims['steps']:,} steps" in card
        assert f"--seed {claims['seed']} " in card
        for course, policies in claims["summary"].items():
            metrics = policies["agent, deterministic"]
            finished = f"{round(metrics['finish_rate'] * metrics['episodes'])}/{metrics['episodes']}"
            lap = metrics["median_lap_time_seconds"]
            row = f"| {course} | {finished} | {'-' if lap is None else format(lap, '.2f')} |"
            assert row in card, course
            assert row in page, course

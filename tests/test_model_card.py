"""The card of an agent: what people and the hub read about it."""

from __future__ import annotations

import math
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GAME
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from training_runs import ROOT, TrainedRun, scalars

from kart_rewards.evaluation.model_card import CARD, front_matter, model_card, names_other_weights, weights_hash
from kart_rewards.integrations import INTEGRATIONS
from kart_rewards.training.checkpoints import Checkpoint

OPTIONS: dict[str, dict[str, Any]] = {
    "env": {"env_id": "A-Snes", "rewards": ("/home/me/mine.py", "a_module"), "wrappers": ("/home/me/w.py:Narrow",)},
    "eval": {"eval_episodes": 5, "eval_seed": 1000},
    "run": {"seed": 3, "runs_path": "/home/me/runs/", "wandb_entity": "my-team", "wandb_project_name": "secret"},
}


def card(**facts: Any) -> str:
    known: dict[str, Any] = {"weights": "ab12", "steps": 4096, "options": OPTIONS, "scoring": {}}
    return model_card("best.pt", **known | facts)


def metadata_of(text: str) -> Any:
    """A card's metadata as the hub's client reads them."""
    return ModelCard(text).data


def rows(text: str) -> list[list[str]]:
    """The cells of all tables."""
    return [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]


# ------------------------------------------------------------------------------------------------------------ real runs
def test_training_writes_the_card_of_the_evaluation_that_chose_the_agent(trained: TrainedRun) -> None:
    checkpoint, text = Checkpoint.load(trained.folder / "best.pt"), (trained.folder / CARD).read_text()
    facts = {row[0]: row[1] for row in rows(text) if len(row) == 2}
    assert facts["game"] == GAME, "the retail game has no ROM"
    assert (INTEGRATIONS / GAME / "rom.sha").read_text().split()[0] in facts["ROM"]
    assert facts["training"] == f"{checkpoint.steps} steps, seed 1"
    assert facts["SHA-256 of the weights"] == f"`{weights_hash(checkpoint.agent)}`"
    assert facts["command"].startswith("`python ppo_continuous_single_file.py --env-id MarioKart-Snes --num-envs 2 ")
    assert facts["command"].endswith(" --rewards my_rewards.py --reward-weights wall=-5 --runs-path runs`")
    assert facts["versions"].startswith("Python 3")
    assert f", torch {version('torch')}, stable-retro 1." in facts["versions"]
    assert ("commit " in facts["versions"]) == (ROOT / ".git").exists()
    assert facts["env.max_episode_steps"] == "40"
    assert facts["env.rewards"] == "my_rewards.py"
    code = {name: value.split(" ")[-1] for name, value in checkpoint.scoring.items()}
    assert ["term", "top_speed", "0.02", code["term top_speed"], "Pay for speed."] in rows(text)
    assert ["term", "wall", "-5.0", code["term wall"]] in [row[:4] for row in rows(text)]

    logged = {
        name: dict(points)[checkpoint.steps] for name, points in scalars(trained.folder).items() if "eval/" in name
    }
    [agent] = [line.split() for line in text.splitlines() if line.startswith("  agent ")]
    assert (agent[1], agent[-1]) == ("0/2", f"{logged['eval/Level1/median_return']:.1f}"), "the table of the evaluation"
    metadata = metadata_of(text)
    assert metadata.library_name == "kart_rewards"
    assert {"reinforcement-learning", GAME} <= {*metadata.tags}
    assert metadata.to_dict()["pipeline_tag"] == "reinforcement-learning"
    assert metadata.eval_results
    results = {result.metric_type: result.metric_value for result in metadata.eval_results}
    assert {result.dataset_name for result in metadata.eval_results} == {f"{GAME} Level1"}
    assert results == {
        "finish_rate": 0.0,
        "median_return": pytest.approx(logged["eval/Level1/median_return"], abs=1e-3),
    }


def test_a_card_has_no_path_of_this_computer(trained: TrainedRun) -> None:
    text = (trained.folder / CARD).read_text()
    for path in (trained.folder, ROOT, Path.home()):
        assert str(path) not in text
    assert not re.findall(r"(?<![\w/])/\w+", text)
    assert "my_rewards.py" in text


# ------------------------------------------------------------------------------------------------ cards of plain facts
def test_paths_become_names_and_accounts_are_left_out() -> None:
    command = ["python", "/home/me/ppo.py", "--rewards=/home/me/mine.py", "--wandb-entity", "my-team", "--seed", "3"]
    command += ["--wandb_project_name=secret", "--integrations-path", "/home/me/my games", "--runs-path"]
    text = card(command=[*command, str(Path.home())])
    wanted = "python ppo.py --rewards=mine.py --seed 3 --integrations-path 'my games' --runs-path '~'"
    assert ["command", f"`{wanted}`"] in rows(text)
    assert ["env.rewards", "mine.py a_module"] in rows(text)
    assert ["env.wrappers", "w.py:Narrow"] in rows(text)
    assert ["run.runs_path", "runs"] in rows(text)
    for secret in ("/home", "my-team", "secret", "wandb"):
        assert secret not in text


def test_a_card_without_an_evaluation_says_so() -> None:
    text = card()
    assert "There is no evaluation of this agent in this card." in text
    assert metadata_of(text).eval_results is None
    assert ["ROM", "not known; not part of this repository"] in rows(text)


def test_numbers_that_are_not_finite_are_not_listed() -> None:
    text = card(metrics={"Level1": {"episodes": 5, "finish_rate": 1.0, "median_return": math.inf}})
    assert [result.metric_type for result in metadata_of(text).eval_results or []] == ["finish_rate"]


def test_a_table_is_whole_whatever_its_cells_hold() -> None:
    scoring = {"term odd": "weight 1.0, code ab", "rule odd": "truncates, code cd", "ROM": "12", "variable lap": "u1"}
    text = card(scoring=scoring, meanings={"odd": "Pays a | b,\nand\tmore."})
    assert "| term | odd | 1.0 | ab | Pays a \\| b, and more. |" in text
    assert "| rule | odd | truncates | cd | Pays a \\| b, and more. |" in text
    assert "| ROM |  |  |  | 12 |" in text
    assert "| variable | lap |  |  | u1 |" in text


def test_the_metadata_of_any_name_is_valid(tmp_path: Path) -> None:
    game, course = 'Ä "quoted": #1-Snes', "a: b [🏁]"
    text = front_matter(game, {course: {"finish_rate": 0.5}})
    (tmp_path / CARD).write_text(text, encoding="utf-8")
    metadata = metadata_load(tmp_path / CARD)
    assert metadata
    [model] = metadata["model-index"]
    assert model["name"] == game
    assert model["results"][0]["dataset"]["name"] == f"{game} {course}"
    assert model["results"][0]["metrics"][0]["value"] == 0.5


# ----------------------------------------------------------------------------------------------------- whose card it is
def test_a_card_names_the_weights_that_it_is_of() -> None:
    assert not names_other_weights(card(weights="ab12"), "ab12")
    assert names_other_weights(card(weights="ab12"), "cd34")
    assert not names_other_weights((ROOT / "agents" / CARD).read_text(encoding="utf-8"), "cd34"), (
        "it was written by hand"
    )


def test_the_hash_of_weights_is_of_every_bit(tmp_path: Path) -> None:
    weights = {"a": torch.arange(4.0).reshape(2, 2), "b": torch.tensor(1.0, dtype=torch.bfloat16)}
    torch.save(weights, tmp_path / "weights.pt")
    assert weights_hash(torch.load(tmp_path / "weights.pt", weights_only=True)) == weights_hash(weights)
    assert weights_hash(dict(reversed(weights.items()))) == weights_hash(weights)
    others: list[dict[str, torch.Tensor]] = [
        {"a": weights["a"]},
        weights | {"a": weights["a"].reshape(4)},
        weights | {"a": weights["a"].to(torch.float64)},
        weights | {"b": torch.tensor(1.0078125, dtype=torch.bfloat16)},
        {"a": weights["a"], "c": weights["b"]},
    ]
    assert len({weights_hash(each) for each in [weights, *others]}) == 6

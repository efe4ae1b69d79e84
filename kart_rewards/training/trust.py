"""Whether code that a checkpoint names may run.

* ``signature`` - marks the options of a run as made on this computer, by this user
* ``is_own`` - whether options carry that mark
* ``without_foreign_code`` - what to change in the options of somebody else's checkpoint

A checkpoint names Python files, and a folder of games may hold them. A checkpoint from another computer is data: the
code that it names runs only if the user agrees. Therefore a run signs its options with the user's secret key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import INTEGRATIONS, find_game
from kart_rewards.notices import notice
from kart_rewards.ram import load_json
from kart_rewards.training.checkpoints import Checkpoint
from kart_rewards.training.keys import is_signed, signed

_NAMING_CODE = ("env_id", "integrations_path", "scenario", "rewards", "wrappers")
"""The options of an environment that say which code it runs."""


def signature(env_options: Mapping[str, Any]) -> str:
    """Returns the signature of the options that name code; empty if there is no place for a key."""
    return signed(_text(env_options))


def is_own(env_options: Mapping[str, Any], signature: object) -> bool:
    """Whether options have the signature of this user on this computer.

    Args:
        env_options: The options.
        signature: What a checkpoint holds as their signature.
    """
    return is_signed(_text(env_options), signature)


def _text(env_options: Mapping[str, Any]) -> str:
    return json.dumps({name: env_options.get(name) for name in _NAMING_CODE}, sort_keys=True, default=str)


def without_foreign_code(checkpoint: Checkpoint, env_options: Mapping[str, Any], resuming: bool) -> dict[str, Any]:
    """Returns the options to change so that a checkpoint runs no code of another user or computer.

    An agent can be watched and evaluated without the code: there are race metrics then, but no rewards. A notice
    says so.

    Args:
        checkpoint: The checkpoint.
        env_options: Its options of the environment.
        resuming: Whether the run is to go on, which is impossible without its reward scripts.

    Returns:
        Option -> new value; empty if the checkpoint is this user's own, or names no code.

    Raises:
        KartRewardsError: The checkpoint names code of another user or computer, and the run is to go on.
    """
    named = _named_code(env_options)
    if not named or is_own(env_options, checkpoint.signature):
        return {}
    foreign = f"{checkpoint.path}: was not made by you on this computer, and names code to run: {', '.join(named)}"
    if resuming or env_options.get("wrappers"):  # without wrappers the agent would see or press something else
        raise KartRewardsError(f"{foreign}. Read that code, and add --trust to run it")
    notice(f"{foreign}. The code does not run: there are race metrics, but no rewards. Add --trust to run it\n")
    return {"scenario": None, "rewards": (), "reward_weights": ()}


def _named_code(env_options: Mapping[str, Any]) -> list[str]:
    """The files, folders and modules that options name; none if they use only the games that are installed here."""
    named = [str(env_options[name]) for name in ("integrations_path",) if env_options.get(name) is not None]
    scenario = str(env_options.get("scenario"))
    # A path also leads out of the game's folder without the suffix: the scenario ../x is ../x.json.
    named += [scenario] if scenario.endswith(".json") or Path(scenario).name != scenario else []
    named += _code_of_game(str(env_options.get("env_id")), scenario) if not named else []
    return named + [str(item) for name in ("rewards", "wrappers") for item in env_options.get(name) or ()]


def _code_of_game(game: str, scenario: str) -> list[str]:
    """The game's scenario, if it names code and lies in ./integrations, which may come from where the agent does."""
    with suppress(KartRewardsError):
        path = find_game(game).json_path(scenario)
        content, here = load_json(path), Path("integrations").resolve()
        names_code = content.get("scripts") or content.get("kart_rewards", {}).get("modules")
        if names_code and path.resolve().is_relative_to(here) and here != INTEGRATIONS.resolve():
            return [str(path)]
    return []

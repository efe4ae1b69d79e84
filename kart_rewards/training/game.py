"""Which game a training run plays.

* ``playable_game`` - the game that was asked for, or the free one where the retail game's ROM is missing
* ``RETAIL_GAME``, ``FREE_GAME`` - their names
* ``names_of_run`` - the games whose runs may be the one that is asked for
* ``resolved_options``, ``absolute_states`` - options with a playable game and absolute paths
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kart_rewards.integrations import MissingRomError, find_game, list_games

RETAIL_GAME = "MarioKart-Snes"
FREE_GAME = "HomebrewKart-Snes"
"""A game of this project with the RAM map of the retail game, so that both run with the same rewards."""


def playable_game(name: str, integrations: Path | None, fallback: bool) -> tuple[str, Path | None]:
    """Returns the game to train, and its folder of integrations.

    Args:
        name: The game that was asked for.
        integrations: The folder of games. None: the standard folders.
        fallback: Whether the free game may replace the retail game, if that has no ROM. A notice is printed then.

    Raises:
        MissingRomError: The game has no ROM, and there is no replacement.
        KartRewardsError: There is no such game, or its ROM is another.
    """
    try:
        find_game(name, integrations).rom()
    except MissingRomError as error:
        if not (fallback and name == RETAIL_GAME):
            raise
        print(
            f"{error}\nTraining {FREE_GAME} instead: a free game of this project with the same RAM map and the same "
            "rewards. (--no-fallback makes this an error.)\n"
        )
        name, integrations = FREE_GAME, integrations if FREE_GAME in list_games(integrations) else None
    return name, integrations and integrations.resolve()


def names_of_run(name: str, fallback: bool) -> list[str]:
    """Returns the games that a run may have trained that was asked for ``name``."""
    return [name, FREE_GAME] if fallback and name == RETAIL_GAME else [name]


def resolved_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what to change in options of an environment: a game that can be played, and absolute paths.

    A run can be resumed from another folder then.

    Args:
        options: ``env_id``, ``integrations_path``, ``fallback``, ``scenario``, ``info``, ``state``, ``rewards`` and
            ``wrappers``.

    Returns:
        New values of these options, except ``fallback``.

    Raises:
        KartRewardsError: See ``playable_game``.
    """
    name, integrations = playable_game(options["env_id"], options["integrations_path"], options["fallback"])
    folder = find_game(name, integrations).folder
    scenario = options["scenario"]
    return {
        "env_id": name,
        "integrations_path": integrations,
        "scenario": None if scenario is None else _absolute(scenario, ".json", folder),
        "info": _absolute(options["info"], ".json", folder),
        "state": absolute_states(options["state"], name, integrations),
        "rewards": tuple(_absolute(source, ".py") for source in options["rewards"]),
        "wrappers": tuple(_absolute_file_of(wrapper) for wrapper in options["wrappers"]),
    }


def absolute_states(states: Iterable[str], game: str, integrations: Path | None) -> tuple[str, ...]:
    """Returns start states with absolute paths; names in the game's folder stay as they are.

    Args:
        states: Names of states, patterns of such names, and paths that end in ``.state``.
        game: The game.
        integrations: The folder of games. None: the standard folders.

    Raises:
        KartRewardsError: There is no such game, or no state matches a pattern.
    """
    found = find_game(game, integrations)
    return tuple(_absolute(state, ".state", found.folder) for state in found.chosen_states(states))


def _absolute_file_of(wrapper: str) -> str:
    """``FILE.py:NAME`` with an absolute path; ``MODULE:NAME`` as it is."""
    source, colon, name = wrapper.rpartition(":")
    return f"{_absolute(source, '.py')}{colon}{name}"


def _absolute(name: str, suffix: str, folder: Path | None = None) -> str:
    """A path that ends in the suffix as an absolute one; any other name, or one in the game's folder, as it is."""
    if not name.endswith(suffix) or (folder and (folder / name).is_file()):
        return name
    return str(Path(name).resolve())

"""Which game a training run plays.

* ``playable_game`` - the game that was asked for, or the free one where the retail game's ROM is missing
* ``RETAIL_GAME``, ``FREE_GAME`` - their names
"""

from __future__ import annotations

from pathlib import Path

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
        return FREE_GAME, integrations if FREE_GAME in list_games(integrations) else None
    return name, integrations

"""Which game a training run plays.

* ``playable_game`` - the game that was asked for, or the free one where the retail game's ROM is missing
* ``RETAIL_GAME``, ``FREE_GAME`` - their names
* ``absolute_file`` - a file that is found from every folder
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
        name, integrations = FREE_GAME, integrations if FREE_GAME in list_games(integrations) else None
    return name, integrations and integrations.resolve()


def absolute_file(name: str, suffix: str, folder: Path | None = None) -> str:
    """Returns a file's absolute path, so that a run can be resumed from another folder.

    Args:
        name: A path that ends in ``suffix``, or any other name, which is returned as it is.
        suffix: Such as ``.json``.
        folder: A game's folder. The name of a file in it is returned as it is, too.
    """
    if not name.endswith(suffix) or (folder and (folder / name).is_file()):
        return name
    return str(Path(name).resolve())

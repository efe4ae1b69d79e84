"""The list of all games.

* ``command`` - the command ``kart-rewards games``
* ``rom_condition`` - whether a game's ROM is in place
"""

from __future__ import annotations

import sys
from contextlib import suppress

from rich.console import Console
from rich.table import Column, Table

from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import Game, MissingRomError, find_game, integration_folders, list_games
from kart_rewards.training.options import GamesFolder

WITHOUT_TERMINAL = 10_000  # columns: a program that reads the table needs each row on one line


def command(integrations_path: GamesFolder = None) -> None:
    """Lists all games: the folder of each, whether its ROM is in place, and its start states."""
    games = [find_game(name, integrations_path) for name in list_games(integrations_path)]
    folders = ", ".join(map(str, integration_folders(integrations_path)))
    if not games:
        raise KartRewardsError(f"{folders}: no games that may be read")
    columns = (Column("game", no_wrap=True), "ROM", "start states", Column("folder", overflow="fold"))
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for game in games:
        states = ", ".join(_marked(game, state) for state in game.states())
        table.add_row(game.name, rom_condition(game), states or "none", str(game.folder))
    width = None if sys.stdout.isatty() else WITHOUT_TERMINAL
    Console(width=width, markup=False, highlight=False, emoji=False).print(table)


def rom_condition(game: Game) -> str:
    """Returns ``right``, ``missing``, or ``wrong`` for a ROM that differs from ``rom.sha`` or can't be checked."""
    try:
        game.rom()
    except MissingRomError:
        return "missing"
    except KartRewardsError:
        return "wrong"
    return "right"


def _marked(game: Game, state: str) -> str:
    with suppress(KartRewardsError):  # metadata.json may be missing, or not name a default state
        return f"{state} (default)" if state == game.default_state() else state
    return state

"""The list of all games.

* ``command`` - the command ``kart-rewards games``
* ``rom_condition`` - whether a game's ROM is in place
"""

from __future__ import annotations

import sys
from contextlib import suppress

from rich.console import Console
from rich.table import Column, Table

from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.integrations import Game, find_game, integration_folders, is_file, list_games
from kart_rewards.training.options import GamesFolder

_MOST_STATES = 10  # some games of stable-retro have hundreds
WITHOUT_TERMINAL = 10_000  # columns: a program that reads the table needs each row on one line


def command(integrations_path: GamesFolder = None, all: bool = False) -> None:
    """Lists the games: the folder of each, whether its ROM is in place, and its start states.

    Args:
        all: List stable-retro's own games without a ROM, too.
    """
    games = [find_game(name, integrations_path) for name in list_games(integrations_path)]
    folders = ", ".join(map(str, integration_folders(integrations_path)))
    if not games:
        raise KartRewardsError(f"{folders}: no games that may be read")
    short = integrations_path is None and not all
    hidden = [game for game in games if short and game.is_stock and not is_file(game.rom_path())]
    games = [game for game in games if game not in hidden]
    columns = (Column("game", no_wrap=True), "ROM", "start states", Column("folder", overflow="fold"))
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for game in games:
        table.add_row(game.name, rom_condition(game), _states(game), str(game.folder))
    width = None if sys.stdout.isatty() else WITHOUT_TERMINAL
    Console(width=width, markup=False, highlight=False, emoji=False).print(table)
    if hidden:
        print(
            f"{counted(len(hidden), 'game')} of stable-retro without a ROM: kart-rewards games --all lists them, "
            "kart-rewards import PATH adds your ROMs"
        )


def rom_condition(game: Game) -> str:
    """Returns ``right``, ``missing``, or ``wrong`` for a ROM that differs from ``rom.sha`` or can't be checked."""
    if not is_file(game.rom_path()):
        return "missing"
    try:
        game.rom()
    except KartRewardsError:
        return "wrong"
    return "right"


def _states(game: Game) -> str:
    states = sorted((_marked(game, state) for state in game.states()), key=lambda each: not each.endswith(_DEFAULT))
    shown = states[:_MOST_STATES]
    if len(states) > _MOST_STATES:
        shown.append(f"{len(states) - _MOST_STATES} more")
    return ", ".join(shown) or "none"


def _marked(game: Game, state: str) -> str:
    with suppress(KartRewardsError):  # metadata.json may be missing, or not name a default state
        return state + _DEFAULT if state == game.default_state() else state
    return state


_DEFAULT = " (default)"

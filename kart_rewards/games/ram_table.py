"""The variables inside a start state, as text. Needs no emulator.

* ``command`` - the command ``kart-rewards ram``
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import find_game, is_file, list_games
from kart_rewards.ram import RamLayout, read_state_file

_PER_LINE = 16  # elements of an array


def command(
    state: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STATE")],
    /,
    data: Path | None = None,
) -> None:
    """Prints the variables inside a start state: name, address, type and value. Needs no emulator.

    Args:
        state: A SNES .state file, such as integrations/HomebrewKart-Snes/Level1.state.
        data: The data.json that describes the variables. By default the one beside the state.
    """
    if not is_file(state):
        own = [game for game in map(find_game, list_games()) if not game.is_stock]
        named = [game.state_path(state.name) for game in own if state.name in game.states()]
        if named:
            raise KartRewardsError(f"{state}: no such file. Did you mean {' or '.join(map(str, named))}?")
    work_ram = read_state_file(state)
    layout = RamLayout.from_file(data or state.parent / "data.json")
    snapshot = layout.decode(work_ram)
    print(f"{'variable':<20} {'address':<10} {'type':<5} {'value':>8}")
    for variable, value in zip(layout.variables, snapshot, strict=True):
        address = f"0x{variable.address:06X}{f' + {variable.pointer}' if variable.pointer else ''}"
        if variable.count is None:
            print(f"{variable.name:<20} {address:<10} {variable.type:<5} {value:>8}  0x{value % 2**64:X}")
            continue
        print(f"{variable.name:<20} {address:<10} {variable.type:<5} {f'× {variable.count}':>8}")
        for first in range(0, variable.count, _PER_LINE):
            print(f"{first:>20}: {' '.join(map(str, value[first : first + _PER_LINE]))}")

"""The command line: ``python -m kart_rewards``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import INTEGRATIONS, import_roms
from kart_rewards.ram import RamLayout, read_state_file

app = tyro.extras.SubcommandApp()


@app.command(name="import")
def import_(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    integrations_path: Path = INTEGRATIONS,
) -> None:
    """Copies your own ROM dumps to the games they belong to, recognised by their SHA-1.

    Args:
        paths: Files, folders and zip files to look into.
        integrations_path: Folder of games, in stable-retro's layout.
    """
    if not paths:
        raise KartRewardsError("say where to look: python -m kart_rewards import PATH…")
    imported = 0
    for name, what, is_in_place in import_roms(list(paths), integrations_path):
        print(f"{name}: {what}")
        imported += is_in_place
    if not imported:
        raise KartRewardsError(f"none of these files is the ROM of a game in {integrations_path}")


@app.command
def ram(state: Annotated[Path, tyro.conf.Positional], /, data: Path | None = None) -> None:
    """Prints the variables inside a start state: name, address, type and value. Needs no emulator.

    Args:
        state: A SNES .state file.
        data: The data.json that describes them. By default the one beside the state.
    """
    work_ram = read_state_file(state)
    layout = RamLayout.from_file(data or state.parent / "data.json")
    snapshot = layout.decode(work_ram)
    print(f"{'variable':<20} {'address':<10} {'type':<5} {'value':>8}")
    for variable, value in zip(layout.variables, snapshot, strict=True):
        print(f"{variable.name:<20} 0x{variable.address:06X}   {variable.type:<5} {value:>8}  0x{value % 2**64:X}")


def main() -> None:
    """Runs a command; a mistake of the user's ends it with one message and exit code 2."""
    try:
        app.cli(prog="python -m kart_rewards", description="Games, ROMs and RAM for kart_rewards.")
    except KartRewardsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

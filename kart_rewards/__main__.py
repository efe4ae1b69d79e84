"""The command line: ``python -m kart_rewards``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

from kart_rewards.errors import KartRewardsError
from kart_rewards.games.roms import import_roms
from kart_rewards.integrations import INTEGRATIONS, list_games
from kart_rewards.ram import RamLayout, read_state_file
from kart_rewards.rewards import parse_weights

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
    looked_at: set[str] = set()
    in_place: set[str] = set()
    for name, what, game in import_roms(list(paths), integrations_path):
        print(f"{name}: {what}")
        looked_at.add(name)
        in_place |= {game} if game else set()
    if not in_place:
        raise KartRewardsError(
            f"none of these files ({len(looked_at)}) is the ROM of a game in {integrations_path}: "
            f"{', '.join(list_games(integrations_path))}"
        )
    print(f"{len(looked_at)} looked at; ROMs in place: {', '.join(sorted(in_place))}")


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


@app.command
def state(
    game: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GAME")],
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    /,
    play: bool = False,
    inputs: Path | None = None,
    until: str | None = None,
    max_frames: int = 36_000,
    start: str | None = None,
    record: Path | None = None,
    overwrite: bool = False,
    default: bool = False,
    integrations_path: Path = INTEGRATIONS,
) -> None:
    """Makes a start state: runs the game there by a script, by hand or both, keeps the state and checks it.

    Args:
        game: Name of the game's folder.
        name: What to call the state; it becomes GAME/NAME.state.
        play: Play by hand in a window, which shows the keys; F5 keeps the state. After --inputs, if there are any.
        inputs: A script of what to press, with lines such as "60" and "30 B+LEFT": frames, and the buttons held. Or a
            .bk2 movie. After its end nothing is pressed.
        until: Stop on the first frame after which this holds: "laps == 127 and current_frame > 60". With --play and no
            --inputs, the game pauses there.
        max_frames: Frames in which --until must hold.
        start: The state to begin from, by name or path. By default the game is switched on.
        record: Write what was pressed up to the state to this file, as a script for --inputs.
        overwrite: Replace files that are there already.
        default: Make it the state that training starts from, in metadata.json.
        integrations_path: Folder of games, in stable-retro's layout.
    """
    from kart_rewards.games.states import make_state  # the emulator, which other commands need not load

    make_state(
        game,
        name,
        integrations=integrations_path,
        play=play,
        inputs=inputs,
        until=until,
        max_frames=max_frames,
        start=start,
        record=record,
        overwrite=overwrite,
        default=default,
    )


@app.command(name="play")
def play_(
    game: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GAME")] = "HomebrewKart-Snes",
    /,
    state: str | None = None,
    scenario: str = "scenario",
    rewards: tuple[str, ...] = (),
    reward_weights: tuple[str, ...] = (),
    integrations_path: Path = INTEGRATIONS,
    output: Path = Path("recordings"),
    scale: int = 3,
) -> None:
    """Opens a window in which you drive, and see what each reward term pays. Every episode is recorded.

    Args:
        game: Name of the game's folder.
        state: The state to start from: a name in the game's folder, or a .state file. By default metadata.json's.
        scenario: Which reward terms and done rules to use: a file's name in the game's folder, or a .json path.
        rewards: Python files or modules with reward terms and done rules to add.
        reward_weights: Weights that override the scenario's, as NAME=NUMBER: --reward-weights wall=-5 top_speed=0.02.
        integrations_path: Folder of games, in stable-retro's layout.
        output: Folder for the recordings, two files an episode: NAME.csv.gz for load_trace, NAME.bk2 for stable-retro.
        scale: Pixels of the window, in each direction, for one of the game's; fewer where it would not fit the display.
    """
    from kart_rewards.look.play import play  # the emulator, which other commands need not load

    play(
        game,
        output,
        scale,
        integrations=integrations_path,
        state=state or (),
        scenario=scenario,
        rewards=rewards,
        reward_weights=parse_weights(reward_weights),
    )


@app.command(name="search")
def search_(
    game: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GAME")],
    /,
    state: str | None = None,
    name: str | None = None,
    script: Path | None = None,
    integrations_path: Path = INTEGRATIONS,
) -> None:
    """Finds where a game keeps a value, and adds it to data.json.

    Play from moment to moment, by hand, by script or by a recording, and say how the value changed: only the addresses
    that did so are kept, until few are left. Commands are typed, or come from --script or a pipe:

        play 60 B
        keep greater
        play 300
        keep equal 0
        list
        add 1 speed

    "help" lists them all; "help keep" tells what can be compared.

    Args:
        game: Name of the game's folder.
        state: The state to start from: a name in the game's folder, or a .state file. By default metadata.json's; the
            game is switched on if it has no state yet.
        name: What to call the variable, so that "add 1" is enough.
        script: A file of commands, one a line; # begins a comment. It ends at the first that fails.
        integrations_path: Folder of games, in stable-retro's layout.
    """
    from kart_rewards.games.search import search  # the emulator, which other commands need not load

    search(game, state=state, name=name, script=script, integrations=integrations_path)


@app.command
def new(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    rom: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ROM")],
    /,
    integrations_path: Path = INTEGRATIONS,
) -> None:
    """Begins the integration of another game: its folder, with a first reward term and its unit test.

    Args:
        name: What to call the game, with its console: MyGame-Snes. If the console is left out, the ROM's name tells it.
        rom: The ROM, of any console that stable-retro emulates, or a zip file with one ROM in it.
        integrations_path: Folder of games, in stable-retro's layout.
    """
    from kart_rewards.games.new import scaffold  # the emulator, which other commands need not load

    print(scaffold(name, rom, integrations_path))


@app.command
def doctor(
    game: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[GAME]")] = None,
    /,
    integrations_path: Path = INTEGRATIONS,
) -> None:
    """Checks a game end to end, and this machine: a line for each check, with what to do if it fails.

    Exit code 0: all is well; 1: something failed.

    Args:
        game: Name of the game's folder. By default every game that has its ROM.
        integrations_path: Folder of games, in stable-retro's layout.
    """
    from kart_rewards.games.doctor import diagnose  # the emulator, which other commands need not load

    if not diagnose(game, integrations_path):
        sys.exit(1)


@app.command(name="watch")
def watch_(
    agent: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="AGENT")],
    /,
    state: str | None = None,
    output: Path | None = None,
    seconds: float | None = None,
    sampled: bool = False,
    seed: int = 1,
    random_start_frames: int = 0,
    scale: int = 3,
) -> None:
    """Shows a trained agent drive, with what its rewards pay at the side: in a window, or as a video file.

    Args:
        agent: What training saved: runs/NAME/best.pt, or agent.pt.
        state: The course, by its start state. By default the one the agent was trained on.
        output: Video file to write instead of opening a window: .mp4, or a smaller .gif of 10 pictures a second.
        seconds: Show so much of each episode. By default all of it.
        sampled: Draw the actions, as in training, instead of taking the likeliest.
        seed: Seed of the first episode; the next have the next.
        random_start_frames: Drive 0 to this many emulated frames at random before each episode.
        scale: Pixels of the picture, in each direction, for one of the game's.
    """
    from kart_rewards.look.watch import watch  # the emulator and PyTorch, which other commands need not load

    watch(
        agent,
        state=state,
        output=output,
        seconds=seconds,
        sampled=sampled,
        seed=seed,
        random_start_frames=random_start_frames,
        scale=scale,
    )


def main() -> None:
    """Runs a command; a mistake of the user's ends it with one message and exit code 2."""
    try:
        app.cli(prog="python -m kart_rewards", description="Games, ROMs and RAM for kart_rewards.")
        sys.stdout.flush()
    except KartRewardsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries to print the rest at its end
        if not isinstance(error, BrokenPipeError):  # which says that `head` has seen enough
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""The command line: ``kart-rewards COMMAND``, or ``python -m kart_rewards COMMAND``.

* ``COMMANDS`` - each command, with the function that does its work
* ``main`` - runs a command

The options and the help text of a command are those of its function. The function's module is imported only when its
command runs, so that help and simple commands do not load the emulator or PyTorch.
"""

from __future__ import annotations

import ast
import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, SupportsIndex

from kart_rewards.errors import KartRewardsError, did_you_mean, run_command

COMMANDS = {
    "train": "kart_rewards.__main__:train",
    "evaluate": "kart_rewards.evaluation.agents:command",
    "watch": "kart_rewards.look.watch:command",
    "play": "kart_rewards.look.play:command",
    "drives": "kart_rewards.lab.exports:command",
    "score": "kart_rewards.lab.score:command",
    "lint": "kart_rewards.lab.linting.lint:command",
    "audit": "kart_rewards.lab.auditing.audit:command",
    "lab": "kart_rewards.lab.page.page:command",
    "ablate": "kart_rewards.lab.ablation.ablate:command",
    "doctor": "kart_rewards.games.doctor:command",
    "push": "kart_rewards.evaluation.hub:push",
    "pull": "kart_rewards.evaluation.hub:pull",
    "games": "kart_rewards.games.listing:command",
    "import": "kart_rewards.games.roms:command",
    "new": "kart_rewards.games.new:command",
    "state": "kart_rewards.games.states:command",
    "search": "kart_rewards.games.search:command",
    "ram": "kart_rewards.games.ram_table:command",
    "port": "kart_rewards.games.port:command",
    "parity": "kart_rewards.games.parity:command",
}

_HELP = """usage: kart-rewards COMMAND [OPTIONS]

Trains racers on retro consoles, with rewards scripted in Python.

commands:
{commands}

"kart-rewards COMMAND --help" shows the options of a command.
"""


def train() -> None:
    """Trains an agent with PPO: runs ppo_continuous_single_file.py, with the same options."""
    # The script is imported under its own name, not run as __main__: so processes that it spawns can import it, and
    # the name of the program in its help text is that of this command.
    import_module("ppo_continuous_single_file").main()


def main() -> None:
    """Runs a command. A mistake of the user ends it with one message and exit code 2."""
    run_command(lambda: _run(sys.argv[1:]))


def _run(arguments: list[str]) -> None:
    if arguments[:1] in (["-h"], ["--help"]):
        print(_HELP.format(commands="\n".join(map(_line_of_list, COMMANDS))), end="")
        return
    commands = f"The commands are {', '.join(COMMANDS)}; kart-rewards --help explains them"
    if not arguments:
        raise KartRewardsError(f"no command is given. {commands}")
    name, *options = arguments
    if name not in COMMANDS:
        raise KartRewardsError(f"unknown command {name!r}.{did_you_mean(name, COMMANDS)} {commands}")
    if name == "train":
        sys.argv = [f"kart-rewards {name}", *options]  # the script parses them itself
        train()
        return
    import tyro

    from kart_rewards.training.options import check_given_once, flow_help

    check_given_once(options, "--rewards", "--reward-weights", "--eval-states", "--against", "--drives")
    module, function = COMMANDS[name].split(":")
    command = getattr(import_module(module), function)
    flow_help(command)
    tyro.cli(command, prog=f"kart-rewards {name}", description=_description(command), args=options)


class _Lines(str):
    """A text whose lines tyro neither joins nor moves apart."""

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return [str(self)]


def _description(command: Callable[..., Any]) -> str:
    """Returns what a command does, from its docstring, wrapped to the width of the terminal."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").partition("\n\nArgs:")[0].split("\n\n")
    width = shutil.get_terminal_size().columns
    return _Lines("\n\n".join(text if text.startswith(" ") else textwrap.fill(text, width) for text in paragraphs))


def _line_of_list(name: str) -> str:
    width = shutil.get_terminal_size().columns
    return textwrap.fill(
        f"{name:<10}{_summary(COMMANDS[name])}", width, initial_indent="  ", subsequent_indent=12 * " "
    )


def _summary(target: str) -> str:
    """Returns the first line of a function's docstring, read from the source: importing the module could take long."""
    module, function = target.split(":")
    file = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    raise AttributeError(f"{module} has no function {function}")


if __name__ == "__main__":
    main()

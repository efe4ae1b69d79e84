from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
from command_line import make_game, run

import kart_rewards.__main__ as command_line
import ppo_continuous_single_file as ppo
from kart_rewards.__main__ import COMMANDS
from kart_rewards.training.options import GamesFolder, flow_help


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """A folder with one game, 'Tiny-Snes', whose ROM is missing."""
    return make_game(tmp_path / "games" / "Tiny-Snes")


def test_help_lists_every_command_without_loading_the_emulator_or_pytorch() -> None:
    code = (
        "import sys; sys.argv = ['kart-rewards', '--help']; from kart_rewards.__main__ import main; main(); "
        "print(sorted({'stable_retro', 'torch', 'tyro', 'rich'} & set(sys.modules)))"
    )
    wide = {"COLUMNS": "140"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | wide
    )
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert list(listed) == list(COMMANDS)
    assert all(summary.endswith(".") and len(summary) < 120 for summary in listed.values())
    assert run("-h", environment=wide).stdout.splitlines() == lines


def help_of(*words: str, columns: int) -> list[str]:
    """Returns the lines of a help text in a terminal of that many columns."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "argv", ["kart-rewards", *words, "--help"])
        with contextlib.suppress(SystemExit):
            command_line.main()
    return printed.getvalue().splitlines()


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_the_terminal(name: str, columns: int) -> None:
    lines = help_of(*name.split(), columns=columns)
    assert max(map(len, lines)) <= columns
    assert not any(first == second == "" for first, second in itertools.pairwise(lines)), "one empty line is enough"


def test_a_long_summary_goes_on_below_its_beginning() -> None:
    lines = help_of(columns=80)
    at = lines.index("  ram       Prints the variables inside a start state: name, address, type and")
    assert lines[at + 1] == "            value. Needs no emulator."


def test_an_example_in_a_description_keeps_its_lines() -> None:
    shown = "\n".join(help_of("search", columns=80))
    assert "\nfrom --script or a pipe:\n\n    play 60 B\n    keep greater\n    play 300\n" in shown
    assert '\n    add 1 speed\n\n"help" lists the commands.' in shown


def test_all_commands_describe_the_folder_of_games_in_the_same_words() -> None:
    [text] = [each.help for each in get_args(GamesFolder) if hasattr(each, "help")]
    targets = [target.split(":") for name, target in COMMANDS.items() if name != "train"]
    commands = [getattr(import_module(module), function) for module, function in targets]
    having = [each for each in commands if "integrations_path" in inspect.signature(each).parameters]
    assert len(having) == 15
    for each in having:
        assert each.__annotations__["integrations_path"] == "GamesFolder"
        assert "integrations_path:" not in each.__doc__
    flow_help(ppo.EnvOptions)
    assert f"    integrations_path: {text}\n" in (ppo.EnvOptions.__doc__ or "")


@pytest.mark.parametrize(
    ("name", "usage"),
    [("import", "[-h] PATH [PATH ...] "), ("play", "[-h] [OPTIONS] [GAME]"), ("doctor", "[-h] [GAME] ")],
)
def test_usage_shows_which_arguments_are_required(name: str, usage: str) -> None:
    assert help_of(name, columns=120)[0].startswith(f"usage: kart-rewards {name} {usage}")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_begins_with_the_line_that_the_list_shows(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["kart-rewards", name, "--help"])
    with pytest.raises(SystemExit) as exited:
        command_line.main()
    shown = capsys.readouterr().out
    assert not exited.value.code
    assert shown.startswith(f"usage: kart-rewards {name} ")
    module, function = COMMANDS[name].split(":")
    summary = getattr(import_module(module), function).__doc__.splitlines()[0]
    assert summary == command_line._summary(COMMANDS[name])
    assert name == "train" or summary in shown  # the script has a help text of its own
    assert "(default: )" not in shown


def test_an_unknown_command_is_reported() -> None:
    for arguments, message in (
        (["wach"], "error: unknown command 'wach'. Did you mean 'watch'? The commands are train, evaluate, watch, "),
        (["--verbose"], "error: unknown command '--verbose'. The commands are train, evaluate, watch, "),
        ([], "error: no command is given. The commands are train, evaluate, watch, "),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(message)
        assert done.stderr.endswith("; kart-rewards --help explains them\n")


def test_an_unknown_option_is_reported() -> None:
    done = run("games", "--integrations", "games")
    assert done.returncode == 2
    assert "--integrations" in done.stderr
    assert "kart-rewards games --help" in done.stderr


@pytest.mark.parametrize("option", ["--rewards", "--reward-weights", "--eval-states"])
def test_an_option_with_several_values_is_given_once(option: str) -> None:
    done = run("evaluate", "agent.pt", option, "a", option, "b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {option} is given more than once: write all its values after one {option}")


def test_train_passes_its_arguments_to_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("ppo_continuous_single_file.main", lambda: seen.append(sys.argv))
    monkeypatch.setattr(sys, "argv", ["kart-rewards", "train", "--seed", "3", "--help"])
    command_line.main()
    assert seen == [["kart-rewards train", "--seed", "3", "--help"]]


def test_a_reader_of_the_output_may_stop_reading(games: Path, tmp_path: Path) -> None:
    (tmp_path / "dumps").mkdir()
    for i in range(800):
        (tmp_path / "dumps" / f"{i}.txt").write_text(str(i))
    command = [sys.executable, "-m", "kart_rewards", "import", str(tmp_path), "--integrations-path", str(games)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout
        assert reader.stderr
        reader.stdout.readline()
        reader.stdout.close()
        assert reader.stderr.read() == b""
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 2
        assert done.stderr == b"error: [Errno 28] No space left on device\n"


def test_ctrl_c_ends_a_command_with_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ppo_continuous_single_file.main", interrupt)
    monkeypatch.setattr(sys, "argv", ["kart-rewards", "train"])
    with pytest.raises(SystemExit) as exited:
        command_line.main()
    assert exited.value.code == 130


def test_importing_the_package_is_cheap_and_registers_the_games(tmp_path: Path) -> None:
    make_game(tmp_path / "integrations" / "Mine-Snes")
    make_game(tmp_path / "integrations" / "refused by Gymnasium!")
    code = (
        "import sys, kart_rewards, gymnasium; print('Mine-Snes' in gymnasium.registry, "
        "'HomebrewKart-Snes' in gymnasium.registry, {'stable_retro', 'torch', 'rich', 'tyro'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("True True set()\n", "")

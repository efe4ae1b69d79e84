from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from command_line import make_game, run

import kart_rewards.__main__ as command_line
from kart_rewards.__main__ import COMMANDS


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """A folder with one game, 'Tiny-Snes', whose ROM is missing."""
    return make_game(tmp_path / "games" / "Tiny-Snes")


def test_help_lists_every_command_without_loading_the_emulator_or_pytorch() -> None:
    code = (
        "import sys; sys.argv = ['kart-rewards', '--help']; from kart_rewards.__main__ import main; main(); "
        "print(sorted({'stable_retro', 'torch', 'tyro', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert list(listed) == list(COMMANDS)
    assert all(summary.endswith(".") and len(summary) < 120 for summary in listed.values())
    assert run("-h").stdout.splitlines() == lines


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

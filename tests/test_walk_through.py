"""docs/rewards.md: its files and commands work in their order, from an idea to the curves of an agent."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from conftest import load_module
from training_runs import COMMAND, SCRIPT, only_run, run_here, scalars

walk_through = load_module(Path(__file__).parent.parent / "benchmarks" / "walk_through.py")

SHORT = (
    "--total-timesteps 64 --num-envs 1 --num-steps 64 --num-minibatches 1 --update-epochs 1 --max-episode-steps 30 "
    "--eval-interval 0 --precision float32"
)


@pytest.mark.slow
def test_each_step_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kart_rewards.lab.page.page._film_of", lambda *_: b"")  # tests/test_page.py has films
    done = []
    for step in walk_through.steps():
        if step.file:
            Path(step.file).write_text(step.text)
        elif step.text.startswith("pytest"):
            walk_through.run(step.text, tmp_path)  # it would not run inside pytest
        elif step.text.startswith("tensorboard"):
            assert scalars(only_run(Path("runs")))["rewards_per_minute/gained_speed"]
        else:
            program, *options = shlex.split(step.text.removeprefix("python "))
            options += SHORT.split() if program == SCRIPT.name else []
            options += ["--output", "page.html"] if "lab" in options else []
            finished = run_here(SCRIPT if program == SCRIPT.name else COMMAND, *options, check=False)
            assert finished.returncode == step.code, finished.stdout + finished.stderr
        done.append(step.text.split(" --")[0])
    assert "kart-rewards lint HomebrewKart-Snes" in done
    assert done[-1].startswith("tensorboard")
    assert Path("recordings/lint/gas-and-brake.drive").is_file()


def test_lines_of_glue_are_those_outside_of_functions() -> None:
    source = "# a.py\nfrom b import c\n\n\n@c(1)\ndef term(ram):\n    return 1\n"
    assert walk_through.glue(source) == 2


def test_a_failed_command_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="exit code 2"):
        walk_through.run("kart-rewards score nothing", tmp_path)

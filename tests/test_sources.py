"""The files that decide a run's rewards are kept with it, and read from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_runs import (
    GAME,
    RESUME,
    SMALL,
    assert_refused,
    finish,
    only_run,
    scalars,
    started,
    train_here,
    wait_until,
)

from kart_rewards.files import copies_in_use, copy_of, use_copies
from kart_rewards.training.sources import has_own_sources, keep_sources, kept_sources, use_changed_sources

GIFT = """from kart_rewards import reward_term
from amounts import AMOUNT


@reward_term()
def gift(ram):
    return AMOUNT
"""


@pytest.fixture(autouse=True)
def no_copies() -> Iterator[None]:
    yield
    use_copies({})


@pytest.fixture
def gift(tmp_path: Path) -> Path:
    """A rewards file with a neighbour: it pays 1 per emulated frame."""
    (tmp_path / "gift.py").write_text(GIFT)
    (tmp_path / "amounts.py").write_text("AMOUNT = 1.0\n")
    return tmp_path / "gift.py"


def test_files_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    files = [tmp_path / "a" / "data.json", tmp_path / "b" / "data.json"]
    for file in files:
        file.parent.mkdir()
        file.write_text(file.parent.name)
    keep_sources(tmp_path / "run", files)
    copies = kept_sources(tmp_path / "run")
    assert [copies[file].read_text() for file in files] == ["a", "b"]


def test_a_changed_or_missing_file_is_read_from_its_copy_with_a_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("same.json", "changed.json", "gone.json")]
    for file in files:
        file.write_text("{}")
    keep_sources(tmp_path / "run", files)
    files[1].write_text('{"other": 1}')
    files[2].unlink()
    use_changed_sources(tmp_path / "run")
    assert set(copies_in_use()) == set(files[1:])
    assert copy_of(files[1]).read_text() == "{}"
    printed = capsys.readouterr().out
    assert f"{files[1]}: has changed" in printed
    assert f"{files[2]}: is missing" in printed


def test_copies_of_somebody_else_are_read_only_if_they_are_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An own agent with other copies beside it runs none of their code."""
    mine, run = tmp_path / "mine.py", tmp_path / "run"
    mine.write_text("AMOUNT = 1\n")
    keep_sources(run, [mine])
    [copy] = kept_sources(run).values()
    mine.write_text("AMOUNT = 2\n")
    copy.write_text("print('foreign')\n")
    use_changed_sources(run)
    assert copies_in_use() == {}
    assert "is not used, because you did not make it on this computer: add --trust to use it" in capsys.readouterr().out
    keep_sources(tmp_path / "for others", [mine], sign=False)
    assert not has_own_sources(tmp_path / "for others")
    assert not has_own_sources(tmp_path / "nowhere")
    use_changed_sources(run, trust=True)
    assert copies_in_use() == {mine: copy}
    copy.write_text("AMOUNT = 1\n")
    assert has_own_sources(run)


def test_an_index_that_leads_out_of_the_folder_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text("")
    folder = tmp_path / "run" / "sources"
    folder.mkdir(parents=True)
    (folder / "index.json").write_text(json.dumps({"/x.py": "../../secret.py", "/y.py": "lost.py"}))
    assert kept_sources(tmp_path / "run") == {}
    assert kept_sources(tmp_path) == {}


# pytorch/pytorch#43856, facebookresearch/mmf#355: a process that starts late imports a file as it is then, so that an
# edit changes, or breaks, a training that is at work.
def test_a_file_that_is_edited_while_training_runs_changes_no_evaluation(gift: Path, tmp_path: Path) -> None:
    """Evaluation processes start late, and would import the file as it is then."""
    arguments = ["--env-id", GAME, *SMALL, "--rewards", gift, "--total-timesteps", 128, "--max-episode-steps", 10]
    arguments += ["--eval-interval", 4, "--eval-episodes", 1, "--reward-transform", "none"]
    with started(*arguments, "--runs-path", tmp_path / "runs") as process:
        wait_until(lambda: list(tmp_path.glob("runs/*/agent.pt")), 120)
        (tmp_path / "amounts.py").write_text("AMOUNT = 1000.0\n")
        finished = finish(process)
    assert finished.returncode == 0, finished.stderr
    logged = scalars(only_run(tmp_path / "runs"))
    assert logged["rewards/gift"][0][1] == 40.0
    [(_, evaluated)] = logged["eval/Level1/median_return"]
    assert evaluated < 1000


# MrNeRF/LichtFeld-Studio#599: files that a saved training refers to were moved, and it could not go on, without a
# reason.
def test_the_copies_serve_an_agent_whose_files_are_gone(gift: Path, tmp_path: Path) -> None:
    arguments = ["--env-id", GAME, *SMALL, "--rewards", gift, "--total-timesteps", 32, "--max-episode-steps", 10]
    train_here(*arguments, "--runs-path", tmp_path / "runs")
    run = only_run(tmp_path / "runs")
    gift.unlink()
    (tmp_path / "amounts.py").write_text("AMOUNT = 7.0\n")
    finished = train_here("--evaluate", run / "agent.pt", "--eval-episodes", 1, "--eval-states", "Level1")
    assert f"{gift}: is missing: the run's copy" in finished.stdout
    report = json.loads((run / "evaluation.json").read_text())
    [episode] = [each for each in report["agents"][0]["episodes"] if each["policy"] == "agent, deterministic"]
    assert episode["reward_sums"]["gift"] == pytest.approx(episode["length_steps"] * 4)
    finished = train_here(*RESUME, run / "agent.pt", "--total-timesteps", 64, check=False)
    assert_refused(finished, "gift.py: no such file")


def test_wrappers_are_kept_too(tmp_path: Path) -> None:
    wrappers = tmp_path / "mine.py"
    wrappers.write_text("from names import NAME\ndef same(env):\n    return env\n")
    (tmp_path / "names.py").write_text("NAME = 'same'\n")
    arguments = [*SMALL, "--wrappers", f"{wrappers}:same", "--total-timesteps", 32, "--runs-path", tmp_path / "runs"]
    train_here("--env-id", GAME, *arguments)
    run = only_run(tmp_path / "runs")
    assert {wrappers, wrappers.with_name("names.py")} <= set(kept_sources(run))
    for steps in (64, 96):
        finished = train_here(*RESUME, run / "agent.pt", "--total-timesteps", steps)
        assert (f"{wrappers}: has changed since the run began" in finished.stdout) == (steps == 96)
        wrappers.write_text(wrappers.read_text() + "# edited\n")


# joblib/joblib#1621: after a change in a function that the stored one calls, the old results were still taken for
# right.
def test_resuming_compares_what_decides_the_rewards(gift: Path, tmp_path: Path, own_game: Path) -> None:
    games = tmp_path / "games"
    games.mkdir()
    shutil.move(own_game / GAME, games / GAME)
    arguments = ["--env-id", GAME, *SMALL, "--rewards", gift, "--integrations-path", games]
    train_here(*arguments, "--total-timesteps", 32, "--runs-path", tmp_path / "runs")
    agent = only_run(tmp_path / "runs") / "agent.pt"
    gift.write_text(gift.read_text() + "\n\n# a comment\n\n\ndef unrelated():\n    return 5\n")
    train_here(*RESUME, agent, "--total-timesteps", 64)
    for file, old, new, named in (
        ("amounts.py", "1.0", "2.0", "term gift"),
        ("gift.py", "return AMOUNT", "return -AMOUNT", "term gift"),
        (f"games/{GAME}/data.json", '"<s2"', '"<u2"', "variable speed"),
    ):
        changed = tmp_path / file
        text = changed.read_text()
        assert old in text
        changed.write_text(text.replace(old, new, 1))
        finished = train_here(*RESUME, agent, "--total-timesteps", 96, check=False)
        assert_refused(finished, f"  {named}: ", "--allow-changed-rewards")
        changed.write_text(text)
    assert scalars(agent.parent)

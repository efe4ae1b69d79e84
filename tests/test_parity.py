"""Parity of rewards in Python with a scenario of stable-retro."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_retro
from command_line import run

from kart_rewards import KartEnv, KartRewardsError
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.games.parity import Parity, PortScore, Scored, command, random_inputs, recorded_inputs
from kart_rewards.integrations import Game, find_game
from kart_rewards.scenario import Scoring, load_scoring

GAME = "HomebrewKart-Snes"
SCENARIO = {
    "reward": {"variables": {"speed": {"reward": 0.1, "penalty": 3}, "race_seconds": {"reward": -0.7}}},
    "done": {"variables": {"race_seconds": {"op": "greater-or-equal", "reference": 2}}},
}
PORT = """
from kart_rewards import done_rule, reward_term


@reward_term
def speed(ram, previous):
    change = ram.speed - previous.speed
    return change * (0.1 if change > 0 else 3)


@reward_term(weight=-0.7)
def race_seconds(ram, previous):
    return max(ram.race_seconds - previous.race_seconds, 0)


@done_rule
def race_over(ram):
    return ram.race_seconds >= 2
"""


@pytest.fixture
def game(own_game: Path) -> Iterator[Game]:
    """HomebrewKart with a scenario of stable-retro's own form, and ``port.py``, which pays the same."""
    folder = own_game / GAME
    (folder / "scenario.json").write_text(json.dumps(SCENARIO))
    (folder / "data.json").write_text((folder / "data.json").read_text().replace("<s2", "<i2"))
    (folder / "port.py").write_text(PORT)
    yield Game(GAME, folder)
    gc.collect()


def port(game: Game, old: str = "", new: str = "") -> Path:
    """The file with the port. A part of its text is replaced."""
    assert old in PORT
    path = game.folder / "port.py"
    path.write_text(PORT.replace(old, new))
    return path


def compared(game: Game, capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[int, str]:
    """The exit code and the output of the command."""
    code = 0
    try:
        command(GAME, game.folder / "port.py", integrations_path=game.folder.parent, **options)
    except SystemExit as end:
        code = int(str(end.code))
    return code, capsys.readouterr().out


def test_a_port_that_pays_and_ends_as_the_scenario_is_equal(game: Game, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(game, capsys, frames=1100) == (0, "1,100 frames, equal\n")


def test_terms_and_rules_that_were_never_seen_are_named(game: Game, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = compared(game, capsys, frames=60)
    assert (code, out.splitlines()[0]) == (0, "60 frames, equal")
    assert "Never seen in these frames: term speed, rule race_over. Add drives that show them: --drives" in out


def test_what_the_port_lacks_and_was_never_seen_is_named(game: Game, capsys: pytest.CaptureFixture[str]) -> None:
    port(game, "@done_rule\n", "")
    code, out = compared(game, capsys, frames=100)
    assert (code, out.splitlines()[0]) == (0, "100 frames, equal")
    assert "Never seen in these frames: rule race_seconds. Add drives" in out


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("else 3)", "else 3.001)", ["  the port pays -", "  the scenario pays -", "  terms that differ: speed"]),
        (
            ">= 2",
            ">= 1",
            ["  the port pays -0.7 (race_seconds -0.7) and ends the episode (race_over)", "  the scenario pays -0.7"],
        ),
        (
            ">= 2",
            ">= 3",
            ["  the port pays -", "  the scenario pays -0.7 (race_seconds -0.7) and ends the episode (race_seconds)"],
        ),
    ],
)
def test_the_first_difference_is_shown(
    game: Game, capsys: pytest.CaptureFixture[str], old: str, new: str, lines: list[str]
) -> None:
    port(game, old, new)
    code, out = compared(game, capsys, frames=1000)
    assert code == 1
    equal, where, *results = out.partition("\n\n")[0].splitlines()
    assert equal.endswith("equal. Then a difference:")
    assert where.startswith("Level1, seed 0, frame ")
    assert int(where.split()[-1].rstrip(":")) == int(equal.split()[0]) + 1
    assert all(line.startswith(start) for line, start in zip(results, lines, strict=True)), results
    table = [line.split() for line in out.partition("\n\n")[2].splitlines()]
    assert table[0] == ["variable", "before", "now"]
    assert {row[0] for row in table[1:3]} == {"speed", "race_seconds"}, "those that are read come first"


def test_a_type_that_stable_retro_reads_as_unsigned_is_named(game: Game, capsys: pytest.CaptureFixture[str]) -> None:
    data = game.folder / "data.json"
    data.write_text(data.read_text().replace("<i2", "<s2"))
    code, out = compared(game, capsys, frames=400)
    assert code == 1
    assert "  speed is negative: stable-retro reads the type s as unsigned; i is signed for both" in out


def test_rounding_errors_of_single_precision_are_equal_and_no_more(game: Game) -> None:
    inputs = next(random_inputs(game, ["B"], 1))

    def factor(factor: float) -> bool:
        class Scaled(PortScore):
            def __call__(self, ram: Any, buttons: frozenset[str]) -> Scored:
                scored = super().__call__(ram, buttons)
                return Scored(scored.reward * factor, scored.terms, scored.rule)

        scoring = load_scoring(None, [game.folder / "port.py"])
        return Parity(game, scoring, make_score=lambda: Scaled(scoring)).compare(inputs, 110) is None

    assert [factor(each) for each in (1, 1 + 2e-7, 1 + 1e-5)] == [True, True, False]


def test_lua_is_compared_too_and_its_faults_are_reported(game: Game, capsys: pytest.CaptureFixture[str]) -> None:
    functions = {"scripts": ["a.lua"], "reward": {"script": "lua:pay"}, "done": {"script": "lua:over"}}
    (game.folder / "scenario.json").write_text(json.dumps(functions))
    lua = game.folder / "a.lua"
    lua.write_text(
        "speed, seconds = 0, 0\nfunction over() return data.race_seconds >= 2 end\nfunction pay()\n"
        "local change, more = data.speed - speed, math.max(data.race_seconds - seconds, 0)\n"
        "speed, seconds = data.speed, data.race_seconds\n"
        "if change < 0 then change = change * 30 end\nreturn change / 10 - 0.7 * more\nend\n"
    )
    assert compared(game, capsys, frames=400) == (0, "400 frames, equal\n")
    lua.write_text(lua.read_text().replace("0.7", "0.8"))
    code, out = compared(game, capsys, frames=400)
    assert code == 1
    assert "terms that differ" not in out
    lua.write_text(lua.read_text().replace("0.8", "data"))
    with pytest.raises(KartRewardsError, match=r"a\.lua:7: attempt to perform arithmetic on global 'data'"):
        compared(game, capsys)


TIGER_HELI = '''
from kart_rewards import done_rule, reward_term


@reward_term(weight=10, name="lua")
class StableScore:
    """Pay each gain of the score as soon as the score has been the same on two frames."""

    def __init__(self):
        self.score = self.stable = 0

    def __call__(self, ram):
        gain = 0
        if ram.score == self.score:
            gain, self.stable = ram.score - self.stable, ram.score
        self.score = ram.score
        return gain


@done_rule
def lives(ram):
    """End the episode: lives equals 0."""
    return ram.lives == 0
'''


def test_the_port_of_a_stock_script_is_equal_on_a_game_with_the_same_variables(tmp_path: Path) -> None:
    """docs/lua.md has this port. Airstriker also has a score and lives, and its ROM is free."""
    (tmp_path / "tiger_heli.py").write_text(TIGER_HELI)
    scoring = load_scoring(None, [tmp_path / "tiger_heli.py"])
    scenario = Path(stable_retro.data.path()) / "stable" / "TigerHeli-Nes-v0" / "scenario.json"
    game = find_game("Airstriker-Genesis-v0")
    parity = Parity(game, scoring, scenario)
    for inputs in random_inputs(game, parity.buttons, 2):
        assert parity.compare(inputs, 1000) is None
    assert parity.fired["term", "lua"] > 3
    wrong = tmp_path / "wrong.py"
    wrong.write_text(TIGER_HELI.replace("if ram.score == self.score:", "if True:"))
    buttons = parity.buttons
    del parity
    difference = Parity(game, load_scoring(None, [wrong]), scenario).compare(
        next(random_inputs(game, buttons, 1)), 1000
    )
    assert difference
    assert (difference.declared, difference.reward, difference.differing_terms()) == (None, 0, [])


def test_recorded_drives_and_movies_are_played_as_they_were_recorded(game: Game, tmp_path: Path) -> None:
    masks = np.random.default_rng(1).integers(0, 2, (70, 12)).astype(np.uint8)
    masks[:, [2, 3]] = 0  # without a pause
    with closing(KartEnv(GAME, integrations=game.folder.parent, action_mode="all", frame_skip=1, scenario=None)) as env:
        env.recorder = recorder = DriveRecorder("player")
        env.reset(seed=1, options={"state": "Level2", "random_start_frames": 30})
        lead, movie = len(recorder._lead), stable_retro.Movie(str(tmp_path / "a.bk2"), True, 1)
        movie.configure(GAME, env.em)
        for mask in masks:
            env.step(mask)
        drive, buttons = recorder.drive(env), env.buttons
        wanted = [env.ram]
        drive.save(tmp_path / "a.drive")
        env.reset(seed=1, options={"state": "Level2"})
        movie.set_state(env.game.load_state("Level2"))
        movie.step()
        for mask in masks:
            for button, down in enumerate(mask):
                movie.set_key(button, bool(down), 0)
            movie.step()
            env.step(mask)
        movie.close()
        wanted.append(env.ram)
    assert lead > 1
    del env, movie
    gc.collect()
    seen: list[Any] = []

    class Seen(PortScore):
        def __call__(self, ram: Any, buttons: frozenset[str]) -> Scored:
            seen.append((ram, buttons))
            return super().__call__(ram, buttons)

    scoring = load_scoring(None, [game.folder / "port.py"])
    parity = Parity(game, scoring, make_score=lambda: Seen(scoring))
    text = "".join(
        f"1 {'+'.join(name for name, down in zip(buttons, mask, strict=True) if name and down)}\n" for mask in masks
    )
    (tmp_path / "a.txt").write_text(text)
    for name, ram in zip(("a.drive", "a.bk2", "a.txt"), (*wanted, None), strict=True):
        seen.clear()
        assert parity.compare(recorded_inputs(tmp_path / name, game, parity.buttons)) is None
        assert len(seen) == 71
        held = [{name for name, down in zip(buttons, mask, strict=True) if down and name} for mask in masks]
        assert [pressed for _, pressed in seen[1:]] == held
        assert ram in (None, seen[-1][0])
    other = replace(drive, info=replace(drive.info, game="Pong-Snes", fingerprints={"ROM": "0123"}))
    other.save(tmp_path / "a.drive")
    with pytest.raises(KartRewardsError, match=r"a\.drive: was recorded with another ROM than Homebrew.*: Pong-Snes's"):
        recorded_inputs(tmp_path / "a.drive", game, parity.buttons)


def test_a_file_without_buttons_or_start_is_refused(game: Game, tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"race\.csv\.gz: has no buttons: use the \.drive or \.bk2 beside it"):
        recorded_inputs(Path("race.csv.gz"), game, ["B"])


def test_random_inputs_come_from_all_start_states_and_seldom_pause(game: Game) -> None:
    buttons = ["B", None, "START", "LEFT"]
    inputs = list(random_inputs(game, buttons, 7))
    assert [each.name for each in inputs] == [f"Level{i % 5 + 1}, seed {i}" for i in range(7)]
    driver: Any = inputs[0].make_driver()
    held = [driver(None) for _ in range(5000)]
    share = {name: sum(name in each for each in held) / len(held) for name in ("B", "START", "LEFT")}
    assert 0.15 < share["B"] < 0.35
    assert 0 < share["START"] < 0.03
    assert max(len(list(group)) for _, group in itertools.groupby(held)) > 8


def test_mistakes_are_reported(game: Game, tmp_path: Path) -> None:
    (game.folder / "scenario.json").write_text("{}")
    failed = run("parity", GAME, "--rewards", game.folder / "port.py", "--integrations-path", game.folder.parent)
    assert failed.returncode == 2
    assert failed.stderr == (
        f'error: {game.folder / "scenario.json"}: has no "reward" and no "done" of stable-retro\'s to compare with\n'
    )
    with pytest.raises(KartRewardsError, match="there is nothing to compare: --frames is 0, and there are no --drives"):
        command(GAME, game.folder / "port.py", frames=0)
    with pytest.raises(KartRewardsError, match="--frames must be 0 or more, not -5"):
        command(GAME, game.folder / "port.py", frames=-5)
    (game.folder / "scenario.json").write_text(json.dumps({"reward": {"variables": {"_old": "lives", "speed": {}}}}))
    with pytest.raises(KartRewardsError, match=r"scenario\.json: stable-retro can't compute this scenario \(_old\)"):
        next(Parity(game, Scoring([], [])).compare(inputs) for inputs in random_inputs(game, [], 1))
    (game.folder / "scenario.json").write_text(json.dumps({"reward": {"variables": {"sped": {"reward": 1}}}}))
    with pytest.raises(KartRewardsError, match=r"'sped' \(.*scenario\.json\) reads 'sped', .*Did you mean 'speed'"):
        Parity(game, Scoring([], []))
    (game.folder / "scenario.json").write_text(json.dumps(SCENARIO))
    with pytest.raises(KartRewardsError, match=r"port\.py.* reads 'sped'"):
        Parity(game, load_scoring(None, [port(game, "ram.speed -", "ram.sped -")]))

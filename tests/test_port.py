"""Ports: rewards of stable-retro's scenarios as Python code."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from command_line import run
from declared_walks import STOCK, stock_games

from kart_rewards import KartRewardsError
from kart_rewards.declared import Declared, LuaValue, declared_in
from kart_rewards.games.port import command, port
from kart_rewards.imports import import_source
from kart_rewards.integrations import INTEGRATIONS, Game
from kart_rewards.ram import RamLayout, load_json
from kart_rewards.scenario import Scoring, load_scoring

HOMEBREW = INTEGRATIONS / "HomebrewKart-Snes"
SPECIAL = ["TazMania-Snes-v0", "KingOfDragons-Snes-v0", "HammerinHarry-Nes-v0", "DoubleDunk-Atari2600-v0"]
SPECIAL += ["ArdyLightfoot-Snes-v0", "Alien-Atari2600-v0", "Pong-Atari2600-v0", "CastlevaniaIIIDraculasCurse-Nes-v0"]


def ported(folder: Path, into: Path) -> tuple[Declared, Scoring, RamLayout]:
    """What a game declares, and its port, whose files are written."""
    into.mkdir(parents=True, exist_ok=True)
    for name, text in port(Game(folder.name, folder), folder / "scenario.json", folder.parent).items():
        assert max(len(line) for line in text.splitlines() if not line.startswith("GAME")) <= 140, "names may be long"
        (into / name).write_text(text)
    declared = declared_in(load_json(folder / "scenario.json"), folder / "scenario.json")
    return declared, load_scoring(None, [into / "rewards.py"]), RamLayout.from_file(folder / "data.json")


def assert_computes_the_same(declared: Declared, scoring: Scoring, layout: RamLayout) -> None:
    """Asserts that names and weights are the same, and the values for random snapshots."""
    generator = random.Random(1)
    assert [len(declared.terms), len(declared.rules)] == [len(scoring.terms), len(scoring.done)]
    frames = [random_snapshot(layout, generator) for _ in range(60)]
    pairs = [*zip(declared.terms, scoring.terms, strict=True), *zip(declared.rules, scoring.done, strict=True)]
    for script, other in pairs:
        assert other.name == script.name
        assert getattr(other, "weight", 0) == getattr(script, "weight", 0)
        takes_previous = len(other._signature.snapshots) == 2
        for before, now in itertools.pairwise(frames):
            value = other.definition(now, before) if takes_previous else other.definition(now)
            assert value == script.definition(now, before), (script.name, before, now)


def random_snapshot(layout: RamLayout, generator: random.Random) -> Any:
    values = {}
    for each in layout.variables:
        near = [value for value in (0, 1, 2, 3, 10, each.lowest, each.highest) if each.lowest <= value <= each.highest]
        values[each.name] = generator.choice(near)
    return layout.snapshot(**values)


def cases(folder: Path) -> Iterator[Any]:
    """Runs the unit tests of a port in this process. Yields the expected result of each case."""
    with mock.patch.dict(sys.modules, {"rewards": import_source(folder / "rewards.py")}):
        module: dict[str, Any] = {}
        exec((folder / "test_rewards.py").read_text(), module)  # noqa: S102
        for name, test in module.items():
            for mark in getattr(test, "pytestmark", ()) if name.startswith("test_") else ():
                assert mark.name == "parametrize"
                for row in mark.args[1]:
                    test(*row)
                    yield row[-1]


@pytest.mark.parametrize("part", range(3))
def test_ports_of_stock_games_compute_the_same_and_their_tests_pass(part: int, tmp_path: Path) -> None:
    games = [game for games in stock_games().values() for game in games]
    some = [*games[part::60], *(STOCK / name for name in SPECIAL[part::3])]
    results: list[Any] = []
    for game in some:
        scripts = load_json(game / "scenario.json").get("scripts")
        if scripts or not load_json(game / "scenario.json").keys() & {"reward", "rewards", "done"}:
            continue
        assert_computes_the_same(*ported(game, tmp_path / game.name))
        results += cases(tmp_path / game.name)
    assert results.count(True) > 10
    assert len([result for result in results if result not in (True, False)]) > 5


ALL = {
    "reward": {
        "variables": {
            "speed": {"reward": 0.5, "penalty": 2},
            "laps": {"penalty": -3},
            "max": {"reward": 7, "measurement": "absolute"},
            "surface": {"reward": -1, "op": "equal", "reference": 84},
            "checkpoint": {"reward": 1.5, "penalty": 1.5, "op": "sign"},
            "collision": {"reward": 1, "op": "sign"},
            "backward": {"reward": 1, "op": "negative-equal", "reference": 16},
            "course": {},
        },
        "time": {"reward": -0.01},
    },
    "done": {
        "variables": {"laps": {"op": "equal", "reference": 133}, "speed": {"measurement": "delta", "op": "negative"}},
        "nodes": {
            "stuck": {
                "condition": "all",
                "variables": {f"{name}": {"op": "zero"} for name in ("speed", "surface", "collision", "backward")},
                "nodes": {
                    "either": {"variables": {"kart_x": {"op": "greater-or-equal", "reference": 1000}, "kart_y": {}}},
                    "never": {},
                },
            },
        },
    },
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The folder of a game whose scenario declares everything."""
    folder = tmp_path / "games" / "Own-Snes"
    folder.mkdir(parents=True)
    data = load_json(HOMEBREW / "data.json")
    data["info"]["max"] = data["info"]["race_minutes"]
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "scenario.json").write_text(json.dumps(ALL))
    (folder / "metadata.json").write_text("{}")
    return folder


def test_each_form_of_a_declaration_is_idiomatic_python(own: Path, tmp_path: Path) -> None:
    assert_computes_the_same(*ported(own, tmp_path / "out"))
    assert len(list(cases(tmp_path / "out"))) > 20
    text = (tmp_path / "out" / "rewards.py").read_text()
    assert text.startswith('"""Reward terms and done rules of Own-Snes, ported from scenario.json.')
    for part in (
        "@reward_term\ndef speed(ram, previous):\n",
        "    value = ram.speed - previous.speed\n    return value * (0.5 if value > 0 else 2)\n",
        "@reward_term(weight=-3)\ndef laps(ram, previous):\n",
        "    return min(ram.laps - previous.laps, 0)\n",
        '@reward_term(weight=7, name="max")\ndef max_term(ram):\n    """Pay max, if it is positive."""\n',
        "    return ram.surface - previous.surface == 84\n",
        "    number = ram.checkpoint - previous.checkpoint\n    return (number > 0) - (number < 0)\n",
        "    return ram.backward - previous.backward == -16\n",
        "@reward_term(weight=-0.01)\ndef time(ram):\n",
        '@done_rule(name="laps")\ndef laps_rule(ram):\n    """End the episode: laps equals 133."""\n',
        "    return ram.laps == 133\n",
        "    return ram.speed < previous.speed\n",
        "    return (\n        ram.speed == 0\n        and ram.surface == 0\n",
        "        and (ram.kart_x >= 1000 or ram.kart_y > 0)\n        and False\n    )\n",
    ):
        assert part in text, part


def test_the_tests_of_a_port_run_with_pytest_and_fail_if_the_port_is_changed(own: Path, tmp_path: Path) -> None:
    ported(own, tmp_path / "out")
    pytest_there = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "out")]
    passed = subprocess.run(pytest_there, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert " passed" in passed.stdout
    rewards = tmp_path / "out" / "rewards.py"
    rewards.write_text(rewards.read_text().replace("ram.laps == 133", "ram.laps == 132"))
    failed = subprocess.run(pytest_there, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "test_rewards.py::test_laps_rule[" in failed.stdout


def test_lua_gets_a_class_that_fails_until_it_is_written(own: Path, tmp_path: Path) -> None:
    (own / "a.lua").write_text("function digit(value) return value end\n\nfunction pay() return data.speed end\n")
    (own / "b.lua").write_text("function over() return data.laps > 132 end\n")
    content = {"scripts": ["a.lua", "b.lua"], "reward": {"script": "lua:pay"}, "done": {"script": "over"}}
    (own / "scenario.json").write_text(json.dumps(content))
    declared, scoring, layout = ported(own, tmp_path / "out")
    assert all(isinstance(script.declaration, LuaValue) for script in (*declared.terms, *declared.rules))
    [term], [rule] = scoring.terms, scoring.done
    assert (term.name, rule.name) == ("lua", "lua")
    assert term.definition is rule.definition
    text = (tmp_path / "out" / "rewards.py").read_text()
    for line in (
        "#   a.lua, line 1: digit()",
        "#   a.lua, line 3: pay() reads speed",
        "#   b.lua, line 1: over() reads laps",
    ):
        assert f"\n{line}\n" in text
    with pytest.raises(NotImplementedError, match=r"over\(\) and pay\(\) of Lua: not yet written in Python"):
        term.definition()(layout.snapshot(), layout.snapshot())
    tests = (tmp_path / "out" / "test_rewards.py").read_text()
    assert '@pytest.mark.skip(reason="over() and pay() of Lua: not yet written in Python")\ndef test_lua():\n' in tests
    (own / "scenario.json").write_text(json.dumps(content | {"done": {"variables": {"laps": {"op": "zero"}}}}))
    _, scoring, _ = ported(own, tmp_path / "mixed")
    assert ([term.name for term in scoring.terms], [rule.name for rule in scoring.done]) == (["lua"], ["laps"])


def test_the_command_writes_both_files_and_replaces_none(own: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "new" / "folder"
    command("Own-Snes", output=out, integrations_path=own.parent)
    assert sorted(file.name for file in out.iterdir()) == ["rewards.py", "test_rewards.py"]
    printed = capsys.readouterr().out
    assert f"kart-rewards parity Own-Snes --rewards {out / 'rewards.py'} --integrations-path {own.parent}" in printed
    (out / "test_rewards.py").unlink()
    before = (out / "rewards.py").stat().st_mtime_ns
    failed = run("port", "Own-Snes", "--output", out, "--integrations-path", own.parent)
    assert (failed.returncode, failed.stderr) == (
        2,
        f"error: {out / 'rewards.py'}: exists already, and was not changed: name another folder with --output\n",
    )
    assert [file.name for file in out.iterdir()] == ["rewards.py"]
    assert (out / "rewards.py").stat().st_mtime_ns == before
    (own / "scenario.json").write_text("{}")
    with pytest.raises(KartRewardsError, match=r'scenario\.json: has no "reward" and no "done" of stable-retro.s to'):
        command("Own-Snes", output=tmp_path / "other", integrations_path=own.parent)

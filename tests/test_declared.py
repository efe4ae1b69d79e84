"""Declared rewards pay and end as in stable-retro. ``declared_walks.py`` compares all of its games in the same way."""

from __future__ import annotations

import copy
import json
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import declared_walks
import pytest
from declared_walks import STOCK, compare, console_of, saturn_environment, started, stock_games

from kart_rewards import KartEnv
from kart_rewards.declared import Declared, Measure, Node, Pay, declared_in
from kart_rewards.done import EpisodeDone
from kart_rewards.errors import KartRewardsError
from kart_rewards.ram import RamLayout, Variable, load_json
from kart_rewards.rewards import EpisodeRewards
from kart_rewards.scenario import Scoring

NODES = ["CastlevaniaIIIDraculasCurse-Nes-v0", "GhostsnGoblins-Nes-v0", "HammerinHarry-Nes-v0"]
NODES += ["DoubleDunk-Atari2600-v0", "RoadRunner-Atari2600-v0", "TazMania-Snes-v0", "ForemanForReal-Genesis-v0"]
ODD = ["ArdyLightfoot-Snes-v0", "BattleMasterKyuukyokuNoSenshiTachi-Snes-v0", "KingOfDragons-Snes-v0"]
MASKS = ["Alien-Atari2600-v0", "Amidar-Atari2600-v0", "CoolSpot-Genesis-v0"]
PLAYERS = ["Pong-Atari2600-v0", "FishingDerby-Atari2600-v0", "Adventure-Atari2600-v0"]
LUA_GAMES = {"Atari2600": 4, "Genesis": 6, "Nes": 22, "Sms": 4, "Snes": 6}
OPERATIONS = ["equal", "negative-equal", "not-equal", "less-than", "greater-than", "less-or-equal", "greater-or-equal"]
OPERATIONS += ["zero", "nonzero", "positive", "negative", "sign"]


def sample(console: str) -> list[Path]:
    """Every thirtieth game, and those with something rare."""
    games = stock_games()[console]
    return [*games[::30], *(game for game in games if game.name in {*NODES, *ODD, *MASKS, *PLAYERS})]


# All games, for thousands of frames each: python tests/declared_walks.py
@pytest.mark.parametrize(
    "console",
    [
        *("32x", "Arcade", "Atari2600", "GameBoy", "Genesis", "Nes", "Sms", "Snes"),
        pytest.param("N64", marks=pytest.mark.slow),
    ],
)
def test_games_of_a_console_pay_and_end_as_in_stable_retro(console: str, tmp_path: Path) -> None:
    em = started(console, tmp_path)
    for game in sample(console):
        found = compare(em, game, 12 if console in ("N64", "Arcade") else 90)
        assert found.differences == [], game.name


@pytest.mark.parametrize("console", ["Atari2600", "Genesis", "Nes", "Sms", "Snes"])
def test_all_lua_functions_of_stable_retro_pay_and_end_as_without_this_project(console: str, tmp_path: Path) -> None:
    em = started(console, tmp_path)
    games = [game for game in stock_games()[console] if load_json(game / "scenario.json").get("scripts")]
    assert len(games) == LUA_GAMES[console]
    for game in games:
        found = compare(em, game, 100)
        assert found.lua
        assert found.differences == found.unreached == [], game.name


def test_a_game_of_the_saturn_pays_and_ends_as_in_stable_retro(tmp_path: Path) -> None:
    """Its core needs a BIOS, for which stable-retro looks in the folder of the cores."""
    command = [sys.executable, declared_walks.__file__, "Saturn", "--frames", "40"]
    row = subprocess.run(command, env=saturn_environment(tmp_path), check=True, capture_output=True, text=True).stdout
    assert row.splitlines()[1].split() == ["Saturn", "1", "40", "0", "0", "0", "0"]


def random_game(folder: Path, generator: random.Random, start: int) -> Path:
    """Writes the JSON files of a game that uses everything, also what no stock game uses."""
    types = [f"{order}{kind}{width}" for order in ("<", ">", "><", "=") for kind in "uidn" for width in (1, 2, 3, 4, 8)]
    names = ["score ", " lives", "continue", "Größe", "time", "top speed", "x"]
    info: dict[str, Any] = {}
    for i, name in enumerate(names):
        info[name] = {"address": start + 16 * i + generator.randrange(2), "type": generator.choice(types)}
        if generator.random() < 0.4:
            info[name]["mask"] = generator.choice((1, 15, -113, 2**64 - 2, 0x81, -2)) | 1

    def reference() -> int:
        return generator.choice((0, 1, -1, 3, 15, 127, -128, 255, 32767, 2**31, 2**63 - 1, -(2**63)))

    def entry(*keys: str) -> dict[str, Any]:
        content: dict[str, Any] = {key: generator.choice((0, 1, -1, 0.1, 2.5, -1000)) for key in keys}
        if generator.random() < 0.6:
            content |= {"op": generator.choice(OPERATIONS), "reference": reference()}
        if generator.random() < 0.5:
            content["measurement"] = generator.choice(("absolute", "delta"))
        return content

    def reward() -> dict[str, Any]:
        block: dict[str, Any] = {}
        if generator.random() < 0.9:
            chosen = generator.sample(names, generator.randint(0, 4))
            block["variables"] = {name: entry(*generator.choice(FACTORS)) for name in chosen}
        if generator.random() < 0.4:
            block["time"] = entry("reward", "penalty")
        return block

    def node(depth: int) -> dict[str, Any]:
        content: dict[str, Any] = {}
        if generator.random() < 0.7:
            content["condition"] = generator.choice(("any", "all"))
        if generator.random() < 0.9:
            content["variables"] = {name: entry() for name in generator.sample(names, generator.randint(0, 3))}
        if depth and generator.random() < 0.7:
            content["nodes"] = {name: node(depth - 1) for name in generator.sample(["a", "b", "x", "2nd"], 2)}
        return content

    scenario: dict[str, Any] = {"_comment": "random"}
    if generator.random() < 0.8:
        scenario["reward"] = reward()
    if generator.random() < 0.3:
        scenario["rewards"] = [reward() for _ in range(generator.randint(0, 2))]
    if generator.random() < 0.9:
        scenario["done"] = node(2)
    folder.mkdir()
    (folder / "data.json").write_text(json.dumps({"info": info}))
    (folder / "scenario.json").write_text(json.dumps(scenario))
    return folder


FACTORS = [("reward",), ("penalty",), ("reward", "penalty"), ("reward", "penalty"), ()]


@pytest.mark.parametrize(("console", "start"), [("Genesis", 0xFF0000), ("Snes", 0x7E0000)])
def test_random_scenarios_pay_and_end_as_in_stable_retro(console: str, start: int, tmp_path: Path) -> None:
    em, generator, ended, paid = started(console, tmp_path), random.Random(4), 0, 0
    for i in range(60):
        game = random_game(tmp_path / str(i), generator, start)
        found = compare(em, game, 60)
        assert found.differences == [], (game / "scenario.json").read_text()
        declared = declared_in(load_json(game / "scenario.json"), game / "scenario.json")
        ended += bool(declared.rules)
        paid += bool(declared.terms)
    assert min(ended, paid) > 35


@pytest.mark.parametrize("fault", ["penalty", "delta", "any", "op", "mask"])
def test_the_comparison_finds_a_fault(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is put into our code. A walk over a game that uses this part of it must see it."""
    games = {"any": "TazMania-Snes-v0", "op": "TazMania-Snes-v0", "mask": "Alien-Atari2600-v0"}
    game = STOCK / games.get(fault, "CastlevaniaBloodlines-Genesis-v0")
    if fault == "penalty":
        monkeypatch.setattr(Pay, "__call__", lambda self, ram, before: max(self.measure(ram, before), 0))
    elif fault == "delta":
        monkeypatch.setattr(Measure, "__call__", lambda self, ram, before: getattr(ram, self.variable))
    elif fault == "any":
        monkeypatch.setattr(
            Node, "__call__", lambda self, ram, before: all(part(ram, before) > 0 for part in self.parts)
        )
    elif fault == "op":
        monkeypatch.setattr(Measure, "__call__", lambda self, ram, before: getattr(ram, self.variable) == 1)
    else:
        monkeypatch.setattr(Variable, "core_mask", -1)
    em = started(console_of(game), tmp_path)
    assert compare(em, game, 60).differences


def declare(**content: Any) -> Declared:
    return declared_in(content, Path("scenario.json"))


def paid(declared: Declared, *frames: dict[str, int]) -> list[dict[str, float]]:
    """What the terms pay on each frame."""
    ram = RamLayout([Variable(name, i, "|u1") for i, name in enumerate(frames[0])]).snapshot_class
    rewards, steps = EpisodeRewards(list(declared.terms)), []
    for frame in frames:
        rewards.start_step()
        rewards(ram(**frame))
        steps.append({name: value for name, value in rewards.step.items() if value})
    return steps


@pytest.mark.parametrize(
    ("entry", "weight", "value", "text"),
    [
        ({"reward": 2}, 2, (3, 0), "the change of score, if it is positive"),
        ({"penalty": 2}, 2, (0, -3), "the change of score, if it is negative"),
        ({"penalty": -1}, -1, (0, -3), "the change of score, if it is negative"),
        ({"reward": 2, "penalty": 2}, 2, (3, -3), "the change of score"),
        ({"reward": 2, "penalty": 5}, 1, (6, -15), "the change of score, × 2 if it is positive, × 5 if it is negative"),
        ({}, 0, (3, -3), "the change of score"),
        ({"reward": 4, "op": "sign"}, 4, (1, 0), "the sign of the change of score, if it is positive"),
        (
            {"reward": 4, "op": "equal", "reference": 3},
            4,
            (1, 0),
            "1 on each frame on which the change of score equals 3",
        ),
        ({"reward": 4, "op": "negative"}, 4, (0, 1), "1 on each frame on which the change of score is negative"),
        ({"reward": 4, "measurement": "absolute"}, 4, (8, 5), "score, if it is positive"),
    ],
)
def test_a_rewarded_variable_is_a_term_with_the_declared_weight(
    entry: Any, weight: float, value: tuple[float, float], text: str
) -> None:
    [term] = declare(reward={"variables": {"score": entry}}).terms
    ram = RamLayout([Variable("score", 0, "|u1")]).snapshot_class
    assert (term.name, term.weight, term.summary) == ("score", weight, text)
    assert (term.definition(ram(8), ram(5)), term.definition(ram(5), ram(8))) == value
    assert term.reads() == {"score"}


def test_time_is_paid_on_each_frame() -> None:
    declared = declare(reward={"time": {"reward": -0.5}, "variables": {"score": {"reward": 1}}})
    assert paid(declared, {"score": 0}, {"score": 4}) == [{"time": -0.5}, {"time": -0.5, "score": 4}]
    names = [term.name for term in declare(reward={"time": {"reward": 1}, "variables": {"time": {"reward": 1}}}).terms]
    assert names == ["time", "time_per_frame"]


def test_the_first_players_rewards_add_to_those_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    players = [{"variables": {"a": {"reward": 3}, "b": {"reward": 5}}}, {"variables": {"c": {"reward": 1}}}]
    declared = declare(reward={"variables": {"a": {"reward": 1}}}, rewards=players)
    assert {term.name: term.weight for term in declared.terms} == {"a": 1, "b": 5}
    assert '"rewards" are for 2 players: those of the first player are used' in capsys.readouterr().out


def test_rules_have_the_names_of_variables_and_nodes() -> None:
    zero, node = {"op": "zero"}, {"condition": "all", "variables": {"lives": {"op": "zero"}, "time ": {}}}
    nodes = {"lives": node, "2nd chance": {"nodes": {"inner": node}}}
    done: dict[str, Any] = {"variables": {"lives": zero, "continue": {"op": "equal", "reference": -1}}, "nodes": nodes}
    assert [(rule.name, rule.summary) for rule in declare(done=done).rules] == [
        ("lives", "lives is 0"),
        ("continue_", "continue_ equals -1"),
        ("lives_node", "lives is 0 and time is positive"),
        ("node_2nd_chance", "(lives is 0 and time is positive)"),
    ]
    [rule] = declare(done=done | {"condition": "all"}).rules
    assert rule.name == "lives_and_continue__and_lives_node_and_node_2nd_chance"
    assert rule.reads() == {"lives", "continue_", "time"}
    assert declare(done={}).rules == declare().rules == ()


def test_an_empty_condition_of_all_ends_at_once_as_in_stable_retro() -> None:
    [rule] = declare(done={"condition": "all"}).rules
    assert (rule.name, rule.summary, rule.definition(None, None)) == ("done", "always", True)


def test_a_lua_function_replaces_what_is_declared_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.lua").write_text("\nfunction pay() return 3 end")
    reward = {"script": "lua:pay", "variables": {"score": {"reward": 1}}}
    done = {"script": "over", "variables": {"lives": {"op": "zero"}}}
    path = tmp_path / "scenario.json"
    declared = declared_in({"scripts": ["a.lua"], "reward": reward, "done": done}, path)
    where = f"{tmp_path / 'a.lua'}:2"
    assert [(term.name, term.weight, term.where) for term in declared.terms] == [("lua", 1, where)]
    assert [(rule.name, rule.where) for rule in declared.rules] == [("lua", str(path))]
    assert declared.terms[0].summary == f"the Lua function pay, {where}"
    only_reward = declared_in({"scripts": ["a.lua"], "reward": reward, "done": {"variables": done["variables"]}}, path)
    assert [rule.name for rule in only_reward.rules] == ["lives"]


def test_a_type_that_stable_retro_does_not_know_is_signed_here(tmp_path: Path) -> None:
    """stable-retro reads -5 typed <s2 as 65531, and would pay for it. The types of ram.py say that s is signed."""
    (tmp_path / "data.json").write_text(json.dumps({"info": {"speed": {"address": 0x7E0000, "type": "<s2"}}}))
    absolute = {"variables": {"speed": {"reward": 1, "measurement": "absolute"}}}
    (tmp_path / "scenario.json").write_text(json.dumps({"reward": absolute}))
    found = compare(started("Snes", tmp_path), tmp_path, 60)
    assert found.differences
    assert any("RamSnapshot(speed=-" in text for text in found.differences)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"reward": []}, r'"reward" must be an object \{…\}, not \[\]'),
        ({"reward": {"variable": {}}}, r"unknown key 'variable'\. Did you mean 'variables'\?"),
        ({"reward": {"variables": {"a": 3}}}, r"\"reward\": 'a' must be an object \{…\}, not 3"),
        (
            {"reward": {"variables": {"a": {"rewrad": 1}}}},
            r"variable 'a': unknown key 'rewrad'\. Did you mean 'reward'\?",
        ),
        ({"reward": {"variables": {"a": {"reward": "1"}}}}, "\"reward\" must be a number, not '1'"),
        ({"reward": {"variables": {"a": {"penalty": True}}}}, '"penalty" must be a number, not True'),
        ({"reward": {"variables": {"a": {"op": "equals"}}}}, r"not 'equals'\. Did you mean 'equal'\?"),
        ({"reward": {"variables": {"a": {"op": ""}}}}, "\"op\" is one of equal, .*, not ''"),
        ({"reward": {"variables": {"a": {"op": None}}}}, '"op" is one of equal, .*, not None'),
        ({"reward": {"variables": {"a": {"measurement": "Delta"}}}}, "one of absolute, delta, not 'Delta'"),
        ({"reward": {"variables": {"a": {"op": "equal", "reference": 1.5}}}}, '"reference" must be an integer of 64'),
        ({"reward": {"variables": {"a": {"op": "equal", "reference": 2**63}}}}, '"reference" must be an integer of 64'),
        ({"reward": {"variables": {"2nd": {}}}}, "variable '2nd': no variable can have this name"),
        ({"reward": {"variables": {"a": {}, "a ": {}}}}, "'a' and 'a ' are one variable here, 'a': rename one"),
        ({"reward": {"time": 1}}, '"time" must be an object'),
        ({"reward": {"time": {"rewards": 1}}}, r"unknown key 'rewards'\. Did you mean 'reward'\?"),
        ({"reward": {"script": 3}}, '"script" must be the name of a function of Lua, such as "lua:reward", not 3'),
        ({"reward": {"script": "python:pay"}}, '"script" must be the name of a function of Lua'),
        ({"done": {"script": "lua:"}}, '"done": "script" must be the name of a function of Lua.*, not \'lua:\''),
        ({"reward": {"script": "pay"}}, r'"scripts" must be the list of the Lua files that define .pay., .*, not None'),
        ({"reward": {"script": "a"}, "scripts": ["a.py"]}, r'"scripts" must be the list of the Lua files'),
        ({"rewards": {}}, '"rewards" must be a list with one object for each player'),
        ({"rewards": [3]}, '"rewards", player 1 must be an object'),
        ({"done": {"variables": {"a": {"reward": 1}}}}, "variable 'a': unknown key 'reward'"),
        ({"done": {"condition": "All"}}, "\"condition\" is one of any, all, not 'All'"),
        ({"done": {"nodes": {"n": {"nodes": {"m": {"script": "x"}}}}}}, "node 'n': node 'm': unknown key 'script'"),
        ({"crop": "all"}, r""""crop" must be \[x, y, width, height\] in pixels, not 'all'"""),
        ({"crop": [0, 16, -1, 8]}, r'"crop" must be \[x, y, width, height\] in pixels, not \[0, 16, -1, 8\]'),
        ({"crops": [[0, 0, 9, 9]]}, '"crops" does not work in stable-retro: write "crop"'),
        ({"actions": [["B"]]}, r"\"actions\" must be a list of groups of combinations of buttons, .* not \[\['B'\]\]"),
        ({"actions": {"B": []}}, '"actions" must be a list of groups of combinations of buttons'),
        ({"actions": [[], [["B"]]]}, '"actions" must be a list of groups of combinations of buttons'),
        ({"actions": [[[1]]]}, '"actions" must be a list of groups of combinations of buttons'),
    ],
)
def test_a_mistake_in_a_declaration_is_reported(content: Any, message: str) -> None:
    with pytest.raises(KartRewardsError, match=message) as error:
        declare(**content)
    assert str(error.value).startswith("scenario.json: ")


def test_comments_pass_and_what_has_no_effect_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = {"_why": 1, "variables": {"_old": "lives", "a": {"reward": 1, "comment": "x"}}}
    assert [term.name for term in declare(reward=quiet, done={"//": 0, "variables": {}}).terms] == ["a"]
    assert capsys.readouterr().out == ""
    for _ in range(2):
        declare(reward={"variables": {"b": {"reward": 1, "reference": 2}}, "time": {"penalty": 3}})
    out = capsys.readouterr().out
    assert out.count("variable 'b': \"reference\" has no effect without an op") == 1
    assert out.count('"time": "penalty" has no effect here: write a negative "reward"') == 1


def test_declared_scripts_have_no_memory_and_a_fingerprint_of_their_declaration() -> None:
    def scoring(op: str, path: str = "scenario.json") -> Scoring:
        content = {"reward": {"variables": {"a": {"op": op, "reference": 3, "reward": 1}}}}
        declared = declared_in(content | {"done": {"variables": {"b": {"op": op, "reference": 3}}}}, Path(path))
        return Scoring(list(declared.terms), list(declared.rules))

    layout = RamLayout([Variable("a", 0, "|u1"), Variable("b", 1, "|u1"), Variable("c", 2, "|u1")])
    prints = scoring("equal").fingerprints(layout)
    assert prints.keys() == {"term a", "rule b", "variable a", "variable b"}
    assert scoring("equal", "elsewhere/scenario.json").fingerprints(layout) == prints
    assert scoring("not-equal").fingerprints(layout) != prints
    copied = pickle.loads(pickle.dumps(scoring("equal")))  # noqa: S301 - pickled on this line
    assert copied.fingerprints(layout) == prints
    assert copied.terms[0].where == "scenario.json"
    rewards, done = EpisodeRewards(copied.terms), EpisodeDone(copy.deepcopy(copied.done))
    ram = layout.snapshot_class
    assert [rewards(ram(3, 3, 0)), done(ram(3, 3, 0))] == [0, done.calls.scripts[0]]
    assert rewards(ram(6, 3, 0)) == 1
    assert rewards.get_state()["calls"]["memories"] == {}
    with pytest.raises(KartRewardsError, match=r"'a' \(scenario\.json\) reads 'a', which data\.json does not define"):
        copied.check(RamLayout([Variable("aa", 0, "|u1")]))


def test_a_declared_script_that_reads_an_array_is_refused() -> None:
    """stable-retro would read its first element."""
    rules = declared_in({"done": {"variables": {"a": {"op": "zero"}}}}, Path("scenario.json")).rules
    with pytest.raises(
        KartRewardsError, match=r"^scenario\.json: 'a' reads 'a', which is an array: write a term or rule"
    ):
        Scoring([], list(rules)).check(RamLayout([Variable("a", 0, "|u1", count=3)]))
    Scoring([], list(rules)).check(RamLayout([Variable("p", 0, "|u1"), Variable("a", 0, "|u1", pointer="p")]))


@pytest.fixture
def declared_game(own_game: Path) -> Iterator[KartEnv]:
    """HomebrewKart with nothing but a scenario of stable-retro's own form."""
    content = {
        "reward": {"variables": {"speed": {"reward": 0.5, "penalty": 1}}, "time": {"reward": -1}},
        "done": {"variables": {"race_seconds": {"op": "greater-or-equal", "reference": 2}}},
    }
    (own_game / "HomebrewKart-Snes" / "scenario.json").write_text(json.dumps(content))
    env = KartEnv("HomebrewKart-Snes", integrations=own_game, reward_transform="none", frame_skip=1)
    yield env
    env.close()


def test_an_environment_is_scored_by_what_its_scenario_declares(declared_game: KartEnv) -> None:
    env = declared_game
    env.reset(seed=1)
    speed, terminated, frames = env.ram.speed, False, 0
    while not terminated:
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        change, speed = env.ram.speed - speed, env.ram.speed
        expected = {"speed": change * (0.5 if change > 0 else 1), "time": -1}
        assert info["reward_terms"] == expected
        assert reward == sum(expected.values())
        frames += 1
    assert env.ram.race_seconds == 2
    assert frames > 100

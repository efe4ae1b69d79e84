"""Scenarios whose reward or done rule is Lua: the text of the scripts, and stable-retro's engine that runs them."""

from __future__ import annotations

import gc
import gzip
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_retro
from command_line import sha1
from conftest import emulator
from console_roms import PROGRAMS
from training_runs import ROOT, SMALL, train_here

from kart_rewards import KartEnv, KartRewardsError, ScriptRewards, done_rule, reward_term
from kart_rewards.declared import declared_in, scripts_of
from kart_rewards.drivers import WallHugger
from kart_rewards.env.lua import LuaEngine, with_values
from kart_rewards.env.panel import Panel
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.files import use_copies
from kart_rewards.integrations import INTEGRATIONS, find_game
from kart_rewards.lua import LuaFile
from kart_rewards.ram import RamLayout, load_json
from kart_rewards.scenario import load_scoring
from kart_rewards.testing import load_trace, score, score_episode
from kart_rewards.training.episodes import TrainingEpisodes
from kart_rewards.training.sources import RunRewards

NAME = "Karts-Snes"
FUNCTIONS = {"reward": {"script": "lua:reference_reward"}, "done": {"script": "lua:reference_done"}}


@pytest.fixture
def games(tmp_path: Path) -> Iterator[Path]:
    """A folder with one game in stable-retro's own form: HomebrewKart, with the reference rules in Lua."""
    game = tmp_path / NAME
    game.mkdir()
    for name in ("rom.sfc", "rom.sha", "metadata.json", "Level1.state"):
        shutil.copy(INTEGRATIONS / "HomebrewKart-Snes" / name, game)
    variables = load_json(INTEGRATIONS / "HomebrewKart-Snes" / "data.json")["info"]
    (game / "data.json").write_text(json.dumps({"info": variables}))
    shutil.copy(ROOT / "tests" / "reference" / "reference.lua", game / "script.lua")
    actions = [[[], ["B"]], [[], ["LEFT"], ["RIGHT"]]]
    (game / "scenario.json").write_text(json.dumps({"scripts": ["script.lua"], "actions": actions, **FUNCTIONS}))
    yield tmp_path
    gc.collect()  # stable-retro's own environments end only now


def make(games: Path, **options: Any) -> KartEnv:
    own: dict[str, Any] = {"frame_skip": 1, "action_mode": "all", "reward_transform": "none"}
    return KartEnv(NAME, integrations=games, **own | options)


def pressed(frames: int) -> list[np.ndarray]:
    """A drive into a wall: the buttons of each frame."""
    masks = np.zeros((frames, 12), np.uint8)
    masks[:, 0] = 1  # B, the throttle
    masks[100:160, 7] = 1  # RIGHT
    return list(masks)


def of_stable_retro(games: Path, masks: list[np.ndarray]) -> list[tuple[float, bool]]:
    """Reward and end of each frame, by stable-retro alone."""
    folder = games / NAME
    with emulator(folder / "rom.sfc", folder) as (em, data):
        em.set_state(find_game(NAME, games).load_state("Level1"))
        em.set_button_mask(np.zeros(12, np.uint8), 0)
        em.step()
        data.reset()
        data.update_ram()
        frames = []
        for mask in masks:
            em.set_button_mask(mask, 0)
            em.step()
            data.update_ram()
            frames.append((data.current_reward(), data.is_done()))
    return frames


def test_a_folder_with_lua_scores_as_in_stable_retro_in_each_episode(games: Path) -> None:
    driver, masks, paid, terminated = WallHugger("RIGHT"), [], [], False
    with closing(make(games, reward_weights={"lua": 2})) as env:
        env.reset(seed=1)
        while not terminated:
            held = driver(env.ram)
            masks.append(np.array([name in held for name in env.buttons], np.uint8))
            _, reward, terminated, _, info = env.step(masks[-1])
            assert info["reward_terms"] == {"lua": reward}
            paid.append((reward / 2, terminated))
        assert info["done_rule"] == "lua"
        assert (env.ram.lua_reward, env.ram.lua_done) == paid[-1]
        assert "reference_reward" in env.scoring.table()
        env.reset(seed=1)  # the scripts begin anew
        assert [tuple(env.step(mask)[1:3]) for mask in masks] == [(2 * reward, over) for reward, over in paid]
    del env
    assert of_stable_retro(games, masks) == paid
    assert {reward for reward, _ in paid} >= {0, 300, -10}


def test_lua_stands_beside_terms_and_rules_in_python(games: Path) -> None:
    @reward_term(weight=0.5)
    def faster(ram: Any, previous: Any) -> bool:
        return bool(ram.speed > previous.speed)

    @done_rule()
    def fast(ram: Any) -> bool:
        return bool(ram.speed > 100)

    with closing(make(games, rewards=[faster, fast], reward_transform="sign", frame_skip=2)) as env:
        env.reset(seed=1)
        terminated = False
        while not terminated:
            _, reward, terminated, _, info = env.step(pressed(1)[0])
            assert abs(reward) <= 2
        sums, counts = info["episode_rewards"]["sum"], info["episode_rewards"]["count"]
    assert sums.keys() == {"lua", "faster"}
    assert sums["faster"] == counts["faster"] / 2 > 0
    assert info["done_rule"] == "fast"


def test_a_python_term_of_the_name_replaces_the_lua_term_but_not_the_rule(games: Path) -> None:
    @reward_term(name="lua", weight=7)
    def mine(ram: Any) -> int:
        return 1

    scoring = load_scoring(games / NAME / "scenario.json", [mine])
    assert [(term.name, term.weight) for term in scoring.terms] == [("lua", 7)]
    assert scripts_of(scoring.terms) is None
    assert scripts_of(scoring.done) is not None


def test_the_functions_of_a_file_are_found_with_line_and_variables() -> None:
    text = """
-- function old() return data.gone end
--[[ function older() end ]]
local function lap() return data.laps - 128 end
text = "function in_text() end"
function outer(x)
  for i = 1, 3 do if x then repeat x = data["odd name"] until true end end
  return function() return data.speed end
end
short = function () return data.n, data.laps end function last() end"""
    found = LuaFile(Path("a.lua"), text.encode()).functions
    assert [(each.name, each.line, each.reads) for each in found] == [
        ("lap", 4, ("laps",)),
        ("outer", 6, ("odd name", "speed")),
        ("short", 10, ("n", "laps")),
        ("last", 10, ()),
    ]


def test_the_code_of_the_scripts_and_what_they_may_read_decide_the_fingerprint(games: Path) -> None:
    path, script = games / NAME / "scenario.json", games / NAME / "script.lua"
    layout = RamLayout.from_file(games / NAME / "data.json")
    before = load_scoring(path).fingerprints(layout)
    assert {"term lua", "rule lua", "variable speed", "variable laps"} <= before.keys()
    assert "variable kart_x" not in before
    text = script.read_text()
    script.write_text(f"-- a comment\n\n{text}  ")
    assert load_scoring(path).fingerprints(layout) == before
    script.write_text(text.replace("-10 * wall", "-11 * wall"))
    assert load_scoring(path).fingerprints(layout)["term lua"] != before["term lua"]
    script.write_text(f"{text} offset = data[0x7e0088]")
    assert "variable kart_x" in load_scoring(path).fingerprints(layout)


def test_a_run_keeps_the_text_of_its_lua_files(games: Path, tmp_path: Path) -> None:
    rewards = RunRewards.load(find_game(NAME, games), "scenario", "data", (), {})
    script = (games / NAME / "script.lua").resolve()
    assert script in rewards.files
    copy = tmp_path / "copy.lua"
    copy.write_text("function reference_reward() end function reference_done() end")
    use_copies({script: copy})
    try:
        [term] = load_scoring(games / NAME / "scenario.json").terms
        assert term.where == f"{games / NAME / 'script.lua'}:1"
    finally:
        use_copies({})


def test_a_recording_has_the_values_of_lua_and_another_trace_is_refused(games: Path, tmp_path: Path) -> None:
    scoring = load_scoring(games / NAME / "scenario.json")
    with closing(make(games)) as env:
        env.recorder = recorder = DriveRecorder("player")
        env.reset(seed=1)
        for mask in pressed(200):
            *_, info = env.step(mask)
        recorder.drive(env).save(tmp_path / "a.drive")
    drive, paid = load_trace(tmp_path / "a.drive"), info["episode_rewards"]["sum"]
    assert {ram.lua_reward for ram in drive} > {0, 300}
    assert score(drive, scoring.terms) == paid
    assert score_episode(drive, [*scoring.terms, *scoring.done]) == (paid, None)
    with pytest.raises(KartRewardsError, match=r"no lua_reward.*leave the term and the rule 'lua' out, or use a drive"):
        score(load_trace("race"), scoring.terms)


def test_lua_reads_the_memory_of_a_console_that_moves_it(tmp_path: Path) -> None:
    """Atari's core has its RAM at another place after each reset."""
    program, folder = PROGRAMS["Atari2600"](), tmp_path / "Game-Atari2600"
    folder.mkdir()
    (folder / program.file).write_bytes(program.rom)
    (folder / "rom.sha").write_text(sha1(program.rom))
    em = stable_retro.RetroEmulator(str(folder / program.file))
    em.step()
    (folder / "start.state").write_bytes(gzip.compress(em.get_state()))
    del em
    (folder / "data.json").write_text(json.dumps({"info": {"x": {"address": program.counter, "type": "|u1"}}}))
    (folder / "script.lua").write_text("n = 0 function reward() n = n + 1 return data.x + 1000 * n end")
    content = {"scripts": ["script.lua"], "reward": {"script": "lua:reward"}}
    (folder / "scenario.json").write_text(json.dumps(content))
    options: dict[str, Any] = {"state": "start", "frame_skip": 1, "reward_transform": "none"}
    with closing(KartEnv(folder.name, integrations=tmp_path, **options)) as env:
        for _ in range(2):
            env.reset(seed=1)
            rewards = [(env.step(env.action_space.sample())[1], env.ram.x) for _ in range(20)]
            assert rewards == [(x + 1000 * n, x) for n, (_, x) in enumerate(rewards, start=2)]
            assert len({x for _, x in rewards}) > 10


def test_the_panel_shows_the_values_of_lua_in_a_game_that_is_no_race(games: Path) -> None:
    data, script = games / NAME / "data.json", games / NAME / "script.lua"
    data.write_text(json.dumps({"info": {"speed": load_json(data)["info"]["speed"]}}))
    script.write_text("function reference_reward() return 0.5 end function reference_done() end")
    with closing(make(games)) as env:
        _, info = env.reset(seed=1)
        lines = Panel(env, info).blocks()[1]
    assert [line.split() for line in lines] == [["speed", "0"], ["lua_reward", "0.5"], ["lua_done", "0"]]


def test_a_process_has_one_environment_whose_scenario_uses_lua(games: Path) -> None:
    reason = "its scenario uses Lua, and stable-retro has one Lua engine per process"
    with closing(make(games)) as env:
        env.reset(seed=1)
        assert (env.sharing_fault(), env.draws_all) == (reason, "with a frame skip of 1, every frame is seen")
        for scenario in ("scenario", None):
            with pytest.raises(KartRewardsError, match=f"one environment of this game, because {reason}.*make_vec"):
                make(games, scenario=scenario)
    with closing(make(games, scenario=None, frame_skip=4)) as env:
        assert (env.sharing_fault(), env.lua) == ("", None)
        assert env.draws_all == ""
    with closing(make(games, frame_skip=4)) as env:
        assert env.draws_all == "Lua scripts may write to the game's memory"


def test_a_resumed_environment_begins_a_new_episode(games: Path) -> None:
    env = TrainingEpisodes(make(games), 0, max_episode_steps=1000)
    with closing(env):
        env.reset(seed=1)
        for mask in pressed(30):
            env.step(mask)
        state = env.get_state()
        env.reset(seed=1, options={"states": [state]})
        assert (env.episode_steps, env.episode_return) == (0, 0)
        with pytest.raises(KartRewardsError, match="the memory of Lua scripts is not saved: begin a new episode"):
            env.unwrapped.set_state(state["env"])  # type: ignore[attr-defined]


def test_a_run_trains_with_lua_and_says_what_its_checkpoints_lack(
    games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    options = [*SMALL, "--total-timesteps", 32, "--runs-path", tmp_path / "runs"]
    out = train_here("--env-id", NAME, "--integrations-path", games, *options).stdout
    assert "the Lua function reference_reward" in out
    assert "Checkpoints lack the memory of Lua scripts: a resumed run begins new episodes." in out
    assert out.count("saved ") == 1
    [folder] = (tmp_path / "runs").iterdir()
    assert (folder / "sources" / "0" / "script.lua").is_file()
    assert [*temporary.glob("kart_rewards-*")] == [], "processes that are killed leave no files behind"


@pytest.fixture
def wrapped(games: Path) -> Callable[..., ScriptRewards]:
    """Makes stable-retro's own environment of the game, with the wrapper."""
    stable_retro.data.Integrations.clear_custom_paths()
    stable_retro.data.Integrations.add_custom_path(str(games))

    def make_wrapped(core: Any = (), **options: Any) -> ScriptRewards:
        own = {"inttype": stable_retro.data.Integrations.CUSTOM_ONLY, "render_mode": None}
        env = stable_retro.make(NAME, use_restricted_actions=stable_retro.Actions.ALL, **own, **dict(core))
        return ScriptRewards(env, reward_transform="none", **options)

    return make_wrapped


def test_the_wrapper_pays_what_the_environment_pays(games: Path, wrapped: Callable[..., ScriptRewards]) -> None:
    masks = pressed(300)
    with closing(make(games)) as env:
        env.reset(seed=1)
        wanted = [(env.step(mask)[1:3], env.ram) for mask in masks]
    with closing(wrapped()) as own:
        for _ in range(2):
            own.reset(seed=1)
            assert own.score
            assert [(own.step(mask)[1:3], own.score.ram) for mask in masks] == wanted
    again: Any = pickle.loads(pickle.dumps(own))  # noqa: S301 - our own; the first one has released the emulator
    with closing(again.env) as inner:
        again.reset(seed=1)
        assert [again.step(mask)[1:3] for mask in masks[:9]] == [results for results, _ in wanted[:9]]
        del again
        gc.collect()
        inner.reset(seed=1)
        assert [inner.step(mask)[2] for mask in masks[:9]] == [False] * 9, "it goes on without the wrapper"


def test_the_wrapper_reports_faults_of_lua(games: Path, wrapped: Callable[..., ScriptRewards]) -> None:
    script = games / NAME / "script.lua"
    script.write_text("n = 0 function reference_reward()\nn = n + 1 if n > 2 then return x.y end end")
    with pytest.raises(KartRewardsError, match="no script defines the function 'reference_done'"):
        wrapped()
    gc.collect()
    script.write_text(f"{script.read_text()}\nfunction reference_done() return false end")
    with closing(wrapped()) as env:
        env.reset(seed=1)
        env.step(pressed(1)[0])
        with pytest.raises(KartRewardsError, match=r"script\.lua:2: attempt to index global 'x'"):
            env.step(pressed(1)[0])
    del env
    gc.collect()
    script.write_text(script.read_text().replace("x.y", "data.sped"))
    with closing(wrapped()) as env:
        env.reset(seed=1)
        env.step(pressed(1)[0])
        with pytest.raises(KartRewardsError, match=r"script\.lua:2: data has no variable sped.*Did you mean 'speed'"):
            env.step(pressed(1)[0])
    del env
    gc.collect()
    script.write_text(script.read_text().replace("return data.sped", "return 'text'"))
    with closing(wrapped()) as env:
        env.reset(seed=1)
        env.step(pressed(1)[0])
        with pytest.raises(KartRewardsError, match="reference_reward returned a string, not a number"):
            env.step(pressed(1)[0])
        core: Any = env.unwrapped
        assert core.data.valid_actions() == core.button_combos, "the rest of the scenario is still in use"


def test_the_wrapper_needs_the_scenario_of_its_environment(games: Path, wrapped: Callable[..., ScriptRewards]) -> None:
    other = games / NAME / "other.json"
    shutil.copy(games / NAME / "scenario.json", other)
    with pytest.raises(KartRewardsError, match=r"other\.json: uses Lua, .* make it with this scenario"):
        wrapped(scenario=str(other))
    gc.collect()
    with closing(wrapped({"scenario": str(other)})) as env:
        assert [term.name for term in env.scoring.terms] == ["lua"]


class Scripts:
    """One game in an emulator, which a test gives one script after the other."""

    def __init__(self, em: Any, folder: Path) -> None:
        self.em, self.folder = em, folder
        self.bound: list[Any] = []

    def engine(self, text: str | bytes, **content: Any) -> LuaEngine:
        (self.folder / "script.lua").write_bytes(text.encode() if isinstance(text, str) else text)
        content = content or {"reward": {"script": "lua:reward"}}
        path = self.folder / "scenario.json"
        declared = declared_in({"scripts": ["script.lua"], **content}, path)
        scripts = scripts_of((*declared.terms, *declared.rules))
        assert scripts
        return LuaEngine(scripts, self.folder / "data.json", self.bind)

    def bind(self, data: Any) -> None:
        self.em.configure_data(data)
        self.bound[:] = [data]  # the emulator keeps only a raw pointer

    def values(self, text: str | bytes, frames: int = 3, **content: Any) -> list[tuple[float, bool]]:
        engine = self.engine(text, **content)
        engine.begin_episode()
        return [engine() for _ in range(frames)]


@pytest.fixture(scope="module")  # the tests above have emulators of their own
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripts]:
    folder = tmp_path_factory.mktemp("scripts")
    game = INTEGRATIONS / "HomebrewKart-Snes"
    variables = {name: load_json(game / "data.json")["info"][name] for name in ("laps", "speed", "surface")}
    (folder / "data.json").write_text(json.dumps({"info": variables | {"odd name": variables["laps"]}}))
    (folder / "scenario.json").write_text("{}")
    with emulator(game / "rom.sfc", folder) as (em, data):
        em.set_state(find_game("HomebrewKart-Snes").load_state("Level1"))
        em.step()
        yield Scripts(em, folder)
        em.configure_data(data)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("function reward() return 3 end", [3, 3, 3]),
        ("n = 0 function reward() n = n + 1 return n end", [1, 2, 3]),
        ("data.n = 0 function reward() data.n = data.n + 2 return data.n end", [2, 4, 6]),
        ("function reward() return scenario.frame + scenario.timestep end", [0, 1, 2]),
        ("function reward() return data.laps + data['odd name'] + data[0x7e10c1] + data.surface end", [445] * 3),
        ("function reward() if data.laps == 0 then return 5 end end", [0, 0, 0]),
        ("reward = function() return true end", [1, 1, 1]),
        ("#!/usr/bin/lua\n-- Größe\nfunction reward() return #'ö' end", [2, 2, 2]),
        (b"function reward() return #'\xf6\\n\0' end", [3, 3, 3]),
        ("type, pcall, error, tostring = 1, 2, 3, 4 function reward() return type + pcall end", [3, 3, 3]),
    ],
)
def test_scripts_may_use_all_that_stable_retro_offers(scripts: Scripts, text: str | bytes, wanted: list[float]) -> None:
    assert [reward for reward, _ in scripts.values(text)] == wanted


def test_a_script_may_write_to_the_games_memory(scripts: Scripts) -> None:
    frames = scripts.values("function reward() data.surface = data.surface + 1 return data.surface end")
    assert frames == [(65, False), (66, False), (67, False)]


def test_functions_are_called_in_the_order_of_stable_retro(scripts: Scripts) -> None:
    text = "n = 0 function done() n = n + 1 return n > 3 end "
    text += "function a() n = n * 2 return n end function b() n = n + 1 end"
    content: dict[str, Any] = {
        "done": {"script": "done"},
        "rewards": [{"script": "lua:a"}, {"variables": {}}, {"script": "lua:b"}],
    }
    assert scripts.values(text, **content) == [(2, False), (8, True), (20, True)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("function reward()\n return 1 +\nend", "script.lua:3: unexpected symbol near 'end'"),
        ("\nx = nil + 1", "script.lua:2: attempt to perform arithmetic on a nil value"),
        ("function rewards() end", "no script defines the function 'reward'; they define rewards. Did you mean"),
        ("", "no script defines the function 'reward'; they define none."),
        ("x = 1\nlocal function reward() end", "script.lua:2: 'reward' is local, or inside a table"),
    ],
)
def test_a_script_that_can_not_be_loaded_is_reported(scripts: Scripts, text: str, message: str) -> None:
    """stable-retro itself goes on without it."""
    with pytest.raises(KartRewardsError) as error:
        scripts.engine(text)
    assert message in str(error.value)
    assert str(error.value).startswith(str(scripts.folder))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return data.sped", "script.lua:2: data has no variable sped: data.json defines .*Did you mean 'speed'"),
        ("return data[nothing]", "script.lua:2: data has no variable nil: data.json defines laps, speed, surface"),
        ("return data[-1]", "script.lua:2: data\\[-1\\] lies outside memory"),
        ("data.x = {}", "script.lua:2: data.x can't hold a table"),
        ("return 1 + helper", "script.lua:2: attempt to perform arithmetic on global 'helper'"),
        ("return scenario[nil]", "script.lua:2: scenario has no nil, only frame and timestep"),
        ("return 'text'", "scenario.json: Lua failed: reward returned a string, not a number"),
        ("error({})", "scenario.json: Lua failed: table: "),
        ("error('so')", "script.lua:2: so"),
        ("return reward() + 1", "script.lua:2: stack overflow"),
    ],
)
def test_a_fault_in_a_function_is_reported(scripts: Scripts, body: str, message: str) -> None:
    """By itself, stable-retro gives no line, returns 0, or even crashes."""
    with pytest.raises(KartRewardsError, match=f"^{scripts.folder}/{message}"):
        scripts.values(f"function reward()\n  {body}\nend")


def test_another_use_of_the_engine_is_reported_and_a_reset_repairs_it(scripts: Scripts) -> None:
    engine = scripts.engine("n = 0 function reward() n = n + 1 return n end")
    engine.begin_episode()
    assert engine() == (1, False)
    other = stable_retro.data.GameData()
    other.load(str(scripts.folder / "data.json"))
    with pytest.raises(KartRewardsError, match="one Lua engine per process, and something else has begun it anew"):
        engine()
    engine.begin_episode()
    assert engine() == (1, False)


def test_an_edited_script_has_no_effect_on_an_engine_that_runs(scripts: Scripts) -> None:
    engine = scripts.engine("function reward() return 1 end")
    (scripts.folder / "script.lua").write_text("function reward() return 2 end")
    engine.begin_episode()
    assert engine() == (1, False)


def test_a_variable_with_the_name_of_the_value_is_refused(scripts: Scripts) -> None:
    engine = scripts.engine("function reward() end")
    with pytest.raises(KartRewardsError, match=r"data\.json must not define 'lua_reward'"):
        with_values(lambda: (), ["laps", "lua_reward"], engine.scripts, engine)

"""The text beside the game: reward terms, the race, and the end of the episode."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stable_retro

from kart_rewards import done_rule, reward_term
from kart_rewards.drivers import CentrelineDriver, centreline
from kart_rewards.env import KartEnv
from kart_rewards.env.panel import Panel, fitting
from kart_rewards.env.window import PANEL_COLUMNS, PANEL_LINES, Headings, Lit

Make = Callable[..., tuple[KartEnv, Panel]]
FRAMES_PER_SECOND = 60


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes an environment and the panel of its first episode."""
    made: list[KartEnv] = []

    def make(game: str = "HomebrewKart-Snes", **options: Any) -> tuple[KartEnv, Panel]:
        env = KartEnv(game, **{"action_mode": "all", "frame_skip": 1, **options})
        made.append(env)
        _, info = env.reset(seed=1)
        return env, Panel(env, info)

    yield make
    for env in made:
        env.close()


def step(env: KartEnv, panel: Panel, *held: str) -> None:
    panel.step(env.step([name in held for name in env.buttons])[-1])


def line_of(panel: Panel, name: str) -> str:
    [line] = [line for block in panel.blocks() for line in block if line.startswith(name)]
    return line


@reward_term(weight=1)
def paid_on_frame_420(ram: Any) -> float:
    return 7.25 * (ram.current_frame == 420)


def test_a_payment_is_highlighted_for_half_a_second(make: Make) -> None:
    env, panel = make(rewards=[paid_on_frame_420])

    def shown() -> tuple[list[str], bool]:
        line = line_of(panel, "paid_on_frame_420")
        return line.split()[1:], isinstance(line, Lit)

    assert shown() == (["0.00"], False)
    while env.ram.current_frame != 420:
        step(env, panel)
    assert shown() == (["+7.25", "7.25"], True)
    for _ in range(FRAMES_PER_SECOND // 2 - 1):
        step(env, panel)
    assert shown() == (["+7.25", "7.25"], True)
    step(env, panel)
    step(env, panel)
    assert shown() == (["7.25"], False)


def test_half_a_second_does_not_depend_on_the_frame_skip(make: Make) -> None:
    env, panel = make(rewards=[paid_on_frame_420], frame_skip=10)
    while not isinstance(line_of(panel, "paid_on_frame_420"), Lit):
        step(env, panel)
    lit_steps = 0
    while isinstance(line_of(panel, "paid_on_frame_420"), Lit):
        step(env, panel)
        lit_steps += 1
    assert lit_steps in (3, 4), "30 frames"


def test_totals_are_those_of_the_episode(make: Make) -> None:
    env, panel = make()
    for _ in range(120):
        step(env, panel, "B")
    assert env.score
    totals = env.score.info()["episode_rewards"]["sum"]
    assert totals["checkpoint"] > 0
    for name, total in {**totals, "all": sum(totals.values())}.items():
        assert line_of(panel, name).split()[-1] == f"{total:.2f}"


def test_the_headings_of_numbers_end_where_these_end(make: Make) -> None:
    terms, *_ = make()[1].blocks()
    assert [isinstance(line, Headings) for line in terms] == [True] + [False] * (len(terms) - 1)


def test_the_race_is_shown(make: Make) -> None:
    env, panel = make()
    assert line_of(panel, "laps done").split() == ["laps", "done", "0"]
    assert line_of(panel, "best lap").split() == ["best", "lap", "(s)"]
    driver = CentrelineDriver(centreline("Level1"))
    while env.ram.laps < 129:
        step(env, panel, *driver(env.ram))
    assert env.race
    lap = env.race.lap_frames[0] / env.frames_per_second
    assert line_of(panel, "laps done").split()[-1] == "1"
    assert line_of(panel, "best lap").split()[-1] == line_of(panel, "race time").split()[-1] == f"{lap:.2f}"
    assert line_of(panel, "speed").split()[-1] == str(env.ram.speed)


def test_the_end_of_the_episode_is_highlighted(make: Make) -> None:
    @done_rule()
    def after_a_while(ram: Any) -> bool:
        return ram.current_frame > 400

    env, panel = make(rewards=[after_a_while])
    assert panel.done_rule is None
    assert " ".join(panel.blocks()[2]) == "ends on race_finished, wall_hits, after_a_while"
    while panel.done_rule is None:
        step(env, panel)
    assert panel.blocks()[2] == ["over: after_a_while"]
    assert isinstance(panel.blocks()[2][0], Lit)


def test_a_game_without_a_race_shows_its_first_variables(make: Make, tmp_path: Path) -> None:
    """Airstriker, the free Mega Drive game of stable-retro."""
    airstriker = "Airstriker-Genesis-v0"
    shipped = stable_retro.data.get_file_path(airstriker, "data.json", stable_retro.data.Integrations.STABLE)
    folder = shutil.copytree(Path(shipped).parent, tmp_path / airstriker)
    scenario = json.loads((folder / "scenario.json").read_text())
    scenario["kart_rewards"] = {"rewards": {}, "done": []}
    (folder / "scenario.json").write_text(json.dumps(scenario))
    env, panel = make(airstriker, integrations=tmp_path)
    step(env, panel)
    terms, variables, ending = panel.blocks()
    assert [line.split() for line in terms] == [["reward", "term", "paid", "total"], ["all", "0.00"]]
    assert [line.split() for line in variables] == [
        [name, str(value)] for name, value in zip(env.layout.names, env.ram, strict=True)
    ][:8]
    assert ending == ["ends on nothing"]


def test_an_array_is_shown_as_far_as_it_fits(make: Make, own_game: Path) -> None:
    pixels = {"address": 8257536, "type": "<i2", "count": 320}
    (own_game / "HomebrewKart-Snes" / "data.json").write_text(json.dumps({"info": {"pixels": pixels}}))
    (own_game / "HomebrewKart-Snes" / "scenario.json").write_text('{"kart_rewards": {"rewards": {}, "done": []}}')
    env, panel = make(integrations=own_game)
    step(env, panel)
    line = line_of(panel, "pixels")
    assert line.split()[1:3] == [str(value) for value in env.ram.pixels[:2]]
    assert line.endswith(" …")
    assert len(line) <= PANEL_COLUMNS


def test_long_names_are_shortened(make: Make) -> None:
    long = reward_term(weight=1, name="a_term_with_a_very_long_name")(lambda ram: 1)
    env, panel = make(rewards=[long])
    step(env, panel)
    assert line_of(panel, "a_term_with_a_ver…").split() == ["a_term_with_a_ver…", "+1.00", "1.00"]
    assert all(len(line) <= PANEL_COLUMNS for block in panel.blocks() for line in block)


def test_blocks_are_separated_only_if_all_lines_fit() -> None:
    assert fitting([["a", "b"], ["c"]]) == ["a", "b", "", "c"]
    full = [["x"] * (PANEL_LINES - 2), ["y"]]
    assert fitting(full) == ["x"] * (PANEL_LINES - 2) + ["", "y"]
    assert fitting([["x", *full[0]], ["y"]]) == ["x"] * (PANEL_LINES - 1) + ["y"]

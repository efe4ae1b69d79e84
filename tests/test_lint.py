from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from command_line import run

from kart_rewards.done import DoneRule
from kart_rewards.drives import SHIPPED, Drive, load_drive
from kart_rewards.integrations import INTEGRATIONS, find_game
from kart_rewards.lab.linting import cost as cost_of_scripts
from kart_rewards.lab.linting.clock import clock
from kart_rewards.lab.linting.columns import fault_of
from kart_rewards.lab.linting.evidence import Evidence, gather
from kart_rewards.lab.linting.lint import findings
from kart_rewards.lab.linting.probes import Probes, make_probes, recorded_again
from kart_rewards.lab.replay import replay
from kart_rewards.lab.score import RewardSet
from kart_rewards.ram import RamLayout, Variable
from kart_rewards.scripting import marked_scripts
from kart_rewards.testing import ends_at

GAME = "HomebrewKart-Snes"
LAYOUT = RamLayout.from_file(INTEGRATIONS / GAME / "data.json")
IMPORTS = """
import itertools
import random
import time
from collections import Counter, deque

import numpy as np

from kart_rewards import done_rule, reward_term
from kart_rewards.race import *
"""
LINE = IMPORTS.count("\n") + 1


@functools.cache
def shipped(*courses: str) -> list[Drive]:
    drives = [load_drive(path) for path in sorted(SHIPPED.glob("*.drive"))]
    return [drive for drive in drives if not courses or drive.info.state in courses]


@pytest.fixture(scope="session")
def probes() -> Probes:
    return make_probes(find_game(GAME), LAYOUT, shipped())


def term(value: str, weight: float = 1, arguments: str = "ram") -> str:
    return f"@reward_term(weight={weight})\ndef planted({arguments}):\n    return {value}\n"


def memory(start: str, call: str, weight: float = 1, arguments: str = "ram") -> str:
    lines = "".join(f"        {line}\n" for line in call.splitlines())
    return (
        f"@reward_term(weight={weight})\nclass Planted:\n    def __init__(self):\n        {start}\n\n"
        f"    def __call__(self, {arguments}):\n{lines}"
    )


def rule(value: str, mark: str = "@done_rule()") -> str:
    return f"{mark}\ndef planted(ram):\n    return {value}\n"


def counting_rule(value: str, mark: str = "@done_rule()") -> str:
    return (
        f"{mark}\nclass Planted:\n    def __init__(self):\n        self.frames = 0\n\n    def __call__(self, ram):\n"
        f"        {value}\n"
    )


BEST = "gain = progress(ram) > self.best\nself.best = max(self.best, progress(ram))\n"
SPEED_OF_BYTES = "sum(range(40_000)) * 0 + (ram.speed > 900)"

FAULTY: list[tuple[str, str, dict[str, object]]] = [
    ("never-fires", term("ram.speed > 5000"), {}),
    ("never-fires", term("ram.laps == 5", 1000), {}),
    ("never-fires", term("ram.backward == 1", -5), {}),
    ("never-fires", term("ram.surface == 0x99", -1), {}),
    ("never-fires", term("ram.current_frame - previous.current_frame == 4", arguments="ram, previous"), {}),
    ("every-frame", term("ram.laps", 0.01), {}),
    ("every-frame", term("1 + ram.speed / 10_000", 0.1), {}),
    ("every-frame", term("float(np.exp(ram.speed / 2000))", 0.05), {}),
    ("constant", term("1.0"), {}),
    ("constant", term("ram.num_checkpoints", 0.1), {}),
    ("constant", term("ram.speed > -1000", 0.1), {}),
    ("constant", term("1.0", -1e-9), {}),
    ("ranking", term("ram.speed > 900", 1e-7), {}),
    ("ranking", term("ram.current_frame % 60 == 0"), {}),
    ("ranking", memory("self.frame = 0", "self.frame += 1\nreturn self.frame == 10", 50), {}),
    ("ranking", memory("self.best = -1", f"{BEST}return gain", 1e-6), {}),
    ("ranking", memory("self.best = -1", f"{BEST}return gain * (1 + 0.004 * (ram.checkpoint % 2))", 450), {}),
    ("dominates", term("ram.speed / 10", 10), {}),
    ("dominates", term("ram.collision != 0", -100_000), {}),
    ("dominates", term("abs(ram.steering)", 50), {}),
    ("erased", term("max(ram.speed, 0) / 1000"), {"transform": "sign"}),
    ("erased", memory("self.best = -1", f"{BEST}return gain", 50), {"transform": "sign"}),
    ("erased", term("ram.speed > 900"), {"scale": 1e-60}),
    ("cycle", term("max(ram.speed - previous.speed, 0) / 100", 0.1, "ram, previous"), {}),
    ("cycle", term("max(ram.laps - previous.laps, 0)", 1000, "ram, previous"), {}),
    ("cycle", term("ram.speed > previous.speed and 'B' in buttons", 1, "ram, previous, buttons"), {}),
    ("cycle", term("np.hypot(ram.kart_x - previous.kart_x, ram.kart_y - previous.kart_y)", 0.1, "ram, previous"), {}),
    ("cycle", term("max(progress(ram) - progress(previous), 0)", 10, "ram, previous"), {}),
    ("cycle", term("ram.surface == START_LINE", 100), {}),
    ("cycle", term("ram.surface == ROAD and previous.surface in (DIRT, GRASS)", 20, "ram, previous"), {}),
    ("cycle", memory("self.laps = 0", "new = ram.laps > self.laps\nself.laps = ram.laps\nreturn new", 500), {}),
    ("cycle", term("max(ram.height - previous.height, 0) / 16", 20, "ram, previous"), {}),
    ("cycle", term("previous.collision and not ram.collision", 30, "ram, previous"), {}),
    ("cycle", term("previous.backward > ram.backward", 40, "ram, previous"), {}),
    ("cycle", term("ram.speed > 850 >= previous.speed", 60, "ram, previous"), {}),
    ("cycle", term("ram.drift_frames > 0 == previous.drift_frames", 5, "ram, previous"), {}),
    (
        "cycle",
        memory(
            "self.at = 0",
            "if ram.speed <= 850 or ram.current_frame - self.at <= 300:\n    return 0\n"
            "self.at = ram.current_frame\nreturn 1",
            60,
        ),
        {},
    ),
    ("cycle", term("(ram.kart_direction - previous.kart_direction + 128) % 256 - 128", 0.2, "ram, previous"), {}),
    (
        "cycle",
        memory(
            "self.last = 0.0",
            "now = action[0] if action else 0.0\nchange, self.last = abs(now - self.last), now\nreturn change",
            1,
            "ram, action",
        ),
        {},
    ),
    ("leaks", term("random.random() * (ram.speed > 300)"), {}),
    ("leaks", "SUM = np.zeros(1)\n" + term("np.add(SUM, ram.speed > 900, out=SUM)[0] < 500 and ram.speed > 900"), {}),
    ("leaks", "BEST = {0}\nadd = BEST.add\n" + term("len(BEST) < 300 and (add(ram.speed) or ram.speed > 300)"), {}),
    ("leaks", rule("random.random() < 0.001 and ram.speed > 300"), {}),
    ("leaks", "RNG = np.random.default_rng(1)\n" + term("RNG.normal() if ram.speed > 300 else 0.0"), {}),
    (
        "call-order",
        "BOX = np.zeros(1)\n@reward_term\ndef other(ram):\n    np.copyto(BOX, ram.speed)\n    return ram.speed > 700\n"
        + term("BOX[0] > 900 and ram.speed > 300"),
        {},
    ),
    (
        "frame-skip",
        memory(
            "self.last = None",
            "new = action is not self.last\nself.last = action\nreturn new and ram.speed > 300",
            0.1,
            "ram, action",
        ),
        {},
    ),
    ("checkpoint", memory("self.sums = np.zeros(3)", "self.sums[0] += 1\nreturn ram.speed > 900"), {}),
    ("checkpoint", memory("self.seen = Counter()", "self.seen[ram.laps] += 1\nreturn ram.speed > 900"), {}),
    (
        "checkpoint",
        memory("self.at = None", "if ram.collision:\n    self.at = np.array([ram.laps])\nreturn ram.collision > 0", -3),
        {},
    ),
    ("slow", term(SPEED_OF_BYTES), {}),
    ("slow", term("time.sleep(0.0002) or ram.speed > 900"), {}),
    ("slow", rule("sum(range(40_000)) < 0 or ram.speed < -200"), {}),
    ("standing", term("ram.speed < 100"), {}),
    ("standing", term("1 - abs(ram.speed) / 1200"), {}),
    ("standing", term("not buttons", 5, "ram, buttons"), {}),
    ("standing", term("'B' in buttons and abs(ram.speed) < 60", 5, "ram, buttons"), {}),
    ("standing", term("'L' in buttons and ram.height > 0 == previous.height", 20, "ram, previous, buttons"), {}),
    ("early-end", term("1.0", -20), {}),
    ("early-end", term("ram.collision != 0", 10_000), {}),
    ("good-drive", rule("ram.laps >= 128"), {}),
    ("good-drive", counting_rule("self.frames += 1; return self.frames > 1500"), {}),
    ("good-drive", rule("ram.surface != ROAD", "@done_rule(truncates=True)"), {}),
]  # fmt: skip

HONEST = [
    term("ram.speed > 900", 0.5),
    term("ram.speed / 1000", 0.5),
    term("max(ram.speed, 0) / 1000"),
    term("(ram.speed - previous.speed) / 100", 1, "ram, previous"),
    term("0.9975 * progress(ram) - progress(previous)", 10, "ram, previous"),
    term("0.99 * -abs(ram.kart_x - 536) / 100 + abs(previous.kart_x - 536) / 100", 5, "ram, previous"),
    term("1.0", -0.1),
    term("1.0 if ram.speed < 700 else 0.5", -0.1),
    term("ram.surface == PIT", -100),
    term("'L' in buttons", -0.05, "ram, buttons"),
    term("abs(action[0]) if action else 0.0", -0.02, "ram, action"),
    term("ram.current_frame % 60 == 0 and ram.speed > 300"),
    term("ram.speed / 1000 if ram.game_mode == 0x1C else 0.0", 0.3),
    memory("self.best = 128", "new = ram.laps > self.best\nself.best = max(self.best, ram.laps)\nreturn new", 1000),
    memory("self.recent = deque(maxlen=60)", "self.recent.append(ram.speed)\nreturn sum(self.recent) / 60_000", 0.3),
    memory("self.frame = 0", "self.frame += 1\nreturn (ram.laps >= 133) * max(6000 - self.frame, 0) / 100", 50),
    memory(
        "self.last = 0.0",
        "now = action[0] if action else 0.0\nchange, self.last = abs(now - self.last), now\nreturn change",
        -0.1,
        "ram, action",
    ),
    "def phi(ram):\n    return ram.speed / 1000\n" + term("0.99**0.25 * phi(ram) - phi(previous)", 1, "ram, previous"),
    memory(
        "self.best, self.since = -1, 0",
        "self.since += 1\nif progress(ram) <= self.best:\n    return 0\n"
        "paid, self.best, self.since = 1 + max(0, 1 - self.since / 600), progress(ram), 0\nreturn paid",
        20,
    ),
    memory("self.x = 9999", "gain = max(self.x - ram.kart_x, 0)\nself.x = min(self.x, ram.kart_x)\nreturn gain", 0.1),
    rule("ram.laps >= 129"),
    rule("ram.surface == DEEP_WATER"),
    counting_rule("self.frames = self.frames + 1 if abs(ram.speed) < 20 else 0; return self.frames >= 300"),
    counting_rule("self.frames += 1; return self.frames > 1500", "@done_rule(truncates=True)"),
]


def rewards_of(
    code: str, folder: Path, transform: str = "scale", scale: float = 0.01, name: str = "mine.py"
) -> RewardSet:
    (folder / name).write_text(IMPORTS + code)
    return RewardSet((str(folder / name),), transform=transform, scale=scale)


def examined(
    code: str, folder: Path, probes: Probes, transform: str = "scale", scale: float = 0.01, name: str = "mine.py"
) -> Evidence:
    rewards = rewards_of(code, folder, transform, scale, name)
    drives = [*shipped("Level1"), *(drive for drive in shipped("Level2") if drive.info.driver == "standing")]
    return gather(find_game(GAME), rewards, drives, probes=probes)


def pays(evidence: Evidence, name: str, drive: int, frame: int) -> bool:
    """Whether a term pays or charges on a frame."""
    return bool(evidence.scores[drive].values[name][frame])


SHOWS: dict[str, Callable[[Evidence, str, int, int], bool]] = {
    **dict.fromkeys(("every-frame", "constant", "ranking", "dominates", "erased", "cycle"), pays),
    "never-fires": lambda evidence, name, drive, frame: not pays(evidence, name, drive, frame),
    "standing": lambda evidence, name, drive, frame: (
        pays(evidence, name, drive, frame) and abs(evidence.drives[drive][frame].speed) < 60
    ),
    "early-end": lambda evidence, name, drive, frame: evidence.scores[drive].end == frame,
    "good-drive": lambda evidence, name, drive, frame: evidence.second_runs[drive].ends[name] == frame,
}
"""Check -> whether a frame shows what its finding says. Other findings are about all frames, or about a second run."""


OF_ONE_TERM = ("never-fires", "every-frame", "constant", "cycle", "leaks", "standing")
"""Checks that look at one term alone. An examination takes half a second, so several of their mistakes are in one
file. Too many of them would take so long on a busy machine that lint examines only one course."""


def fives(codes: list[str]) -> list[list[str]]:
    """Returns the codes of files: at most five in each, whose functions have different names."""
    named = [re.sub("planted", rf"\g<0>_{i % 5}", code, flags=re.IGNORECASE) for i, code in enumerate(codes)]
    return [named[i : i + 5] for i in range(0, len(named), 5)]


FILES = [(fives([code])[0], check, options) for check, code, options in FAULTY if check not in OF_ONE_TERM]
for check in OF_ONE_TERM:
    FILES += [(codes, check, {}) for codes in fives([code for of, code, _ in FAULTY if of == check])]


@pytest.mark.parametrize(("codes", "check", "options"), FILES, ids=[check for _, check, _ in FILES])
def test_mistakes_are_found_with_their_file_and_line(
    codes: list[str], check: str, options: dict[str, object], tmp_path: Path, probes: Probes
) -> None:
    evidence = examined("".join(codes), tmp_path, probes, **options)  # type: ignore[arg-type]
    for i in range(len(codes)):
        found = [each for each in findings(evidence) if each.check == check and each.script == f"planted_{i}"]
        assert found, (codes[i], findings(evidence))
        lines = (IMPORTS + "".join(codes[: i + 1])).splitlines()
        mark = max(number for number, line in enumerate(lines, 1) if line.startswith("@"))
        assert found[0].where == f"{tmp_path / 'mine.py'}:{mark}"
        assert found[0].remedy
        drive = next(k for k, each in enumerate(evidence.drives) if each.info.label == found[0].drive)
        assert 0 <= found[0].frame < len(evidence.drives[drive])
        shows = SHOWS.get(check)
        assert not shows or shows(evidence, f"planted_{i}", drive, found[0].frame), "the frame shows it"


@pytest.mark.parametrize("codes", fives(HONEST))
def test_honest_rewards_have_no_finding(codes: list[str], tmp_path: Path, probes: Probes) -> None:
    assert findings(examined("".join(codes), tmp_path, probes)) == []


def test_the_scenario_course_progress_has_no_finding(probes: Probes) -> None:
    assert findings(gather(find_game(GAME), RewardSet(scenario="course_progress"), shipped(), probes=probes)) == []


def test_a_variable_that_differs_in_drives_that_were_left_out_is_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probes: Probes
) -> None:
    code = term("(ram.speed > 900,)[ram.course]")  # lint must not stop because it fails for other values
    evidence = gather(find_game(GAME), rewards_of(code, tmp_path), shipped("Level1"), probes=probes)
    [found] = findings(evidence)
    assert "reads course, which is always 0" in found.text
    assert findings(replace(evidence, left_out=shipped("Level2"))) == []
    monkeypatch.setattr("kart_rewards.lab.linting.evidence._MOST_SECONDS", 0)
    slow = gather(find_game(GAME), RewardSet(), shipped("Level1", "Level2"), probes=probes)
    assert {drive.info.state for drive in slow.left_out} == {"Level2"}


def test_a_charge_beside_a_larger_one_is_erased_by_the_sign(probes: Probes) -> None:
    evidence = gather(find_game(GAME), RewardSet(transform="sign"), shipped("Level1", "Level2"), probes=probes)
    [found] = findings(evidence)
    assert (found.check, found.script) == ("erased", "terrain")
    assert found.text.endswith("time pays or charges on the same frames, and decides the sign")
    assert found.remedy == "use --reward-transform scale, or let it pay on frames on which time does not"
    drive = next(i for i, each in enumerate(evidence.drives) if each.info.label == found.drive)
    assert all(evidence.scores[drive].values[name][found.frame] < 0 for name in ("terrain", "time"))


def test_an_environment_gives_the_same_frames_to_terms_at_each_frame_skip(probes: Probes) -> None:
    coarse, fine = probes.steps[4], probes.steps[1]
    assert (len(coarse), len(fine)) == (64, 256)
    assert [frame for step in coarse for frame in step] == [frame for step in fine for frame in step]
    drive = next(probe.drive for probe in probes.all if probe.drive.info.label == "agent")
    assert [frame[0] for step in coarse for frame in step] == drive[1:]
    assert len({id(frame[2]) for step in coarse[:2] for frame in step}) == 2, "an action is one object per step"


def test_terms_get_the_action_of_the_agents_action_mode(tmp_path: Path, probes: Probes) -> None:
    (tmp_path / "mine.py").write_text(IMPORTS + term("action[1] == 1 if action else 0.0", 1, "ram, action"))
    rewards = RewardSet((str(tmp_path / "mine.py"),))
    evidence = gather(find_game(GAME), rewards, shipped("Level1"), "full", probes=probes)
    for drive, score in zip(evidence.drives, evidence.scores, strict=True):
        if drive.info.label in ("race", "standing"):
            assert score.values["planted"].sum() == sum("B" in held for held in drive.buttons[1:])


def test_a_scenario_with_lua_is_refused_in_one_message(own_game: Path) -> None:
    folder = own_game / GAME
    (folder / "mine.lua").write_text("function speedy()\n  return data.speed / 1000\nend\n")
    (folder / "mine.json").write_text(json.dumps({"scripts": ["mine.lua"], "reward": {"script": "lua:speedy"}}))
    done = run("lint", GAME, "--scenario", "mine", "--integrations-path", own_game, folder=own_game)
    assert done.returncode == 2
    assert done.stderr == f"error: {GAME}: its scenario uses Lua, whose values no drive has: lint can't examine it\n"


def test_a_mistake_that_needs_many_drives_is_found(tmp_path: Path, probes: Probes) -> None:
    (tmp_path / "mine.py").write_text(IMPORTS + term("ram.surface not in COURSE_SURFACES", -30))
    evidence = gather(find_game(GAME), RewardSet((str(tmp_path / "mine.py"),)), shipped(), probes=probes)
    [found] = findings(evidence)
    assert (found.check, found.script) == ("early-end", "planted")
    assert "7 of 10 drives that come forward lose rewards all the time" in found.text


@pytest.mark.parametrize(("value", "words"), [("-(ram.collision != 0)", "pays"), ("ram.collision != 0", "charges")])
def test_a_negative_weight_of_negative_values_is_explained(
    value: str, words: str, tmp_path: Path, probes: Probes
) -> None:
    found = findings(examined(term(value, -5), tmp_path, probes))
    [ranking] = [each for each in found if each.check == "ranking"]
    assert f"It {words} at most" in ranking.text
    explained = ["Its weight is negative, and so are its values" in each.text for each in found]
    assert explained == [words == "pays"] * len(found)


def test_a_cycle_pays_on_its_saved_drive(tmp_path: Path, probes: Probes) -> None:
    code = term("max(ram.speed - previous.speed, 0) / 100", 0.1, "ram, previous")
    [found] = findings(examined(code, tmp_path, probes))
    assert found.drive == "gas-and-brake"
    first, last = map(int, re.findall(r"frames (\d+) to (\d+)", found.text)[0])
    probe = next(probe for probe in probes.all if probe.drive.info.label == found.drive)
    probe.drive.save(tmp_path / "saved.drive")
    saved = load_drive(tmp_path / "saved.drive")
    assert saved[first].speed == saved[last].speed == 0
    assert abs(saved[first].kart_x - saved[last].kart_x) < 20
    assert sum(max(saved[i].speed - saved[i - 1].speed, 0) for i in range(first + 1, last + 1)) > 900
    assert saved[found.frame].speed > saved[found.frame - 1].speed


def same_drives(some: Probes, others: Probes) -> bool:
    return all(
        (one.drive.info, one.cycles) == (other.drive.info, other.cycles)
        and (one.rest == other.rest or not one.cycles)
        and one.drive.start == other.drive.start
        and np.array_equal(one.drive.masks, other.drive.masks)
        and list(one.drive.columns) == list(other.drive.columns)
        and all(np.array_equal(values, other.drive.columns[name]) for name, values in one.drive.columns.items())
        and one.raw.keys() == other.raw.keys()
        and all(np.array_equal(values, other.raw[name]) for name, values in one.raw.items())
        for one, other in zip(some.all, others.all, strict=True)
    )


def test_scripted_drives_are_kept_and_a_damaged_one_is_driven_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probes: Probes
) -> None:
    def make() -> tuple[Probes, dict[Path, tuple[bytes, int]]]:
        made = make_probes(find_game(GAME), LAYOUT, shipped())
        files = tmp_path.glob("**/*.drive")
        return made, {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    made_before = Path(os.environ["XDG_CACHE_HOME"]) / "kart_rewards"
    shutil.copytree(made_before, tmp_path / "kart_rewards")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, kept = make()
    assert same_drives(first, probes)
    assert len(kept) >= len([probe for probe in first.all if probe.cycles])
    damaged = [path for path in kept if path.stem == "hop-on-the-spot"]  # also of other tests' data.json
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-100])
    second, repaired = make()
    assert same_drives(first, second)
    assert [repaired[path][0] == kept[path][0] for path in damaged].count(True) == 1
    assert all(repaired[path] == kept[path] for path in kept if path not in damaged)


@pytest.mark.slow  # drives all of them again
def test_lint_needs_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probes: Probes) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made below a file
    assert same_drives(make_probes(find_game(GAME), LAYOUT, shipped()), probes)


def test_scripted_drives_play_again_bit_for_bit(probes: Probes) -> None:
    probe = next(probe for probe in probes.all if probe.drive.info.label == "over-the-line")
    assert [probe.drive[frame].laps for frame in probe.cycles] == [127] * 4
    assert max(ram.laps for ram in probe.drive) == 128
    assert sum(1 for _ in replay(probe.drive)) == len(probe.drive)


def test_each_cycle_ends_where_it_began(probes: Probes) -> None:
    cycles = {probe.drive.info.label: probe for probe in probes.all if probe.cycles}
    back = {"gas-and-brake", "over-the-line", "over-a-checkpoint", "over-the-edge", "hop-on-the-spot"}
    back |= {"circle-to-the-left", "circle-to-the-right"}
    assert {*cycles} == {*back, "left-and-right", "drift-and-stop", "fast-and-slow", "into-the-wall"}
    for label, probe in cycles.items():
        places = [probe.drive[frame] for frame in probe.cycles[1:]]
        assert len(places) == (2 if label == "fast-and-slow" else 3), label
        assert max(abs(place.speed - places[0].speed) for place in places) < 10 or label == "left-and-right"
        if label in back:
            assert {(place.laps, place.checkpoint) for place in places} == {(places[0].laps, places[0].checkpoint)}
            assert max(abs(place.kart_x - places[0].kart_x) for place in places) < 24, label


def test_the_scripted_drives_do_what_can_be_farmed(probes: Probes) -> None:
    drives = {probe.drive.info.label: probe.drive for probe in probes.all}
    assert max(drives["fast-and-slow"].columns["speed"]) > 900
    assert max(drives["hop-on-the-spot"].columns["height"]) > 0
    assert not any(np.ptp(drives["hop-on-the-spot"].columns[name]) for name in ("kart_x", "kart_y", "speed"))
    assert max(drives["drift-and-stop"].columns["drift_frames"]) > 0
    assert np.count_nonzero(drives["into-the-wall"].columns["collision"]) >= 4
    turned = np.unwrap(drives["circle-to-the-left"].columns["kart_direction"].astype(float), period=256)
    assert np.ptp(turned) > 2.5 * 256


def test_a_rule_that_ends_no_drive_is_said(tmp_path: Path, probes: Probes) -> None:
    evidence = examined(rule("ram.laps == 6"), tmp_path, probes)
    assert findings(evidence) == []
    assert evidence.notes == [f"planted ({tmp_path / 'mine.py'}:{LINE}): no drive is ended by it"]


def test_checks_stop_at_the_deadline_with_the_slowest_term(tmp_path: Path, probes: Probes) -> None:
    evidence = replace(examined(term("ram.speed > 900"), tmp_path, probes), deadline=clock())
    assert [each.check for each in findings(evidence)] == ["slow"]
    assert evidence.notes == ["The terms and rules take so long that not all checks were made"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (term("ram.surface in (DIRT, GRASS, WALL) and sum(range(60_000)) < 0", -3), "µs per emulated frame"),
        (memory("self.sums = [sum(range(k % 90)) for k in range(200_000)]", "return ram.speed > 900"), "at the start"),
    ],
)
def test_a_term_that_is_slow_at_times_is_found_in_seconds(code: str, text: str, tmp_path: Path, probes: Probes) -> None:
    began = perf_counter()
    found = findings(examined(code, tmp_path, probes))
    assert perf_counter() - began < 25
    assert text in next(each.text for each in found if each.check == "slow")


def test_the_time_per_frame_is_reported_however_it_is_rounded(
    tmp_path: Path, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = 1.1e-3
    seconds = next(each for each in np.arange(1e-4, 1e-3, 1e-6) if each < each / frame * frame)
    monkeypatch.setattr(cost_of_scripts, "cost", lambda *_: (0.0, seconds, 1))
    evidence = examined(term("ram.speed > 900"), tmp_path, replace(probes, frame_seconds=frame))
    found = next(cost_of_scripts.slow(evidence))
    assert found.text.startswith(f"takes {seconds * 1e6:,.0f} µs per emulated frame")


def test_a_rule_ends_a_good_drive_on_the_frame_that_is_named(tmp_path: Path, probes: Probes) -> None:
    [found] = findings(examined(rule("ram.speed > 800"), tmp_path, probes))
    [planted] = marked_scripts(str(tmp_path / "mine.py"), DoneRule)
    assert ends_at(load_drive(SHIPPED / f"{found.drive}.drive"), planted) == (found.frame, "planted")


def test_what_is_not_examined_is_said(tmp_path: Path, probes: Probes) -> None:
    evidence = examined(term("ram.laps == 5", 0), tmp_path, probes)
    assert findings(evidence) == []
    assert evidence.notes == [f"planted ({tmp_path / 'mine.py'}:{LINE}) has the weight 0, so it was not examined"]
    evidence = examined(term("ram.surface == PIT", -100), tmp_path, probes, name="rare.py")
    assert findings(evidence) == []
    assert "fires on surface 0x20, which no drive has" in evidence.notes[0]
    evidence = examined(term("sum(range(200_000)) * 0"), tmp_path, probes, name="slow.py")
    assert [each.check for each in findings(evidence)] == ["slow"]
    assert evidence.notes[0].endswith("only their speed was examined")


def swapped(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int16).byteswap().astype(np.int64)


def in_decimal(values: np.ndarray) -> np.ndarray:
    return values // 10 * 16 + values % 10


@pytest.mark.parametrize(
    ("name", "type_", "misread", "what"),
    [
        ("speed", "<u2", lambda values: values % 2**16, "it looks signed. Its type is probably <s2"),
        ("speed", ">s2", swapped, "the bytes look swapped. Its type is probably <s2"),
        ("kart_x", ">u2", swapped, "the bytes look swapped. Its type is probably <u2"),
        ("laps", "|s1", lambda values: (values + 128) % 256 - 128, "it looks unsigned. Its type is probably |u1"),
        ("race_centiseconds", "<u2", in_decimal, "looks like decimal digits (BCD)"),
        ("race_seconds", "|i1", in_decimal, "Its type is probably |d1"),
        ("checkpoint", "<u2", None, "it looks like two variables of one byte. Its type is probably |u1"),
        ("laps", ">u2", lambda values: values << 8, "the bytes look swapped. Its type is probably <u2"),
        ("kart_direction", "|i1", lambda values: (values + 128) % 256 - 128, ""),
        ("current_frame", "|u1", lambda values: values % 256, ""),
    ],
)
def test_a_wrong_type_is_seen_in_the_values(name: str, type_: str, misread: Any, what: str) -> None:
    variable = Variable(name, 0x7E0100, type_)
    drives = shipped("Level1", "Level2")
    columns = [drive.columns[name].astype(np.int64) for drive in drives]
    if misread is None:  # the byte behind it is the laps
        columns = [
            values + 256 * drive.columns["laps"].astype(np.int64) for values, drive in zip(columns, drives, strict=True)
        ]
    else:
        columns = [misread(values) for values in columns]
    fault = fault_of(variable, columns)
    if not what:
        assert fault is None
    else:
        assert fault is not None
        assert what in fault[0]
        assert fault[2] < len(columns[fault[1]])


def test_a_wrong_type_is_seen_in_the_bytes_of_memory() -> None:
    [race] = [drive for drive in shipped("Level1") if drive.info.driver == "race"]
    narrow = [Variable("kart_x", 0x88, "|u1"), Variable("current_frame", 0x7E0038, "<d2")]
    [again] = recorded_again(find_game(GAME), RamLayout([*narrow, Variable("laps", 0x7E10C1, "|u1")]), [(race, 700)])
    faults = [
        fault_of(each, [again.drive.columns[each.name].astype(np.int64)], [again.raw[each.name]]) for each in narrow
    ]
    assert "it has more bytes. Its type is probably <u2" in str(faults[0])
    assert "it is binary" in str(faults[1])


def test_the_types_of_the_game_are_right(probes: Probes) -> None:
    for variable in LAYOUT.variables:
        columns = [drive.columns[variable.name].astype(np.int64) for drive in shipped()]
        raw = [probe.raw[variable.name] for probe in probes.all if variable.name in probe.raw]
        assert fault_of(variable, columns, raw) is None, variable.name


@pytest.mark.slow
def test_a_changed_data_file_is_examined_in_the_emulator(own_game: Path, tmp_path: Path, probes: Probes) -> None:
    path = own_game / GAME / "data.json"
    content = json.loads(path.read_text())
    content["info"]["fuel"] = {"address": 8290000, "type": "|u1"}
    path.write_text(json.dumps(content))
    (tmp_path / "mine.py").write_text(IMPORTS + term("ram.fuel < 10 and ram.speed > 300", 0.1))
    rewards = RewardSet((str(tmp_path / "mine.py"),), integrations=own_game)
    few = [drive for drive in shipped("Level1", "Level2") if drive.info.driver in ("standing", "walls")]
    evidence = gather(find_game(GAME, own_game), rewards, few)
    [found] = [each for each in findings(evidence) if each.check == "variable" and "fuel" in each.text]
    assert found.where == f"{tmp_path / 'mine.py'}:{LINE}"
    assert "reads fuel, which is always 0" in found.text
    assert "fuel" in next(each for each in evidence.drives if each.info.label == found.drive).columns


def test_the_command_finds_nothing_in_the_reference(tmp_path: Path) -> None:
    done = run("lint", GAME, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Nothing found. 7 terms and rules, ")
    assert not (tmp_path / "recordings").exists()


def test_the_command_saves_the_drives_of_its_findings(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(IMPORTS + term("max(ram.speed - previous.speed, 0) / 100", 0.1, "ram, previous"))
    done = run("lint", GAME, "--rewards", "mine.py", "--output", "shown", "--json", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    [found] = json.loads(done.stdout)["findings"]
    assert found["where"] == f"{tmp_path / 'mine.py'}:{LINE}"
    assert load_drive(tmp_path / found["path"])[found["frame"]].speed > 0
    scored = run("score", found["path"], "--rewards", "mine.py", folder=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert "gas-and-brake" in scored.stdout


def test_the_command_reports_an_error_with_exit_code_2(tmp_path: Path) -> None:
    done = run("lint", "HomebrewCart-Snes", folder=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'HomebrewKart-Snes'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_game_without_recorded_drives_gets_scripted_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from kart_rewards import reward_term\n\n\n@reward_term(weight=-0.01)\ndef slow(ram, previous):\n"
        "    return float(ram.score <= previous.score)\n\n\n@reward_term\ndef many(ram):\n    return ram.lives > 99\n"
    )
    done = run("lint", "Airstriker-Genesis-v0", "--rewards", "mine.py", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "mine.py:9: many is 0 on each frame that was tried" in done.stdout
    assert "1 finding in 1 definition" in done.stdout

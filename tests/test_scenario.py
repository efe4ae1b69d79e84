from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kart_rewards import done_rule, reward_term
from kart_rewards.done import REFERENCE_RULES, episode_calls
from kart_rewards.errors import KartRewardsError
from kart_rewards.imports import import_source
from kart_rewards.ram import RamLayout, Variable
from kart_rewards.rewards import REFERENCE_TERMS, wall
from kart_rewards.scenario import Check, Scoring, load_checks, load_goal, load_scoring
from kart_rewards.testing import snapshot

RAM = snapshot()

OWN = '''
from kart_rewards import done_rule, reward_term
from kart_rewards.rewards import wall  # imported, not defined here

@reward_term(weight=0.02)
def top_speed(ram):
    """Pay for every frame at full speed."""
    return float(ram.speed > 900)

@reward_term(weight=3)
def slow(ram):
    return float(is_slow(ram))

def is_slow(kart):
    return kart.altitude < 3

@done_rule()
def stopped(ram):
    return ram.speed == 0
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def rules(folder: Path, own: Any = None, **options: Any) -> Scoring:
    (folder / "scenario.json").write_text(json.dumps({} if own is None else {"kart_rewards": own}))
    return load_scoring(folder / "scenario.json", **options)


def weights(rules: Scoring) -> dict[str, float]:
    return {term.name: term.weight for term in rules.terms}


def names(rules: Scoring) -> list[str]:
    return [rule.name for rule in rules.done]


REFERENCE = {"wall": -10, "checkpoint": 300, "terrain": -15, "time": -1, "backwards": -2}


def test_an_empty_scenario_means_the_reference(folder: Path) -> None:
    assert weights(rules(folder)) == REFERENCE
    assert names(rules(folder)) == ["race_finished", "wall_hits"]


def test_a_scenario_selects_terms_weights_and_rules(folder: Path) -> None:
    own = {
        "modules": ["own.py"],
        "rewards": {"top_speed": None, "wall": -5},
        "done": ["stopped", "race_finished"],
    }
    assert weights(rules(folder, own)) == {"top_speed": 0.02, "wall": -5}
    assert names(rules(folder, own)) == ["stopped", "race_finished"]


def test_a_module_object_is_added_like_its_file(folder: Path) -> None:
    own = import_source(folder / "own.py")
    assert weights(rules(folder, extra=[own])) == weights(rules(folder, extra=[folder / "own.py"]))


def test_files_modules_and_functions_are_added_to_the_scenario(folder: Path) -> None:
    @reward_term(weight=7)
    def mine(ram: Any) -> float:
        return 0.0

    @done_rule()
    def bored(ram: Any) -> bool:
        return False

    def plain(ram: Any) -> float:
        return 0.0

    added = rules(folder, extra=[str(folder / "own.py"), mine, bored, plain])
    assert weights(added) == REFERENCE | {"top_speed": 0.02, "slow": 3, "mine": 7, "plain": 1}
    assert names(added) == ["race_finished", "wall_hits", "stopped", "bored"]
    assert weights(rules(folder, {"rewards": {}}, extra=["kart_rewards.rewards"])) == REFERENCE


def test_the_command_line_overrides_the_scenario_which_overrides_the_decorator(folder: Path) -> None:
    own = {"modules": ["own.py"], "rewards": {"top_speed": 5, "slow": None}}
    assert weights(rules(folder, own, weights={"slow": 9})) == {"top_speed": 5, "slow": 9}
    own_file = str(folder / "own.py")
    assert weights(rules(folder, own, extra=[own_file], weights={"slow": 9})) == {"top_speed": 5, "slow": 9}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([], 'must be an object with "modules", "rewards", "done", "checks" and "goal"'),
        ({"reward": {}}, 'must be an object with "modules", "rewards", "done", "checks" and "goal"'),
        ({"modules": "own.py"}, '"modules" under "kart_rewards" must be a list of names, not \'own.py\'$'),
        ({"done": [3]}, r'json: "done" under "kart_rewards" must be a list of names, not \[3\]$'),
        ({"done": "stop"}, 'json: "done" under "kart_rewards" must be a list of names, not \'stop\'$'),
        ({"rewards": ["wall"]}, "must be an object of weights by term"),
        ({"rewards": {"wal": 1}}, "there is no reward term 'wal' in this run; there are wall, checkpoint"),
        ({"reward": {}}, r"unknown key 'reward'\. Did you mean 'rewards'\?"),
        ({"rewards": {"wal": 1}}, r"there are wall, .*, backwards\. Did you mean 'wall'\?"),
        ({"rewards": {"wall": True}}, "the weight of 'wall' must be a finite number, not True"),
        ({"rewards": {"wall": 10**400}}, "line 1: the number 1000.* is too large"),
        ({"done": ["wall_hit"]}, r"there is no done rule 'wall_hit'; there are .*\. Did you mean 'wall_hits'\?"),
        ({"modules": [""]}, "must be a list of names"),
        ({"rewards": {"wall": "much"}}, "the weight of 'wall' must be a finite number, not 'much'"),
        ({"done": ["stop"]}, "there is no done rule 'stop'; there are race_finished, wall_hits"),
        ({"modules": ["lost.py"]}, "lost.py: no such file"),
        ({"modules": ["empty.py"]}, "empty.py: defines no reward term and no done rule: mark them with @reward_term"),
        ({"modules": ["no_such_module"]}, "no_such_module: no such module"),
    ],
)
def test_bad_scenarios_are_reported(folder: Path, own: Any, message: str) -> None:
    (folder / "empty.py").touch()
    with pytest.raises(KartRewardsError, match=message):
        rules(folder, own)


# openai/retro#151 and #72: the rewards of a scenario do nothing, and nobody says why. A key that stable-retro does not
# know has no effect, so a misspelt key is refused, and so is a key in the wrong place.
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kart_reward": {}}, r"unknown key 'kart_reward'\. Did you mean 'kart_rewards'\?"),
        ({"rewrad": {}}, r"unknown key 'rewrad'\. Did you mean 'reward'\?"),
        ({"modules": ["own.py"]}, "unknown key 'modules'. It belongs inside \"kart_rewards\""),
        ({"checks": []}, "unknown key 'checks'. It belongs inside \"kart_rewards\""),
        ({"rewards": {"wall": -5}}, '"rewards", an object of weights by term, belongs inside "kart_rewards"'),
    ],
)
def test_a_misplaced_or_misspelt_key_of_a_scenario_is_reported(folder: Path, content: Any, message: str) -> None:
    (folder / "scenario.json").write_text(json.dumps(content))
    for read in (load_scoring, load_checks):
        with pytest.raises(KartRewardsError, match=message):
            read(folder / "scenario.json")


def test_other_unknown_keys_of_a_scenario_have_one_notice_and_comments_have_none(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"_note": 1, "rewards": {"_old": 3, "wall": None}, "checks": [{"expect": "laps == 127", "_why": "start"}]}
    content = {"author": "me", "_comment": "mine", "comment": 1, "$schema": "x", "crop": [0, 0, 9, 9]}
    content |= {"kart_rewards": own}
    (folder / "scenario.json").write_text(json.dumps(content))
    for _ in range(2):
        assert weights(load_scoring(folder / "scenario.json")) == {"wall": -10}
        assert load_checks(folder / "scenario.json") == [Check("laps == 127")]
    assert capsys.readouterr().out == f"{folder / 'scenario.json'}: the key 'author' has no effect\n"


STABLE_RETROS = {
    "reward": {"variables": {"score": {"reward": 2}, "lives": {"penalty": 5}}},
    "done": {"variables": {"lives": {"op": "zero"}}},
}


def with_stable_retros(folder: Path, own: Any = None, **options: Any) -> Scoring:
    content = STABLE_RETROS | ({} if own is None else {"kart_rewards": own})
    (folder / "scenario.json").write_text(json.dumps(content))
    return load_scoring(folder / "scenario.json", **options)


def test_what_stable_retros_keys_declare_takes_the_place_of_the_reference(folder: Path) -> None:
    owns: list[Any] = [None, {}, {"checks": []}]
    for own in owns:
        scoring = with_stable_retros(folder, own)
        assert (weights(scoring), names(scoring)) == ({"score": 2, "lives": 5}, ["lives"])
    own_file = with_stable_retros(folder, {"modules": ["own.py"]})
    assert (weights(own_file), names(own_file)) == (
        {"score": 2, "lives": 5, "top_speed": 0.02, "slow": 3},
        ["lives", "stopped"],
    )
    assert weights(with_stable_retros(folder, extra=[wall], weights={"score": 7})) == {
        "score": 7,
        "lives": 5,
        "wall": -10,
    }


def test_the_lists_of_kart_rewards_decide_where_they_are_given(folder: Path) -> None:
    scoring = with_stable_retros(folder, {"rewards": {"score": None, "wall": -1}})
    assert (weights(scoring), names(scoring)) == ({"score": 2, "wall": -1}, ["lives"])
    scoring = with_stable_retros(folder, {"done": ["race_finished", "lives"]})
    assert (weights(scoring), names(scoring)) == ({"score": 2, "lives": 5}, ["race_finished", "lives"])
    scoring = with_stable_retros(folder, {"rewards": {}, "done": []})
    assert (weights(scoring), names(scoring)) == ({}, [])
    with pytest.raises(KartRewardsError, match=r"no reward term 'scor' .* Did you mean 'score'\?"):
        with_stable_retros(folder, {"rewards": {"scor": 1}})


@pytest.mark.parametrize("game", ["HomebrewKart-Snes", "MarioKart-Snes"])
def test_the_kart_games_keep_their_rewards_beside_stable_retros(game: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[1] / "integrations" / game / "scenario.json"
    assert {"reward", "done"} <= json.loads(path.read_text()).keys()
    scoring = load_scoring(path)
    assert [term.definition for term in scoring.terms] == list(REFERENCE_TERMS)
    assert [rule.definition for rule in scoring.done] == list(REFERENCE_RULES)
    assert weights(scoring) == REFERENCE
    assert capsys.readouterr().out == ""


def test_a_python_term_replaces_the_declared_one_of_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @reward_term(weight=9)
    def score(ram: Any) -> float:
        return 0.0

    @done_rule()
    def lives(ram: Any) -> bool:
        return False

    scoring = with_stable_retros(folder, extra=[score, lives])
    assert weights(scoring) == {"lives": 5, "score": 9}
    assert [rule.definition for rule in scoring.done] == [lives]
    out = capsys.readouterr().out
    assert f"'score' replaces the one that {folder / 'scenario.json'} declares" in out
    assert out.count(" replaces the one ") == 2


def test_functions_of_lua_are_a_term_and_a_rule_of_one_name(folder: Path) -> None:
    (folder / "script.lua").write_text("function pay() end function over() end")
    content = {"reward": {"script": "lua:pay"}, "done": {"script": "over"}, "scripts": ["script.lua"]}
    (folder / "scenario.json").write_text(json.dumps(content))
    scoring = load_scoring(folder / "scenario.json")
    assert (weights(scoring), names(scoring)) == ({"lua": 1}, ["lua"])
    assert "Checkpoints lack the memory of Lua scripts: a resumed run begins new episodes." in scoring.notices()
    own = {"rewards": {"wall": -3, "lua": 0.5}, "done": ["wall_hits"]}
    (folder / "scenario.json").write_text(json.dumps(content | {"kart_rewards": own}))
    scoring = load_scoring(folder / "scenario.json")
    assert (weights(scoring), names(scoring)) == ({"wall": -3, "lua": 0.5}, ["wall_hits"])


def test_checks_are_read_and_do_not_change_the_scoring(folder: Path) -> None:
    own = {"checks": [{"expect": "laps == 127"}, {"expect": "speed > 0", "hold": "B+LEFT", "within_frames": 60}]}
    assert weights(rules(folder, own)) == REFERENCE
    checks = load_checks(folder / "scenario.json")
    assert checks == [Check("laps == 127"), Check("speed > 0", hold="B+LEFT", within_frames=60)]
    assert [str(check) for check in checks] == ["laps == 127", "speed > 0, holding B+LEFT"]
    rules(folder)
    assert load_checks(folder / "scenario.json") == []


@pytest.mark.parametrize(
    "checks",
    [
        {"expect": "laps == 127"},
        ["laps == 127"],
        [{}],
        [{"expect": 127}],
        [{"expect": "laps == 127", "hold": 3}],
        [{"expect": "laps == 127", "frames": 3}],
        [{"expect": "laps == 127", "within_frames": "3"}],
        [{"expect": "laps == 127", "within_frames": True}],
        [{"expect": "laps == 127", "within_frames": -1}],
        [{"expect": "laps == 127", "within_frames": 10**9}],
    ],
)
def test_malformed_checks_are_reported(folder: Path, checks: Any) -> None:
    rules(folder, {"checks": checks})  # training does not read them
    with pytest.raises(KartRewardsError, match=r"scenario\.json: (the check .* is not \{\"expect\"|.*must be a list)"):
        load_checks(folder / "scenario.json")


def test_a_misspelt_key_of_a_check_is_reported_with_the_right_one(folder: Path) -> None:
    rules(folder, {"checks": [{"expect": "laps == 127", "within_frame": 3}]})
    with pytest.raises(KartRewardsError, match=r"Unknown key 'within_frame'\. Did you mean 'within_frames'\?"):
        load_checks(folder / "scenario.json")


def test_a_goal_is_read_and_does_not_change_the_scoring(folder: Path) -> None:
    assert weights(rules(folder, {"goal": "laps >= 133"})) == REFERENCE
    assert load_goal(folder / "scenario.json") == "laps >= 133"
    rules(folder)
    assert load_goal(folder / "scenario.json") is None


@pytest.mark.parametrize("goal", [5, "", ["laps >= 133"], {"expect": "laps >= 133"}])
def test_a_malformed_goal_is_reported(folder: Path, goal: Any) -> None:
    rules(folder, {"goal": goal})
    with pytest.raises(KartRewardsError, match=r'scenario\.json: "goal" under "kart_rewards" must be a condition or a'):
        load_goal(folder / "scenario.json")


def test_weights_of_unknown_terms_are_reported(folder: Path) -> None:
    with pytest.raises(KartRewardsError, match="there is no reward term 'top_sped'"):
        rules(folder, weights={"top_sped": 1.0})
    with pytest.raises(KartRewardsError, match=r"the reward weights must be a dict such as .*, not \['wall'\]"):
        load_scoring(None, weights=["wall"])  # type: ignore[arg-type]
    with pytest.raises(KartRewardsError, match=r"reward weights: .*\. Did you mean 'terrain'\?"):
        rules(folder, weights={"terain": 1.0})


def test_two_terms_with_the_same_name_are_reported(folder: Path) -> None:
    @reward_term(name="wall")
    def other(ram: Any) -> float:
        return 0.0

    with pytest.raises(KartRewardsError, match="two terms or rules have the name 'wall'"):
        rules(folder, extra=[other])
    assert weights(rules(folder, extra=[wall])) == REFERENCE  # the same term twice is not an error


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def broken(:", r"SyntaxError"),
        ("import no_such_thing", r"No module named 'no_such_thing'"),
        (
            "print(1 / 0)  # here",
            r"raised ZeroDivisionError: division by zero\n  at .*bad.py:1: print\(1 / 0\)  # here",
        ),
        ("x = 1", r"defines no reward term and no done rule"),
    ],
)
def test_a_rewards_file_whose_import_fails_is_reported(folder: Path, source: str, message: str) -> None:
    (folder / "bad.py").write_text(source)
    with pytest.raises(KartRewardsError, match=message) as error:
        rules(folder, extra=[str(folder / "bad.py")])
    assert "bad.py" in str(error.value)


def test_a_variable_that_data_json_does_not_define_is_reported(folder: Path) -> None:
    layout = RamLayout([Variable(name, 0, "|u1") for name in ("speed", "laps", "collision")], source="data.json")
    with pytest.raises(KartRewardsError) as error:
        rules(folder, {"modules": ["own.py"], "rewards": {"slow": 1}, "done": []}).check(layout)
    assert "'slow'" in str(error.value)  # which reads it in a helper function
    assert "reads 'altitude', which data.json does not define; it defines speed, laps, collision" in str(error.value)
    rules(folder, {"modules": ["own.py"], "rewards": {"top_speed": 1}, "done": ["wall_hits"]}).check(layout)


def test_the_table_without_terms_and_rules_is_empty(folder: Path) -> None:
    assert rules(folder, {"rewards": {}, "done": []}).table() == ""


def test_fingerprints_change_with_weights_and_helper_functions(folder: Path) -> None:
    first = rules(folder, extra=[folder / "own.py"]).fingerprints()
    assert {"term wall", "term top_speed", "rule wall_hits", "rule stopped"} <= first.keys()
    assert rules(folder, extra=[folder / "own.py"], weights={"wall": -9}).fingerprints() != first
    (folder / "own.py").write_text(OWN.replace("< 3", "< 4"))  # in a function after the term that calls it
    second = rules(folder, extra=[folder / "own.py"])
    (folder / "own.py").write_text(OWN)  # after the import, so the run does not use it
    changed = {name for name in first if first[name] != second.fingerprints()[name]}
    assert changed == {"term slow"}


BOTH = """
from kart_rewards import done_rule, reward_term

@done_rule(truncates=True)
@reward_term(weight=2)
class Stuck:
    def __init__(self):
        self.frames = 0
    def __call__(self, ram):
        self.frames += ram.speed == 0
        return self.frames, self.frames > 1
"""


@pytest.mark.parametrize(
    ("own", "weight", "is_rule"),
    [
        ({"rewards": {"stuck": None, "wall": -1}, "done": ["stuck"]}, 2, True),
        ({"rewards": {"stuck": 0}, "done": ["stuck"]}, 0, True),
        ({"rewards": {"stuck": 9}, "done": []}, 9, False),
        ({"rewards": {}, "done": ["stuck"]}, None, True),
        ({}, 2, True),
    ],
    ids=["both", "weight 0", "only the term", "only the rule", "neither list"],
)
def test_a_scenario_may_name_a_class_that_is_a_term_and_a_rule_twice_or_once(
    folder: Path, own: Any, weight: float | None, is_rule: bool
) -> None:
    (folder / "both.py").write_text(BOTH)
    named = rules(folder, {"modules": ["both.py"], **own})
    assert (weights(named).get("stuck"), "stuck" in names(named)) == (weight, is_rule)
    rewards, done = episode_calls(named.terms, [rule for rule in named.done if rule.name == "stuck"])
    paid, ended = [], []
    for _ in range(3):
        rewards(RAM)
        ended.append(done(RAM) is not None)
        paid.append(rewards.sums.get("stuck"))
    assert paid == [None if weight is None else weight * each for each in (1, 3, 6)]
    assert ended == [False, is_rule, is_rule]


def test_the_fingerprint_of_a_variable_has_its_count_and_its_pointers(folder: Path) -> None:
    def of_fuel(ram: Any) -> float:
        return float(ram.fuel)

    def of_second(ram: Any) -> float:
        return float(ram.second)

    def of_an_array(ram: Any) -> float:
        return sum(ram.tiles) + max(*ram.tiles) + ram.tiles[3] + sum(tile == 5 for tile in ram.tiles)

    def prints(definition: Any, *variables: Variable) -> dict[str, str]:
        added = load_scoring(None, [definition]).fingerprints(RamLayout([*variables, Variable("other", 9, "|u1")]))
        return {name: text for name, text in added.items() if name.startswith("variable")}

    first, second = Variable("first", 0, "<u2"), Variable("second", 2, "<u2", pointer="first")
    fuel = Variable("fuel", 0, "<s2", pointer="second")
    assert prints(of_fuel, first, second, fuel) == {
        "variable first": "address 0, type <u2, mask None",
        "variable second": "address 2, type <u2, mask None, pointer first",
        "variable fuel": "address 0, type <s2, mask None, pointer second",
    }
    assert prints(of_second, first, second, fuel).keys() == {"variable first", "variable second"}
    tiles = {"variable tiles": "address 4, type |u1, mask None, count 320"}
    assert prints(of_an_array, first, Variable("tiles", 4, "|u1", count=320)) == tiles


def test_the_table_shows_weights_and_summaries(folder: Path) -> None:
    table = rules(folder, weights={"wall": -2.5}).table()
    assert "wall             -2.5  Charge every frame" in table
    assert "race_finished    ends  All five laps are done." in table


# openai/retro#40: every reward was 0 and no episode ended, because another scenario was in use; nothing said so.
def test_a_scenario_that_pays_nothing_or_ends_no_episode_is_noticed(tmp_path: Path) -> None:
    """A run without a reward or without a curve looks like one that has not learned yet."""
    path = tmp_path / "scenario.json"
    path.write_text('{"kart_rewards": {"rewards": {}, "done": []}}')
    nothing, endless = load_scoring(path).notices()
    assert "the agent is paid nothing" in nothing
    assert "no done rule" in endless
    path.write_text('{"kart_rewards": {"rewards": {"wall": 0}}}')
    assert load_scoring(path).notices() == [nothing]
    path.write_text("{}")
    assert load_scoring(path).notices() == []

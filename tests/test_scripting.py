from __future__ import annotations

import functools
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kart_rewards.errors import KartRewardsError
from kart_rewards.rewards import RewardTerm, as_term
from kart_rewards.scripting import Script, ScriptCalls, from_plain, import_source, marked_scripts, snake_case, to_plain
from kart_rewards.testing import score, snapshot


def test_names_are_converted_to_snake_case() -> None:
    assert [snake_case(name) for name in ("LeftTheRoad", "top_speed", "Wall", "RPM2High")] == [
        "left_the_road",
        "top_speed",
        "wall",
        "rpm2_high",
    ]


def test_arguments_with_a_default_are_not_for_snapshots() -> None:
    def limited(ram: Any, limit: int = 900, *, factor: float = 2.0) -> float:
        return factor * (ram.speed > limit)

    assert score([snapshot(), snapshot(speed=901)], [limited]) == {"limited": 2.0}


def test_partials_and_instances_are_scripts_too() -> None:
    def above(ram: Any, limit: int) -> float:
        return float(ram.speed > limit)

    class Above:
        def __call__(self, ram: Any) -> float:
            return float(ram.speed > 500)

    trace = [snapshot(), snapshot(speed=700)]
    assert score(trace, [functools.partial(above, limit=600), Above()]) == {"partial": 1.0, "above": 1.0}


class NotCallable:
    """A class whose instances can't be called."""


@pytest.mark.parametrize(
    "definition", [max, lambda: 0, lambda ram, previous, third: 0, lambda ram, *, limit: 0, NotCallable]
)
def test_a_script_must_take_one_snapshot_or_two(definition: Any) -> None:
    with pytest.raises(KartRewardsError, match="must take the RAM snapshot"):
        Script("odd", definition)


@pytest.mark.parametrize("name", ["_hidden", "off-road", "<lambda>", ""])
def test_a_name_must_be_a_public_python_name(name: str) -> None:
    with pytest.raises(KartRewardsError, match="can't be a script's name"):
        Script(name, lambda ram: 0.0)


def test_the_fingerprint_is_that_of_the_code_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "terms.py"
    path.write_text("from kart_rewards import reward_term\n@reward_term\ndef gift(ram):\n    return 1.0\n")
    [before] = marked_scripts(path, RewardTerm)
    fingerprint = before.fingerprint
    path.write_text('"""An unfinished edit')
    assert (before.fingerprint, before.where) == (fingerprint, f"{path}:2")
    assert before.reads() == set()  # not known any more; it must not raise
    path.write_text("from kart_rewards import reward_term\n@reward_term\ndef gift(ram):\n    return -1.0\n")
    [after] = marked_scripts(path, RewardTerm)
    assert after.fingerprint != fingerprint
    assert (before.definition(None), after.definition(None)) == (1.0, -1.0)


def test_a_file_can_import_another_file_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "kart_test_helper.py").write_text("LIMIT = 900\n")
    (tmp_path / "terms.py").write_text(
        "from kart_rewards import reward_term\nfrom kart_test_helper import LIMIT\n"
        "@reward_term\ndef fast(ram):\n    return float(ram.speed > LIMIT)\n"
    )
    [term] = marked_scripts(tmp_path / "terms.py", RewardTerm)
    assert term.definition(snapshot(speed=901)) == 1.0


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "def broken(:"])
def test_files_that_exit_or_are_not_python_are_reported(tmp_path: Path, code: str) -> None:
    (tmp_path / "bad.py").write_text(code)
    with pytest.raises(KartRewardsError, match=r"bad\.py: fails to import: it raised (SystemExit|SyntaxError)"):
        import_source(tmp_path / "bad.py")


def test_a_script_that_exits_is_reported() -> None:
    def leaves(ram: Any) -> float:
        raise SystemExit(0)

    with pytest.raises(KartRewardsError, match=r"'leaves' .* raised SystemExit"):
        ScriptCalls([as_term(leaves)]).values(snapshot())


def test_the_variables_that_a_script_reads_include_those_of_its_helpers() -> None:
    def helper(kart: Any, limit: int) -> bool:
        return kart.surface == 0x40 and kart.laps > limit

    globals()["helper"] = helper

    def term(ram: Any, previous: Any) -> float:
        other = object()
        return ram.speed + previous.checkpoint + other.nothing + helper(ram, 3)  # type: ignore[attr-defined]

    assert Script("term", term).reads() == {"speed", "checkpoint", "surface", "laps"}


def test_plain_values_are_converted_back_to_equal_values() -> None:
    value = {"a": [1, 2.5, None, True], (1, 2): {3, 4}, "ram": snapshot(speed=-5), 7: {"snapshot": "text"}, "t": ((),)}
    value |= {"recent": deque([1, 2], maxlen=2)}
    assert from_plain(to_plain(value)) == value
    assert from_plain(to_plain(value))["recent"].maxlen == 2
    assert type(to_plain(np.float64(2.5))) is float
    with pytest.raises(TypeError, match="a value of type object"):
        to_plain([object()])

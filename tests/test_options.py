"""Bounds of options, and options in a form that checkpoints hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest
import tyro
from annotated_types import Ge, Interval

import ppo_continuous_single_file as ppo
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation.agents import EvalOptions
from kart_rewards.training.options import INTEGERS, check_bounds, check_given_once, flow_help, to_plain_options
from kart_rewards.training.run import RunOptions

GROUPS = (ppo.EnvOptions, ppo.PPOOptions, EvalOptions, RunOptions)
BOUNDS = {
    "frame_skip": (1, None),
    "stack": (1, None),
    "random_start_steps": (0, None),
    "sticky_actions": (0, None),
    "max_episode_steps": (1, None),
    "learning_rate": (0, None),
    "num_envs": (1, None),
    "num_steps": (1, None),
    "gamma": (0, 1),
    "gae_lambda": (0, 1),
    "num_minibatches": (1, None),
    "update_epochs": (1, None),
    "clip_coef": (0, None),
    "max_grad_norm": (0, None),
    "eval_interval": (0, None),
    "eval_episodes": (1, None),
    "eval_seed": (0, 2**32 - 1),
    "eval_max_episode_steps": (1, None),
    "seed": (0, 2**32 - 1),
    "threads": (1, None),
    "checkpoint_interval": (0, None),
    "checkpoints_kept": (1, None),
    "record_drives": (0, None),
}
"""Option -> its least and its largest value."""
LESS_THAN = {"sticky_actions": 1}
"""Option -> the value that is just too large, where the largest one has no name."""


def bounded() -> list[tuple[type, str]]:
    """The options of the training script whose annotations name bounds, with their groups."""
    return [
        (group, name)
        for group in GROUPS
        for name, hint in get_type_hints(group, include_extras=True).items()
        if any(isinstance(bound, (Ge, Interval)) for bound in getattr(hint, "__metadata__", ()))
    ]


def test_the_options_with_bounds_are_these() -> None:
    assert [name for _, name in bounded()] == list(BOUNDS)


@pytest.mark.parametrize(("group", "name"), bounded(), ids=lambda value: value if isinstance(value, str) else "")
def test_each_bound_is_checked(group: type, name: str) -> None:
    low, high = BOUNDS[name]
    option = "--" + name.replace("_", "-")
    wanted = f"{low} or more" if high is None else f"between {low} and {high}"
    wanted += f" and less than {LESS_THAN[name]}" if name in LESS_THAN else ""
    check_bounds(group(**{name: low}))
    with pytest.raises(KartRewardsError, match=f"^{option} must be {wanted}, not {low - 1}$"):
        check_bounds(group(**{name: low - 1}))
    if name in LESS_THAN:
        check_bounds(group(**{name: math.nextafter(LESS_THAN[name], 0)}))
        with pytest.raises(KartRewardsError, match=f"^{option} must be {wanted}, not {LESS_THAN[name]}$"):
            check_bounds(group(**{name: LESS_THAN[name]}))
    elif high is None:
        check_bounds(group(**{name: 10**9}))
    else:
        check_bounds(group(**{name: high}))
        with pytest.raises(KartRewardsError, match=f"^{option} must be {wanted}, not {high + 1}$"):
            check_bounds(group(**{name: high + 1}))


@pytest.mark.parametrize("group", GROUPS)
def test_defaults_are_within_their_bounds(group: type) -> None:
    check_bounds(group())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["learning_rate", "gamma"])
def test_a_number_that_is_not_finite_is_out_of_bounds(name: str, value: float) -> None:
    changed: dict[str, Any] = {name: value}
    with pytest.raises(KartRewardsError, match=f"must be .*, not {value}"):
        check_bounds(ppo.PPOOptions(**changed))


def test_a_number_without_bounds_must_be_finite() -> None:
    with pytest.raises(KartRewardsError, match=r"^--ent-coef must be a finite number, not nan$"):
        check_bounds(ppo.EnvOptions(), ppo.PPOOptions(ent_coef=math.nan))
    with pytest.raises(KartRewardsError, match=r"^--target-kl must be a finite number, not inf$"):
        check_bounds(ppo.PPOOptions(target_kl=math.inf))


def test_an_option_that_is_not_given_has_no_bounds() -> None:
    check_bounds(ppo.EnvOptions(max_episode_steps=None))


def test_fractions_just_outside_an_interval_are_refused() -> None:
    @dataclass
    class Options:
        share: Annotated[float, Interval(ge=0, le=1)] = 0.5
        name: Annotated[str, "no bound"] = ""

    check_bounds(Options(share=1.0))
    for share in (1.0001, -0.0001):
        with pytest.raises(KartRewardsError, match=f"--share must be between 0 and 1, not {share}"):
            check_bounds(Options(share=share))


def test_an_option_with_several_values_is_given_once() -> None:
    check_given_once(["--rewards", "a.py", "b.py", "--state", "Level1"], "--rewards", "--state")
    for words in (["--rewards", "a.py", "--rewards", "b.py"], ["--eval_states=a", "--eval-states", "b"]):
        with pytest.raises(KartRewardsError, match="is given more than once: write all its values after one --"):
            check_given_once(words, "--rewards", "--eval-states")


def test_an_option_with_several_values_has_at_least_one(capsys: pytest.CaptureFixture[str]) -> None:
    def parse(*words: str) -> tuple[str, ...]:
        return tyro.cli(ppo.EnvOptions, args=words).rewards

    assert parse() == ()
    assert parse("--rewards", "a.py", "b.py") == ("a.py", "b.py")
    with pytest.raises(SystemExit):
        parse("--rewards")
    assert "needs at least one value" in capsys.readouterr().err


def test_an_integer_may_be_written_with_an_exponent(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Options:
        steps: Annotated[int, Ge(1)] = 1
        limit: int | None = None
        threads: Literal["auto"] | int = "auto"
        rate: float = 0.5
        name: str = ""
        grey: bool = True

    def parse(*words: str) -> Options:
        return tyro.cli(Options, args=words, registry=INTEGERS)

    words = ["--steps", "1e5", "--limit", "2.5e3", "--threads", "2", "--rate", "1e-3", "--name", "1e5", "--no-grey"]
    assert parse(*words) == Options(100_000, 2500, 2, 1e-3, "1e5", False)
    assert parse() == Options()
    for text in ("1.5", "1e-3", "nan", "inf", "1e99", "many"):
        with pytest.raises(SystemExit):
            parse("--steps", text)
        assert f"{text!r} is not an integer" in capsys.readouterr().err


@dataclass
class Described:
    """Options."""

    first: int = 1
    """The first of the two
    options."""
    second: int = 2
    """The second. It is a number,
    (not a
    text)."""
    without: int = 3


def described(first: int = 1, second: int = 2) -> None:
    """Does something, by

        and code

    Args:
        first: The first of the two
            options.
        second: The second. It is a number,
            (not a
            text).
    """


@pytest.mark.parametrize("options", [Described, described])
def test_a_help_text_of_several_lines_is_one_paragraph(
    options: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for _ in range(2):  # the second call changes nothing
        flow_help(options)
    with pytest.raises(SystemExit):
        tyro.cli(options, args=["--help"])
    printed = capsys.readouterr().out
    assert "The first of the two options. (default: 1)" in printed
    assert "The second. It is a number, (not a text). (default: 2)" in printed
    assert ("\n\nand code\n" in printed) == (options is described), "the description stays as it is"


def test_help_texts_of_all_options_are_paragraphs() -> None:
    for group in GROUPS:
        flow_help(group)
        helps = (group.__doc__ or "").partition("Args:\n")[2].splitlines()
        named = {line.strip().partition(": ")[0]: line.partition(": ")[2] for line in helps}
        assert list(named) == [option.name for option in fields(group)]
        assert all(text.endswith(".") for text in named.values())


def test_options_as_plain_values() -> None:
    @dataclass
    class Inner:
        folder: Path = Path("runs")
        size: tuple[int, int] = (84, 84)
        missing: Path | None = None

    @dataclass
    class Outer:
        inner: Inner = field(default_factory=Inner)
        number: float = 0.5

    plain = to_plain_options(Outer())
    assert plain == {"inner": {"folder": "runs", "size": (84, 84), "missing": None}, "number": 0.5}
    assert type(plain["inner"]["folder"]) is str


def test_all_options_of_the_script_are_plain_values() -> None:
    def types_in(value: Any) -> set[type]:
        if isinstance(value, dict):
            return set().union(*map(types_in, value.values()))
        return set().union({type(value)}, *map(types_in, value)) if isinstance(value, tuple) else {type(value)}

    plain = to_plain_options(ppo.Args(env=ppo.EnvOptions(integrations_path=Path("games"))))
    assert types_in(plain) <= {str, int, float, bool, tuple, type(None)}
    assert set(plain) == {group.name for group in fields(ppo.Args)}

"""Model cards: what an agent is, as Markdown for people, with metadata for the Hugging Face hub.

* ``CARD`` - the name of a card's file, beside that of the agent
* ``model_card`` - the text of a card
* ``front_matter`` - its metadata alone
* ``weights_hash`` - identifies an agent, whatever file holds it
* ``names_other_weights`` - whether a card is of another agent
* ``rom_hash``, ``installed_versions`` - facts for it

A card has no path of the computer that wrote it: of each path, it has the last name. It holds no ROM.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kart_rewards.errors import counted
from kart_rewards.evaluation.tables import table
from kart_rewards.integrations import Game, rom_sha1

if TYPE_CHECKING:
    from torch import Tensor

CARD = "README.md"
"""The hub shows the file of this name."""

_PACKAGES = ("kart_rewards", "torch", "stable-retro", "gymnasium", "numpy")
_METRICS = {
    "finish_rate": "part of the races that were finished",
    "median_lap_time_seconds": "median lap, seconds",
    "median_race_time_seconds": "median race, seconds",
    "median_return": "median return",
}
"""What the hub lists of an evaluation."""
_OF_ACCOUNTS = {"wandb_entity", "wandb_project_name"}
"""Options that name an account of the user's."""
_WEIGHTS = "SHA-256 of the weights"


def model_card(
    file: str,
    *,
    weights: str,
    steps: int,
    options: Mapping[str, Mapping[str, Any]],
    scoring: Mapping[str, str],
    rom: str = "",
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    meanings: Mapping[str, str] | None = None,
    command: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
) -> str:
    """Returns a card: YAML between two lines of dashes, then Markdown.

    Args:
        file: The name of the agent's file.
        weights: Its ``weights_hash``.
        steps: Agent steps of its training.
        options: Group of options -> option -> value, as a checkpoint holds them.
        scoring: What decides the rewards, as a checkpoint holds it: see ``RunRewards.fingerprints``.
        rom: The SHA-1 of the game's ROM. Empty: it is not known.
        metrics: Course -> metric -> value, of the evaluation that chose this agent. None: there was none.
        meanings: Reward term or done rule -> what it is for.
        command: The words that started the run.
        versions: Package -> version, of the run.

    Example:
        >>> options = {"env": {"env_id": "A-Snes"}, "run": {"seed": 1, "runs_path": "/home/me/runs"}}
        >>> card = model_card("best.pt", weights="ab", steps=4096, options=options, scoring={"term lap": "weight 1.0"})
        >>> "| training | 4,096 steps, seed 1 |" in card, "/home/me" in card
        (True, False)
    """
    game = options["env"]["env_id"]
    of_run, of_evaluation = options.get("run", {}), options.get("eval", {})
    facts = {
        "game": game,
        "ROM": f"SHA-1 `{rom}`; it is not part of this repository" if rom else "not known; not part of this repository",
        "training": f"{counted(steps, 'step')}, seed {of_run.get('seed', 'unknown')}",
        _WEIGHTS: f"`{weights}`",
        "command": f"`{shlex.join(_without_accounts(command))}`" if command else "",
        "versions": ", ".join(f"{package} {version}" for package, version in (versions or {}).items()),
    }
    parts = [
        f"# {game}",
        f"An agent that plays {game} from pixels, trained by kart_rewards with PPO.",
        _rows(("", ""), ([name, fact] for name, fact in facts.items() if fact)),
        "## How to use it",
        f"`kart-rewards watch {file}` shows the agent, and `kart-rewards evaluate {file}` plays races with it. Both "
        "need the game's ROM. They run no code of this repository, unless you add `--trust`.",
        "## Evaluation",
    ]
    if metrics:
        results = table({course: {"agent": _complete(of_course)} for course, of_course in metrics.items()})
        episodes, seed = of_evaluation.get("eval_episodes", "several"), of_evaluation.get("eval_seed", "unknown")
        parts += [
            f"Episodes on each course: {episodes}, with deterministic actions and seed {seed}, after these training "
            "steps. The agent was chosen by this evaluation, so its results are higher than those of other episodes: "
            "`kart-rewards evaluate` plays others.",
            f"```text\n{results}\n```",
        ]
    else:
        parts += ["There is no evaluation of this agent in this card."]
    parts += [
        "## Rewards",
        "What decided the rewards and the end of an episode. A code is a hash of what a term or rule computes.",
        _rows(("", "name", "weight", "code", "what"), _scoring_rows(scoring, meanings or {})),
        "## Options",
        _rows(
            ("option", "value"),
            (
                [f"{group}.{name}", _shown(value)]
                for group, of_group in options.items()
                for name, value in of_group.items()
                if name not in _OF_ACCOUNTS
            ),
        ),
    ]
    return front_matter(game, metrics) + "\n\n".join(parts) + "\n"


def front_matter(game: str, metrics: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Returns the beginning of a card, with the metadata for the hub. JSON is YAML, too.

    Args:
        game: The game.
        metrics: See ``model_card``.
    """
    results = [
        {
            "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
            "dataset": {"type": game, "name": f"{game} {course}"},
            "metrics": [
                {"type": metric, "value": round(float(value), 4), "name": name}
                for metric, name in _METRICS.items()
                if (value := of_course.get(metric)) is not None and math.isfinite(value)
            ],
        }
        for course, of_course in (metrics or {}).items()
    ]
    known = [result for result in results if result["metrics"]]
    content: dict[str, Any] = {
        "library_name": "kart_rewards",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["kart_rewards", "reinforcement-learning", "deep-reinforcement-learning", "ppo", game],
        **({"model-index": [{"name": game, "results": known}]} if known else {}),
    }
    lines = (f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in content.items())
    return f"---\n{''.join(lines)}---\n\n"


def weights_hash(agent: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of an agent's weights: their names, types, shapes and bytes.

    Args:
        agent: Name -> tensor.
    """
    import torch  # not above: commands that need no agent start without it

    digest = hashlib.sha256()
    for name, tensor in sorted(agent.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def names_other_weights(card: str, weights: str) -> bool:
    """Whether a card names a hash of weights, and it is another one. A card that was written by hand may name none."""
    named = re.search(rf"^\| {_WEIGHTS} \| `(\w+)` \|$", card, flags=re.M)
    return named is not None and named[1] != weights


def rom_hash(game: Game) -> str:
    """Returns the SHA-1 of a game's ROM.

    Raises:
        KartRewardsError: See ``Game.rom``.
    """
    with game.rom().open("rb") as file:
        return rom_sha1(file)[0]


def installed_versions() -> dict[str, str]:
    """Returns package -> version: Python, the packages that decide a run's results, and the commit of a checkout."""
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    checkout = Path(__file__).parents[2]
    if (checkout / ".git").exists():
        describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with suppress(OSError, subprocess.SubprocessError):
            commit = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
            versions["commit"] = commit.stdout.strip()
    return versions


def _complete(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a course as ``summarise`` returns them: it names those without a value, too."""
    return {"episodes": None, "finish_rate": None, **metrics}


def _scoring_rows(scoring: Mapping[str, str], meanings: Mapping[str, str]) -> Iterable[list[str]]:
    """The rows of a checkpoint's ``scoring``: ``term lap`` -> ``weight 7200.0, code 0123456789abcdef`` and the like."""
    for name, text in scoring.items():
        kind, _, of_kind = name.partition(" ")
        if kind in ("term", "rule"):
            weight, _, code = text.rpartition(", ")
            yield [kind, of_kind, weight.removeprefix("weight "), code.split(" ")[-1], meanings.get(of_kind, "")]
        else:
            yield [kind, of_kind, "", "", text]


def _without_accounts(words: Sequence[str]) -> list[str]:
    """The words of a command without paths, and without the options that name an account."""
    shown: list[str] = []
    left_out = False
    for word in words:
        option, equals, value = word.partition("=")
        if left_out := left_out and not word.startswith("--"):
            continue
        if option.startswith("--") and option[2:].replace("-", "_") in _OF_ACCOUNTS:
            left_out = not equals
            continue
        shown.append(f"{option}={_shown(value)}" if option.startswith("--") and equals else _shown(word))
    return shown


def _shown(value: Any) -> str:
    """A value as text, with the last name of each path in it."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(_shown, value))
    text = str(value)
    if "/" not in text and "\\" not in text:
        return text
    if text.rstrip("/") == str(Path("~").expanduser()):
        return "~"
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] or "/"


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ([re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)

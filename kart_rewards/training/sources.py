"""The files that decide a run's rewards, kept in the run's folder.

* ``RunRewards`` - a run's reward terms and done rules, with everything that decides them
* ``keep_sources`` - copies scripts, scenario and data file into a run's folder
* ``kept_sources`` - original file -> its copy
* ``changed_sources`` - those whose original is missing or differs today
* ``has_own_sources`` - whether this user made the copies on this computer
* ``use_changed_sources`` - reads the copies where the originals are missing or differ today
* ``changed_wrappers`` - the files of wrappers that differ from their copies

A run has one text of each file: evaluations during training read the copies. An agent is watched and evaluated with
the rewards that it was trained with, even if a file is changed or gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from kart_rewards.declared import scripts_of
from kart_rewards.env.core import fingerprints_of
from kart_rewards.errors import KartRewardsError
from kart_rewards.files import atomic_write, copies_in_use, copy_of, use_copies
from kart_rewards.integrations import Game
from kart_rewards.notices import notice
from kart_rewards.ram import RamLayout, load_json
from kart_rewards.scenario import Scoring, load_scoring
from kart_rewards.training.keys import is_signed, signed

_FOLDER, _INDEX, _SIGNATURE = "sources", "index.json", "signature"


@dataclass(frozen=True)
class RunRewards:
    """The reward terms and done rules of a run, with everything that decides them.

    Args:
        scoring: The terms and rules.
        fingerprints: Terms, rules, variables, ROM and core -> what identifies each; checkpoints hold it.
        fingerprints_of_0_1: The same as checkpoints of version 0.1 hold it.
        files: The data file, the scenario, and its Lua files.
    """

    scoring: Scoring
    fingerprints: dict[str, str]
    fingerprints_of_0_1: dict[str, str]
    files: list[Path]

    @classmethod
    def load(
        cls, game: Game, scenario: str | None, info: str, rewards: Iterable[Any], weights: Mapping[str, float]
    ) -> RunRewards:
        """Loads the terms and rules; see ``KartEnv`` for the arguments.

        Raises:
            KartRewardsError: A file is missing or wrong.
        """
        data_path, scenario_path = game.json_path(info), None if scenario is None else game.json_path(scenario)
        layout = RamLayout.from_file(data_path)
        scoring = load_scoring(scenario_path, rewards, weights, layout.names)
        fingerprints = scoring.fingerprints(layout) | fingerprints_of(game.rom())
        scripts = scripts_of((*scoring.terms, *scoring.done))
        files = [*([scenario_path] if scenario_path else []), data_path]
        files += [file.path for file in scripts.files] if scripts else []
        return cls(scoring, fingerprints, scoring.fingerprints_of_0_1(), files)


def keep_sources(run_folder: Path, files: Iterable[Path], sign: bool = True) -> None:
    """Copies files into ``sources/`` of a run's folder; copies of an earlier start are replaced.

    Args:
        run_folder: The run's folder.
        files: Absolute paths. Files of one name get folders of their own.
        sign: Whether this user may run the copies later. Copies for others are not signed.

    Raises:
        UnwritableError: A copy can't be written.
    """
    index: dict[str, str] = {}
    folder = run_folder / _FOLDER
    for file in files:
        if not copy_of(file).is_file():  # imported earlier in this process, and deleted
            continue
        name = next(name for i in range(len(index) + 1) if (name := f"{i}/{file.name}") not in index.values())
        with atomic_write(folder / name) as copy:
            copy.write_bytes(copy_of(file).read_bytes())
        index[str(file)] = name
    texts = {_INDEX: json.dumps(index, indent=2)}
    if sign:
        texts[_SIGNATURE] = signed(_text(_copies(folder, index)))
    for name, text in texts.items():
        with atomic_write(folder / name) as copy:
            copy.write_text(text + "\n", encoding="utf-8")


def kept_sources(run_folder: Path) -> dict[Path, Path]:
    """Returns original file -> its copy; empty if the folder keeps none."""
    folder = run_folder / _FOLDER
    try:
        index = load_json(folder / _INDEX)
    except KartRewardsError:
        return {}
    return _copies(folder, index)


def _copies(folder: Path, index: Mapping[str, Any]) -> dict[Path, Path]:
    copies = {Path(file): folder / str(name) for file, name in index.items()}
    inside = folder.resolve()
    return {file: copy for file, copy in copies.items() if copy.is_file() and copy.resolve().is_relative_to(inside)}


def has_own_sources(run_folder: Path) -> bool:
    """Whether this user made the copies on this computer. Otherwise they are somebody else's code."""
    try:
        signature = (run_folder / _FOLDER / _SIGNATURE).read_text(encoding="utf-8").strip()
        return is_signed(_text(kept_sources(run_folder)), signature)
    except (OSError, ValueError):
        return False


def _text(copies: Mapping[Path, Path]) -> str:
    """Returns the text to sign: which file each copy is of, and a hash of its content."""
    hashes = {str(file): sha256(copy.read_bytes()).hexdigest() for file, copy in copies.items()}
    return json.dumps(hashes, sort_keys=True)


def changed_sources(run_folder: Path) -> dict[Path, Path]:
    """Returns original file -> its copy, for the files that are missing or differ from their copy today."""
    return {file: copy for file, copy in kept_sources(run_folder).items() if not _equal(file, copy)}


def use_changed_sources(run_folder: Path, trust: bool = False) -> None:
    """Makes this process read the copies of sources whose original is missing or differs; prints a notice of each.

    Copies that are in use already stay in use.

    Args:
        run_folder: The run's folder.
        trust: Whether to read copies that another user or computer made, too.
    """
    changed = changed_sources(run_folder)
    trusted = trust or not changed or has_own_sources(run_folder)
    used = "is used" if trusted else "is not used, because you did not make it on this computer: add --trust to use it"
    for file in changed:
        notice(f"{file}: {'has changed' if file.exists() else 'is missing'}: the run's copy in {run_folder} {used}")
    if trusted:
        use_copies({**changed, **copies_in_use()})


def changed_wrappers(run_folder: Path, wrappers: Iterable[str]) -> list[Path]:
    """Returns the files of wrappers that differ from their copies in the run's folder.

    Args:
        run_folder: The run's folder.
        wrappers: The names of the wrappers, see ``kart_rewards.env.wrappers``.
    """
    copies = kept_sources(run_folder)
    files = dict.fromkeys(Path(name.rpartition(":")[0]) for name in wrappers)
    return [file for file in files if file in copies and not _equal(file, copies[file])]


def _equal(file: Path, copy: Path) -> bool:
    try:
        return file.read_bytes() == copy.read_bytes()
    except OSError:
        return False

"""Recorded drives: listing, checking, and conversion from and to the formats of others.

* ``drive_of_movie`` - plays a ``.bk2`` movie, and returns the drive
* ``minari_dataset`` - writes drives as a Minari dataset, with observations
* ``command`` - the command ``kart-rewards drives``
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from gzip import compress
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console as Terminal
from rich.table import Table

from kart_rewards.drives import SUFFIX, Drive, load_drive
from kart_rewards.env import KartEnv
from kart_rewards.env.movie import save_movie
from kart_rewards.env.observations import ObservationConfig
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.games.console import Console
from kart_rewards.games.inputs import button_masks, movie_start, read_inputs
from kart_rewards.integrations import find_game
from kart_rewards.lab.replay import replay
from kart_rewards.lab.score import find_drives
from kart_rewards.training.options import Drives, GamesFolder

_WITHOUT_TERMINAL = 10_000  # columns


def drive_of_movie(path: Path, game: str, integrations: Path | None = None) -> Drive:
    """Plays a ``.bk2`` movie in the emulator, and returns the drive.

    Its first frame is that of a reset. Rewards are those of the game's scenario, up to the end of the movie or of the
    episode.

    Args:
        path: The movie.
        game: The game's folder name.
        integrations: The only folder to look for the game in. None: the standard lookup.

    Raises:
        KartRewardsError: The movie can't be read, it is of another game, or it has no frame after the first.
    """
    snapshot, label = movie_start(path), path.name.removesuffix(".bk2")
    with tempfile.TemporaryDirectory(prefix="kart_rewards-") as folder:
        state = Path(folder) / f"{label}.state"
        state.write_bytes(compress(snapshot))
        with closing(
            KartEnv(game, integrations=integrations, state=str(state), action_mode="all", frame_skip=1)
        ) as env:
            recorder = env.recorder = DriveRecorder("movie")
            _, *masks = button_masks(read_inputs(path, env.buttons), env.buttons)
            env.reset()
            for mask in masks:
                _, _, terminated, truncated, _ = env.step(mask)
                if terminated or truncated:
                    break
            if not recorder.has_drive:
                raise KartRewardsError(f"{path}: has no frame after that of the reset")
            drive = recorder.drive(env)
    return replace(drive, info=replace(drive.info, state=label))  # the state's file was temporary


def minari_dataset(
    drives: Sequence[Drive],
    dataset_id: str,
    observation: ObservationConfig = ObservationConfig(),  # noqa: B008 - frozen
    integrations: Path | None = None,
) -> Any:
    """Writes drives as a Minari dataset. The observations come from a replay of each drive.

    Minari keeps datasets in the folder of the environment variable ``MINARI_DATASETS_PATH``, by default in
    ``~/.minari``.

    Args:
        drives: Drives of one game, with one action mode and one frame skip.
        dataset_id: The dataset's name, such as ``kart/level1-v0``.
        observation: The options of the observations.
        integrations: The only folder to look for the game in. None: the standard lookup.

    Returns:
        The ``minari.MinariDataset``.

    Raises:
        KartRewardsError: Minari is not installed, the name is not valid or taken, the drives do not fit each other, or
            a replay departs.
    """
    try:
        import minari
        from minari.data_collector import EpisodeBuffer
    except ImportError:
        raise KartRewardsError("Minari is not installed: pip install 'kart_rewards[minari]'") from None
    if "jpeg_encoding" not in inspect.signature(minari.create_dataset_from_buffers).parameters:
        raise KartRewardsError(
            "this version of Minari stores images as JPEG, which changes them: use Minari 0.5.4 or newer, which needs "
            "Python 3.11 or newer"
        )
    first = drives[0].info
    for drive in drives:
        info = drive.info
        if (info.game, info.action_mode, info.frame_skip) != (first.game, first.action_mode, first.frame_skip):
            raise KartRewardsError(
                f"{info.label}: {info.game}, {info.action_mode}, frame skip {info.frame_skip}: a dataset has one kind, "
                f"and {first.label} is of {first.game}, {first.action_mode}, frame skip {first.frame_skip}"
            )
    options: dict[str, Any] = {"action_mode": first.action_mode, "frame_skip": first.frame_skip, "scenario": None}
    env = KartEnv(first.game, integrations=integrations, observation=observation, **options)
    observer, spaces = env.observer, (env.action_space, env.observation_space)
    env.close()
    buffers = []
    for drive in drives:
        observations = list(_observations(drive, observer, observation.max_pool, integrations))
        ends = np.zeros((2, len(drive.rewards)), bool)
        ends[:, -1] = drive.info.terminated, not drive.info.terminated
        actions = drive.actions.astype(spaces[0].dtype) if drive.actions.ndim > 1 else drive.actions
        buffers.append(
            EpisodeBuffer(
                seed=drive.info.seed,
                observations=observations,
                actions=list(actions),
                rewards=drive.rewards.tolist(),
                terminations=ends[0].tolist(),
                truncations=ends[1].tolist(),
            )
        )
    try:
        return minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            action_space=spaces[0],
            observation_space=spaces[1],
            algorithm_name=", ".join(sorted({drive.info.driver for drive in drives})),
            description=f"{first.game}, frame skip {first.frame_skip}, recorded by kart_rewards",
            jpeg_encoding=False,  # it would change the observations
        )
    except ValueError as error:
        raise KartRewardsError(f"{dataset_id}: {error}") from None


def _observations(drive: Drive, observer: Any, max_pool: bool, integrations: Path | None) -> Iterator[np.ndarray]:
    """Yields the observation of the reset and of each step."""
    last_frames = set(np.cumsum(drive.step_frames).tolist())
    lengths = dict(zip(np.cumsum(drive.step_frames).tolist(), drive.step_frames.tolist(), strict=True))
    before = None
    for frame, screen in enumerate(replay(drive, integrations)):
        if frame == 0:
            yield observer.reset(screen)
        elif frame in last_frames:
            pooled = max_pool and lengths[frame] == drive.info.frame_skip > 1
            yield observer.observe(screen, before if pooled else None)
        before = screen


def command(
    drives: Drives = (),
    /,
    replay: tyro.conf.FlagCreatePairsOff[bool] = False,
    bk2: Path | None = None,
    minari: str | None = None,
    game: str | None = None,
    output: Path | None = None,
    integrations_path: GamesFolder = None,
) -> None:
    """Lists recorded drives, plays them again, and converts them from and to other formats.

    Args:
        drives: Files of drives, folders of them, names of drives of the package, such as race, or .bk2 movies. By
            default the package's, those in recordings/, and those of the runs in runs/.
        replay: Play each drive in the emulator, and check every frame.
        bk2: Write each drive into this folder as a .bk2 movie, for stable-retro's own commands.
        minari: Write the drives as a Minari dataset of this name, such as kart/level1-v0, with observations.
        game: The game of the .bk2 movies.
        output: Folder for the drives of .bk2 movies.
    """
    movies = [path for path in drives if path.suffix == ".bk2"]
    paths = (
        find_drives([path for path in drives if path not in movies]) if len(movies) < len(drives) or not drives else []
    )
    if movies and not (game and output):
        raise KartRewardsError(f"{movies[0]}: is a movie: name its game, --game, and a folder for its drive, --output")
    drives_of = {movie: output / f"{movie.name.removesuffix('.bk2')}{SUFFIX}" for movie in movies} if output else {}
    paths += drives_of.values()
    movies_of = {path: bk2 / f"{path.name.removesuffix(SUFFIX)}.bk2" for path in paths} if bk2 else {}
    _check_targets(drives_of)
    _check_targets(movies_of)
    for movie, path in drives_of.items():
        assert game
        if path.exists():
            raise KartRewardsError(f"{path}: exists already: choose another folder, --output")
        drive_of_movie(movie, game, integrations_path).save(path)
        print(f"wrote {path}")
    loaded = list(map(load_drive, paths))
    _print_table(loaded)
    for drive, path in zip(loaded, paths, strict=True):
        if replay:
            frames = sum(1 for _ in _replay(drive, integrations_path))
            print(f"{drive.info.label}: {counted(frames, 'frame')}, equal")
        if target := movies_of.get(path):
            console = Console(find_game(drive.info.game, integrations_path).rom())
            save_movie(drive, target, console.em)
            del console
            print(f"wrote {target}")
    if minari:
        dataset = minari_dataset(loaded, minari, integrations=integrations_path)
        print(f"wrote the Minari dataset {minari}: {counted(dataset.total_episodes, 'episode')}")


_replay = replay


def _check_targets(targets: Mapping[Path, Path]) -> None:
    """Checks that no two files would be written over each other.

    Args:
        targets: File that is read -> file that is written.
    """
    sources: dict[Path, Path] = {}
    for source, target in targets.items():
        if target in sources:
            raise KartRewardsError(
                f"{sources[target]} and {source} have the same name, and both would be written to {target}: convert "
                "one at a time, into other folders"
            )
        sources[target] = source


def _print_table(drives: Iterable[Drive]) -> None:
    table = Table("drive", "game", "start", "driver", "outcome", box=None, pad_edge=False, header_style="bold")
    for header in ("seconds", "steps", "return"):
        table.add_column(header, justify="right")
    for drive in drives:
        info = drive.info
        table.add_row(
            info.label, info.game, Path(info.state).name, info.driver, drive.outcome, f"{drive.seconds:.1f}",
            f"{len(drive.rewards):,}", f"{drive.rewards.sum():.1f}",
        )  # fmt: skip
    Terminal(width=_WITHOUT_TERMINAL, markup=False, highlight=False, emoji=False).print(table)

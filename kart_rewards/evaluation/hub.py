"""Sharing agents and drives on the Hugging Face hub: the commands ``kart-rewards push`` and ``kart-rewards pull``.

* ``push`` - uploads an agent with its card, the sources of its rewards, and drives
* ``pull`` - downloads what ``push`` uploaded
* ``prepare`` - writes the files of an upload into a folder
* ``KINDS`` - the kinds of files that are downloaded, with the largest size of each

What is uploaded is an agent alone: no states of an emulator, no signature, and no path of this computer. What is
downloaded is data, and none of it runs: reward scripts that come with an agent run only after ``--trust``, see
``kart_rewards.training.trust``.

The package huggingface_hub talks to the hub. The environment variables that it reads apply: ``HF_TOKEN`` is the token,
and ``HF_ENDPOINT`` the address of another hub.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from kart_rewards.drives import DRIVES_FOLDER, SUFFIX, load_drive
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.evaluation.agents import agent_file
from kart_rewards.evaluation.model_card import (
    CARD,
    front_matter,
    model_card,
    names_other_weights,
    rom_hash,
    weights_hash,
)
from kart_rewards.files import UnwritableError, copies_in_use, use_copies
from kart_rewards.integrations import find_game
from kart_rewards.notices import notice
from kart_rewards.training.game import FREE_GAME
from kart_rewards.training.options import Paths

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from kart_rewards.training.checkpoints import Checkpoint

_MIB = 2**20
KINDS = {".pt": 512 * _MIB, ".drive": 64 * _MIB, ".json": 16 * _MIB, ".md": _MIB, ".py": _MIB, ".lua": _MIB}
"""The suffixes of the files that are downloaded, with the largest size of each in bytes."""
_CODE = (".py", ".lua")
_SOURCES = "sources"  # code is downloaded only there, where no program of the user's imports it by chance
_EVENTS = "events.out.tfevents.*"
_MOST_FILES, _MOST_BYTES = 1000, 2048 * _MIB
_ELSEWHERE = PurePosixPath("/shared")
"""Replaces the folders of the computer that an agent comes from. It need not exist."""
_INSTALL = "pip install 'kart_rewards[hub]'"


# ------------------------------------------------------------------------------------------------------------- uploads
def push(
    agent: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="AGENT")],
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")],
    /,
    drives: Paths = (),
    private: bool = False,
    events: bool = False,
    dry_run: bool = False,
) -> None:
    """Uploads an agent to the Hugging Face hub, with its card, reward scripts and drives.

    Prints the files with their sizes first. ROMs and start states are not uploaded. Drives of other games than
    HomebrewKart are uploaded without the emulator's state at their start: they can be scored, but not played again.

    Args:
        agent: The agent's file, such as runs/NAME/best.pt, or the folder of its run.
        repository: The repository on the hub. It is made if there is none.
        drives: Drives to upload, too: files, and folders that are searched with their subfolders.
        private: Make the repository private.
        events: Also upload the run's TensorBoard files. They hold its options with their paths, and the name of this
            computer.
        dry_run: Only print what would be uploaded. It needs neither a network nor a token.
    """
    _check_repository(repository)
    with tempfile.TemporaryDirectory(prefix="kart_rewards-") as name:
        folder = Path(name)
        prepare(agent_file(agent), folder, drives, events)
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        print(f"{repository}:\n{_listing({name: path.stat().st_size for name, path in files.items()})}")
        if dry_run:
            print("nothing is uploaded: this is a dry run")
            return
        commit = _upload(repository, files, private)
    print(f"uploaded as commit {commit}")
    print(f"others download it with: kart-rewards pull {repository} --revision {commit}")


def prepare(agent: Path, folder: Path, drives: Sequence[Path] = (), events: bool = False) -> None:
    """Writes the files of an upload.

    Args:
        agent: The agent's file.
        folder: Where to write them.
        drives: Files of drives, and folders with such files.
        events: Whether to copy the TensorBoard files beside the agent.

    Raises:
        KartRewardsError: A file is missing or damaged, the agent's file holds more than an agent, or the card beside it
            is of another agent.
    """
    from kart_rewards.training.checkpoints import Checkpoint, save_atomically  # with PyTorch, which takes long to load
    from kart_rewards.training.sources import keep_sources, kept_sources

    checkpoint = Checkpoint.load(agent)
    if checkpoint.optimizer or checkpoint.env_states:
        raise KartRewardsError(
            f"{agent}: holds the state of the training and of the game as well: upload the best.pt of a run, which the "
            "evaluations of training write (--eval-interval)"
        )
    sources = kept_sources(agent.parent)
    rename = _renaming([*map(str, sources), *_texts(checkpoint.options)])
    save_atomically(_agent_alone(checkpoint, rename), folder / agent.name)
    (folder / CARD).write_text(_card(checkpoint), encoding="utf-8", errors="replace")
    if sources:
        before = copies_in_use()
        use_copies({Path(rename(str(file))): copy for file, copy in sources.items() if file.suffix in KINDS})
        try:
            keep_sources(folder, [Path(rename(str(file))) for file in sources if file.suffix in KINDS], sign=False)
        finally:
            use_copies(before)
    for path, name in _names_of_drives(drives, agent.parent).items():
        _save_drive(path, folder / name)
    found = list(agent.parent.glob(_EVENTS)) if events else []
    if events and not found:
        raise KartRewardsError(f"{agent.parent}: has no TensorBoard file: leave out --events")
    for path in found:
        shutil.copyfile(path, folder / path.name)


def _agent_alone(checkpoint: Checkpoint, rename: Callable[[str], str]) -> dict[str, Any]:
    """The content of a file with an agent alone. It has no signature, so it never counts as this user's own."""
    options: Any = _renamed(checkpoint.options, rename)
    if isinstance(options.get("run"), dict):
        options["run"] |= {name: None for name in ("wandb_entity",) if name in options["run"]}
    fields = ("agent", "updates", "steps", "scoring")
    return {name: getattr(checkpoint, name) for name in fields} | {"options": options}


def _card(checkpoint: Checkpoint) -> str:
    """The card beside an agent; without one, a card that has what the agent's file says."""
    path, weights = checkpoint.path.with_name(CARD), weights_hash(checkpoint.agent)
    environment = checkpoint.options.get("env", {})
    game = str(environment.get("env_id", "unknown"))
    if not path.is_file():
        rom = ""
        with suppress(KartRewardsError):
            rom = rom_hash(find_game(game, environment.get("integrations_path")))
        try:
            return model_card(
                checkpoint.path.name,
                weights=weights,
                steps=checkpoint.steps,
                options=checkpoint.options,
                scoring=checkpoint.scoring,
                rom=rom,
            )
        except (LookupError, TypeError, AttributeError):
            raise KartRewardsError(f"{checkpoint.path}: is damaged: its options are not those of a run") from None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KartRewardsError(f"{path}: can't be read: {error}") from None
    if names_other_weights(text, weights):
        raise KartRewardsError(f"{path}: is the card of another agent than {checkpoint.path}: remove it, or correct it")
    return text if text.startswith("---\n") else front_matter(game) + text


def _names_of_drives(drives: Iterable[Path], run_folder: Path) -> dict[Path, str]:
    """Returns the file of each drive -> its name in the repository."""
    names: dict[Path, str] = {}
    for given in drives:
        found = sorted(given.rglob(f"*{SUFFIX}")) if given.is_dir() else [given]
        if not found:
            raise KartRewardsError(f"{given}: has no {SUFFIX} file, in no subfolder either")
        for path in found:
            of_run = path.resolve().is_relative_to(run_folder.resolve() / DRIVES_FOLDER)
            name = str(path.resolve().relative_to(run_folder.resolve())) if of_run else f"{DRIVES_FOLDER}/{path.name}"
            if name in names.values() and path not in names:
                raise KartRewardsError(f"{path}: another drive has the same name: rename one of them")
            names[path] = name
    return names


def _save_drive(path: Path, copy: Path) -> None:
    """Writes a drive without the path of its start state; that of a game that is not free also without the state."""
    drive = load_drive(path)
    start = drive.start
    if drive.info.game != FREE_GAME and start:
        notice(f"drives of {drive.info.game} are uploaded without the emulator's state at their start")
        start = b""
    info = replace(drive.info, state=Path(drive.info.state).name)
    replace(drive, info=info, start=start).save(copy)


def _renaming(texts: Iterable[str]) -> Callable[[str], str]:
    """Returns a function that replaces the folders of this computer in absolute paths. Files stay beside each other.

    Args:
        texts: All texts that are to be renamed. Those that begin with / are paths.
    """
    home = Path("~").expanduser()
    paths = {Path(text) for text in texts if text.startswith("/")}
    folders = {path if path == home else path.parent for path in paths} - {*home.parents}
    highest = sorted(folder for folder in folders if folders.isdisjoint(folder.parents))

    def rename(text: str) -> str:
        for number, folder in enumerate(highest):
            if text.startswith("/") and Path(text).is_relative_to(folder):
                return str(_ELSEWHERE / str(number) / Path(text).relative_to(folder))
        return text

    return rename


def _texts(value: Any) -> Iterator[str]:
    """The texts in dicts, lists and tuples."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)


def _renamed(value: Any, rename: Callable[[str], str]) -> Any:
    """The same dicts, lists and tuples with other texts."""
    if isinstance(value, str):
        return rename(value)
    if isinstance(value, Mapping):
        return {name: _renamed(each, rename) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_renamed(each, rename) for each in value)
    return value


def _upload(repository: str, files: Mapping[str, Path], private: bool) -> str:
    """Uploads files in one commit, and returns its hash."""
    api = _api()
    with _explained(repository):
        from huggingface_hub import CommitOperationAdd, get_token

        if not get_token():
            raise KartRewardsError(
                f"there is no token of the hub: make one with the right to write at {api.endpoint}/settings/tokens, "
                "then run `hf auth login`, or set HF_TOKEN"
            )
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise KartRewardsError(f"{repository}: is there, and is public: nothing is uploaded. Choose another name")
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        commit = api.create_commit(repository, operations, commit_message="Upload with kart-rewards push")
    return commit.oid


# ----------------------------------------------------------------------------------------------------------- downloads
def pull(
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")],
    /,
    revision: Annotated[str | None, tyro.conf.arg(metavar="REVISION")] = None,
    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
) -> None:
    """Downloads an agent and drives from the Hugging Face hub. Runs no code of theirs.

    Each agent and drive is checked. If anything is wrong, no file is kept.

    Args:
        repository: The repository on the hub.
        revision: The hash of a commit, or the name of a branch or tag. By default the newest commit.
        output: The new folder for the files. By default agents/OWNER/NAME.
    """
    _check_repository(repository)
    target = output or Path("agents", *repository.split("/"))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise KartRewardsError(f"{target}: is there already: remove it, or name another folder with --output")
    api = _api()
    with _explained(repository, revision):
        info = api.model_info(repository, revision=revision, files_metadata=True)
    if not re.fullmatch("[0-9a-f]{40}", info.sha or ""):
        raise KartRewardsError(f"{repository}: the hub names no commit of it")
    sizes, left_out = _chosen(repository, {file.rfilename: file.size for file in info.siblings or []})
    print(f"{repository}, commit {info.sha}:\n{_listing(sizes)}")
    if left_out:
        print(f"left out, since they are of other kinds or in hidden folders: {', '.join(left_out)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
            downloaded, checked = Path(name, "downloaded"), Path(name, "checked")
            for file, size in sizes.items():
                with _explained(repository, revision):
                    api.hf_hub_download(repository, file, revision=info.sha, local_dir=downloaded)
                if (downloaded / file).stat().st_size != size:
                    raise KartRewardsError(f"{repository}: {file} has another size than the hub says: try again")
            for file in sizes:
                _check(downloaded / file, checked / file, f"{repository}: {file}")
            checked.replace(target)
    except OSError as error:
        if isinstance(error, UnwritableError):
            raise
        raise KartRewardsError(f"{target}: can't be written: {error.strerror or error}") from None
    _print_next(target, list(sizes))


def _chosen(repository: str, sizes: Mapping[str, int | None]) -> tuple[dict[str, int], list[str]]:
    """Returns the files to download with their sizes, and the names of the others.

    Raises:
        KartRewardsError: A name leads out of the folder, a file is too large, there are too many, or there is no agent
            and no drive.
    """
    chosen: dict[str, int] = {}
    left_out = []
    for name, size in sorted(sizes.items()):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable() or str(path) != name:
            raise KartRewardsError(f"{repository}: names a file {name!r:.80}, which is not safe: nothing is downloaded")
        code_elsewhere = path.suffix in _CODE and path.parts[0] != _SOURCES
        if path.suffix not in KINDS or code_elsewhere or any(part.startswith(".") for part in path.parts):
            left_out.append(name)
            continue
        if size is None or not 0 <= size <= KINDS[path.suffix]:
            most = KINDS[path.suffix] // _MIB
            has = "an unknown size" if size is None else counted(size, "byte")
            raise KartRewardsError(f"{repository}: {name} has {has}, and may have {most} MiB: nothing is downloaded")
        chosen[name] = size
    if not any(name.endswith((".pt", SUFFIX)) for name in chosen):
        raise KartRewardsError(f"{repository}: has no agent of kart_rewards (.pt), and no drive ({SUFFIX})")
    if len(chosen) > _MOST_FILES or sum(chosen.values()) > _MOST_BYTES:
        raise KartRewardsError(
            f"{repository}: has {counted(len(chosen), 'file')} of {sum(chosen.values()) // _MIB} MiB, and may have "
            f"{_MOST_FILES:,} of {_MOST_BYTES // _MIB:,} MiB: nothing is downloaded"
        )
    return chosen, left_out


def _check(path: Path, copy: Path, name: str) -> None:
    """Checks a file, and copies it. An agent is written anew, without anything that the check did not see.

    Args:
        path: The file.
        copy: Where to write it.
        name: What messages call it.

    Raises:
        KartRewardsError: It is damaged, or not what its suffix says.
    """
    from kart_rewards.training.checkpoints import Checkpoint, save_atomically  # with PyTorch, which takes long to load

    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix == ".pt":
            if zipfile.is_zipfile(path) and _unpacked_size(path) > KINDS[".pt"]:
                raise KartRewardsError(f"{path}: is too large when it is unpacked")
            save_atomically(_agent_alone(Checkpoint.load(path), str), copy)
            return
        if path.suffix == SUFFIX:
            load_drive(path)
    except RecursionError:
        raise KartRewardsError(f"{name}: is damaged. No file is kept") from None
    except KartRewardsError as error:
        raise KartRewardsError(f"{str(error).replace(str(path), name)}. No file is kept") from None
    shutil.copyfile(path, copy)


def _unpacked_size(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        return 0  # the check of the content reports it


def _print_next(target: Path, names: Sequence[str]) -> None:
    """Prints what to do with the files."""
    print(f"{counted(len(names), 'file')} are in {target}")
    agents = [name for name in names if name.endswith(".pt")]
    if CARD in names and len(agents) == 1:
        from kart_rewards.training.checkpoints import Checkpoint

        weights = weights_hash(Checkpoint.load(target / agents[0]).agent)
        if names_other_weights((target / CARD).read_text(encoding="utf-8", errors="replace"), weights):
            print(f"warning: {target / CARD} is the card of another agent than {target / agents[0]}")
    print("next:")
    for name in agents:
        print(f"  the agent plays:               {shlex.join(['kart-rewards', 'watch', str(target / name)])}")
        print(f"  beside scripted players:       {shlex.join(['kart-rewards', 'evaluate', str(target / name)])}")
    if any(name.endswith(SUFFIX) for name in names):
        print(f"  what rewards pay for drives:   {shlex.join(['kart-rewards', 'score', str(target)])}")
    if any(name.endswith(_CODE) for name in names):
        print(f"The scripts in {target / _SOURCES} do not run. Read them, and add --trust to run them with the agent.")


# ------------------------------------------------------------------------------------------------------------- the hub
def _check_repository(repository: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository, flags=re.A):
        raise KartRewardsError(f"{repository}: must be OWNER/NAME, the name of a repository on the Hugging Face hub")


def _api() -> HfApi:
    """Returns the client of the hub. It prints no warnings, and shows progress only on a terminal."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars, logging
    except ImportError:
        raise KartRewardsError(f"the Hugging Face hub needs huggingface_hub: {_INSTALL}") from None
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="kart_rewards")


@contextmanager
def _explained(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turns the errors of the hub's client into messages for a person."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    try:
        yield
    except KartRewardsError:
        raise
    except (HTTPError, OfflineModeIsEnabled, OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
        raise KartRewardsError(f"{repository}: {_reason(error, revision)}") from None


def _reason(error: BaseException, revision: str | None) -> str:
    """Returns what an error of the client means, and what to do."""
    from huggingface_hub import constants, errors

    while isinstance(error, (RuntimeError, errors.LocalEntryNotFoundError)) and error.__cause__:
        error = error.__cause__  # what went wrong with one file
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    token = f"make a new one at {endpoint}/settings/tokens, then run `hf auth login`, or set HF_TOKEN"
    match error:
        case errors.OfflineModeIsEnabled():
            return "the client of the hub is offline: unset HF_HUB_OFFLINE"
        case errors.GatedRepoError():
            return f"its owner must let you in first, at {endpoint}"
        case errors.RevisionNotFoundError():
            return f"has no revision {revision}"
        case errors.RepositoryNotFoundError():
            return "there is no such repository, or it is private and your token may not read it"
        case errors.HfHubHTTPError(response=response):
            match response.status_code:
                case 401:
                    return f"the hub refuses the token: {token}"
                case 403:
                    return f"your token does not have the right to do this: is OWNER yours? If so, {token}"
                case 429:
                    return "the hub accepts no further requests from you for now: try again later"
                case status if status >= 500:
                    return f"the hub has an error of its own (HTTP status {status}): try again later"
            return f"the hub refuses: HTTP status {response.status_code}: {error.server_message or _first_line(error)}"
        case errors.HTTPError() | ConnectionError() | TimeoutError():
            return f"{endpoint} can't be reached, or the connection broke: {_first_line(error)}. Try again"
    return f"the exchange with the hub failed: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _listing(sizes: Mapping[str, int]) -> str:
    """The files with their sizes, a line each, and the sum."""
    rows = [*sizes.items(), (counted(len(sizes), "file"), sum(sizes.values()))]
    width, digits = max(len(name) for name, _ in rows), len(f"{rows[-1][1]:,}")
    return "\n".join(f"  {name:<{width}}  {size:>{digits},} bytes" for name, size in rows)

"""Uploads to the Hugging Face hub and downloads from it, with the hub's own client and a stand-in for the hub."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import forks
import huggingface_hub.constants
import pytest
import torch
from conftest import GAME
from hub_server import READER, WRITER, Fault, Hub, Repository
from training_runs import COMMAND, ROOT, Finished, TrainedRun, assert_refused, equal_weights, run_here

import ppo_continuous_single_file as ppo
from kart_rewards.drives import SHIPPED, load_drive
from kart_rewards.env.wrappers import make_wrapped
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation.hub import KINDS, prepare
from kart_rewards.evaluation.model_card import CARD
from kart_rewards.files import use_copies
from kart_rewards.training.checkpoints import Checkpoint
from kart_rewards.training.sources import kept_sources
from kart_rewards.training.trust import is_own

AGENT = ROOT / "agents" / "HomebrewKart.pt"
NAME = "me/kart"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, whose writer uses this computer. The current folder is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        home = tmp_path / "hf"
        for name, value in {
            "ENDPOINT": server.url,  # the client reads some variables when it is imported
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "AGENT_HARNESSES_PATH": str(home / "harnesses.json"),
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value, raising=False)
        yield server
    use_copies({})


def kart_rewards(*arguments: object, check: bool = True) -> Finished:
    return run_here(COMMAND, *arguments, check=check)


def served(hub: Hub, files: dict[str, bytes], name: str = NAME) -> str:
    """Puts files into a repository, and returns the hash of the commit."""
    return hub.repositories.setdefault(name, Repository()).commit(files)


def left(folder: Path = Path()) -> list[str]:
    """The files in a folder with their paths, and those that a download leaves beside it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------------ there and back
def test_a_run_comes_back_from_the_hub(hub: Hub, trained: TrainedRun) -> None:
    drives = sorted((trained.folder / "drives").rglob("*.drive"))[:1]
    finished = kart_rewards("push", trained.folder, NAME, "--drives", *drives)
    assert finished.stderr == ""
    files = hub.repositories[NAME].files()
    commit = hub.repositories[NAME].hash()
    drive = str(drives[0].relative_to(trained.folder))
    sources = [str(copy.relative_to(trained.folder)) for copy in kept_sources(trained.folder).values()]
    assert {"sources/0/data.json", "sources/0/my_rewards.py", "sources/0/scenario.json"} <= {*sources}
    assert {*files} == {".gitattributes", CARD, "best.pt", drive, *sources, "sources/index.json"}
    for name in {*files} - {".gitattributes"}:
        assert f"  {name} " in finished.stdout
        assert f"  {len(files[name]):,} bytes\n" in finished.stdout
    assert finished.stdout.endswith(f"kart-rewards pull {NAME} --revision {commit}\n")
    assert not hub.repositories[NAME].private
    assert "PUT /large" in " ".join(hub.requests)
    assert files[CARD] == (trained.folder / CARD).read_bytes()

    served(hub, {CARD: b"A later commit."})
    finished = kart_rewards("pull", NAME, "--revision", commit)
    assert finished.stderr == ""
    folder = Path("agents", NAME)
    assert left(folder) == sorted({*files} - {".gitattributes"})
    assert left() == [str(folder / name) for name in left(folder)], "nothing else is left"
    assert f"{NAME}, commit {commit}:\n" in finished.stdout
    assert f"kart-rewards watch {folder / 'best.pt'}\n" in finished.stdout
    assert f"kart-rewards evaluate {folder / 'best.pt'}\n" in finished.stdout
    assert f"kart-rewards score {folder}\n" in finished.stdout
    assert "add --trust to run them" in finished.stdout
    assert "warning" not in finished.stdout
    assert equal_weights(folder / "best.pt", trained.folder / "best.pt")
    assert list(load_drive(folder / drive)) == list(load_drive(drives[0]))
    assert {*hub.tokens} == {""}, "the host of large files gets no token"


def test_code_that_comes_with_an_agent_runs_only_if_it_is_trusted(hub: Hub, trained: TrainedRun) -> None:
    kart_rewards("push", trained.folder, NAME)
    kart_rewards("pull", NAME, "--output", "mine")
    assert ppo.load_agent(Path("mine/best.pt")).env_options["rewards"] == ()
    trusted = ppo.load_agent(Path("mine/best.pt"), trust=True)
    with closing(make_wrapped(trusted.env_options)) as env:
        _, info = env.reset(seed=1)
    assert "top_speed" in info["reward_terms"], "its code is the copy"


# An agent that somebody else changed must not count as this user's own, whose code runs without a question.
def test_no_signature_comes_with_an_agent(hub: Hub, trained: TrainedRun) -> None:
    signed = Checkpoint.load(trained.folder / "best.pt")
    assert is_own(signed.options["env"], signed.signature)
    kart_rewards("push", trained.folder, NAME)
    uploaded = torch.load(io.BytesIO(hub.repositories[NAME].files()["best.pt"]), weights_only=True)
    assert sorted(uploaded) == ["agent", "options", "scoring", "steps", "updates"]
    served(hub, {"best.pt": (trained.folder / "best.pt").read_bytes()})
    kart_rewards("pull", NAME, "--output", "mine")
    assert Checkpoint.load(Path("mine/best.pt")).signature == ""
    assert ppo.load_agent(Path("mine/best.pt")).env_options["rewards"] == ()


def test_what_is_uploaded_has_no_path_of_this_computer(trained: TrainedRun, tmp_path: Path) -> None:
    prepare(trained.folder / "best.pt", tmp_path, [trained.folder / "drives"])
    for name in left(tmp_path):
        content = (tmp_path / name).read_bytes()
        for folder in (trained.folder.parent, ROOT):
            assert str(folder).encode() not in content, name
    originals = [*kept_sources(tmp_path)]
    assert {"data.json", "my_rewards.py", "scenario.json"} <= {path.name for path in originals}
    assert not any(path.exists() for path in originals)
    assert Checkpoint.load(tmp_path / "best.pt").options["env"]["rewards"][0] in map(str, originals)


def test_files_that_import_each_other_stay_beside_each_other(trained: TrainedRun, tmp_path: Path) -> None:
    checkpoint = torch.load(trained.folder / "best.pt", weights_only=True)
    run, parts = tmp_path / "run", ("/a/b/x.py", "/a/b/c/y.py", "/e/z.py")
    checkpoint["options"]["env"]["rewards"] = parts
    checkpoint["options"]["env"]["integrations_path"] = str(Path.home())
    run.mkdir()
    torch.save(checkpoint, run / "best.pt")
    prepare(run / "best.pt", tmp_path / "out")
    options = Checkpoint.load(tmp_path / "out" / "best.pt").options["env"]
    x, y, z = map(Path, options["rewards"])
    assert (y, y.parent.parent) == (x.parent / "c" / "y.py", x.parent)
    assert z.name == "z.py"
    assert len({x.parent, z.parent, Path(options["integrations_path"])}) == 3
    assert Path.home().name not in options["integrations_path"]


def test_a_dry_run_needs_neither_a_network_nor_a_token_nor_the_client(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delenv("HF_TOKEN")
    finished = kart_rewards("push", AGENT, NAME, "--dry-run", "--drives", SHIPPED / "turning.drive")
    assert re.search(r"\n  HomebrewKart.pt +6,7\d\d,\d{3} bytes\n", finished.stdout)
    assert re.search(r"\n  drives/turning.drive +[\d,]{5,6} bytes\n", finished.stdout)
    assert "  3 files " in finished.stdout
    assert finished.stdout.endswith("nothing is uploaded: this is a dry run\n")
    assert hub.requests == []
    assert left() == []


def test_a_missing_client_is_named_with_the_command_that_installs_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for arguments in (["push", AGENT, NAME], ["pull", NAME]):
        assert_refused(kart_rewards(*arguments, check=False), "pip install 'kart_rewards[hub]'")


# ---------------------------------------------------------------------------------------------------- what is uploaded
def test_neither_roms_nor_states_are_uploaded(trained: TrainedRun, tmp_path: Path) -> None:
    run = trained.copy(tmp_path / "runs")
    for name in ("rom.sfc", "sources/rom.sfc", "Level1.state", "drives/rom.sfc", "notes.txt"):
        (run / name).write_bytes(b"secret")
    prepare(run / "best.pt", tmp_path / "out", [run / "drives"])
    assert {Path(name).suffix for name in left(tmp_path / "out")} == {".pt", ".md", ".py", ".json", ".drive"}
    assert not list((tmp_path / "out").glob("events*"))
    prepare(run / "best.pt", tmp_path / "with", events=True)
    assert len(list((tmp_path / "with").glob("events.out.tfevents.*"))) == 1


def test_a_drive_of_another_game_is_uploaded_without_the_state_at_its_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drive = load_drive(SHIPPED / "turning.drive")
    assert drive.start
    state = "/home/me/Cup.state"
    for game in (GAME, "MarioKart-Snes"):
        replace(drive, info=replace(drive.info, game=game, state=state)).save(tmp_path / "drives" / f"{game}.drive")
    prepare(AGENT, tmp_path / "out", [tmp_path / "drives"])
    free, retail = (load_drive(tmp_path / "out" / "drives" / f"{game}.drive") for game in (GAME, "MarioKart-Snes"))
    assert (free.start, retail.start) == (drive.start, b"")
    assert free.info.state == retail.info.state == "Cup.state"
    assert list(retail) == list(drive)
    assert "drives of MarioKart-Snes are uploaded without the emulator's state" in capsys.readouterr().out


def test_a_checkpoint_with_more_than_an_agent_is_not_uploaded(trained: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"agent\.pt: holds the state of the training and of the game as well"):
        prepare(trained.folder / "agent.pt", tmp_path)
    assert left(tmp_path) == []


def test_an_agent_has_its_own_card_or_a_short_one(trained: TrainedRun, tmp_path: Path) -> None:
    run = trained.copy(tmp_path / "runs")
    (run / CARD).write_text((run / CARD).read_text().replace("weights | `", "weights | `0"))
    with pytest.raises(KartRewardsError, match="is the card of another agent"):
        prepare(run / "best.pt", tmp_path / "out")
    (run / CARD).unlink()
    prepare(run / "best.pt", tmp_path / "out")
    card = (tmp_path / "out" / CARD).read_text()
    assert "There is no evaluation of this agent in this card." in card
    assert "| game | HomebrewKart-Snes |" in card
    prepare(AGENT, tmp_path / "shipped")
    card = (tmp_path / "shipped" / CARD).read_text()
    assert card.startswith("---\nlibrary_name:")
    assert card.endswith((ROOT / "agents" / CARD).read_text(encoding="utf-8")), "the text of a person stays as it is"


def test_drives_that_cannot_be_uploaded_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.drive").write_bytes(b"PK")
    shutil.copy(SHIPPED / "walls.drive", tmp_path / "turning.drive")
    for drives, message in (
        ([tmp_path / "empty"], "empty: has no .drive file"),
        ([tmp_path / "none.drive"], "no such drive"),
        ([tmp_path / "broken.drive"], "broken.drive: is not a drive"),
        ([SHIPPED / "turning.drive", tmp_path / "turning.drive"], "has the same name"),
    ):
        with pytest.raises(KartRewardsError, match=message):
            prepare(AGENT, tmp_path / "out", drives)
    with pytest.raises(KartRewardsError, match=r"has no TensorBoard file: leave out --events"):
        prepare(AGENT, tmp_path / "out", events=True)


# ------------------------------------------------------------------------------------------- what can go wrong: uploads
@pytest.mark.parametrize(
    ("token", "faults", "words"),
    [
        (None, [], ["there is no token of the hub", "hf auth login"]),
        ("hf_wrong", [], [f"{NAME}: the hub refuses the token", "hf auth login"]),
        (READER, [], [f"{NAME}: your token does not have the right to do this"]),
        (
            WRITER,
            [Fault("POST /api/repos/create", 500)],
            [f"{NAME}: the hub has an error of its own (HTTP status 500)"],
        ),
        (WRITER, [Fault("PUT /large/", 403)], [f"{NAME}: your token does not have the right to do this"]),
        (WRITER, [Fault("POST /api/models/me/kart/commit", 500)], ["an error of its own (HTTP status 500)"]),
        (WRITER, [Fault("POST /api/models/me/kart/commit", 404)], [f"{NAME}: the hub refuses: HTTP status 404"]),
        (WRITER, [Fault("POST /api/repos/create")], ["can't be reached, or the connection broke", "Try again"]),
        (WRITER, [Fault("POST /api/repos/create", 429)], ["try again later"]),
    ],
)
def test_an_upload_that_fails_leaves_no_part(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None, faults: list[Fault], words: list[str]
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN")
    hub.faults = faults
    assert_refused(kart_rewards("push", AGENT, NAME, check=False), *words)
    assert all([*repository.files()] == [".gitattributes"] for repository in hub.repositories.values())


def test_an_upload_whose_answer_is_lost_can_be_repeated(hub: Hub) -> None:
    hub.faults = [Fault("POST /api/models/me/kart/commit")]
    assert_refused(kart_rewards("push", AGENT, NAME, check=False), "the connection broke", "Try again")
    kart_rewards("push", AGENT, NAME)
    assert sorted(hub.repositories[NAME].files()) == [".gitattributes", "HomebrewKart.pt", CARD]


def test_a_private_agent_is_not_uploaded_to_a_public_repository(hub: Hub) -> None:
    hub.repositories[NAME] = Repository(private=False)
    assert_refused(kart_rewards("push", AGENT, NAME, "--private", check=False), f"{NAME}: is there, and is public")
    assert len(hub.repositories[NAME].commits) == 1
    kart_rewards("push", AGENT, "me/secret", "--private")
    assert hub.repositories["me/secret"].private
    kart_rewards("push", AGENT, "me/secret", "--private")


@pytest.mark.parametrize("name", ["kart", "me/..", "../kart", "me/kart/x", "me/-kart", "", "https://x/me/kart"])
def test_the_name_of_a_repository_has_two_parts(hub: Hub, name: str) -> None:
    for arguments in (["push", AGENT, name], ["pull", name]):
        assert_refused(kart_rewards(*arguments, check=False), f"{name}: must be OWNER/NAME")
    assert hub.requests == []


# ----------------------------------------------------------------------------------------- what can go wrong: downloads
def test_a_download_goes_on_after_the_connection_broke(hub: Hub) -> None:
    served(hub, {"best.pt": AGENT.read_bytes(), CARD: b"# A card\n"})
    hub.faults = [Fault("GET /large/")]
    kart_rewards("pull", NAME)
    assert equal_weights(Path("agents", NAME, "best.pt"), AGENT)


@pytest.mark.parametrize(
    ("arguments", "token", "fault", "message"),
    [
        (["me/none"], WRITER, None, "me/none: there is no such repository, or it is private"),
        (["me/secret"], "", None, "me/secret: there is no such repository, or it is private"),
        ([NAME, "--revision", "f" * 40], WRITER, None, f"{NAME}: has no revision {'f' * 40}"),
        ([NAME], "hf_wrong", None, f"{NAME}: the hub refuses the token"),
        ([NAME], WRITER, Fault("GET /api/models", 503), f"{NAME}: the hub has an error of its own (HTTP status 503)"),
        ([NAME], WRITER, Fault("GET /api/models"), "the connection broke"),
        ([NAME], WRITER, Fault("HEAD /me/kart/resolve", 404), f"{NAME}: the hub refuses: HTTP status 404"),
        ([NAME], WRITER, Fault("GET /large", 500), f"{NAME}: the hub has an error of its own (HTTP status 500)"),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, arguments: list[str], token: str, fault: Fault | None, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    served(hub, {"best.pt": AGENT.read_bytes()})
    served(hub, {"best.pt": AGENT.read_bytes()}, "me/secret")
    hub.repositories["me/secret"].private = True
    hub.faults = [fault] if fault else []
    assert_refused(kart_rewards("pull", *arguments, check=False), message)
    assert left() == []


def test_without_a_network_one_message_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for arguments in (["push", AGENT, NAME], ["pull", NAME]):
        assert_refused(kart_rewards(*arguments, check=False), "http://127.0.0.1:9 can't be reached")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    try:
        assert_refused(kart_rewards("pull", NAME, check=False), "unset HF_HUB_OFFLINE")
    finally:
        monkeypatch.undo()
        huggingface_hub.close_session()


class Trap:
    """An object whose unpickling runs code."""

    def __reduce__(self) -> Any:
        return open, ("trace", "w")


def agent_with(**values: Any) -> bytes:
    """An agent's file, with other values."""
    buffer = io.BytesIO()
    torch.save(torch.load(AGENT, weights_only=True) | values, buffer)
    return buffer.getvalue()


def bomb() -> bytes:
    """A zip archive that says its file is larger than an agent may be."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", b"")
        archive.infolist()[0].file_size = KINDS[".pt"] + 1
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../evil.py": b""}, "names a file '../evil.py', which is not safe"),
        ({"/evil.drive": b""}, "names a file '/evil.drive', which is not safe"),
        ({"a/../../evil.json": b""}, "which is not safe"),
        ({"a\\..\\evil.json": b""}, "which is not safe"),
        ({"a\x1b[2J.md": b""}, "which is not safe"),
        ({"a//b.md": b""}, "which is not safe"),
        ({"best.pt": pickle.dumps(Trap())}, "best.pt: is not a checkpoint, or is damaged"),
        ({"best.pt": agent_with(trap=Trap())}, "best.pt: is not a checkpoint, or is damaged"),
        ({"best.pt": agent_with(steps="many")}, "best.pt: is damaged: steps"),
        ({"best.pt": agent_with(options={"env": [[[]]] * 2} | {"x": []})}, ""),
        ({"best.pt": b"PK\x03\x04"}, "best.pt: is not a checkpoint, or is damaged"),
        ({"a/b.drive": b"nothing"}, "a/b.drive: is not a drive"),
        ({f"{number}.md": b"" for number in range(1000)}, "has 1,001 files"),
        ({"model.safetensors": b"", "best.pt": None}, "has no agent of kart_rewards (.pt), and no drive (.drive)"),
    ],
    ids=lambda value: next(iter(value))[:20] if isinstance(value, dict) else None,
)
def test_files_that_are_not_what_they_should_be_are_refused(hub: Hub, files: dict[str, bytes], message: str) -> None:
    contents = {"best.pt": AGENT.read_bytes(), **files}
    served(hub, {name: content for name, content in contents.items() if content is not None})
    finished = kart_rewards("pull", NAME, check=not message)
    if message:
        assert_refused(finished, f"{NAME}: ", message)
        assert left() == []
    assert not Path("trace").exists()
    assert not Path("../evil.py").exists()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (KINDS[".pt"] + 1, "best.pt has 536,870,913 bytes, and may have 512 MiB"),
        (None, "best.pt has an unknown size"),
        (-1, "best.pt has -1 bytes"),
        (10, "best.pt has another size than the hub says"),
    ],
)
def test_a_file_has_the_size_that_the_hub_says(hub: Hub, size: int | None, message: str) -> None:
    served(hub, {"best.pt": AGENT.read_bytes()})
    hub.sizes["best.pt"] = size
    assert_refused(kart_rewards("pull", NAME, check=False), message)
    assert left() == []


def test_a_small_file_of_large_content_is_refused(hub: Hub) -> None:
    served(hub, {"best.pt": bomb()})
    assert_refused(kart_rewards("pull", NAME, check=False), f"{NAME}: best.pt: is too large when it is unpacked")


def test_other_kinds_of_files_and_code_outside_its_folder_are_left_out(hub: Hub) -> None:
    """A module of a common name in the current folder would be imported by ``python -m``."""
    own = {"best.pt": AGENT.read_bytes(), "evaluation.json": b"{}", "sources/0/my_rewards.py": b"x = 1\n"}
    others = {"torch.py": b"", "rom.sfc": b"", "Level1.state": b"", ".hidden/best.pt": b"", "events.out": b""}
    served(hub, own | others)
    finished = kart_rewards("pull", NAME, "--output", "mine")
    assert left() == sorted(f"mine/{name}" for name in own)
    for name in others:
        assert name in finished.stdout.partition("left out, ")[2].partition("\n")[0]


def test_a_card_of_another_agent_is_reported(hub: Hub, trained: TrainedRun) -> None:
    served(hub, {"best.pt": AGENT.read_bytes(), CARD: (trained.folder / CARD).read_bytes()})
    finished = kart_rewards("pull", NAME, "--output", "mine")
    assert "warning: mine/README.md is the card of another agent than mine/best.pt\n" in finished.stdout


def test_a_folder_with_files_is_not_replaced(hub: Hub) -> None:
    served(hub, {"best.pt": AGENT.read_bytes()})
    Path("mine").mkdir()
    kart_rewards("pull", NAME, "--output", "mine")
    assert_refused(kart_rewards("pull", NAME, "--output", "mine", check=False), "mine: is there already")
    Path("file").touch()
    assert_refused(kart_rewards("pull", NAME, "--output", "file", check=False), "file: is there already")
    assert_refused(kart_rewards("pull", NAME, "--output", "file/x", check=False), "file/x: can't be written")


def test_a_download_that_is_killed_leaves_no_folder(hub: Hub, tmp_path: Path) -> None:
    served(hub, {"best.pt": AGENT.read_bytes()})
    stall = Fault("GET /large/", stalls=True)
    hub.faults = [stall]
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}
    command = [sys.executable, "-m", "kart_rewards", "pull", NAME]
    process = forks.Fork(command, forks.COMMANDS, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while hub.faults and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
        stall.stalls = False
    assert not Path("agents", NAME).exists()
    kart_rewards("pull", NAME)
    assert left(Path("agents", NAME)) == ["best.pt"]

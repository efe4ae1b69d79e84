"""The page that shows what a reward pays, frame by frame, beside the pictures of the game.

* ``html_page`` - the page, for a server or with everything in it
* ``write_page`` - writes a page that opens from disk
* ``command`` - the command ``kart-rewards lab``

The numbers are those of ``kart_rewards.lab.page.figures``. The page's own code is in the folder ``assets``. Its charts
are drawn by plotly.js, which is part of the Python package plotly. The page needs no network.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import plotly.offline
from tqdm import tqdm

from kart_rewards.drives import Drive, load_drive
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.files import atomic_write
from kart_rewards.lab.linting.probes import DRIVER
from kart_rewards.lab.page.figures import drive_figures, list_entry, packed, score_figures
from kart_rewards.lab.page.film import film
from kart_rewards.lab.page.lint_process import UNKNOWN, findings_of_now, with_numbers
from kart_rewards.lab.page.server import film_part, serve
from kart_rewards.lab.score import RewardSet, compared, find_drives, other_games
from kart_rewards.notices import notice
from kart_rewards.rewards import parse_weights
from kart_rewards.training.options import Drives, GamesFolder, Names

_ASSETS = Path(__file__).parent / "assets"
_MOST_FILM_BYTES = 12_000_000  # of a drive in a file: with base64 and the charts, the page stays below 20 MB
_NO_PICTURES = "The file would be too large with the pictures of all drives. Name fewer drives to have their pictures."


def html_page(contents: Mapping[str, bytes] | None = None, state: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """Returns the page, and its Content-Security-Policy, which the page itself also names.

    Args:
        contents: What the page needs, by its address on the server. None: the page gets it from the server.
        state: What the server would send as its state.
    """
    names = ("page.css", "page.html", "data.js", "page.js")
    style, body, *scripts = ((_ASSETS / name).read_text(encoding="utf-8") for name in names)
    script = "\n".join(scripts)
    charts = plotly.offline.get_plotlyjs()
    hashes = " ".join(f"'sha256-{_base64(hashlib.sha256(code.encode()).digest())}'" for code in (script, charts))
    # plotly.js writes style elements. Nothing is loaded from anywhere but, where there is one, the page's own server.
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        f"form-action 'none'; connect-src {chr(39)}{'none' if contents is not None else 'self'}{chr(39)}"
    )
    data = {"charts": _base64(gzip.compress(charts.encode(), mtime=0))}
    data |= {name: _base64(content) for name, content in (contents or {}).items()}
    blocks = [f'<script type="text/plain" data-name="{name}">{text}</script>' for name, text in data.items()]
    if state is not None:
        text = json.dumps(state).replace("<", "\\u003c")  # so that no text of a user can end the element
        blocks.append(f'<script type="application/json" data-name="state">{text}</script>')
    parts = {"POLICY": policy, "STYLE": style, "BODY": body, "DATA": "\n".join(blocks), "SCRIPT": script}
    return _TEMPLATE.format(**parts), policy


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>kart-rewards lab</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
{BODY}
{DATA}
<script>{SCRIPT}</script>
</body>
</html>
"""


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def write_page(
    path: Path,
    paths: Sequence[Path],
    sets: Sequence[RewardSet],
    names: Sequence[str],
    lint: Callable[[], Mapping[str, Any]] = lambda: UNKNOWN,
    most_bytes: int = 100_000_000,
) -> None:
    """Writes the page with the drives, their scores and their pictures in it. It opens from disk, without a server.

    Args:
        path: The file.
        paths: The files of the drives.
        sets: The reward sets.
        names: A name for each of them.
        lint: Returns what ``page_findings`` returns. The scripted drives that it names are added. It is called after
            the drives of ``paths`` are scored, so that a mistake in the rewards is reported at once.
        most_bytes: Of all pictures, about. The drives after that have none, and a notice says so.

    Raises:
        KartRewardsError: A drive can't be read or scored, or the file can't be written.
    """
    drives: list[Drive] = []
    scored: list[list[dict[str, Any]]] = []

    def add(drive: Drive) -> None:
        scored.append([score_figures(drive, each.load(drive)) for each in sets])
        drives.append(drive)

    paths = list(dict.fromkeys(paths))
    for recorded in paths:
        add(load_drive(recorded))
    linted = lint()
    for named in dict.fromkeys(Path(each["path"]) for each in linted["findings"] or ()):
        drive = load_drive(named)
        if drive.info.driver == DRIVER and named not in paths:  # the others are long
            paths.append(named)
            add(drive)
    contents: dict[str, bytes] = {}
    listed = []
    with_pictures = bytes_of_films = 0
    progress = tqdm(total=sum(map(len, drives)), desc="pictures", unit="frame", leave=False, disable=None)
    with progress:
        for number, (drive, scores) in enumerate(zip(drives, scored, strict=True)):
            contents[f"drives/{number}"] = packed(drive_figures(drive, sets[0].integrations))
            for which, score in enumerate(scores):
                contents[f"drives/{number}/scores/{which}"] = packed({"version": 1, **score})
            pictures = film_part(_NO_PICTURES)
            if bytes_of_films < most_bytes:
                pictures = _film_of(drive, sets[0].integrations)
                with_pictures += 1
            bytes_of_films += len(pictures)
            contents[f"drives/{number}/pictures"] = pictures
            summaries = [{**score["summary"], "version": 1, "error": None} for score in scores]
            listed.append({**list_entry(drive), "scores": summaries})
            progress.update(len(drive))
    state = {
        "sets": [{"name": name, "version": 1, "error": None, "busy": False, "seconds": None} for name in names],
        "drives": listed,
        "lint": {**linted, "findings": with_numbers(linted["findings"], paths), "busy": False},
    }
    if with_pictures < len(drives):
        notice(
            f"{path}: would be too large with the pictures of {counted(len(drives), 'drive')}: it has those of the "
            f"first {with_pictures}. Name fewer drives to have all of their pictures"
        )
    with atomic_write(path) as temporary:
        temporary.write_text(html_page(contents, state)[0], encoding="utf-8")


def _film_of(drive: Drive, integrations: Path | None) -> bytes:
    parts = []
    try:
        for part in film(drive, integrations, 30, _MOST_FILM_BYTES):
            parts.append(film_part(part))
    except KartRewardsError as error:  # the page shows it in the place of the pictures
        parts.append(film_part(str(error)))
    return b"".join(parts)


def command(
    drives: Drives = (),
    /,
    rewards: Names = (),
    scenario: str | None = "scenario",
    reward_weights: Names = (),
    against: Names = (),
    output: Path | None = None,
    port: int = 0,
    browser: bool = True,
    reward_transform: Literal["scale", "sign", "none"] = "scale",
    reward_scale: float = 0.01,
    gamma: float = 0.99,
    integrations_path: GamesFolder = None,
) -> None:
    """Opens a page that shows on recorded drives where a reward pays, frame by frame, and again after each change.

    The page shows the game's picture, the course, what each term pays, and its source. It is served on this machine
    only. Each time that a rewards file is saved, all numbers are computed again.

    Args:
        drives: Files of drives, folders of them, or names of drives of the package, such as race. By default the
            package's, those in recordings/, and those of the runs in runs/.
        rewards: Python files or modules with reward terms and done rules to add.
        scenario: Reward terms and done rules: the name of a file in the game's folder, or a .json path. None: none.
        reward_weights: Weights that override the scenario's, as NAME=NUMBER: --reward-weights wall=-5 top_speed=0.02.
        against: Python files or modules of another reward to compare with, in place of those of --rewards.
        output: Write the page to this .html file, with everything in it, and end. It opens without a server.
        port: Port of the page on this machine. 0: any free port.
        browser: Open the page in the browser. Its address is printed in any case.
        reward_transform: What the agent gets of each frame's reward: a scaled sum, its sign, or the sum.
        reward_scale: Factor of --reward-transform scale.
        gamma: Discount factor per agent step, for the discounted return.
    """
    sources = compared(rewards, against)
    weights = parse_weights(reward_weights)
    options = (scenario, weights, reward_transform, reward_scale, gamma, integrations_path)
    sets = [RewardSet(each, *options) for each in sources]
    names = [", ".join(each) or "the scenario" for each in sources]
    paths = find_drives(drives)
    unfit = other_games(drives, paths, sets)
    paths = find_drives(drives, unfit)
    if output:
        if output.suffix not in (".html", ".htm"):
            raise KartRewardsError(f"{output}: must end in .html")
        with tempfile.TemporaryDirectory() as folder:
            write_page(output, paths, sets, names, lambda: findings_of_now(sets, paths, Path(folder)))
        print(f"wrote {output}")
        return
    html, policy = html_page()
    serve(html, policy, paths, functools.partial(find_drives, drives, unfit), sets, names, port, browser)

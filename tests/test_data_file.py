"""Adding an entry to data.json: real files in many layouts, which stable-retro then loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stable_retro

from kart_rewards.errors import KartRewardsError
from kart_rewards.games.data_file import add_variable, read_entries
from kart_rewards.ram import RamLayout

ENTRY: dict[str, Any] = {"address": 8261866, "type": "<i2"}
ONE_LINE = '{\n  "info": {\n    "a": {"address": 1, "type": "|u1"}\n  },\n  "mine": [1]\n}\n'
SHIPPED = sorted(Path(stable_retro.data.path()).glob("*/*/data.json"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ONE_LINE, ONE_LINE.replace('"}\n', '"},\n    "speed": {"address": 8261866, "type": "<i2"}\n')),
        (
            '{"x": {"info": {}}, "info": {"a": {"type": "<u2", "address": 9, "mask": 15}}}',
            '{"x": {"info": {}}, "info": {"a": {"type": "<u2", "address": 9, "mask": 15},'
            ' "speed": {"address": 8261866, "type": "<i2"}}}',
        ),
        (
            '{\r\n\t"info": {\r\n\t\t"a": {\r\n\t\t\t"address": 1,\r\n\t\t\t"type": "|u1"\r\n\t\t}\r\n\t}\r\n}',
            '{\r\n\t"info": {\r\n\t\t"a": {\r\n\t\t\t"address": 1,\r\n\t\t\t"type": "|u1"\r\n\t\t},\r\n'
            '\t\t"speed": {\r\n\t\t\t"address": 8261866,\r\n\t\t\t"type": "<i2"\r\n\t\t}\r\n\t}\r\n}',
        ),
        ('{"info": {}}', '{\n  "info": {\n    "speed": {"address": 8261866, "type": "<i2"}\n  }\n}\n'),
        ("{}", '{\n  "info": {\n    "speed": {"address": 8261866, "type": "<i2"}\n  }\n}\n'),
    ],
    ids=["a line each", "all on one line", "spread out, tabs, CRLF", "empty", "without info"],
)
def test_an_entry_is_formatted_as_the_others_and_these_stay(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(before.encode())
    path.chmod(0o640)
    add_variable(path, "speed", ENTRY)
    assert path.read_bytes().decode() == after
    assert path.stat().st_mode & 0o777 == 0o640
    assert json.loads(after)["info"]["speed"] == ENTRY
    add_variable(path, "second", ENTRY)
    assert list(RamLayout.from_file(path).names)[-2:] == ["speed", "second"]
    assert [file.name for file in tmp_path.iterdir()] == ["data.json"]


@pytest.mark.parametrize("indent", [None, 0, 1, 2, 4, "\t"])
@pytest.mark.parametrize("info_is_last", [True, False])
def test_a_file_that_json_dumps_wrote_stays_one(tmp_path: Path, indent: int | str | None, info_is_last: bool) -> None:
    path = tmp_path / "data.json"
    content: dict[str, Any] = {"actions": [{"a": {}}], "info": {"a": {"address": 1, "type": "|u1"}}}
    content |= {} if info_is_last else {"comments": {"a": {"address": 1}}}
    for name in ("speed", "second"):
        path.write_text(json.dumps(content, indent=indent))
        add_variable(path, name, ENTRY)
        content["info"][name] = ENTRY
        assert path.read_text() == json.dumps(content, indent=indent)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"info": {"a": {"address": 1,\n"type": "|u1", "_why": "}{\\"}"}\n\n\n} ,"x": "}"}', '\n\n\n} ,"x": "}"}'),
        (
            '{"info":{"a":{"address":1,"type":"|u1","_lowest":{}}},"x":{"info":{}, "é":1E2}}',
            '},"x":{"info":{}, "é":1E2}}',
        ),
        (
            '{"info": {"a": {"address": 1, "type": "|u1"}, "a": {"address": 1, "type": "|u1"}}, "x": 1, "x": 1}',
            '}, "x": 1, "x": 1}',
        ),
        ('{ "info": { "a": { "address": 1, "type": "|u1" } } }\r\n\n', " } }\r\n\n"),
    ],
    ids=["braces in text", "compact", "repeated keys", "spaces"],
)
def test_an_odd_layout_stays_to_the_byte(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(before.encode())
    add_variable(path, "speed", ENTRY)
    written = path.read_bytes().decode()
    old = before.removesuffix(after)
    assert written.startswith(f"{old},")
    assert written.endswith(after)
    assert json.loads(f"{{{written.removeprefix(f'{old},').removesuffix(after)}}}") == {"speed": ENTRY}
    assert RamLayout.from_file(path).names == ("a", "speed")


@pytest.mark.parametrize("shipped", SHIPPED[::40], ids=lambda path: path.parent.name)
def test_stable_retros_own_files_keep_their_layout(tmp_path: Path, shipped: Path) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(shipped.read_bytes())
    info = read_entries(path)
    add_variable(path, "added", ENTRY)
    assert path.read_text() == json.dumps({"info": info | {"added": ENTRY}}, indent=2) + "\n"


def test_a_file_without_entries_keeps_all_else(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('{"info":\t{},"x": {"info": {}}, "y": "\\n  \\"info\\": {} é"}', encoding="utf-8")
    assert read_entries(path) == {}
    content = json.loads(path.read_text(encoding="utf-8"))
    add_variable(path, "speed", ENTRY)
    assert json.loads(path.read_text(encoding="utf-8")) == content | {"info": {"speed": ENTRY}}


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (ONE_LINE, "a", r"already has a variable 'a', \{\"address\": 1, \"type\": \"\|u1\"\}: use another name"),
        (ONE_LINE, "2nd", "'2nd' can't be a variable's name"),
        (ONE_LINE[:30], "speed", r"data\.json: is not JSON"),
        (f"\ufeff{ONE_LINE}", "speed", r"data\.json: is not JSON: Unexpected UTF-8 BOM"),
        (ONE_LINE.replace("|u1", "u8"), "speed", r"data\.json: unknown type 'u8' of variable 'a'"),
        ('{"info": []}', "speed", r"data\.json: holds no variables"),
        (
            ONE_LINE.replace("[1]", "NaN"),
            "speed",
            r"data\.json: line 5: NaN is not JSON",
        ),
        (
            ONE_LINE.replace("{\n", '{"info": {"b": {"address": 1, "type": "|u1"}},', 1),
            "speed",
            r"data\.json: lines 1 and 1: the key 'info' is repeated",
        ),
        ('{"info": {"a": {"address": 1, "type": "|u1"}}, "info": {}}', "speed", "the key 'info' is repeated"),
    ],
)
def test_what_cannot_be_added_is_reported_and_the_file_stays(
    tmp_path: Path, content: str, name: str, message: str
) -> None:
    path = tmp_path / "data.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(KartRewardsError, match=message):
        add_variable(path, name, ENTRY)
    assert path.read_text(encoding="utf-8") == content
    assert [file.name for file in tmp_path.iterdir()] == ["data.json"]


def test_a_file_with_arrays_and_pointers_gets_a_variable_like_others(tmp_path: Path) -> None:
    """stable-retro, which checks the new file, ignores the keys of this project."""
    info = {
        "tiles": {"address": 8323072, "type": "|u1", "count": 320},
        "kart": {"address": 8257800, "type": "<u2"},
        "fuel": {"address": 8257570, "type": "<s2", "pointer": "kart"},
    }
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"info": info}))
    add_variable(path, "speed", ENTRY)
    assert json.loads(path.read_text()) == {"info": info | {"speed": ENTRY}}
    assert read_entries(path).keys() == {"tiles", "kart", "fuel", "speed"}


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs the right to mount a read-only folder")
def test_a_read_only_folder_is_reported_with_the_entry(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "data.json").write_text(ONE_LINE)
    subprocess.run(["mount", "--bind", folder, folder], check=True)  # noqa: S607
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)  # noqa: S607
        with pytest.raises(KartRewardsError) as raised:
            add_variable(folder / "data.json", "speed", ENTRY)
    finally:
        subprocess.run(["umount", folder], check=True)  # noqa: S607
    assert "data.json: can't be written: Read-only file system. The entry is" in str(raised.value)
    assert '"speed": {"address": 8261866, "type": "<i2"}' in str(raised.value)

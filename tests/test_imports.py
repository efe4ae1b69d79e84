"""Imports of rewards files: own neighbours, copies, and messages that name the user's file and line."""

from __future__ import annotations

import inspect
import pickle
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kart_rewards.errors import KartRewardsError
from kart_rewards.files import use_copies
from kart_rewards.fingerprint import fingerprint
from kart_rewards.imports import import_source, load_function, source_files
from kart_rewards.rewards import RewardTerm
from kart_rewards.scripting import marked_scripts


@pytest.fixture(autouse=True)
def no_copies() -> Iterator[None]:
    yield
    use_copies({})


def write(folder: Path, **files: str) -> Path:
    """Writes files (``a__b`` is ``a/b.py``, ``INIT`` is ``__init__``), and returns the path of ``rewards.py``."""
    for name, text in files.items():
        parts = ["__init__" if part == "INIT" else part for part in name.split("__")]
        path = folder.joinpath(*parts).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "rewards.py"


# Mikubill/sd-webui-controlnet#943: two extensions had a module of one name, and the second one got the first one's.
def test_two_rewards_files_each_see_their_own_neighbour(tmp_path: Path) -> None:
    text = "from utils import value\nimport utils\ndef term(ram):\n    return value() + utils.value()\n"
    first = write(tmp_path / "a", rewards=text, utils="def value():\n    return 1\n")
    second = write(tmp_path / "b", rewards=text, utils="def value():\n    return 2\n")
    terms = [import_source(path).term for path in (first, second, first)]
    assert [term(None) for term in terms] == [2, 4, 2]
    assert terms[0] is terms[2]
    assert "utils" not in sys.modules
    assert not {str(first.parent), str(second.parent)} & set(sys.path)


def test_an_import_at_call_time_finds_the_neighbour_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        rewards="def term(ram):\n    import late\n    from late import value\n    return late.value() + value()\n",
        late="RUNS = []\nRUNS.append(1)\ndef value():\n    return len(RUNS)\n",
    )
    term = import_source(path).term
    assert [term(None), term(None)] == [2, 2]


def test_packages_relative_imports_and_neighbours_of_neighbours_work(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        rewards=(
            "import pkg.sub\nimport pkg.sub as short\nfrom pkg import other, NAME\nfrom . import plain\n"
            "from .plain import ONE\nfrom bare.deep import DEEP\nfrom stars import *\n"
            "def values():\n    return [pkg.sub.two(), short.two(), other.three(), NAME, plain.ONE, ONE, DEEP, STAR]\n"
        ),
        pkg__INIT="NAME = 'pkg'\n",
        pkg__sub="from plain import ONE\nfrom .other import three\ndef two():\n    return three() - ONE\n",
        pkg__other="from .. import plain\ndef three():\n    return 2 + plain.ONE\n",
        plain="ONE = 1\n",
        bare__deep="DEEP = 'no __init__.py'\n",
        stars="STAR = 'star'\n",
    )
    assert import_source(path).values() == [2, 2, 3, "pkg", 1, 1, "no __init__.py", "star"]
    with pytest.raises(KartRewardsError, match="goes beyond the folder of the rewards file"):
        import_source(write(tmp_path / "deep", rewards="from ..plain import ONE\n"))


def test_neighbours_may_import_each_other(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        rewards="import a\nRESULT = a.ask()\n",
        a="import b\nVALUE = 5\ndef ask():\n    return b.answer()\n",
        b="import a\ndef answer():\n    return a.VALUE\n",
    )
    assert import_source(path).RESULT == 5


# Grid2op/grid2op#577: a user's utils.py was shadowed by a module of the same name inside a library.
def test_a_neighbour_wins_over_an_installed_module_for_the_rewards_file_alone(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        rewards="import random\nimport json\nimport helper\nMINE = random.MINE, helper.MINE, json.loads('3')\n",
        helper="from random import MINE\n",
        random="MINE = 'the neighbour'\n",
    )
    assert import_source(path).MINE == ("the neighbour", "the neighbour", 3)
    assert sys.modules["random"] is random
    assert not hasattr(random, "MINE")


def test_a_folder_of_data_does_not_hide_an_installed_module(tmp_path: Path) -> None:
    path = write(tmp_path, rewards="import json\nVALUE = json.loads('3')\n", json__notes="")
    assert import_source(path).VALUE == 3


def test_the_package_itself_is_never_a_neighbour(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        rewards="from kart_rewards import reward_term\n@reward_term\ndef gift(ram):\n    return 1.0\n",
        kart_rewards__INIT="raise RuntimeError('another copy of the package')\n",
    )
    assert [term.name for term in marked_scripts(path, RewardTerm)] == ["gift"]


def test_a_neighbour_that_was_edited_is_read_again_with_its_importer(tmp_path: Path) -> None:
    path = write(tmp_path, rewards="from utils import VALUE\ndef term(ram):\n    return VALUE\n", utils="VALUE = 1\n")
    before = import_source(path)
    assert import_source(path) is before
    write(tmp_path, utils="VALUE = 2\n")
    after = import_source(path)
    assert [before.term(None), after.term(None)] == [1, 2]
    assert before.__name__ != after.__name__
    (tmp_path / "utils.py").unlink()
    with pytest.raises(KartRewardsError, match=rf"No module named 'utils'\n  at {path}:1: from utils import VALUE"):
        import_source(path)


def test_instances_of_a_neighbours_classes_can_be_pickled(tmp_path: Path) -> None:
    code = "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int = 3\n"
    path = write(tmp_path, rewards="from pkg.shapes import Point\npoint = Point(4)\n", pkg__shapes=code)
    point = import_source(path).point
    assert pickle.loads(pickle.dumps(point)) == point  # noqa: S301


def test_sources_and_tracebacks_show_the_text_that_runs(tmp_path: Path) -> None:
    path = write(
        tmp_path, rewards="import utils\ndef term(ram):\n    return utils.fail()\n", utils="def fail():\n    1 / 0\n"
    )
    module: Any = import_source(path)
    path.write_text("# edited\n\n\n")
    assert inspect.getsource(module.term) == "def term(ram):\n    return utils.fail()\n"
    with pytest.raises(ZeroDivisionError) as error:
        module.term(None)
    assert [str(entry.path) for entry in error.traceback[1:]] == [str(path), str(tmp_path / "utils.py")]
    assert str(error.traceback[-1].statement).strip() == "1 / 0"


def test_the_fingerprint_covers_what_a_term_uses_of_its_neighbours(tmp_path: Path) -> None:
    rewards = "import pkg.sub\ndef term(ram):\n    from late import value\n    return pkg.sub.two() + value()\n"
    sub, late = "def two():\n    return 2\n", "def value():\n    return 3\n"
    seen = []
    for folder, sub_text, late_text in (
        ("same", sub, late),
        ("again", sub + "# a comment\ndef other():\n    return 1\n", late),
        ("sub", sub.replace("return 2", "return 4"), late),
        ("late", sub, late.replace("return 3", "return 5")),
    ):
        path = write(tmp_path / folder, rewards=rewards, pkg__sub=sub_text, late=late_text)
        seen.append(fingerprint(import_source(path).term))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_the_files_of_a_run_are_known(tmp_path: Path) -> None:
    path = write(tmp_path, rewards="import utils\n", utils="import pkg\n", pkg__INIT="", unused="")
    import_source(path)
    loaded = {file for file in source_files() if tmp_path in file.parents}
    assert loaded == {path, tmp_path / "utils.py", tmp_path / "pkg" / "__init__.py"}


def test_copies_are_read_in_place_of_the_originals(tmp_path: Path) -> None:
    text = (
        "import utils\nimport pkg.sub\ndef term(ram):\n    return utils.VALUE + pkg.sub.VALUE\ndef fail():\n    1 / 0\n"
    )
    path = write(tmp_path / "game", rewards=text, utils="VALUE = 1\n", pkg__sub="VALUE = 10\n")
    import_source(path)
    files = [file for file in source_files() if path.parent in file.parents]
    copies = {file: tmp_path / "run" / f"{i}.txt" for i, file in enumerate(files)}
    (tmp_path / "run").mkdir()
    for file, copy in copies.items():
        copy.write_bytes(file.read_bytes())
    write(tmp_path / "game", utils="VALUE = 2\n")
    assert import_source(path).term(None) == 12
    use_copies(copies)
    assert import_source(path).term(None) == 11
    for file in files:
        file.unlink()
    (tmp_path / "game" / "pkg").rmdir()
    with pytest.raises(ZeroDivisionError) as error:
        import_source(path).fail()
    assert str(error.traceback[-1].path) == str(path)
    use_copies({path: copies[path]})
    with pytest.raises(KartRewardsError, match="No module named 'utils'"):
        import_source(path)
    use_copies({})
    with pytest.raises(KartRewardsError, match=rf"{path}: no such file"):
        import_source(path)


def test_a_module_by_its_dotted_name_is_read_from_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    write(tmp_path, dotted_of_a_test="VALUE = 1\n")
    assert import_source("dotted_of_a_test").VALUE == 1
    original = tmp_path / "dotted_of_a_test.py"
    assert original in source_files()
    (tmp_path / "copy").write_text("VALUE = 2\n")
    use_copies({original: tmp_path / "copy"})
    assert import_source("dotted_of_a_test").VALUE == 2


def test_a_neighbour_that_importlib_does_not_find_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, rewards="import importlib\nu = importlib.import_module('nextdoor')\n", nextdoor="")
    with pytest.raises(
        KartRewardsError, match=r"rewards\.py:2: .*\n  nextdoor\.py lies beside it: write `import nextdoor`"
    ):
        import_source(path)


# ManiacalLabs/BiblioPixel#1138: a syntax error in a loaded file was reported as an import that can't be done.
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef broken(:\n", r"it raised SyntaxError: .*\n  at {file}:2: def broken\(:"),
        ("def f():\n\treturn 1\n        return 2\n", r"it raised TabError: .*\n  at {file}:3"),
        ("x = 1\n  y = 2\n", r"it raised IndentationError: .*\n  at {file}:2"),
        ("x = 1\nreturn 3\n", r"it raised SyntaxError: 'return' outside function\n  at {file}:2"),
        ("from __future__ import braces\n", r"it raised SyntaxError: not a chance\n  at {file}:1"),
        ("x = 'ä'".encode("latin-1"), r"it raised SyntaxError: .*\n  at {file}"),
        (b"x = 1\0\n", r"(is not Python|it raised SyntaxError): source code"),
        ("x = " + "(" * 5000, r"at {file}|is not Python"),
        ("import json\n\njson.loads('{{')\n".replace("{{", "{"), r"JSONDecodeError: .*\n  at {file}:3: json\.loads"),
        ("import lost_of_a_test\n", r"fails to import: No module named 'lost_of_a_test'\n  at {file}:1"),
        ("open('/lost/file')\n", r"it raised FileNotFoundError: .*\n  at {file}:1"),
        ("import sys\nsys.exit(3)\n", r"it raised SystemExit: 3\n  at {file}:2"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_reported_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    for folder, of_neighbour in (("direct", False), ("neighbour", True)):
        path = write(tmp_path / folder, rewards="import utils\n")
        file = path.with_name("utils.py") if of_neighbour else path
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(KartRewardsError, match=message.replace("{file}", str(file))) as error:
            import_source(path)
        assert "imports.py" not in str(error.value)


def test_sources_that_are_neither_files_nor_modules_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, rewards="", games__mine="")
    (tmp_path / "README.md").write_text("# Text\n")
    (tmp_path / "folder.py").mkdir()
    for source, message in (
        ("README.md", r"README\.md: is not a Python file: the name of a rewards file must end in \.py"),
        ("lost.md", r"lost\.md: no such module; a file's name must end in \.py"),
        ("games/mine", r"'games/mine': is neither .* Did you mean 'games/mine\.py'\?"),
        ("rewards.py:term", r"'rewards\.py:term': is neither a Python file"),
        ("reward.py", r"reward\.py: no such file \(given as 'reward\.py'\)\. Did you mean 'rewards\.py'\?"),
        ("lost.py", r"lost\.py: no such file \(given as 'lost\.py'\)\.$"),
        (str(tmp_path / "lost.py"), r"^/.*lost\.py: no such file\.$"),
        ("folder.py", r"folder\.py: can't be read: Is a directory"),
        ("", r"'': is neither a Python file"),
        ("lost_package.module", r"lost_package\.module: no such module"),
    ):
        with pytest.raises(KartRewardsError, match=message):
            import_source(source)


# --------------------------------------------------------------------------------------- functions of the command line
def test_a_function_is_one_of_a_module_or_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = write(tmp_path, own_function="def load(path):\n    return path\n", beside_of_a_test="def load(): return 2\n")
    own = path.with_name("own_function.py")
    assert load_function("kart_rewards.imports:load_function") is load_function
    assert load_function(f"{own}:load")("agent") == "agent"
    assert load_function("beside_of_a_test:load")() == 2, "modules of the current folder are found"


def test_other_processes_can_unpickle_what_an_importable_file_defines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    write(tmp_path, policy_of_a_test="def load(path):\n    return path\n")
    function = load_function(f"{tmp_path / 'policy_of_a_test.py'}:load", importable=True)
    assert function.__module__ == "policy_of_a_test"
    assert str(tmp_path) in sys.path


def test_an_importable_file_with_the_name_of_another_module_is_reported(tmp_path: Path) -> None:
    write(tmp_path, json="def load(path):\n    return path\n")
    with pytest.raises(KartRewardsError, match=r"json\.py: another module has the same name, 'json' \(.*\): rename"):
        load_function(f"{tmp_path / 'json.py'}:load", importable=True)


@pytest.mark.parametrize("importable", [False, True])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{file}", "py': is not the name of a thing: write MODULE:NAME or FILE.py:NAME"),
        ("{file}:", "py:': is not the name of a thing"),
        ("{file}:loda", r"things\.py: has no function or class 'loda'\. Did you mean 'load'\?"),
        ("{file}:NUMBER", r"things\.py: has no function or class 'NUMBER'\."),
        ("{folder}/thing.py:load", r"thing\.py: no such file\. Did you mean 'things\.py'\?"),
        ("lost_of_a_test:load", "lost_of_a_test: no such module"),
    ],
)
def test_what_is_not_a_function_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str, importable: bool
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "things", raising=False)
    write(tmp_path, things="NUMBER = 3\ndef load():\n    pass\n")
    with pytest.raises(KartRewardsError, match=message):
        load_function(name.format(file=tmp_path / "things.py", folder=tmp_path), "thing", importable)

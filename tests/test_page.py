from __future__ import annotations

import base64
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from command_line import run
from lab_server import served
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from kart_rewards.drives import SHIPPED, Drive, load_drive
from kart_rewards.lab.page.page import write_page
from kart_rewards.lab.replay import replay
from kart_rewards.lab.score import RewardSet, score_drive

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed")

MINE = """from kart_rewards import reward_term

import helper


@reward_term(weight=0.5)
def gas(ram, previous):
    \"\"\"Pay for acceleration. <b id="hostile">\"\"\"
    return helper.factor() * max(ram.speed - previous.speed, 0)


@reward_term(weight=-0.25)
def hop(ram, buttons):
    return "L" in buttons


@reward_term(weight=0)
def fast(ram):
    return float(ram.speed > 500)
"""
HELPER = "def factor():\n    return 1\n"
HOSTILE = "<img src=x onerror=window.hacked=1>"


class Page:
    """A page in the browser of this module."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def open(self, url: str) -> None:
        self.browser.get(url)
        self.wait("window.lab?.tracks().length && lab.tracks().every((track) => track.score && track.data)")

    def js(self, code: str, *arguments: Any) -> Any:
        return self.browser.execute_script(f"return {code}", *arguments)

    def wait(self, code: str) -> float:
        """Waits until an expression is true. Returns the seconds that it took."""
        start = time.monotonic()
        while not self.js(code):
            waited = time.monotonic() - start
            assert waited < 120, f"waited in vain until {code}"
            time.sleep(min(0.05 + waited / 10, 0.5))  # each look takes the processor from what is waited for
        return time.monotonic() - start

    def text(self, selector: str) -> str:
        """Returns an element's text. Finds and reads it in one script: the page can't replace it in between."""
        text: str = self.js("document.querySelector(arguments[0]).textContent", selector)
        return text

    def click(self, selector: str) -> None:
        with suppress(StaleElementReferenceException):  # the page has just replaced it
            self.browser.find_element(By.CSS_SELECTOR, selector).click()
            return
        self.browser.find_element(By.CSS_SELECTOR, selector).click()

    def click_at(self, selector: str, x: float, y: float) -> None:
        """Clicks at a place in an element, in pixels from its left upper corner."""
        box = self.js(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")
        actions = ActionBuilder(self.browser)
        actions.pointer_action.move_to_location(round(box["x"] + x), round(box["y"] + y)).click()
        actions.perform()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.browser.find_element(By.TAG_NAME, "body").send_keys(key)

    def picture(self, number: int = 0) -> tuple[int, np.ndarray]:
        """Waits for the picture at the cursor. Returns its frame and its pixels."""
        canvas = f"document.querySelectorAll('.picture canvas')[{number}]"
        self.wait(f"{canvas}.dataset.frame === String(lab.view.frame) && {canvas}.checkVisibility()")
        frame, url = self.js(f"((c) => [Number(c.dataset.frame), c.toDataURL()])({canvas})")
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        return frame, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1440,1000",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield browser
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    browser.quit()
    assert not [message for message in severe if "net::ERR" not in message], "the page of a server that ended has those"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "mine.py").write_text(MINE)
    (folder / "helper.py").write_text(HELPER)
    return folder


@pytest.fixture(scope="module")
def page(browser: Any, folder: Path) -> Iterator[Page]:
    """The page of two drives, served."""
    with served(folder, "turning", "reverse", "--rewards", "mine.py") as (url, _):
        page = Page(browser)
        page.open(url)
        yield page


@pytest.fixture(scope="module")
def turning() -> Drive:
    return load_drive(SHIPPED / "turning.drive")


@pytest.fixture(scope="module")
def screens(turning: Drive) -> list[np.ndarray]:
    return [screen.copy() for screen in replay(turning)]


def is_picture_of(picture: np.ndarray, frame: int, screens: list[np.ndarray]) -> bool:
    """Whether a picture is more similar to the emulator's screen of its frame than to that of any near frame."""
    near = range(max(0, frame - 8), min(len(screens), frame + 9))
    differences = {i: np.abs(picture.astype(int) - screens[i].astype(int)).mean() for i in near}
    return min(differences, key=lambda i: differences[i]) == frame and differences[frame] < 12


def test_the_page_shows_the_drives_and_what_each_term_pays(page: Page, turning: Drive, folder: Path) -> None:
    score = score_drive(turning, RewardSet((str(folder / "mine.py"),)).load(turning))
    item = page.text('[data-drive="turning"]')
    assert turning.outcome in item
    assert f"{score.transformed:.2f}" in item
    page.click('[data-drive="turning"] button')
    page.wait("lab.tracks()[0].data && lab.tracks()[0].score?.terms.get('gas').values.length === 1201")
    for name, values in score.values.items():
        shown = page.js("lab.tracks()[0].score.terms.get(arguments[0]).values", name)
        assert shown == values.tolist(), "to the last bit"
    assert page.js("lab.tracks()[0].score.all.values") == score.rewards.tolist()
    rows = page.js("[...document.querySelectorAll('.row')].map((row) => row.dataset.term)")
    assert rows == [*score.values, "reward"]
    assert "0.5" in page.text('[data-term="gas"]')
    page.click('[data-term="gas"]')
    assert "mine.py:6" in page.text("#where")
    assert "6@reward_term(weight=0.5)" in page.text("#source")
    assert '<b id="hostile">' in page.text("#source")
    assert not page.js("document.getElementById('hostile')")


def test_a_click_on_a_mark_of_the_map_shows_the_picture_of_its_frame(page: Page, screens: list[np.ndarray]) -> None:
    page.click('[data-term="gas"]')
    marks = page.js("lab.place().marks")
    chosen = max(marks, key=lambda mark: mark["frame"])
    page.click_at("#map", chosen["x"], chosen["y"])
    frame, picture = page.picture()
    near = [mark["frame"] for mark in marks if np.hypot(mark["x"] - chosen["x"], mark["y"] - chosen["y"]) < 2]
    assert frame in near
    assert is_picture_of(picture, frame, screens)


def test_a_click_on_a_mark_of_the_timeline_shows_the_picture_of_its_frame(
    page: Page, screens: list[np.ndarray]
) -> None:
    page.click('[data-term="time"]')
    marks = page.js("lab.tracks()[0].score.terms.get('time').marks")
    rows = page.js("[...document.querySelectorAll('.row')].map((row) => row.dataset.term)")
    height = page.js("document.querySelector('.row').offsetHeight")
    page.click_at("#chart", page.js(f"lab.chartX({marks[-2]})") + 2, (rows.index("time") + 0.5) * height)
    frame, picture = page.picture()
    assert frame == marks[-2]
    assert is_picture_of(picture, frame, screens)


def test_each_frame_has_its_own_picture(page: Page, screens: list[np.ndarray]) -> None:
    for wanted in (0, 1, 29, 30, 31, 59, 60, 601, 1199, 1200, 600, 7):
        page.js(f"lab.seek({wanted})")
        frame, picture = page.picture()
        moves = all((screens[i] != screens[frame]).any() for i in (frame - 1, frame + 1) if 0 <= i < len(screens))
        assert frame == wanted
        assert is_picture_of(picture, frame, screens) or not moves


def test_the_keyboard_moves_the_cursor_and_chooses_terms(page: Page) -> None:
    page.js("lab.seek(100)")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert page.js("lab.view.frame") == 101
    page.press(Keys.SHIFT + Keys.ARROW_RIGHT)
    assert page.js("lab.view.frame") == 161
    page.press(Keys.NULL, Keys.END)
    assert page.js("lab.view.frame") == 1200
    page.press(Keys.HOME)
    assert page.js("lab.view.frame") == 0
    page.press("6")
    assert page.js("lab.view.term") == "gas"
    assert page.text(".row.chosen .name") == "gas"
    page.press("n")
    assert page.js("lab.view.frame") == page.js("lab.tracks()[0].score.terms.get('gas').marks[0]")
    page.press(" ")
    page.wait("lab.view.frame > 20")
    page.press(" ")
    stopped = page.js("lab.view.frame")
    time.sleep(0.1)
    assert page.js("lab.view.frame") == stopped


def test_the_variables_at_the_cursor_are_shown(page: Page, turning: Drive) -> None:
    page.js("lab.seek(777)")
    page.picture()
    shown = page.js("Object.fromEntries([...document.querySelectorAll('#ram tr')].map((row) => [...row.cells].map("
                    "(cell) => cell.textContent)))")  # fmt: skip
    assert shown.pop("held") == " ".join(name for name in turning.info.buttons if name in turning.buttons[777])
    assert shown == {name: str(value) for name, value in turning[777]._asdict().items()}


def test_terms_are_shown_cumulative_and_without_their_weights(page: Page, turning: Drive, folder: Path) -> None:
    score = score_drive(turning, RewardSet((str(folder / "mine.py"),)).load(turning))
    fast = page.js("[...lab.tracks()[0].score.terms.get('fast').series(true, true)]")
    assert fast[-1] == sum(float(ram.speed > 500) for ram in turning[1:]), "also if the weight is 0"
    page.click("#summed button:last-child")
    page.js("lab.seek(1200)")
    page.wait("document.querySelector('[data-term=gas]').lastChild.textContent !== ''")
    sums = page.js("[...lab.tracks()[0].score.terms.get('gas').series(false, true)]")
    assert sums == pytest.approx(np.cumsum(score.values["gas"]).tolist())
    page.click("#summed button:first-child")


def test_two_drives_are_shown_side_by_side(page: Page, screens: list[np.ndarray]) -> None:
    page.click('[data-drive="reverse"] .compare')
    page.wait("lab.tracks().length === 2 && lab.tracks().every((track) => track.score && track.data)")
    page.js("lab.seek(333)")
    frame, picture = page.picture(1)
    assert frame == 333
    assert not is_picture_of(picture, 333, screens)
    assert is_picture_of(page.picture(0)[1], 333, screens)
    assert page.js("document.querySelector('#ram tr:last-child').cells.length") == 3
    page.click('[data-drive="reverse"] .compare')
    page.wait("lab.tracks().length === 1")


def edited(path: Path, text: str) -> None:
    """Writes a file as an editor does that writes another file first."""
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").replace(path)


def test_after_a_save_every_number_is_the_new_rewards(page: Page, folder: Path, turning: Drive) -> None:
    page.wait("document.getElementById('status').textContent.endsWith('save')")
    edited(folder / "mine.py", MINE.replace("weight=0.5", "weight=3.0"))
    seconds = page.wait("lab.tracks()[0].score.terms.get('gas').weight === 3")
    edited(folder / "helper.py", HELPER.replace("1", "2"))
    score = score_drive(turning, RewardSet((str(folder / "mine.py"),), gamma=0.9).load(turning))  # no cached one
    seconds_of_helper = page.wait(f"lab.tracks()[0].score.terms.get('gas').sum === {score.terms['gas'].sum}")
    print(f"the numbers came {seconds:.2f} s and {seconds_of_helper:.2f} s after the save")
    page.wait(f"document.querySelector('[data-drive=turning]').textContent.includes('{score.transformed:.1f}')")
    assert max(seconds, seconds_of_helper) < 20


def test_an_error_is_shown_and_goes_away(page: Page, folder: Path) -> None:
    before = page.js("lab.tracks()[0].score.terms.get('gas').sum")
    edited(folder / "mine.py", MINE.replace("return helper", "retrun helper"))
    page.wait("!document.getElementById('error').hidden")
    assert "SyntaxError" in page.text("#error pre")
    assert re.search(r"mine\.py:9: retrun helper", page.text("#error pre"))
    assert page.js("lab.tracks()[0].score.terms.get('gas').sum") == before, "the last numbers stay"
    edited(folder / "mine.py", MINE.replace('"L" in buttons', "1 / (ram.current_frame % 300)"))
    page.wait("document.querySelector('#error pre').textContent.includes('ZeroDivisionError')")
    assert re.search(r"turning, frame \d+: 'hop' .*mine\.py:12", page.text("#error pre"))
    edited(folder / "mine.py", MINE)
    page.wait("document.getElementById('error').hidden && lab.tracks()[0].score.terms.get('gas').weight === 0.5")


def test_lint_runs_after_each_save_and_its_findings_lead_to_their_drives(page: Page, folder: Path) -> None:
    failing = MINE.replace("ram.speed - previous.speed", "ram.speed // (ram.laps - 128)")
    edited(folder / "mine.py", failing)
    page.wait("document.querySelector('#findings .failed')")
    assert "ZeroDivisionError" in page.text("#findings")

    edited(folder / "mine.py", MINE)
    page.wait("!lab.state().lint.busy && lab.state().lint.findings")
    assert [each["title"] for each in page.js("lab.state().lint.findings")] == ["gas pays for undone progress"]
    page.wait("document.getElementById('findings-status').textContent === '1 finding'")
    assert "mine.py:6" in page.text(".finding")
    page.click(".finding")
    page.wait("document.querySelector('.drive.a').dataset.drive === 'gas-and-brake' && lab.tracks()[0].score")
    frame = page.js("lab.state().lint.findings[0].frame")
    assert page.picture()[0] == frame
    assert page.js("lab.tracks()[0].score.terms.get('gas').values")[frame] > 0, "the term that the finding is about"
    assert "error" not in page.text('[data-drive="gas-and-brake"]')
    page.js("document.querySelector('[data-drive=\"turning\"] button').click()")  # the list is drawn again now and then
    page.wait("lab.tracks()[0].score?.terms.get('gas').values.length === 1201")


@pytest.mark.slow
def test_a_save_ends_the_lint_of_the_rewards_before_it(page: Page, folder: Path) -> None:
    failing = MINE.replace("ram.speed - previous.speed", "ram.speed // (ram.laps - 128)")
    page.wait("document.querySelector('.finding')")
    page.click(".finding")
    page.wait("document.querySelector('.drive.a').dataset.drive === 'gas-and-brake' && lab.tracks()[0].score")
    edited(folder / "mine.py", MINE.replace("max(ram.speed - previous.speed, 0)", "(ram.speed - previous.speed)"))
    page.wait("document.getElementById('findings-status').textContent === 'linting…'")
    page.wait("lab.tracks()[0].score.terms.get('gas').sum === 0")
    assert page.js("lab.state().lint.busy"), "the numbers do not wait for lint"
    edited(folder / "mine.py", failing)  # what is being linted is outdated
    page.wait("document.querySelector('#findings .failed')")
    edited(folder / "mine.py", MINE)
    page.wait("lab.tracks()[0].score.terms.get('gas').sum > 0")
    page.js("document.querySelector('[data-drive=\"turning\"] button').click()")  # the list is drawn again now and then


def test_a_process_of_a_rewards_file_that_ends_is_an_error(page: Page, folder: Path) -> None:
    edited(folder / "mine.py", MINE + "\nimport os\nos._exit(3)\n")
    page.wait("document.querySelector('#error pre').textContent.includes('ended unexpectedly: exit code 3')")
    edited(folder / "mine.py", MINE)
    page.wait("document.getElementById('error').hidden")


def test_rewards_that_are_broken_from_the_start_are_shown(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import helper\n")
    with served(tmp_path, "reverse", "--rewards", "mine.py") as (url, _):
        page = Page(browser)
        browser.get(url)
        page.wait("window.lab && document.querySelector('#error pre').textContent.includes('No module named')")
        (tmp_path / "helper.py").write_text(HELPER)
        (tmp_path / "mine.py").write_text(MINE)
        page.wait("lab.tracks()[0].score?.terms.has('gas') && document.getElementById('error').hidden")
        browser.get("about:blank")


@pytest.mark.slow
def test_drives_that_are_new_are_in_the_list_after_a_reload(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    shutil.copy(SHIPPED / "reverse.drive", tmp_path / "mine" / "first.drive")
    with served(tmp_path, "mine") as (url, _):
        page = Page(browser)
        page.open(url)
        assert page.js("lab.state().drives.map((drive) => drive.label)") == ["first"]
        shutil.copy(SHIPPED / "turning.drive", tmp_path / "mine" / "second.drive")
        (tmp_path / "mine" / "third.drive").write_bytes(b"half")
        page.open(url)
        page.wait("document.querySelector('[data-drive=\"second\"] i').textContent !== '–'")
        page.click('[data-drive="second"] button')
        page.wait("lab.tracks()[0].score?.all.values.length === 1201")
        browser.get("about:blank")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on disk with odd drives: a plain one, one that departs, one without a ROM, and one without a map."""
    folder = tmp_path_factory.mktemp("written")
    drive = load_drive(SHIPPED / "reverse.drive")
    masks = drive.masks.copy()
    masks[200:] = 1
    odd = {
        HOSTILE: drive,
        "departs": replace(drive, masks=masks),
        "no-rom": replace(drive, info=replace(drive.info, game="MarioKart-Snes")),
        "no-map": replace(drive, columns={k: v for k, v in drive.columns.items() if not k.startswith("kart_")}),
    }
    for name, each in odd.items():
        each.save(folder / f"{name}.drive".replace("/", "_"))
    (folder / "mine.py").write_text(MINE)
    (folder / "helper.py").write_text(HELPER)
    (folder / "other.py").write_text(MINE.replace("weight=0.5", "weight=2").replace("def hop", "def jump"))
    finding = {
        "title": "gas is farmable", "script": "gas", "where": "mine.py:6", "text": HOSTILE, "remedy": "none",
        "path": str(folder / "no-map.drive"), "frame": 77,
    }  # fmt: skip
    absent = {**finding, "path": str(SHIPPED / "race.drive")}
    sets = [RewardSet((str(folder / name),)) for name in ("mine.py", "other.py")]
    paths = [folder / f"{name}.drive" for name in odd]
    linted = {"findings": [finding, absent], "error": None}
    write_page(folder / "page.html", paths, sets, ["mine.py", "other.py"], lambda: linted)
    return folder / "page.html"


def test_a_page_on_disk_needs_no_server_and_no_network(browser: Any, written: Path) -> None:
    page = Page(browser)
    browser.get("about:blank")
    browser.get_log("performance")
    page.open(written.as_uri())
    page.click(f'[data-drive="{HOSTILE}"] button')
    page.wait("lab.tracks().every((track) => track.score && track.data)")
    reverse = [screen.copy() for screen in replay(load_drive(SHIPPED / "reverse.drive"))]
    for wanted in (60, 119, 59, 300):
        page.js(f"lab.seek({wanted})")
        frame, picture = page.picture()
        assert frame == wanted
        assert is_picture_of(picture, frame, reverse)
    assert page.text(f'[data-drive="{HOSTILE}"] b') == HOSTILE
    assert not page.js("window.hacked")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    assert written.as_uri() in requests


def test_two_reward_sets_are_shown_side_by_side(browser: Any, written: Path) -> None:
    page = Page(browser)
    page.open(written.as_uri())
    assert [page.js(f"lab.tracks()[{i}].score.terms.get('gas').weight") for i in (0, 1)] == [0.5, 2]
    for term, weights in (("gas", ["0.5", "2"]), ("hop", ["−0.25", "–"]), ("jump", ["–", "−0.25"])):
        cell = f"document.querySelector('[data-term={term}]').children[2]"
        assert page.js(f"[...{cell}.children].map((each) => each.textContent)") == weights


def test_without_pictures_or_a_map_all_else_works(browser: Any, written: Path) -> None:
    page = Page(browser)
    page.open(written.as_uri())
    page.click('[data-drive="departs"] button')
    page.js("lab.seek(100)")
    assert page.picture()[0] == 100
    page.js("lab.seek(400)")
    page.wait("document.querySelector('.picture p').textContent.includes('the replay departs on frame 2')")
    page.click('[data-drive="no-rom"] button')
    page.wait("document.querySelector('.picture p').textContent.includes('rom.sfc')")
    page.wait("lab.tracks()[0].score.terms.get('gas').marks.length > 0")
    page.click('[data-drive="no-map"] button')
    page.wait("document.querySelector('#map').textContent.includes('Choose two variables')")
    for axis, name in (("x", "speed"), ("y", "steering")):
        page.js(f"[...document.querySelectorAll('#{axis} option')].find((o) => o.value === '{name}').selected = true")
        page.js(f"document.getElementById('{axis}').dispatchEvent(new Event('change'))")
    assert page.js("document.querySelectorAll('#map .js-line').length") > 0


def test_a_finding_leads_to_its_drive_and_frame(browser: Any, written: Path) -> None:
    page = Page(browser)
    page.open(written.as_uri())
    assert HOSTILE in page.text(".finding")
    page.click(".finding")
    page.wait("lab.view.frame === 77 && document.querySelector('.drive.a').dataset.drive === 'no-map'")
    assert page.text(".row.chosen .name") == "gas"
    assert "race, frame 77: this drive is not on the page" in page.text(".finding:last-child")
    assert not page.js("window.hacked")


def test_a_page_on_disk_does_not_become_too_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [SHIPPED / f"{name}.drive" for name in ("standing", "reverse")]
    write_page(tmp_path / "page.html", paths, [RewardSet()], ["scenario"], most_bytes=1000)
    assert "with the pictures of 2 drives: it has those of the first 1. Name fewer drives" in capsys.readouterr().out
    write_page(tmp_path / "both.html", paths, [RewardSet()], ["scenario"])
    assert capsys.readouterr().out == ""
    assert (tmp_path / "page.html").stat().st_size + 200_000 < (tmp_path / "both.html").stat().st_size


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from kart_rewards import reward_term\n@reward_term\ndef bad(ram): return x\n")
    done = run("lab", "reverse", "--output", "page.html", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "wrote page.html\n")
    assert 2_500_000 < (tmp_path / "page.html").stat().st_size < 8_000_000
    for options, message in (
        (("--output", "page.txt"), "page.txt: must end in .html"),
        (("--output", "page.html", "--rewards", "mine.py"), "NameError: name 'x' is not defined"),
    ):
        done = run("lab", "reverse", *options, folder=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr

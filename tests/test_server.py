"""The server of ``kart-rewards lab``, without a browser."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from command_line import run
from lab_server import served
from xvfb import wait_until

from kart_rewards.drives import SHIPPED, load_drive
from kart_rewards.lab.page.film import FilmFormat
from kart_rewards.lab.page.server import film_part


def status_of(url: str, path: str, host: str = "") -> int:
    server = url.split("/")[2]
    connection = http.client.HTTPConnection(server, timeout=10)
    connection.request("GET", path, headers={"Host": host or server})
    return connection.getresponse().status


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "mine.py").write_text("import os\nos._exit(3)\n")  # the server goes on
    with served(folder, "reverse", "--rewards", "mine.py") as (url, _):
        yield url


def test_requests_without_the_token_or_by_another_name_are_refused(url: str) -> None:
    token = url.split("/")[3]
    port = url.split(":")[2].split("/")[0]
    assert len(token) >= 32
    assert status_of(url, f"/{token}/") == 200
    wrong = token[:-1] + ("y" if token.endswith("x") else "x")
    for path in ("/", "//", "/x/", f"/{token[:-1]}/", "/drives/0", f"/{wrong}/events"):
        assert status_of(url, path) == 403
    assert status_of(url, f"/{token}/", "example.com") == 403
    assert status_of(url, f"/{token}/", f"example.com:{port}") == 403
    for path in ("drives/1", "drives/-1", "drives/x", "drives/0/scores/1", "../etc"):
        assert status_of(url, f"/{token}/{path}") == 404
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", int(port)))  # another address of this machine


def test_a_drive_is_sent_with_its_variables(url: str) -> None:
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=10)
    connection.request("GET", f"/{url.split('/')[3]}/drives/0")
    response = connection.getresponse()
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert response.headers["Referrer-Policy"] == "no-referrer", "the token is in the address"
    content = json.loads(gzip.decompress(response.read()))
    drive = load_drive(SHIPPED / "reverse.drive")
    assert content["columns"] == {name: column.tolist() for name, column in drive.columns.items()}
    assert len(content["masks"]) == len(drive)
    assert content["map"]["width"] > 0


def test_the_parts_of_a_film_have_a_letter_and_a_length() -> None:
    assert film_part(b"abc") == b"C\x03\x00\x00\x00abc"
    assert film_part("é") == b"E\x02\x00\x00\x00" + "é".encode()
    assert film_part(FilmFormat(4, 2, "avc1", 30))[:1] == b"J"


@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGKILL, signal.SIGHUP))]
)
def test_no_process_is_left(number: signal.Signals, tmp_path: Path) -> None:
    with served(tmp_path, "race") as (url, process):
        connection = http.client.HTTPConnection(url.split("/")[2], timeout=20)
        connection.request("GET", f"/{url.split('/')[3]}/drives/0/pictures", headers={"Host": url.split("/")[2]})
        assert len(connection.getresponse().read(1000)) == 1000
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3, "scorers, the replay and the encoder"
        process.send_signal(number)
        assert process.stdout
        output = process.stdout.read()
        wait_until(lambda: not any(is_alive(child) for child in children), "no process is left")
        process.wait()
        assert output == ("Ctrl-C ends it.\n" + ("\nThe page has ended.\n" if number == signal.SIGINT else ""))


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def test_a_port_in_use_is_reported(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run("lab", "reverse", "--port", port, "--no-browser", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (f"error: --port {port} is in use by another program: choose another one, or leave it out\n")


def test_malformed_requests_are_refused_without_a_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with served(tmp_path, "reverse") as (url, _):
        host = url.split("/")[2]
        head = f"HTTP/1.1\r\nHost: {host}\r\n"
        statuses = {
            f"CONNECT x:1 {head}\r\n": 403,
            f"OPTIONS * {head}\r\n": 403,
            f"GET /%ff/ {head}\r\n": 403,
            f"GET x {head}\r\n": 400,
            f"GET / {head}Content-Length: x\r\n\r\n": 400,
            "GARBAGE\r\n\r\n": 400,
        }
        for request, status in statuses.items():
            with socket.create_connection((host.split(":")[0], int(host.split(":")[1])), 10) as client:
                client.sendall(request.encode())
                assert int(client.recv(1000).split()[1]) == status, request
        path = f"/{url.split('/')[3]}/"
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.request("GET", path, b"abc", {"Content-Encoding": "gzip"})
        assert connection.getresponse().status == 200
        assert status_of(url, path) == 200
    assert capfd.readouterr().err == ""


def test_a_file_that_is_no_drive_does_not_hide_others(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    load_drive(SHIPPED / "reverse.drive").save(folder / "a.drive")
    drive = load_drive(SHIPPED / "reverse.drive")
    with served(tmp_path, "mine") as (url, _):
        for name, race in (("b", {}), ("c", {"finished": True}), ("d", drive.info.race)):
            replace(drive, info=replace(drive.info, race=race)).save(folder / f"{name}.drive")
        connection = http.client.HTTPConnection(url.split("/")[2], timeout=20)
        connection.request("GET", f"/{url.split('/')[3]}/events")
        response = connection.getresponse()
        for line in iter(response.readline, b""):
            if line.startswith(b"data: "):
                labels = [each["label"] for each in json.loads(line.removeprefix(b"data: "))["drives"]]
                if len(labels) > 1:
                    break
        assert labels == ["a", "d"]

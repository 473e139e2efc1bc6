"""The page served while a run trains: to this machine alone, and anew when there is more."""

import http.client
import shutil
import socket
import threading
from contextlib import contextmanager

import pytest

from native_reasoning.config.errors import ConfigError, RunError
from native_reasoning.report import watch
from native_reasoning.report.watch import HOST, Pages, server
from report_runs import draw_few, made_run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    draw_few(monkeypatch)
    monkeypatch.setattr(watch, "REST", 0.0)


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path / "run", steps=3)


@contextmanager
def served(*paths):
    """Asks a server: (status, headers, body) of a path."""
    with server(paths) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def ask(path="/", method="GET", **headers):
            connection = http.client.HTTPConnection(HOST, running.server_port)
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=named)
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            return answer.status, dict(answer.headers), body

        ask.port = running.server_port
        try:
            yield ask
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Asks a server whose run does not change."""
    with served(made_run(tmp_path_factory.mktemp("runs") / "run", steps=3)) as ask:
        yield ask


def log(folder, step=4):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(f'{{"step": {step}, "uplift": 0.5}}\n')


def test_the_page_its_version_and_what_changed(run):
    with served(run) as ask:
        status, headers, body = ask()
        assert status == 200
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert int(headers["Content-Length"]) == len(body)
        assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == (
            "no-store",
            "nosniff",
        )
        assert headers["Referrer-Policy"] == "no-referrer"
        version = headers["ETag"]
        assert f"data-watch={version}".encode() in body
        assert b"<dd><bdi>3 of 3</bdi></dd>" in body

        status, headers, nothing = ask(If_None_Match=version)
        assert (status, nothing) == (304, b"")
        assert ask()[2] == body

        log(run)
        status, headers, body = ask(If_None_Match=version)
        assert status == 200
        assert headers["ETag"] != version
        assert b"<dd><bdi>4 of 3</bdi></dd>" in body
        assert ask(If_None_Match=headers["ETag"])[0] == 304


FOREIGN = [
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1.evil.example",
    "localhost.evil.example:{port}",
    "evil.example:127.0.0.1",
    "",
]


@pytest.mark.parametrize("host", FOREIGN)
def test_names_that_are_not_this_machines_are_refused(asked, host):
    status, _, body = asked(Host=host.format(port=asked.port))
    assert status == 403
    assert b"native-reasoning report" not in body


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "127.0.0.1", "localhost"])
def test_names_of_this_machine(asked, host):
    """Without a port where it is 80: browsers leave that out."""
    assert asked(Host=host.format(port=asked.port))[0] == 200


@pytest.mark.parametrize("path", ["/x", "/metrics.jsonl", "/../run/config.yaml", "/?a", "/%2e"])
def test_there_is_nothing_but_the_page(asked, path):
    status, _, body = asked(path)
    assert status == 404
    assert b"tiny/model" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_can_only_be_read(asked, method):
    assert asked(method=method)[0] == 501


def test_it_is_bound_to_this_machine_alone(run):
    with server([run]) as running:
        assert running.server_address[0] == running.socket.getsockname()[0] == "127.0.0.1"


def test_a_port_that_is_taken_or_is_none(run):
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} cannot be used"):
            server([run], port)
    with pytest.raises(ConfigError, match="port 99999 cannot be used"):
        server([run], 99999)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        server([tmp_path])


def test_a_folder_that_goes_away(run, capsys):
    """The reader is told, and nothing breaks; when it is back, so is the page."""
    with served(run) as ask:
        assert ask()[0] == 200
        shutil.move(run, run.with_name("away"))
        status, _, body = ask()
        assert status == 503
        assert b"Traceback" not in body
        shutil.move(run.with_name("away"), run)
        assert ask()[0] == 200
    assert capsys.readouterr().err == ""


def test_several_runs(run, tmp_path):
    other = made_run(tmp_path / "other", steps=2)
    with served(run, other) as ask:
        _, headers, body = ask()
        assert b"other" in body
        log(other)
        assert ask(If_None_Match=headers["ETag"])[0] == 200


# -- What counts as a change -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoints/run", "run"])
def test_what_a_page_is_made_of_changes_its_version(tmp_path, name):
    """Also where the folder itself lies among checkpoints."""
    run = made_run(tmp_path / name, steps=3)
    pages = Pages([run])
    seen = {pages.version()}
    log(run)
    seen.add(pages.version())
    next((run / "traces").iterdir()).rename(run / "traces" / "step-000001-000004.parquet")
    seen.add(pages.version())
    (run / "config.yaml").write_text("config: {}\n")
    seen.add(pages.version())
    assert len(seen) == 4


def test_checkpoints_and_the_report_itself_do_not(run):
    pages = Pages([run])
    before = pages.version()
    (run / "checkpoint-2").mkdir()
    (run / "checkpoint-2" / "rows.jsonl").write_text("{}")
    (run / "report.html").write_text("<html>")
    (run / "metrics.jsonl.tmp").write_text("{}")
    assert pages.version() == before


def test_a_page_is_not_made_anew_at_once_where_it_took_long(run, monkeypatch):
    monkeypatch.setattr(watch, "REST", 1e6)
    pages = Pages([run])
    first = pages.newest()
    log(run)
    assert pages.newest() == first
    pages._next = 0.0
    assert pages.newest()[0] != first[0]

"""``nrt report --watch``: the file is written again when a run has logged more."""

import pytest

from native_reasoning import report
from native_reasoning.config.errors import RunError
from native_reasoning.report import keep_fresh
from report_runs import draw_few, made_run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    draw_few(monkeypatch)


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path / "run", steps=3)


def log(folder, step):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(f'{{"step": {step}, "uplift": 0.5}}\n')


def test_a_page_is_written_again_when_there_is_more(run, tmp_path, monkeypatch):
    """Interrupted in its third pause; the last page no longer loads itself again."""
    out, pages = tmp_path / "report.html", []
    out.write_text("the first page")

    def pause(seconds):
        pages.append(out.read_text("utf-8"))
        if len(pages) == 2:
            log(run, 4)
        elif len(pages) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(report.time, "sleep", pause)
    with pytest.raises(KeyboardInterrupt):
        keep_fresh([run], out)
    assert pages[:2] == ["the first page"] * 2
    assert "<dd><bdi>4 of 3</bdi></dd>" in pages[2]
    assert 'id="refresh" value="20" checked' in pages[2]
    last = out.read_text("utf-8")
    assert "4 of 3" in last and 'id="refresh"' not in last


def test_a_folder_that_goes_away_ends_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr(report.time, "sleep", lambda _: run.rename(tmp_path / "away"))
    with pytest.raises(RunError, match="holds no run"):
        keep_fresh([run], tmp_path / "report.html")

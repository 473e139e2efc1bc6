"""``nrt report``: where the page goes, what is said, and what is refused."""

import json

import pytest

from report_runs import draw_few, made_run


@pytest.fixture(autouse=True)
def few_figures(monkeypatch):
    draw_few(monkeypatch)


@pytest.fixture
def runs(tmp_path):
    """A folder with two runs and a folder that is none."""
    for name in ("first", "second"):
        made_run(tmp_path / "runs" / name, steps=3)
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


def title(path):
    return path.read_text("utf-8").split("<title>")[1].split(" · ")[0]


def test_one_run(runs, nrt):
    code, out, err = nrt("report", runs / "first")
    assert (code, err) == (0, "")
    page = runs / "first" / "report.html"
    size = page.stat().st_size / 1e6
    assert out == f"{page}  ({size:.1f} MB: open it in a browser)\n"
    assert title(page) == "first"


@pytest.mark.parametrize("names", [["first", "second"], ["second", "first"], [""]])
def test_several_runs_are_written_beside_them(runs, nrt, names):
    code, out, _ = nrt("report", *(runs / name for name in names))
    assert code == 0
    assert out.startswith(f"{runs / 'report.html'}  (")
    assert title(runs / "report.html") == ", ".join(filter(None, names)) or "first, second"


def test_a_folder_of_one_run_is_that_run(tmp_path, nrt):
    made_run(tmp_path / "runs" / "only", steps=2)
    code, out, _ = nrt("report", tmp_path / "runs")
    assert code == 0
    assert out.startswith(str(tmp_path / "runs" / "only" / "report.html"))


def test_a_run_that_is_named_twice_is_shown_once(runs, nrt, monkeypatch):
    monkeypatch.chdir(runs)
    code, out, _ = nrt("report", "first", runs / "first", "second/../first", "--json")
    assert code == 0
    assert json.loads(out)["runs"] == ["first"]


def test_json(runs, nrt):
    (runs / "second" / "config.yaml").write_text("- 1\n")
    code, out, err = nrt("report", runs, "--json")
    assert code == 0
    told = json.loads(out.splitlines()[-1])
    assert told["report"] == str(runs / "report.html")
    assert told["runs"] == [str(runs / "first"), str(runs / "second")]
    (problem,) = told["problems"]
    assert problem.startswith(f"{runs / 'second'}: ") and "config.yaml cannot be read" in problem
    assert err == f"note: {problem}\n"


@pytest.mark.parametrize("style", [["--out", "{}"], ["--out={}"]])
def test_out(runs, tmp_path, nrt, style):
    page = tmp_path / "new" / "compared.html"
    flags = [part.format(page) for part in style]
    code, out, _ = nrt("report", *flags, runs / "first", runs / "second")
    assert code == 0
    assert out.startswith(str(page))
    assert title(page) == "first, second"
    assert not (runs / "report.html").exists()


def test_an_earlier_report_is_overwritten_and_no_other_file_of_a_run(runs, nrt, refuses):
    page = runs / "first" / "report.html"
    assert nrt("report", runs / "first")[0] == 0
    before = page.read_bytes()
    with open(runs / "first" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "uplift": 0.5}\n')
    assert nrt("report", runs / "first")[0] == 0
    assert page.read_bytes() != before
    for name in ("config.yaml", "metrics.jsonl"):
        mine = runs / "first" / name
        before = mine.read_bytes()
        what, _, fix = refuses("report", runs / "first", "--out", mine)
        assert what == f"error: {mine} is no name for a report"
        assert "--out" in fix
        assert mine.read_bytes() == before
    assert "is no name for a report" in refuses("report", runs / "first", "--out", runs)[0]


def test_what_is_no_run(runs, tmp_path, refuses):
    assert f"{runs / 'notes'} holds no run" in refuses("report", runs / "notes")[0]
    assert "is not there" in refuses("report", tmp_path / "nothing")[0]
    assert "is not there" in refuses("report", runs / "first", tmp_path / "nothing")[0]
    assert "is not there" in refuses("report", runs / "first" / "config.yaml")[0]
    assert "is not there" in refuses("report", tmp_path / "nothing", "--watch")[0]
    assert not (runs / "report.html").exists()
    assert not (runs / "first" / "report.html").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "the following arguments are required: RUN"),
        (["--json"], "the following arguments are required: RUN"),
        (["runs", "--ou", "x"], "unknown flag --ou (did you mean --out?)"),
        (["runs", "--out"], "argument --out: expected one argument"),
        (["runs", "--num-generations", "8"], "unknown flag --num-generations"),
        (["runs", "--watch=yes"], "argument --watch: ignored explicit argument 'yes'"),
    ],
)
def test_command_lines_that_cannot_be_understood(refuses, flags, message):
    what = refuses("report", *flags)[0]
    assert what.startswith("error: nrt report: ") and message in what


def test_a_watched_run(runs, nrt, monkeypatch):
    """Written at once, and told where, before it waits for more."""
    page = runs / "first" / "report.html"

    def interrupted(seconds):
        assert 'id="refresh"' in page.read_text("utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr("native_reasoning.report.time.sleep", interrupted)
    code, out, err = nrt("report", runs / "first", "--watch")
    assert code == 130
    assert out.startswith(str(page))
    assert err.startswith("written again every 20 seconds")


def test_flags_may_stand_between_the_runs(runs, tmp_path, nrt):
    place = tmp_path / "both.html"
    assert nrt("report", runs / "first", "--out", place, runs / "second")[0] == 0
    assert title(place) == "first, second"

"""The page: the same bytes each time, nothing loaded from elsewhere, no text that becomes a tag."""

import base64
import gzip
import json
import os
import re
from html.parser import HTMLParser

import pytest

from native_reasoning import load_run
from native_reasoning.config.errors import RunError
from native_reasoning.records.folder import RunFolder
from native_reasoning.report import FIGURES, build, write_report
from native_reasoning.report.page import run_part, warnings
from native_reasoning.report.runs import NO_TRACES, run_names
from report_runs import HOSTILE, draw_few, evaluation, held_out_row, made_run, trace_row

VOID = {"meta", "link", "input", "br", "img"}
#: Attributes by which a browser loads or runs something.
LOADING = {
    "src", "srcset", "href", "xlink:href", "action", "formaction", "data", "poster", "background",
    "ping", "manifest", "srcdoc", "codebase", "cite", "longdesc",
}  # fmt: skip
TAGS = {
    "html", "head", "meta", "title", "link", "style", "body", "a", "header", "h1", "h2", "h3",
    "h4", "p", "nav", "label", "select", "option", "main", "section", "div", "table", "thead",
    "tbody", "tr", "th", "td", "caption", "article", "ul", "ol", "li", "form", "fieldset", "legend",
    "input", "button", "figure", "figcaption", "details", "summary", "strong", "em", "bdi", "span",
    "dl", "dt", "dd", "pre", "footer", "noscript", "script",
}  # fmt: skip


class Page(HTMLParser):
    """What an HTML parser makes of a page: elements with their attributes, and all text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.data: dict[str, str] = {}
        self.feed(page.decode("utf-8"))
        self.close()
        assert self.open == [], "elements that are never closed"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len({*names}), (tag, names)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        where = self.elements[-1][1] if self.open and self.open[-1] == "script" else {}
        if "id" in where:
            self.data[where["id"]] = self.data.get(where["id"], "") + data
        elif not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def carried(self, name):
        return json.loads(gzip.decompress(base64.b64decode(self.data[name])))


@pytest.fixture(autouse=True)
def few_figures(monkeypatch):
    draw_few(monkeypatch)


@pytest.fixture
def all_figures(few_figures, monkeypatch):
    monkeypatch.setattr("native_reasoning.report.page.FIGURES", FIGURES)


@pytest.fixture
def of(tmp_path):
    """Makes and loads a run, of the given name."""
    return lambda name="run", **knobs: load_run(made_run(tmp_path / name, **knobs))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run full of hostile texts, and its page."""
    folder = tmp_path_factory.mktemp("runs") / "hostile"
    run = load_run(made_run(folder, hostile=True, evaluations={5: ACCURATE}))
    return run, build([run])


def page(*runs, **settings):
    return Page(build(runs, **settings))


ACCURATE = evaluation(50, accuracy=0.9, accuracy_no_think=0.5, accuracy_gain=(0.4, 0.3, 0.5))


# -- What is on it ---------------------------------------------------------------------------------


def test_a_page_of_one_run(of, all_figures):
    run = of(evaluations={20: ACCURATE}, held_out=[held_out_row(20)])
    found = page(run)
    for text in (
        "Thinking helped",
        "+40.0 points",
        "95 % interval +30.0 to +50.0",
        "The collapse guard says healthy.",
        "All 81 recorded traces.",
        "20 of 20",
        "tiny/model",
    ):
        assert text in found.text, text
    assert found.all("title") and "run · native-reasoning report" in found.text
    traces = found.carried("data-traces")["runs"]
    assert [(one["label"], len(one["traces"])) for one in traces[0]["sets"]] == [
        ("training", 80),
        ("held-out", 1),
    ]
    figures = found.carried("data-figures")
    shown = [
        attributes["data-figure"] for attributes in found.all("div") if "data-figure" in attributes
    ]
    assert shown == list(figures) == [name for name in FIGURES if name in figures]
    assert {"accuracy", "uplift", "places", "seconds"} <= {*figures} < {*FIGURES}
    assert figures["uplift"]["data"][0]["y"] == pytest.approx([0.01 * i for i in range(1, 21)])
    assert "Plotly" in gzip.decompress(base64.b64decode(found.data["data-plotly"])).decode()


def test_curves_in_numbers(of, all_figures):
    """First, last, lowest and highest value of each curve."""
    found = page(of(steps=4, metrics={"reward": [0.5, 0.125, 2.0, 1.25]}))
    assert "reward 0.5 1.25 0.125 2" in " ".join(" ".join(found.texts).split())


def test_a_page_of_several_runs(of):
    worse = evaluation(50, accuracy=0.4, accuracy_no_think=0.5, accuracy_gain=(-0.1, -0.2, -0.05))
    first, second = of("first", evaluations={20: ACCURATE}), of("second", evaluations={20: worse})
    found = page(first, second)
    text = " ".join(" ".join(found.texts).split())
    assert "first Thinking helped +40.0 points +30.0 to +50.0" in text
    assert "second Thinking hurt −10.0 points −20.0 to −5.0" in text
    boxes = [box for box in found.all("input") if box.get("type") == "checkbox"]
    assert [box["value"] for box in boxes] == ["first", "second"]
    assert [run["name"] for run in found.carried("data-traces")["runs"]] == ["first", "second"]
    names = {line["meta"][0] for line in found.carried("data-figures")["uplift"]["data"]}
    assert names == {"first", "second"}


def test_identifiers_are_unique(of, all_figures):
    found = page(of("first"), of("second"))
    names = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(names) == len({*names})


def test_the_same_bytes_twice(hostile, of, all_figures):
    run, found = hostile
    assert build([load_run(run.path)]) == found
    other = of("other")
    assert build([run, other]) == build([load_run(run.path), load_run(other.path)])


# -- Safety ----------------------------------------------------------------------------------------


def test_the_policy_lets_no_script_run_but_ours(hostile):
    found = Page(hostile[1])
    (policy,) = [m["content"] for m in found.all("meta") if "http-equiv" in m]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    nonce = re.fullmatch(r"'nonce-([0-9a-f]{24})'", rules["script-src"])[1]
    scripts = found.all("script")
    assert [script for script in scripts if "type" not in script] == [{"nonce": nonce}]
    for script in scripts[:-1]:
        assert script["type"] == "text/plain" and {*script} == {"type", "id"}
    names = [name for name, _ in found.elements]
    assert names.index("meta") < names.index("script")
    assert "http-equiv" in found.all("meta")[2]  # after charset and viewport, before all else


def test_only_a_watched_page_loads_itself_again(of):
    found = page(of(), refresh=20)
    (box,) = [one for one in found.all("input") if one.get("id") == "refresh"]
    assert box["value"] == "20" and "checked" in box
    assert not [one for one in page(of("other")).all("input") if one.get("id") == "refresh"]


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_is_loaded_from_elsewhere_and_nothing_runs_by_itself(hostile, of, count):
    found = Page(hostile[1]) if count == 1 else page(hostile[0], of("other"))
    assert {tag for tag, _ in found.elements} <= TAGS
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in LOADING & {*attributes}:
            assert attributes[name].startswith(("#", "data:,")), (tag, name, attributes[name])
        for value in filter(None, attributes.values()):
            assert "javascript:" not in value and "url(" not in value


def test_hostile_texts_change_no_element(hostile, of, all_figures):
    """Beside a harmless run of the same shape there is no other tag, and each text stands there as
    text, what cannot be seen in it as its code."""
    harmless = page(of("harmless", evaluations={5: ACCURATE}))
    found = Page(hostile[1])
    assert {tag for tag, _ in found.elements} == {tag for tag, _ in harmless.elements}
    assert len(found.all("script")) == len(harmless.all("script")) == 4
    for text in (HOSTILE[0], HOSTILE[2], HOSTILE[3], HOSTILE[4]):
        assert text in found.text
    assert "a\\x00b\\x1b[31mred\\x07" in found.text
    assert "\\u202eevil\\u202c" in found.text
    unseen = re.compile("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]")
    assert not unseen.search(hostile[1].decode("utf-8"))


def test_hostile_texts_come_back_from_what_the_page_carries(hostile):
    run, found = hostile
    training, held_out = Page(found).carried("data-traces")["runs"][0]["sets"]
    assert training["traces"] == run.traces["trace"].to_pylist()
    assert held_out["said_no_think"] == run.held_out["answer_no_think"].to_pylist()


def test_hostile_settings_and_names_are_text(of):
    """A folder's name and config.yaml come from elsewhere as well."""
    name = "<img src=x onerror=alert(1)>'\"&"
    texts = {"model": HOSTILE[0], "data": HOSTILE[8], "note": HOSTILE[1], "preset": "{{ 7 * 7 }}"}
    run = of(name, config=texts)
    other = of("other", config={"model": "</script>"})
    found = page(run, other)
    assert {tag for tag, _ in found.elements} <= TAGS
    assert name in found.text
    assert "objective{{ 7 * 7 }}" in found.text and "objective49" not in found.text
    assert HOSTILE[0] in found.text
    assert any(box.get("value") == name for box in found.all("input"))


def test_a_folder_whose_name_is_no_text(of, tmp_path):
    """As a file system may hold it: not UTF-8."""
    path = of("a").path.rename(os.fsdecode(bytes(tmp_path) + b"/run\xff"))
    runs = [load_run(path), of("b")]
    assert run_names(runs) == ["run?", "b"]
    found = page(*runs)
    assert [box["value"] for box in found.all("input") if box.get("class") == "run"] == [
        one["name"] for one in found.carried("data-traces")["runs"]
    ]


def test_names_tell_runs_of_different_folders_apart(of):
    runs = [of(name) for name in ("x/run", "y/run", "y/deep/run")]
    assert run_names(runs) == ["x/run", "y/run", "y/deep/run"]
    assert run_names(runs[2:]) == ["run"]


# -- Size ------------------------------------------------------------------------------------------


def noise(count):
    return [
        trace_row(i + 1, i, trace=repr([i / 7 + j / 3 for j in range(40)])) for i in range(count)
    ]


def test_traces_stay_under_their_limit_and_it_says_what_is_left_out(of, monkeypatch):
    run = of(steps=600, traces=noise(600))
    whole = page(run)
    assert "All 600 recorded traces." in whole.text
    limit = len(whole.data["data-traces"]) // 2
    monkeypatch.setattr("native_reasoning.report.page.MOST_BYTES", limit)
    found = page(run)
    assert limit - 5_000 < len(found.data["data-traces"]) <= limit
    (one,) = found.carried("data-traces")["runs"][0]["sets"]
    assert 0 < len(one["traces"]) < 600
    assert f"{len(one['traces'])} of 600 recorded traces, whole groups taken evenly" in found.text


# -- Comparisons that would be unfair --------------------------------------------------------------


def test_runs_that_differ_in_data_or_model_are_told(of):
    first = of("first", data_hash="a" * 64)
    same, data = of("same", data_hash="a" * 64), of("data", data_hash="b" * 64)
    model = of("model", data_hash="a" * 64, config={"model": "big/model"})
    assert warnings([first]) == warnings([first, same]) == []
    assert (
        "These runs were trained on different questions: their levels cannot be compared "
        "(first, same · data)." in page(first, same, data).text
    )
    (told,) = warnings([first, model])
    assert "begun from different models" in told and told.endswith("(first · model).")
    assert warnings([first, of("unknown", data_hash=None)]) == []


def test_presets_that_differ_are_told(of):
    first, second = of("first"), of("second", config={"preset": "sft"})
    told = "Rewards of different presets are on different scales: compare accuracy and uplift."
    assert warnings([first, second]) == [told]
    assert warnings([second]) == warnings([first, of("third")]) == []
    assert told in page(first, second).text


@pytest.mark.parametrize(
    ("questions", "held_out", "unfair"),
    [
        (50, [held_out_row(20, 0), held_out_row(20, 1)], False),
        (50, [held_out_row(20, 1), held_out_row(20, 0, trace="another")], False),
        (50, [held_out_row(0, 7), held_out_row(20, 0), held_out_row(20, 1)], False),
        (49, [held_out_row(20, 0), held_out_row(20, 1)], True),
        (50, [held_out_row(20, 0)], True),
        (50, [held_out_row(20, 0), held_out_row(20, 1, answer="5")], True),
    ],
)
def test_other_held_out_questions_are_told(of, questions, held_out, unfair):
    rows = [held_out_row(20, 0), held_out_row(20, 1)]
    first = of("first", evaluations={20: ACCURATE}, held_out=rows)
    evaluations = {0: evaluation(7), 20: {**ACCURATE, "eval_questions": questions}}
    second = of("second", evaluations=evaluations, held_out=held_out)
    told = (
        "These runs were evaluated on different held-out questions: what was measured there cannot "
        "be compared (first · second)."
    )
    assert warnings([first, second, of("never")]) == ([told] if unfair else [])


# -- Steps that went wrong -------------------------------------------------------------------------


def test_skipped_updates_and_numbers_that_were_lost_are_told(of):
    nan = float("nan")
    metrics = {"loss": lambda step: nan if step == 3 else 0.5}
    metrics["grad_norm"] = lambda step: nan if step in (3, 5) else 1.0
    run = of(metrics=metrics)
    records = RunFolder(run.path)
    for row in range(16):
        records.append_quarantine(4, {"row_id": row})
    part = run_part(load_run(run.path), "run")
    skipped = "updates were skipped at step 4: their rows are in quarantine.jsonl"
    assert part["problems"] == [skipped, "not finite at steps 3, 5: grad_norm, loss"]
    assert skipped in page(load_run(run.path)).text


def test_of_many_lost_numbers_the_first_are_told(of):
    (told,) = run_part(of(steps=50, metrics={"loss": float("nan")}), "run")["problems"]
    assert told == "not finite at steps 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 40 more: loss"


def test_a_run_on_answers_alone_misses_no_traces(of):
    run = of(traces=[], metrics={"empty": 1.0})
    assert run.problems == (NO_TRACES,)
    part = run_part(run, "run")
    assert part["problems"] == []
    assert "This run trains on answers alone: it writes no traces." in part["verdict"].notes
    assert "Note:" not in page(run).text


def test_words_among_the_numbers_end_no_page(of):
    times = {"step_seconds": ["long", *[2.0] * 19], "sampling_seconds": ["long"] * 20}
    run = of(timings=times, metrics={"reward": ["much"] * 20, "gain_easy": ["much"] * 20})
    part = run_part(run, "run")
    assert ("time in steps", "38 s") in part["facts"]
    assert "Thinking helped" in page(run).text


# -- Runs in pieces --------------------------------------------------------------------------------


def missing(run):
    """The page, and that each problem is on it."""
    run = load_run(run.path)
    found = page(run)
    for problem in run.problems:
        assert f"Note: {' '.join(problem.split())}" in found.text
    return found, run.problems


def test_a_half_written_last_line(of):
    run = of()
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 21, "upl')
    found, problems = missing(run)
    assert problems == ()
    assert "20 of 20" in found.text


def test_without_traces(of):
    found, (problem,) = missing(of(traces=[]))
    assert problem == NO_TRACES
    assert "No traces were recorded." in found.text
    assert "There are neither evaluations nor recorded traces" in found.text
    assert "places" not in found.carried("data-figures")


def test_a_damaged_file_of_traces_hides_no_other(of):
    run = of()
    late = made_run(run.path.parent / "late", traces=[trace_row(30), trace_row(31)])
    (source,) = (late / "traces").iterdir()
    (run.path / "traces" / "step-000030-000031.parquet").write_bytes(source.read_bytes())
    assert page(load_run(run.path)).text.count("All 82 recorded traces.") == 1
    (run.path / "traces" / "step-000001-000020.parquet").write_bytes(b"PAR1harmPAR1")
    found, (problem,) = missing(run)
    assert "step-000001-000020.parquet cannot be read as traces" in problem
    assert "All 2 recorded traces." in found.text


@pytest.mark.parametrize("text", ["- 1\n", "", "just words", "a: [", "config: 3\n"])
def test_a_config_that_is_none(of, text):
    run = of()
    (run.path / "config.yaml").write_text(text)
    found, (problem,) = missing(run)
    assert "config.yaml cannot be read" in problem
    assert "+0.300 nats per token" in found.text
    assert "All settings" not in found.text


def test_a_run_that_has_only_begun(of):
    found, problems = missing(of(steps=0, traces=[]))
    assert problems == ("no step has been logged yet", NO_TRACES)
    assert "Nothing can be said yet" in found.text
    assert found.text.count("No step has been logged yet.") == 2  # the verdict's, and the curves'
    assert found.carried("data-figures") == {}


def test_a_run_of_one_step(of):
    found, problems = missing(of(steps=1))
    assert problems == ()
    assert "there are too few recorded steps" in found.text


def test_numbers_that_are_not_finite(of):
    nan, inf = float("nan"), float("inf")
    rows = [trace_row(1, i, answer_logps=[nan, -inf], baseline_logps=[-inf, inf]) for i in range(9)]
    found = page(of(traces=rows, metrics={"uplift": nan, "grad_norm": inf}))
    assert "What was measured is not a finite number." in found.text
    assert not {"gradient", "uplift", "places"} & {*found.carried("data-figures")}


# -- The file --------------------------------------------------------------------------------------


def test_a_report_is_written_over_an_earlier_one(of, tmp_path):
    run, out = of(), tmp_path / "new" / "report.html"
    assert write_report([run.path], out) == ()
    assert out.read_bytes() == build([load_run(run.path)])
    (run.path / "config.yaml").write_text("- 1\n")
    (problem,) = write_report([run.path], out)
    assert problem.startswith(f"{run.path}: ") and "config.yaml cannot be read" in problem
    assert "config.yaml cannot be read" in Page(out.read_bytes()).text


def test_only_a_page_is_overwritten(of, tmp_path):
    mine = tmp_path / "config.yaml"
    mine.write_text("my settings")
    run = of().path
    for out in (mine, tmp_path):
        with pytest.raises(RunError, match="is no name for a report"):
            write_report([run], out)
    assert mine.read_text() == "my settings"

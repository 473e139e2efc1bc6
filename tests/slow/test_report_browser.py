"""The page in a real browser: what a reader sees and does, by mouse, by keyboard, offline."""

import json

import pytest

from browser import figures
from native_reasoning.records.folder import RunFolder, read_metrics
from native_reasoning.report import write_report
from report_runs import HOSTILE, made_run, trace_row, trained

axe = pytest.importorskip("axe_playwright_python.sync_playwright")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    write_report([trained(folder / "first")], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    runs = [trained(folder / "first"), trained(folder / "second", last=20)]
    write_report(runs, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of a run all of whose texts are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    write_report([made_run(folder / "first", hostile=True)], folder / "report.html")
    return folder / "report.html"


def until(page, condition):
    """Waits for a condition; playwright's own way evaluates a string, which the page forbids."""
    while not page.evaluate(condition):
        page.wait_for_timeout(50)


def test_without_javascript_the_verdict_can_be_read(visit, one):
    page = visit(one, ready=False, java_script_enabled=False)
    assert page.locator("#verdict .number").inner_text()
    assert "need JavaScript" in page.locator("body").inner_text()


def test_a_question_its_traces_and_the_numbers_of_a_token(visit, one):
    page = visit(one)
    items = page.locator("#groups button")
    items.nth(1).click()
    assert items.nth(1).get_attribute("aria-current") == "true"
    cards = page.locator(".trace-card")
    worth = page.evaluate("alike(Inspector.chosen).map(([i]) => Inspector.chosen.set.advantage[i])")
    assert cards.count() == len(worth) > 1
    assert worth == sorted(worth, reverse=True)
    cards.first.locator(".answer .token").first.hover()
    tip = page.locator("#tip")
    assert tip.is_visible()
    l, b = page.evaluate(
        "(() => { const g = Inspector.chosen, [i] = alike(g)[0];"
        " return [g.set.l[i][0] / 1000, g.b[0] / 1000]; })()"
    )
    told = tip.inner_text().replace("−", "-")
    assert f"(l {l:+.3f})" in told
    assert f"(b {b:+.3f})" in told
    assert f"{l - b:+.3f} nats" in told
    cards.first.locator("summary").click()
    tokens = cards.first.locator(".answer .token").count()
    cards.first.locator("tbody tr").first.wait_for()
    assert cards.first.locator("tbody tr").count() == tokens


def test_filters_search_and_order(visit, two):
    page = visit(two)
    everything = page.locator("#found").inner_text()
    page.fill("#f-text", "apples")
    some = page.locator("#found").inner_text()
    assert some != everything
    assert not some.startswith("0 ")
    assert page.locator("#groups li").count() > 0
    page.locator("#groups button").first.click()
    assert "apples" in page.locator("#detail .question").first.inner_text()
    page.fill("#f-text", "fruit 2")
    page.locator("#groups button").first.click()
    assert {*page.locator("#detail mark").all_inner_texts()} == {"fruit 2"}
    page.fill("#f-text", "no trace has this")
    assert page.locator("#found").inner_text().startswith("0 traces of 0 questions")
    page.fill("#f-text", "")
    page.fill("#f-from", "3")
    page.fill("#f-to", "4")
    steps = page.evaluate("Inspector.found.map((hit) => hit.group.step)")
    assert set(steps) == {3, 4}
    page.select_option("#f-show", "helped")
    hits = page.evaluate("Inspector.found.reduce((sum, hit) => sum + hit.hits, 0)")
    assert hits == page.evaluate(
        "Inspector.set().groups.filter((g) => g.step === 3 || g.step === 4).flatMap((g) =>"
        " Array.from(g.set.uplift.slice(g.first, g.first + g.count))).filter((u) => u > 0).length"
    )
    page.select_option("#f-order", "best")
    uplifts = page.evaluate("Inspector.found.map((hit) => hit.group.uplift)")
    assert uplifts == sorted(uplifts, reverse=True)
    page.select_option("#f-run", "second")
    assert page.evaluate("Inspector.set().run") == "second"


def test_the_keyboard_alone(visit, one):
    page = visit(one)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    first = page.locator("#groups button").first
    first.focus()
    page.keyboard.press("ArrowDown")
    second = page.locator("#groups button").nth(1)
    assert second.evaluate("node => node === document.activeElement")
    assert second.get_attribute("aria-current") == "true"
    page.keyboard.press("ArrowUp")
    assert first.get_attribute("aria-current") == "true"
    page.keyboard.press("Enter")
    assert page.locator(".trace-card").count() > 0
    page.locator("#from-step").focus()
    page.keyboard.type("5")
    page.keyboard.press("Tab")
    page.keyboard.type("9")
    page.keyboard.press("Tab")
    figures(page)
    shown = page.evaluate("document.querySelector('[data-figure=reward]').layout.xaxis.range")
    assert [round(x) for x in shown] == [5, 9]


def test_a_link_opens_its_trace(visit, one):
    page = visit(one)
    page.locator("#groups button").nth(2).click()
    link = page.locator(".trace-card").nth(1).get_by_role("link")
    fragment = link.get_attribute("href")
    text = page.locator(".trace-card").nth(1).locator(".trace").first.inner_text()
    again = visit(one, fragment)
    assert again.locator(".trace-card.chosen").count() == 1
    assert again.locator(".trace-card.chosen .trace").first.inner_text() == text
    again.evaluate("location.hash = '#trace/nowhere/training/1/2/3'")
    until(again, "document.getElementById('found').textContent.includes('not in this page')")
    broken = visit(one, "#trace/%E0%A4%A")
    assert broken.locator(".trace-card").count() > 0


def test_before_and_after_across_checkpoints(visit, one):
    page = visit(one)
    page.select_option("#f-set", "held-out")
    page.locator("#groups button").first.click()
    links = page.locator("#detail details table a")
    steps = links.all_inner_texts()
    assert len(steps) > 1
    assert len({*steps}) == len(steps)
    links.first.click()
    until(page, "document.querySelector('.trace-card.chosen') !== null")
    assert page.locator("#detail h3").inner_text().lower().startswith(steps[0])
    assert "answered" in page.locator(".trace-card").first.inner_text()


def test_zoom_runs_and_exports(visit, two):
    page = visit(two)
    figures(page)
    plot = page.locator("[data-figure=uplift]")
    plot.scroll_into_view_if_needed()
    box = plot.locator(".nsewdrag").first.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, middle, steps=5)
    page.mouse.up()
    whole = page.evaluate("document.querySelector('[data-figure=reward]').layout.xaxis.range")
    zoomed = page.evaluate("document.querySelector('[data-figure=uplift]').layout.xaxis.range")
    assert zoomed[1] - zoomed[0] < 0.6 * (whole[1] - whole[0])
    page.locator("input.run").first.uncheck()
    visible = page.evaluate(
        "document.querySelector('[data-figure=uplift]').data.map((d) => [d.meta?.[0], d.visible])"
    )
    assert {shown for run, shown in visible if run == "first"} == {False}
    assert {shown for run, shown in visible if run == "second"} == {True}
    with page.expect_download() as caught:
        page.locator("#figure-reward button[data-save=csv]").click()
    lines = caught.value.path().read_text("utf-8").splitlines()
    assert lines[0] == "run,curve,x,y,low,high"
    logged = read_metrics(two.parent / "first")
    reward = next(line["reward"] for line in logged if line["step"] == 1)
    assert f'"first","reward",1,{float(f"{reward:.5g}")},,' in lines
    for kind, begins in (("svg", b"<svg"), ("png", b"\x89PNG")):
        with page.expect_download() as caught:
            page.locator(f"#figure-reward button[data-save={kind}]").click()
        assert caught.value.path().read_bytes().startswith(begins)


def test_hostile_texts_stay_text(visit, hostile):
    page = visit(hostile)
    scripts = page.locator("script").count()
    shown = []
    for item in page.locator("#groups button").all():
        item.click()
        while page.locator("#detail button").count():
            page.locator("#detail button").first.click()
        shown.append(page.locator("#detail").inner_text())
        for tag in ("script", "iframe", "img", "textarea"):
            assert page.locator(f"#detail {tag}").count() == 0
        links = page.locator("#detail a").all()
        assert all(link.get_attribute("href").startswith("#trace/") for link in links)
    everything = "\n".join(shown)
    for text in HOSTILE:
        plain = text.encode("utf-8", "replace").decode("utf-8")
        if all(char.isprintable() for char in plain) and len(plain) < 1000:
            assert plain in everything, plain
    assert "⟨202e⟩" in everything
    assert "⟨001b⟩" in everything
    assert page.locator("script").count() == scripts
    assert page.evaluate("typeof window.hacked") == "undefined"
    page.fill("#f-text", "<script>")
    assert not page.locator("#found").inner_text().startswith("0 ")


@pytest.mark.parametrize("width", [1280, 390])
def test_no_serious_fault_of_accessibility(visit, two, width):
    page = visit(two, viewport={"width": width, "height": 900})
    figures(page)
    page.locator("#groups button").first.click()
    page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = axe.Axe().run(page).response["violations"]
        serious = [
            (one["id"], one["nodes"][0]["html"][:200])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == [], scheme
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_themes_and_print(visit, one, theme):
    page = visit(one, color_scheme="dark" if theme == "light" else "light")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.select_option("#theme", theme)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    ink = page.evaluate("document.querySelector('[data-figure=reward]').layout.font.color")
    assert ink == page.evaluate("getComputedStyle(document.body).color")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    ink = page.evaluate("document.querySelector('[data-figure=gradient]').layout.font.color")
    assert ink == page.evaluate("getComputedStyle(document.body).color")
    assert not page.locator("nav").is_visible()
    assert page.locator("#verdict .number").is_visible()


def test_a_zoom_outlasts_other_choices(visit, two):
    page = visit(two)
    figures(page)
    page.evaluate(
        "Plotly.relayout(document.querySelector('[data-figure=uplift]'), ZOOMED)".replace(
            "ZOOMED", "{'xaxis.range': [2, 5], 'xaxis.autorange': false}"
        )
    )
    page.locator("input.run").first.uncheck()
    page.select_option("#theme", "dark")
    assert page.evaluate("document.querySelector('[data-figure=uplift]').layout.xaxis.range") == [
        2,
        5,
    ]
    page.locator("#all-steps").click()
    whole = page.evaluate("document.querySelector('[data-figure=uplift]').layout.xaxis.range")
    assert whole[1] > 12


def test_on_a_phone_a_finger_scrolls(visit, one):
    page = visit(one, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    figures(page)
    assert page.evaluate("document.querySelector('[data-figure=reward]').layout.dragmode") is False


def test_escape_closes_the_numbers_of_a_token(visit, one):
    page = visit(one)
    page.locator(".trace-card .answer .token").first.hover()
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_what_is_no_number_is_not_shown_as_one(visit, tmp_path):
    rows = [
        trace_row(1, 0, 0, answer_logps=[float("nan"), -0.1], advantage=float("nan")),
        trace_row(1, 0, 1, trace="a good one"),
    ]
    write_report([made_run(tmp_path / "first", traces=rows)], tmp_path / "report.html")
    page = visit(tmp_path / "report.html")
    page.select_option("#f-order", "best")
    assert page.locator(".trace-card .trace").first.inner_text() == "a good one"
    broken = page.locator(".trace-card").nth(1)
    assert "uplift –" in broken.inner_text()
    broken.locator(".answer .token").first.hover()
    assert "l − b – nats" in page.locator("#tip").inner_text()
    page.select_option("#f-show", "helped")
    assert page.locator("#found").inner_text() == "1 traces of 1 questions"


def test_a_run_of_any_name_can_be_hidden(visit, tmp_path):
    runs = [trained(tmp_path / name) for name in ("a&b <i>", 'c"d', "e")]
    write_report(runs, tmp_path / "report.html")
    page = visit(tmp_path / "report.html")
    figures(page)
    for place, name in enumerate(("a&b <i>", 'c"d')):
        page.locator("input.run").nth(place).uncheck()
        lines = page.evaluate("document.querySelector('[data-figure=uplift]').data")
        shown = {line["visible"] for line in lines if line.get("meta", [""])[0] == name}
        assert shown == {False}
        page.select_option("#f-run", name)
        page.locator(".trace-card a").first.click()
        assert page.locator(".trace-card.chosen").count() == 1


def test_a_watched_page_loads_itself_again_until_the_reader_looks_into_a_trace(visit, tmp_path):
    run, out = trained(tmp_path / "first", last=20), tmp_path / "report.html"
    write_report([run], out, refresh=3)
    page = visit(out)
    RunFolder(run).append_metrics(21, {"uplift": 1.25, "reward": 1.0})
    write_report([run], out, refresh=3)
    page.wait_for_event("load")
    page.wait_for_selector("body[data-ready]")
    page.locator("#groups button").nth(2).click()
    assert not page.locator("#refresh").is_checked()
    assert page.evaluate("Curves.specs.uplift.data[0].x.at(-1)") == 21
    found = axe.Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    chosen = page.locator("#detail").inner_text()
    page.wait_for_timeout(4000)
    assert page.locator("#detail").inner_text() == chosen


def test_a_run_of_which_nothing_is_there_yet(visit, tmp_path):
    run = RunFolder.create(tmp_path / "new", resume=False)
    run.write_config({"preset": "nrt-ws"}, data_hash=None, seed=0)
    write_report([tmp_path / "new"], tmp_path / "report.html")
    page = visit(tmp_path / "report.html")
    assert "Nothing can be said yet" in page.locator("#verdict").inner_text()
    assert page.locator("#inspector").is_hidden()
    assert json.loads(page.evaluate("JSON.stringify(Object.keys(Curves.specs))")) == []

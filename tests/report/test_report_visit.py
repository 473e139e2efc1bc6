"""The page in a real browser; tests/slow/test_report_browser.py has what a reader does with it."""

from browser import figures
from native_reasoning.report import write_report
from report_runs import trained


def test_curves_are_drawn_and_nothing_is_asked_of_the_network(visit, tmp_path):
    write_report([trained(tmp_path / "first")], tmp_path / "report.html")
    page = visit(tmp_path / "report.html")
    drawn = figures(page)
    assert len(drawn) > 8
    for plot in drawn:
        drawn_marks = plot.locator(".js-line, .points path, .bars path")
        assert drawn_marks.count() > 0, plot.get_attribute("data-figure")
    reward = page.locator("[data-figure=reward] .scatterlayer .js-line")
    assert reward.count() == 2
    assert page.locator("#figure-reward details summary").count() == 1

"""A real browser: pages that are visited may say nothing and ask nothing of any network."""

import shutil

import pytest


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the path")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as started:
        # a container's root cannot make Chromium's sandbox
        found = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


class Seen:
    """What a page said and asked for."""

    def __init__(self, page):
        self.page, self.said, self.asked = page, [], []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: self.said.append(dialog.message))
        page.on("request", lambda request: self.asked.append(request.url))


@pytest.fixture
def visit(browser):
    """Opens a page; nothing may be said on the console and nothing asked of any network."""
    seen, contexts = [], []

    def go(place, fragment="", ready=True, **options):
        options = {"viewport": {"width": 1280, "height": 900}, **options}
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(0)
        page = contexts[-1].new_page()
        seen.append(Seen(page))
        page.goto((place if isinstance(place, str) else place.as_uri()) + fragment)
        if ready:
            page.wait_for_selector("body[data-ready]")
        return page

    yield go
    for one_page in seen:
        assert one_page.said == []
        local = ("file:", "data:", "blob:")
        assert all(url.startswith(local) for url in one_page.asked), one_page.asked
    for context in contexts:
        context.close()


def figures(page):
    """All figures, drawn."""
    page.evaluate("Curves.drawAll()")
    return page.locator(".plot").all()

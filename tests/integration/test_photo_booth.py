"""The page at `/` in a real headless Chromium, with a mouse, with a keyboard alone, and on a phone."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright
from serving import KEYS, picture, served, spec_of

from imprint.serve.inprocess import create_local_api

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
WAIT_MS = 60_000
SCREENSHOTS = os.environ.get("IMPRINT_SCREENSHOTS")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Playwright's own browser, or the one that is installed."""
    with sync_playwright() as playwright:
        installed = next(filter(None, map(shutil.which, CHROMIUM)), None)
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        try:
            browser = playwright.chromium.launch(executable_path=installed, args=options)
        except Error as error:
            pytest.skip(f"no Chromium: apt install chromium, or playwright install chromium ({str(error)[:80]})")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tiny_sd15: Path) -> Iterator[str]:
    with served(create_local_api(spec_of(tiny_sd15))) as url:
        yield url


@contextmanager
def opened(browser: Browser, address: str, size: dict[str, int], *, key: bool = True) -> Iterator[Page]:
    """The page; it loads from nowhere else, and says nothing to the console."""
    context = browser.new_context(
        viewport=size, is_mobile=size is PHONE, has_touch=size is PHONE, accept_downloads=True
    )
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}/#key={KEYS['red']}" if key else f"{address}/")
    try:
        yield page
        assert all(url.startswith((f"{address}/", "blob:", "data:")) for url in asked)
        assert said == [] or not key, said
    finally:
        context.close()


def files(count: int = 1) -> list[dict[str, object]]:
    return [{"name": f"cat-{n}.png", "mimeType": "image/png", "buffer": picture(n)} for n in range(count)]


def keep(page: Page, name: str) -> None:
    """A screenshot for people to look at, where a folder is named; none may be blank or wider than its screen."""
    data = page.screenshot(full_page=True, path=f"{SCREENSHOTS}/{name}.png" if SCREENSHOTS else None)
    colors = Image.open(io.BytesIO(data)).convert("RGB").getcolors(1 << 24)
    assert colors is not None and len(colors) > 20
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_from_a_picture_to_new_scenes(browser: Browser, address: str, size: dict[str, int], tmp_path: Path) -> None:
    name = "phone" if size is PHONE else "desktop"
    with opened(browser, address, size) as page:
        assert page.url == f"{address}/"  # the key is out of sight
        expect(page.locator("#key-form")).to_be_hidden()
        keep(page, f"{name}-1-start")
        page.set_input_files("#files", files(2))
        expect(page.locator("#thumbs img")).to_have_count(2)
        page.get_by_label("It is a").fill("cat")
        page.get_by_role("button", name="Teach").click()
        expect(page.locator("#status")).to_have_text("learned", timeout=WAIT_MS)
        assert page.locator("#line").get_attribute("points").count(",") == 2
        expect(page.locator("#preview img")).to_have_js_property("naturalWidth", 16)
        page.get_by_label("Prompt").fill("a photo of <concept> on blue")
        page.get_by_label("Pictures", exact=True).fill("3")
        page.get_by_role("button", name="Draw").click()
        expect(page.locator("#grid img")).to_have_count(3, timeout=WAIT_MS)
        keep(page, f"{name}-2-drawn")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download weights").click()
        download.value.save_as(tmp_path / "concept.zip")
        assert (tmp_path / "concept.zip").stat().st_size > 500
        for button in page.locator("button:visible").all():
            box = button.bounding_box()
            assert box is None or box["height"] >= 28
        page.get_by_role("button", name="Delete everything").click()
        expect(page.locator("#draw")).to_be_hidden()
        expect(page.locator("#grid img")).to_have_count(0)


def test_with_a_keyboard_alone(browser: Browser, address: str) -> None:
    with opened(browser, address, DESKTOP) as page:
        page.set_input_files("#files", files())
        page.locator("#files").focus()
        seen = []
        for _ in range(4):
            page.keyboard.press("Tab")
            seen.append(page.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))
        assert seen == ["Remove cat-0.png", "noun", "steps", "start"]
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        page.locator("#noun").fill("cat")
        page.locator("#noun").press("Enter")
        expect(page.locator("#status")).to_have_text("learned", timeout=WAIT_MS)
        expect(page.locator("#prompt")).to_be_focused()
        page.keyboard.press("Tab")
        page.keyboard.press("Control+A")
        page.keyboard.type("1")
        page.keyboard.press("Enter")
        expect(page.locator("#grid img")).to_have_count(1, timeout=WAIT_MS)


def test_what_goes_wrong_is_said(browser: Browser, address: str) -> None:
    with opened(browser, address, PHONE, key=False) as page:
        expect(page.locator("#key-form")).to_be_visible()
        page.get_by_label("Key").fill("wrong")
        page.get_by_role("button", name="Go on").click()
        page.get_by_role("button", name="Teach").click()
        expect(page.get_by_role("alert")).to_have_text("Choose a picture first.")
        page.set_input_files("#files", files())
        page.get_by_role("button", name="Teach").click()
        expect(page.get_by_role("alert")).to_contain_text("API key")
        expect(page.locator("#key-form")).to_be_visible()
        keep(page, "phone-3-wrong-key")
        page.get_by_label("Key").fill(KEYS["red"])
        page.get_by_role("button", name="Go on").click()
        page.get_by_label("Steps", exact=True).fill("1000")
        page.get_by_role("button", name="Teach").click()
        expect(page.locator("#status")).to_contain_text("step", timeout=WAIT_MS)
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#status")).to_have_text("canceled", timeout=WAIT_MS)
        page.set_input_files("#files", [{"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"}])
        page.get_by_role("button", name="Remove cat-0.png").click()
        page.get_by_role("button", name="Teach").click()
        expect(page.get_by_role("alert")).to_contain_text("JPEG, PNG or WebP")


def test_the_page_of_the_routes(browser: Browser, address: str) -> None:
    with opened(browser, address, DESKTOP) as page:
        page.get_by_role("link", name="API").click()
        expect(page.get_by_role("heading", name="POST /v1/images")).to_be_visible(timeout=WAIT_MS)
        keep(page, "desktop-4-docs")


def test_a_long_tune_shows_its_losses(browser: Browser, address: str) -> None:
    with opened(browser, address, DESKTOP) as page:
        page.set_input_files("#files", files())
        page.get_by_label("It is a").fill("cat")
        page.get_by_label("Steps", exact=True).fill("600")
        page.get_by_role("button", name="Teach").click()
        deadline = time.monotonic() + 60
        while (page.locator("#line").get_attribute("points") or "").count(",") < 30:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        keep(page, "desktop-5-learning")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#status")).to_have_text("canceled", timeout=WAIT_MS)

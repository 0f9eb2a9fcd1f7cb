"""The chat's page in a headless Chromium."""

from __future__ import annotations

import pytest
from helpers.accessible import is_too_wide, serious_findings
from helpers.chat_app import Gated, answering, served
from helpers.chats import SEARCH, WIDE
from helpers.dictated import OSLO
from helpers.guards import unsafe
from helpers.hostile import FRAGMENTS
from helpers.paths import ROOT

from searchr1_mini.core.retrieval import Passage


@pytest.fixture
def page(browser):
    """A phone's page that ends in failure if it asks another server, runs foreign code or reports an error."""
    context = browser.new_context(viewport={"width": 360, "height": 640})
    page, faults = context.new_page(), []
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith("http://127.0.0.1:") else faults.append(asked.url))
    yield page
    context.close()
    assert faults == []


def test_the_page_shows_hostile_text_as_text(page, tokenizer):
    """Question, policy and passage are hostile in turn; what stands on the page is what `plain` makes of it."""
    chat = answering(tokenizer, OSLO, limits=WIDE)
    with served(chat) as address:
        page.goto(address)
        page.locator("#about:not(:empty)").wait_for()
        assert page.locator("#about").text_content() == r"a <b>run</b> \u202e"
        short = [fragment[:150] for fragment in FRAGMENTS.values()]
        for number, start in enumerate(range(0, len(short), 10)):
            hostile = "\n".join(short[start : start + 10])
            passage, text = Passage("0", hostile[:60], hostile), f"{SEARCH} {hostile}\n"
            said = [*tokenizer(text)["input_ids"], *tokenizer("<answer> x </answer>")["input_ids"]]
            chat.retriever.passages, chat.policy.ids = (passage,), iter(said)
            told: list[tuple[str, str]] = []
            chat.answer("Who?", lambda *piece, told=told: told.append(piece))
            chat.policy.ids = iter(said)
            page.fill("#question", f"<img src=x onerror=alert({number})>?")
            page.press("#question", "Enter")
            article = page.locator("article").nth(number)
            article.locator(".answer, .error").wait_for()
            for kind in ("policy", "observation"):
                shown = "".join(article.locator(f".{kind} pre").all_text_contents())
                wanted = "".join(text for writer, text in told if writer == kind)
                assert "".join(shown.split()) == "".join(wanted.split())
        tags = page.evaluate("[...new Set([...document.querySelectorAll('main *')].map((node) => node.tagName))]")
        assert sorted(tags) == ["ARTICLE", "B", "DETAILS", "H2", "P", "PRE", "SECTION", "SUMMARY"]
        assert not unsafe(page.locator("main").text_content())
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_an_example_is_asked_by_a_click_and_passages_fold(page, tokenizer):
    with served(answering(tokenizer, OSLO)) as address:
        page.goto(address)
        assert page.locator("nav button").all_text_contents() == ["Where is <i>Oslo</i>?", "Who?"]
        page.locator("nav button").first.click()
        page.locator("article .answer").wait_for()
        assert page.locator("article h2").text_content() == "Where is <i>Oslo</i>?"
        assert page.locator(".observation pre").is_visible()
        page.locator(".observation summary").press("Enter")
        assert not page.locator(".observation pre").is_visible()


def test_a_refusal_of_the_web_servers_own_is_shown(page, tokenizer):
    with served(answering(tokenizer)) as address:
        page.goto(address)
        page.evaluate("window.fetch = async () => new Response('Service Unavailable', { status: 503 })")
        page.fill("#question", "Who?")
        page.press("#question", "Enter")
        page.locator("article .error").wait_for()
        assert page.locator("article .error").text_content() == "Service Unavailable"


def test_a_picture_of_the_page_is_taken_as_for_the_manual(browser, tokenizer, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    from screenshots_chat import shoot_chat

    with served(answering(tokenizer, OSLO)) as address:
        taken = shoot_chat(browser, address, "Where is Oslo?", tmp_path / "chat.png", 390, 844, "dark")
    for picture in (taken, ROOT / "docs" / "chat.png", ROOT / "docs" / "chat_phone.png"):
        assert picture.read_bytes().startswith(b"\x89PNG") and 5_000 < picture.stat().st_size < 200_000


def test_the_page_is_used_by_keyboard_stops_and_goes_on(page, tokenizer):
    chat = answering(tokenizer, times=2)
    chat.retriever = gate = Gated()
    with served(chat) as address:
        page.goto(address)
        page.keyboard.type("First?")  # the field has the focus
        page.keyboard.press("Enter")
        page.locator(".policy pre").wait_for()
        assert gate.waits.wait(60) and page.locator("#send").is_disabled()
        page.keyboard.press("Escape")
        page.get_by_text("Stopped.", exact=True).first.wait_for()
        gate.goes_on.set()
        page.keyboard.type("Second?")
        page.keyboard.press("Enter")
        page.locator("article").nth(1).locator(".answer").wait_for()
        assert page.locator("#status").text_content() == "Answered." and page.locator("#stop").is_disabled()
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
def test_axe_finds_nothing_serious(page, tokenizer, width, scheme):
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    with served(answering(tokenizer, OSLO)) as address:
        page.goto(address)
        page.locator("nav button").first.click()
        page.locator("article .answer").wait_for()
        page.evaluate("show(document.querySelector('article'), 'error', 'It failed.')")
        assert serious_findings(page) == [] and not is_too_wide(page)
        page.evaluate("document.querySelector('#send').textContent = ''")
        assert len(serious_findings(page, "#form")) == 1

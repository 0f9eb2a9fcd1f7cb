"""The board's page in a real browser: everybody is on it, nothing runs, and it fits a phone, in light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.handed_in import hand_in
from helpers.hostile import FRAGMENTS

from searchr1_mini.pages.classroom import write_classroom
from searchr1_mini.pages.classroom_data import Entry, board
from searchr1_mini.storage.printable import one_line


@pytest.fixture(scope="module")
def page_of_a_class(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("class")
    hand_in(folder / "anna", 0.88, 0.90)
    hand_in(folder / "bela", 0.94, 0.91, "--preset 12gb --learning-rate 0.002 --no-normalize-std")
    hand_in(folder / ("carl" * 20), 1.0, 1.0, "--bug no-last-turn --seed 3", emptied=0.5, n=40)
    (folder / "dora").mkdir()
    (folder / "dora" / "summary.json").write_text("[")
    return write_classroom(board([folder]), folder / "classroom.html")


@pytest.fixture
def opened_board(browser):
    """Opens a page, and closes it with a look at what it asked for and said."""
    pages = []

    def opener(path: Path, width: int = 1400, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        told: list[str] = []
        page.on("request", lambda request: told.append(request.url))
        page.on("console", lambda message: told.append(message.text))
        page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        pages.append((page, told, path))
        return page

    yield opener
    for page, told, path in pages:
        assert told == [path.as_uri()]
        page.close()


def test_everybody_is_on_it_with_figures_changes_and_reasons(opened_board, page_of_a_class):
    page = opened_board(page_of_a_class)
    cells = [row.locator("td").all_text_contents() for row in page.locator("tbody tr").all()]
    assert page.locator("thead th").all_text_contents() == (
        "place|who|EM|EM 1 hop|EM 2 hops|emptied|steps|seconds|changed".split("|")
    )
    assert [row[0] for row in cells] == ["-", "1", "2", "-"]
    assert cells[1][:8] == ["1", "bela", "0.925", "0.940", "0.910", "0.000", "40", "122"]
    assert all(flag in cells[1][8] for flag in ("--preset 12gb", "--no-normalize-std", "--learning-rate 0.002"))
    assert cells[2][-1] == "nothing" and page.locator(".learned").text_content() == (
        "4 runs, 2 of which can be compared"
    )
    faults = page.locator("tbody tr").nth(0).locator(".faults li").all_text_contents()
    assert len(faults) == 4 and "broken on purpose" in faults[2]
    assert "summary.json is damaged" in page.locator("tbody tr").nth(3).locator(".faults").text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_it_fits_a_phone_and_a_screen_in_light_and_dark(opened_board, page_of_a_class, width, scheme):
    page = opened_board(page_of_a_class, width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.locator("body").evaluate("element => getComputedStyle(element).backgroundColor")
    assert ("251" in paper) == (scheme == "light")
    labels = page.locator("td").first.evaluate("element => getComputedStyle(element, '::before').content")
    assert (labels == '"place"') == (width == 390)
    boxes = [cell.bounding_box() for cell in page.locator("td").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)


def test_hostile_names_settings_and_reasons_are_text(opened_board, tmp_path):
    texts = list(FRAGMENTS.values())
    entries = [Entry(text, em=0.5, changed=[text], faults=[text]) for text in texts]
    page = opened_board(write_classroom(entries, tmp_path / "classroom.html"), 390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".changed code").all_text_contents() == [one_line(text) for text in texts]
    assert page.locator(".faults li").all_text_contents() == [one_line(text) for text in texts]
    tags = page.evaluate("[...new Set([...document.querySelectorAll('body *')].map(e => e.tagName.toLowerCase()))]")
    assert set(tags) <= set("h1 p code table thead tbody tr th td ul li svg rect".split())

"""The report and the chat's page for every reader, in a real Chromium: `python checks/pages.py`, some minutes.

    python checks/pages.py                     a run of three steps, made up; quick
    python checks/pages.py --run runs/NAME     the report of a real one

Each page is opened at 390 and 1400 pixels, light and dark. axe-core must find nothing serious. By keyboard alone all
that can be worked must be reached, show that it has the focus, not be covered, and do something. No text of a chart
touches another, steps are whole numbers, nothing scrolls sideways, and a chart tells its values under the pointer.

Colors: what a legend tells apart is put through Chromium's own simulations of four kinds of color-blindness. Two
colors must differ by 10 in CIEDE2000 under each, or the two things by a mark that is no color: an edge, a dash, a
line above. About 1 is just noticeable for large patches side by side; of small marks that stand apart, as words and
lines do, half of the viewers need 7 to 14 along an axis of CIELAB (Stone, Szafir and Setlur, An Engineering Model for
Color Difference as a Function of Size, 2014, for marks of a third of a degree). Exits with 1 where anything is missed.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from itertools import combinations, product
from pathlib import Path
from typing import Any

from coloraide import Color
from PIL import Image
from transformers import AutoTokenizer

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "docs")]

from helpers.accessible import colliding_texts, is_too_wide, serious_findings  # noqa: E402
from helpers.chat_app import answering, served  # noqa: E402
from helpers.dictated import OSLO  # noqa: E402
from helpers.report_runs import row, write_run  # noqa: E402
from screenshots import chromium, chromium_path  # noqa: E402

from searchr1_mini.options.resolve import resolve_model  # noqa: E402
from searchr1_mini.pages.report import write_report  # noqa: E402
from searchr1_mini.run.log import write_watched  # noqa: E402

WIDTHS, SCHEMES = (390, 1400), ("light", "dark")
SIGHTS = ("none", "protanopia", "deuteranopia", "tritanopia", "achromatopsia")
LEAST = 10.0  # of CIEDE2000, see above
MOST_STOPS = 400  # of the tab key on a page
TINTS = ("logprob", "ratio", "advantage")
SWATCH = 20  # pixels

# [group, name, colors from the back to the front, mark] of what a legend tells apart
LOOKS = """() => {
  const of = (element) => getComputedStyle(element), found = [];
  const add = (group, selector, look) => {
    const element = document.querySelector(selector);
    if (element?.checkVisibility()) found.push([group, selector, ...look(of(element))]);
  };
  const page = of(document.body).backgroundColor;
  for (const writer of ["p .prompt", ".policy", ".observation"])
    add("writers", writer, (style) => [[page, style.backgroundColor], `edge ${style.borderLeftStyle}`]);
  for (const edge of [".is-right", ".is-wrong"])
    add("right and wrong", edge, (style) => [[page, style.borderTopColor], `edge ${style.borderTopStyle}`]);
  for (const token of document.querySelectorAll("#legend:not([hidden]) .token"))
    found.push([`colors by ${document.querySelector("#color").value}`, token.textContent,
      [page, of(token).backgroundColor], of(token).textDecorationLine]);
  [...document.querySelectorAll("svg")].forEach((chart, index) => {
    for (const line of chart.querySelectorAll("polyline"))
      found.push([`chart ${index}`, line.parentElement.getAttribute("class"), [page, of(line).stroke],
        `dash ${of(line).strokeDasharray}`]);
  });
  return found;
}"""
STOPS = """() => {
  window.stops = [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')]
    .filter((element) => element.checkVisibility() && !element.disabled);
  return window.stops.map((element) => element.id || element.ariaLabel || element.textContent.slice(0, 40)
    || element.tagName);
}"""
FOCUS = """() => {
  const element = document.activeElement, style = getComputedStyle(element), box = element.getClientRects()[0];
  const hit = box && document.elementFromPoint(box.x + Math.min(box.width / 2, 40), box.y + box.height / 2);
  return {
    index: window.stops.indexOf(element), isBody: element === document.body,
    kind: element.classList.contains("token") ? "token" : element.type || element.tagName.toLowerCase(),
    moves: element.dataset?.moves ?? "", outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
    ink: style.outlineColor, paper: getComputedStyle(document.body).backgroundColor,
    isCovered: !hit || !(element.contains(hit) || hit.contains(element)),
  };
}"""
STATE = """() => JSON.stringify([
  [...document.querySelectorAll("details")].map((one) => one.open),
  [...document.querySelectorAll("select, input")].map((one) => one.value),
  [...document.querySelectorAll("svg")].map((one) => one.getAttribute("aria-valuetext")),
  document.querySelectorAll("article").length, document.activeElement.textContent, location.hash])"""
# kind of an element -> the key that works it, and the one that takes it back
KEYS = {
    "summary": ("Enter", "Enter"), "range": ("ArrowLeft", "ArrowRight"), "svg": ("ArrowLeft", "ArrowRight"),
    "select-one": ("ArrowUp", "ArrowDown"), "number": ("1", "Backspace"), "text": ("x", "Backspace"),
    "token": ("ArrowRight", "ArrowLeft"), "a": ("Enter", None), "button": ("Enter", None), "submit": ("Enter", None),
}  # fmt: skip
READ_ONLY = "pre"  # has the focus so that arrow keys scroll it
REBUILDS = ("a", "button", "submit", "select-one", "number")  # what changes where the tab key is, or what there is


def main() -> int:
    """Opens every page in every way; 1 if anything was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="the folder of a run [default: one that is made up]")
    run = parser.parse_args().run
    if chromium_path() is None:
        sys.exit("there is no Chromium; apt-get install chromium")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tiny"))
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        run = run or made_up(Path(folder) / "run", tokenizer)
        other = Path(folder) / "other"
        other.symlink_to(run.resolve())
        pages = {
            "report": write_report(run, output=Path(folder) / "one.html").as_uri(),
            "report of two": write_report(run, other, output=Path(folder) / "two.html").as_uri(),
        }
        faults = []
        for (name, address), width, scheme in product(pages.items(), WIDTHS, SCHEMES):
            faults += look_at(browser, name, address, width, scheme)
        for width, scheme in product(WIDTHS, SCHEMES):
            with served(answering(tokenizer, OSLO, times=9)) as address:
                faults += look_at(browser, "chat", address, width, scheme)
    for fault in faults:
        print(f"missed: {fault}", file=sys.stderr)
    return 1 if faults else 0


def made_up(folder: Path, tokenizer) -> Path:
    """Three steps as the tests of the report have them, with two questions at three evaluations."""
    write_run(folder, tokenizer)
    for name, rewards in (("base", (0.0, 0.0)), ("step-000001", (0.0, 1.0)), ("step-000002", (1.0, 0.0))):
        asked = zip(("Who founded it?", "Where is it?"), rewards, strict=True)
        rows = [row(tokenizer, q, "<answer> Ada </answer>", "Ada did.", reward, "answer", "Ada") for q, reward in asked]
        write_watched(folder, name, rows)
    return folder


def look_at(browser, name: str, address: str, width: int, scheme: str) -> list[str]:
    """What is missed on a page in one size and scheme; prints a line."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(address)
    see = see_chat if name.startswith("chat") else see_report
    faults, looks = see(page)
    apart, told = told_apart(browser, looks)
    faults += apart + steps_and_values(page)
    page.reload()
    if see is see_chat:
        page.locator("nav button").first.wait_for()
    walked, n_stops = walk(page)
    faults += walked
    page.close()
    print(f"{name}, {width}, {scheme}: {told}; {n_stops} stops of the tab key; {len(set(faults))} faults", flush=True)
    return [f"{name}, {width}, {scheme}: {fault}" for fault in dict.fromkeys(faults)]


def seen(page, where: str | None = None, rules: list[str] | None = None) -> list[str]:
    """Faults of a page in the state that it is in."""
    faults = serious_findings(page, where, rules)
    return faults + colliding_texts(page) + (["it scrolls sideways"] if is_too_wide(page) else [])


def see_report(page) -> tuple[list[str], list[list[Any]]]:
    """Faults of a report with all unfolded, and the looks of what legends tell apart, in each coloring."""
    faults, looks = colliding_texts(page), []
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    faults += seen(page)
    for color in ("", *TINTS):
        page.locator("#color").select_option(color)
        if color:
            faults += seen(page, "#trajectories", ["color-contrast"])
        looks += page.evaluate(LOOKS)
    return faults, looks


def see_chat(page) -> tuple[list[str], list[list[Any]]]:
    """Faults of the chat's page when it is empty, has answered and has failed, and the looks of its sections."""
    page.locator("nav button").first.wait_for()
    faults = seen(page)
    page.locator("nav button").first.click()
    page.locator("article .answer").wait_for()
    page.evaluate("show(document.querySelector('article'), 'error', 'It failed.')")
    return faults + seen(page), page.evaluate(LOOKS)


def steps_and_values(page) -> list[str]:
    """Charts whose steps are no whole numbers, or that tell nothing under the pointer."""
    faults = []
    for chart in page.locator("figure svg").all():
        title, *_ = chart.locator("title").all_text_contents()
        steps = chart.locator("text[text-anchor=middle]").all_text_contents()
        numbers = [text for text in steps if text[:1].isdigit()]
        faults += [f"{title}: a step at {text}" for text in numbers if not text.isdigit()]
        chart.hover()
        if not chart.locator("xpath=..").locator("output").text_content():
            faults.append(f"{title}: no value under the pointer")
    return faults


def told_apart(browser, looks: list[list[Any]]) -> tuple[list[str], str]:
    """Pairs of a legend that one kind of sight can't tell apart; and how close the closest pairs are, in words."""
    colors = list(dict.fromkeys(tuple(colors) for _, _, colors, _ in looks))
    shown = {sight: dict(zip(colors, simulated(browser, colors, sight), strict=True)) for sight in SIGHTS}
    groups: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {}
    for group, name, color, mark in looks:
        groups.setdefault(group, {})[name] = tuple(color), mark
    faults, closest = [], {sight: (float("inf"), "") for sight in SIGHTS}
    for group, members in groups.items():
        for (one, (color, mark)), (other, (its_color, its_mark)) in combinations(members.items(), 2):
            for sight in SIGHTS:
                apart = shown[sight][color].delta_e(shown[sight][its_color], method="2000")
                if mark == its_mark:
                    closest[sight] = min(closest[sight], (apart, f"{one} and {other}"))
                    if apart < LEAST:
                        faults.append(f"{group}: {one} and {other} differ by {apart:.1f} with {sight}, and by no mark")
    told = [f"{apart:.0f} {sight}" for sight, (apart, _) in closest.items() if apart < float("inf")]
    return faults, "of one mark apart by at least " + ", ".join(told) if told else "each has a mark of its own"


def simulated(browser, colors: list[tuple[str, ...]], sight: str) -> list[Color]:
    """The colors, each painted over those behind it, as Chromium shows them to that sight."""
    page = browser.new_page(viewport={"width": SWATCH, "height": SWATCH * len(colors) or SWATCH})
    boxes = "".join(
        "".join(f'<div style="background:{color};height:{SWATCH}px">' for color in each) + "</div>" * len(each)
        for each in colors
    )
    page.set_content(f'<body style="margin:0;color-scheme:light">{boxes}')
    page.context.new_cdp_session(page).send("Emulation.setEmulatedVisionDeficiency", {"type": sight})
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.close()
    pixels = [image.getpixel((SWATCH // 2, SWATCH * index + SWATCH // 2)) for index in range(len(colors))]
    return [Color("srgb", [part / 255 for part in pixel]) for pixel in pixels]


def walk(page) -> tuple[list[str], int]:
    """What the tab key misses, covers, shows no focus on or can't work; and how often it stopped."""
    names = page.evaluate(STOPS)
    faults, reached, n_body = [], {}, 0
    while len(reached) < MOST_STOPS and n_body < 3:
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUS)
        n_body += at["isBody"]  # behind the last one, and perhaps before the first
        if at["isBody"]:
            continue
        if at["index"] in reached or at["index"] < 0:
            break
        name, reached[at["index"]] = names[at["index"]], at
        contrast = Color(at["ink"]).contrast(Color(at["paper"]), method="wcag21")
        if at["outline"] < 2 or contrast < 3:
            faults.append(f"{name}: focus shows too little, {at['outline']} pixels of contrast {contrast:.1f}")
        faults += [f"{name}: covered when it has the focus"] if at["isCovered"] else []
        if at["kind"] not in (READ_ONLY, *REBUILDS) and not is_worked(page, at["kind"]):
            faults.append(f"{name}: the keyboard does nothing")
    faults += [f"{name}: not reached" for index, name in enumerate(names) if index not in reached]
    moved: dict[str, bool] = {}
    for index, at in reached.items():
        if at["kind"] in REBUILDS:
            if page.locator("#stop").count():  # the chat answers one at a time, and moves the focus at the end
                page.locator("#stop:disabled").wait_for()
            page.evaluate("(index) => window.stops[index].focus()", index)
            works, control = is_worked(page, at["kind"]), at["moves"] or names[index]
            moved[control] = moved.get(control, False) or works  # of two buttons of a list, one is at its end
    return faults + [f"{name}: the keyboard does nothing" for name, works in moved.items() if not works], len(reached)


def is_worked(page, kind: str) -> bool:
    """Whether the keys for such an element change anything."""
    before = page.evaluate(STATE)
    for key in filter(None, KEYS[kind]):
        page.keyboard.press(key)
        if page.evaluate(STATE) != before:
            page.keyboard.press(KEYS[kind][1] or "Shift")
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())

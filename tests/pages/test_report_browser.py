"""The report in a real browser: hostile text runs nothing; numbers, filters, two runs, keyboard, phone, dark mode."""

from __future__ import annotations

import re
import runpy
import shutil
import struct
from pathlib import Path
from unicodedata import normalize

import pytest
from helpers.hostile import hostile_set
from helpers.paths import ROOT
from helpers.report_runs import ADVANTAGES, LOGPROB, RATIO, row, write_hostile_run, write_run
from helpers.watched import Watched

from searchr1_mini.pages.report import write_report
from searchr1_mini.run.log import write_watched
from searchr1_mini.storage.files import read_jsonl
from searchr1_mini.storage.printable import one_line, plain

SCREENSHOTS = runpy.run_path(str(ROOT / "docs" / "screenshots.py"))


def test_a_token_shows_its_writer_log_prob_ratio_and_advantage(opened, runs, report):
    watched = opened(report)
    rows = read_jsonl(runs[0] / "rollouts" / "step-000003.jsonl")[4:8]  # of the question that is shown first
    first = rows[0]
    texts = [segment["text"] for segment in first["segments"]]
    assert watched.shown(".card:first-child .tokens > span") == texts[1:]
    assert watched.page.locator("details .tokens").text_content() == texts[0]
    told = watched.readout_of(".card:first-child .policy .token", 1)
    id_ = first["segments"][1]["token_ids"][1]
    numbers = f"id {id_} · written by the policy · mask 1 · log-prob {LOGPROB:.3f} (p 0.607) · ratio {RATIO:.3f}"
    assert numbers in told and told.endswith("advantage −1.000")
    told = watched.readout_of(".card:first-child .observation .token", 3)
    assert told.endswith("written by the engine · mask 0")
    assert len(watched.shown(".token")) == sum(
        len(segment["token_ids"])
        for number, row in enumerate(rows)
        for segment in row["segments"][number > 0 :]  # the prompt once
    )


def test_two_runs_stand_side_by_side(opened, both):
    """PPO shows an advantage for every token."""
    watched = opened(both)
    assert watched.shown(".pane h3") == ["A: grpo", "B: ppo"]
    assert watched.page.locator(".card").count() == 8
    left, right = (watched.page.locator(".pane").nth(n).bounding_box() for n in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    pane = ".pane:nth-child(2) .card:first-child .policy"
    assert watched.readout_of(f"{pane}:first-child .token", 0).endswith(f"advantage +{ADVANTAGES[0]:.3f}")
    assert watched.readout_of(f"{pane}:last-child .token", 0).endswith(f"advantage −{-ADVANTAGES[1]:.3f}")
    assert watched.page.locator("figure").filter(has_text="mean reward of the step").locator("polyline").count() == 2


def test_runs_of_different_length_open_at_the_last_step_of_both(opened, runs, tmp_path):
    shorter = shutil.copytree(runs[1], tmp_path / "shorter")
    (shorter / "rollouts" / "step-000003.jsonl").unlink()
    watched = opened(write_report(runs[0], shorter, output=tmp_path / "report.html"))
    assert watched.page.locator("#step").input_value() == "2" and watched.page.locator(".card").count() == 8
    watched.choose(step="3")
    assert watched.shown(".pane > p.soft") == ["This run's sample does not have the question at this step."]


def test_filters_leave_what_matches(opened, report):
    watched = opened(report)
    watched.choose(least="0.5")
    assert watched.shown("#step option") == ["1 (no match)", "2", "3"]
    assert watched.page.locator("#step option[disabled]").count() == 1
    for number, question in enumerate(watched.page.locator("#question option").all(), start=1):
        watched.choose(question=question.get_attribute("value"))
        assert watched.shown(".card h3") == [f"Rollout {number + 1}"]
        assert watched.shown("#matches") == ["1 of 4 rollouts shown"]
    watched.choose(least="", finish="length")
    assert watched.shown(".card h3") == ["Rollout 4"]
    watched.choose(most="-1")
    assert watched.page.locator("#panes").is_hidden() or watched.page.locator(".card").count() == 0
    assert watched.shown("#matches") == ["No rollout matches."]
    watched.choose(most="", finish="")
    assert watched.page.locator(".card").count() == 4


def test_the_step_and_the_question_are_picked(opened, report):
    watched = opened(report)
    assert watched.page.locator("#step").input_value() == "3"
    assert watched.page.locator("#question").input_value() == "Who founded town 1?", "the first whose rewards differ"
    watched.page.get_by_label("previous step").click()
    assert "Step 2, rollout 1." in watched.shown(".card .policy")[2]
    watched.choose(question="Who founded town 2?")
    assert watched.shown(".pane > p")[0].startswith("Who founded town 2?")
    watched.choose(step="1")
    assert watched.shown(".pane > p")[0].startswith("Who founded town 2?"), "the question stays where the step has it"


def test_the_whole_page_is_usable_by_keyboard(opened, report):
    watched = opened(report)
    press, focus = watched.page.keyboard.press, "document.activeElement"
    reached = []
    for _ in range(40):
        press("Tab")
        reached.append(watched.page.evaluate(f"{focus}.id || {focus}.getAttribute('aria-label') || {focus}.tagName"))
        if watched.page.evaluate(f"{focus}.classList.contains('token')"):
            break
    wanted = ["previous step", "step", "next step", "question", "least", "most", "finish", "color", "SUMMARY"]
    wanted.insert(0, "SUMMARY")  # of the curves that are folded
    assert [name for name in reached if name in wanted] == wanted
    assert watched.page.evaluate(f"{focus}.closest('.tokens').getAttribute('aria-label')").startswith(
        "Tokens of rollout 1"
    )
    tokens = watched.shown(".card:first-child .token")
    for key, index in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", len(tokens) - 1), ("Home", 0)):
        press(key)
        assert watched.page.evaluate(f"[...document.querySelectorAll('.card .token')].indexOf({focus})") == index
        assert watched.shown("#token")[0].startswith('"' + tokens[index].replace("\n", "\\n") + '"')
    press("ArrowDown")
    assert watched.page.evaluate(f"{focus}.parentElement.className") == "observation"
    assert watched.page.locator('.card:first-child .token[tabindex="0"]').count() == 1
    assert watched.page.evaluate(f"getComputedStyle({focus}).outlineStyle") == "solid"
    press("Tab")
    assert watched.page.evaluate(f"{focus}.closest('.tokens').getAttribute('aria-label')").startswith(
        "Tokens of rollout 2"
    )
    unnamed = "[...document.querySelectorAll('select, input, button')].filter(e => !e.labels?.length && !e.ariaLabel)"
    assert watched.page.evaluate(f"{unnamed}.length") == 0


def luminance(color: str) -> float:
    """Of `rgb(r, g, b)`, as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_click_after_typing_works_and_leaves_one_tab_stop(opened, report):
    watched = opened(report)
    page = watched.page
    page.locator("#least").click()
    page.keyboard.type("0.5")
    token = page.locator(".card:first-child .policy .token").nth(3)
    token.click()  # which takes the focus from the field
    assert token.evaluate("node => node === document.activeElement")
    page.locator(".card:first-child .policy .token").nth(5).click()
    assert page.locator('.card:first-child .token[tabindex="0"]').count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_it_is_readable_on_a_phone_and_in_the_dark(opened, both, width, scheme):
    watched = opened(both, width, 800, color_scheme=scheme)
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    look = "element => [getComputedStyle(element).color, getComputedStyle(element).backgroundColor]"
    page = watched.page.locator("body").evaluate(look)[1]
    assert (luminance(page) < 0.1) == (scheme == "dark")
    for selector in (".prompt", ".card .policy", ".card .observation", "h1", ".soft", ".card p", "label", "select"):
        ink, paper = watched.page.locator(selector).first.evaluate(look)
        bright, dim = sorted((luminance(ink), luminance(page if paper.endswith(", 0)") else paper)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, selector
    if width < 500:
        cards = [card.bounding_box() for card in watched.page.locator(".card").all()]
        assert len({card["x"] for card in cards}) == 1 and cards[0]["width"] > 0.8 * width


def test_colors_tell_numbers(opened, both):
    watched = opened(both)
    watched.choose(color="advantage")
    tints = watched.page.locator(".pane:nth-child(2) .card:first-child .policy").evaluate_all(
        "segments => segments.map(e => [e.firstChild.classList.contains('low'), e.firstChild.style.cssText])"
    )
    assert [is_low for is_low, _ in tints] == [False, True] and "--tint: 1" in tints[0][1] and "0.33" in tints[1][1]


@pytest.mark.parametrize("with_tokens", [False, True], ids=["as text", "as tokens"])
def test_300_hostile_trajectories_are_text_and_run_nothing(opened, tmp_path, tokenizer, report, with_tokens):
    hostile = hostile_set()
    watched = opened(
        write_report(write_hostile_run(tmp_path / "run", hostile, tokenizer if with_tokens else None)), 390
    )
    texts, tags, widest = watched.page.evaluate(
        """() => {
          const found = {}, tags = new Set();
          let widest = 0;
          for (const number of ["1", "2", "3"]) {
            step.value = number;
            step.dispatchEvent(new Event("change"));
            for (const one of [...question.options]) {
              question.value = one.value;
              question.dispatchEvent(new Event("change"));
              found[one.value] = [...document.querySelectorAll(".card .tokens > span")].map((e) => e.textContent);
              document.querySelectorAll("*").forEach((e) => tags.add(e.tagName.toLowerCase()));
              document.querySelector(".card .token").focus();
              widest = Math.max(widest, document.documentElement.scrollWidth);
            }
          }
          return [found, [...tags], widest];
        }"""
    )
    assert len(texts) == 300 and widest <= 390
    for one in hostile:
        shown = texts[one_line(one.name)][0].replace("\\x0d\n", "\n")  # two tokens, each safe by itself
        seen = normalize("NFC", one.question) if with_tokens else one.question  # as the tokenizer reads it
        assert shown == plain(seen), one.name
    benign = opened(report)
    assert set(tags) == set(
        benign.page.evaluate("[...document.querySelectorAll('*')].map(e => e.tagName.toLowerCase())")
    )
    names = "Object.getOwnPropertyNames(window).sort()"
    assert watched.page.evaluate(names) == benign.page.evaluate(names)


def test_the_policy_stops_what_the_escaping_would_let_through(browser, report):
    watched = Watched(browser, report)
    watched.page.evaluate(
        """() => {
          document.body.insertAdjacentHTML("beforeend", `<img src="file:///x.png" onerror="window.owned = 1">
            <a id="evil" href="javascript:window.owned = 1">x</a>`);
          document.body.append(Object.assign(document.createElement("script"), { textContent: "window.owned = 1" }));
          document.getElementById("evil").click();
        }"""
    )
    watched.page.wait_for_function("() => document.querySelector('img').complete")
    assert watched.page.evaluate("window.owned") is None
    assert any("Content Security Policy" in line for line in watched.told)
    watched.page.close()


def test_without_its_script_the_page_shows_curves_and_a_notice(opened, report):
    watched = opened(report, java_script_enabled=False)
    assert watched.page.locator("svg polyline").count() > 10
    assert watched.page.locator("noscript").is_visible() and not watched.page.locator("#controls").is_visible()


def test_the_pictures_of_the_docs_are_taken(browser, tmp_path, report, both):
    pictures = SCREENSHOTS["shoot_all"](browser, report, both, tmp_path)
    sizes = [struct.unpack(">II", path.read_bytes()[16:24]) for path in pictures]
    assert sizes == [(1100, 800), (1100, 560), (1100, 800), (1100, 800), (390, 844)]
    docs = (Path(SCREENSHOTS["__file__"]).parent / "report.md").read_text()
    for path in pictures:
        assert path.stat().st_size < SCREENSHOTS["MOST_BYTES"] and path.name in docs
        assert (Path(SCREENSHOTS["__file__"]).parent / path.name).stat().st_size < SCREENSHOTS["MOST_BYTES"]


def test_the_slider_shows_the_same_questions_at_each_evaluation(opened, tmp_path, tokenizer):
    """By keyboard, on a phone; what is right is told by a word and an edge, and hostile text runs nothing."""
    folder, hostile = write_run(tmp_path / "run", tokenizer), "<img src=x onerror=alert(1)>"
    for name, reward in (("base", 0.0), ("step-000001", 0.0), ("step-000002", 1.0)):
        rows = [row(tokenizer, f"{asked} {hostile}?", f"{name} {hostile}", hostile, reward, "answer", "Ada")
                for asked in ("Who", "Where")]  # fmt: skip
        write_watched(folder, name, rows)
    (folder / "train.log").write_text("$ python train.py --seed 7\nstep 1/3\n")
    watched = opened(write_report(folder), 390, 800)
    assert watched.shown(".learned") == ["0.50 → 0.50 exact match"] and "python train.py --seed 7" in watched.shown(
        "code"
    )
    assert watched.shown("#watch output") == ["after step 2: 2 of 2 questions right"]
    watched.page.locator("#watch input").press("Home")
    assert watched.shown("#watch output") == ["before training: 0 of 2 questions right"]
    assert watched.shown("#watch .card h3") == [f"Who {hostile}?", f"Where {hostile}?"]
    assert f"base {hostile}" in watched.shown("#watch .card .policy")[0]
    edges = "[...document.querySelectorAll('#watch .card')].map((card) => getComputedStyle(card).borderStyle)"
    assert watched.page.evaluate(edges) == ["dashed", "dashed"] and watched.shown("#watch .wrong") == ["✗ wrong"] * 2
    watched.page.locator("#watch input").press("End")
    assert watched.page.evaluate(edges) == ["solid", "solid"]
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert watched.shown("#watch .card .observation")[0] == hostile


def test_without_evaluations_there_is_no_slider(opened, report):
    assert opened(report).page.locator("#watch").is_hidden()

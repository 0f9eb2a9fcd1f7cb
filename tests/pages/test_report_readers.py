"""The report for every reader: by axe-core, by keyboard, without color alone, and no text on another."""

from __future__ import annotations

import pytest
from helpers.accessible import colliding_texts, serious_findings
from helpers.report_runs import write_run

from searchr1_mini.pages.report import write_report


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
def test_axe_finds_nothing_serious(opened, report, width, scheme):
    watched = opened(report, width, 900, color_scheme=scheme)
    assert serious_findings(watched.page) == []
    watched.choose(color="advantage")
    assert serious_findings(watched.page, "#trajectories", ["color-contrast"]) == []
    watched.page.evaluate("document.querySelector('h1').replaceChildren(document.createElement('button'))")
    assert len(serious_findings(watched.page, "h1")) == 1, "a button without a name"


def test_no_text_of_a_chart_touches_another(opened, runs, tmp_path, tokenizer):
    """Six runs that end at the same values, with long names of sources."""
    folders = [write_run(tmp_path / str(n), tokenizer) for n in range(6)]
    for folder in folders:
        path = folder / "metrics.jsonl"
        path.write_text(path.read_text().replace("world-1hop", "a data set with a long name"))
    for width in (390, 1400):
        watched = opened(write_report(*folders), width, 900)
        watched.page.locator("details").first.evaluate("one => (one.open = true)")
        assert colliding_texts(watched.page) == []
    watched.page.evaluate("document.querySelectorAll('svg text').forEach((one) => one.setAttribute('x', 60))")
    assert len(colliding_texts(watched.page)) > 10


def test_a_chart_tells_its_values_to_pointer_and_keyboard(opened, both):
    watched = opened(both)
    figure = watched.page.locator("figure").filter(has_text="mean reward of the step")
    chart, told = figure.locator("svg"), figure.locator("output")
    assert told.text_content() == ""
    chart.hover(position={"x": 2, "y": 50})
    assert told.text_content() == "A 0.3333 at 1 · B 0.3333 at 1"
    watched.page.mouse.move(0, 0)
    assert told.text_content() == ""
    chart.focus()  # where the pointer was
    assert told.text_content() == "A 0.3333 at 1 · B 0.3333 at 1" == chart.get_attribute("aria-valuetext")
    for key, step in (("End", 3), ("ArrowLeft", 2), ("Home", 1), ("ArrowRight", 2), ("End", 3), ("ArrowRight", 3)):
        chart.press(key)
        assert told.text_content().endswith(f" at {step}") and chart.get_attribute("aria-valuenow") == str(step - 1)


def test_right_and_wrong_rollouts_differ_in_mark_and_edge(opened, report):
    watched = opened(report)
    marks = ["✗ wrong", "✓ right", "✗ wrong", "✗ wrong"]
    assert watched.shown(".card p strong") == marks
    edges = "[...document.querySelectorAll('.card')].map((card) => getComputedStyle(card).borderTopStyle)"
    assert watched.page.evaluate(edges) == ["solid" if "✓" in mark else "dashed" for mark in marks]
    writers = "[...document.querySelectorAll('p .prompt, .card:first-child .policy, .card:first-child .observation')]"
    styles = watched.page.evaluate(f"{writers}.map((one) => getComputedStyle(one).borderLeftStyle)")
    assert styles == ["dotted", "solid", "double", "solid"]


@pytest.mark.parametrize("color", ["logprob", "ratio", "advantage"])
def test_each_coloring_has_a_legend(opened, report, color):
    watched = opened(report)
    assert watched.page.locator("#legend").is_hidden()
    watched.choose(color=color)
    ends = {"logprob": ["−4 and below", "0"], "ratio": ["0.74 and below", "1", "1.35 and above"],
            "advantage": ["−1.5 and below", "0", "+1.5 and above"]}[color]  # fmt: skip
    assert watched.shown("#legend .token") == ends
    look = "one => [getComputedStyle(one).backgroundColor, getComputedStyle(one).textDecorationLine]"
    low, *others = (one.evaluate(look) for one in watched.page.locator("#legend .token").all())
    assert low[1] == "overline" and all(mark == "none" for _, mark in others)
    token = watched.page.locator(".card:first-child .policy .token").first
    assert token.evaluate(look)[1] == ("overline" if color != "ratio" else "none")
    watched.choose(color="")
    assert watched.page.locator("#legend").is_hidden()

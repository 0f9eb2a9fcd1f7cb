"""What a page must be for every reader: axe-core's findings, texts of charts that collide, what a tab key reaches."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe

COLLIDING = """() => {
  const found = [];
  for (const chart of [...document.querySelectorAll("svg")].filter((svg) => svg.checkVisibility())) {
    const frame = chart.getBoundingClientRect();
    const boxes = [...chart.querySelectorAll("text")].filter((text) => text.textContent)
      .map((text) => [text.textContent, text.getBoundingClientRect()]);
    boxes.forEach(([text, box], index) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1
          || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        found.push(`"${text}" leaves its chart`);
      for (const [other, its] of boxes.slice(index + 1))
        if (Math.min(box.right, its.right) - Math.max(box.left, its.left) > 1
            && Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top) > 3)
          found.push(`"${text}" and "${other}" overlap`);
    });
  }
  return found;
}"""


def axe_findings(page, context: str | None = None, rules: list[str] | None = None) -> list[tuple[str, str]]:
    """How bad (minor, moderate, serious, critical) and what, for each rule of axe-core that the page breaks.

    Args:
        page: by playwright.
        context: selector of the part that is looked at [default: all].
        rules: by name [default: all].
    """
    options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
    violations = Axe().run(page, context, options).response["violations"]
    return [
        (found["impact"], f"{found['id']} at {len(found['nodes'])} elements, first {found['nodes'][0]['target']}")
        for found in violations
    ]


def serious_findings(page, context: str | None = None, rules: list[str] | None = None) -> list[str]:
    """What axe-core calls serious or critical, see `axe_findings`."""
    return [told for impact, told in axe_findings(page, context, rules) if impact in ("serious", "critical")]


def colliding_texts(page) -> list[str]:
    """Texts of visible charts that overlap by more than the empty edge of a letter, or leave their chart."""
    return page.evaluate(COLLIDING)


def is_too_wide(page) -> bool:
    """Whether the page as a whole scrolls sideways."""
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")

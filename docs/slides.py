"""Makes slides of the course: `make slides`, then open slides/index.html and press the arrow keys.

They are read off course.md: for each session its goal, its pictures, its plan in minutes, every question to ask, and
the capstone. One file, pictures included, that needs no network; it prints one slide per page.
"""

from __future__ import annotations

import base64
import html
import re
import sys
from pathlib import Path

from markdown_it import MarkdownIt

DOCS = Path(__file__).parent
PICTURE = re.compile(r"^!\[(?P<about>[^\]]*)\]\((?P<file>[^)]+)\)$", re.M)
PLAN = re.compile(r"^\| *(?P<minutes>\d+) *\| (?P<text>.*) \|$", re.M)
STYLE = """
* { box-sizing: border-box } body { margin: 0; background: #fff; color: #1a1a1a; font: 28px/1.4 system-ui, sans-serif }
section { min-height: 100vh; padding: 6vh 8vw; display: none; flex-direction: column; justify-content: center }
section:target, body:not(:has(section:target)) section:first-of-type { display: flex }
h1 { font-size: 56px; color: #0b5fa5; margin: 0 0 .5em } h2 { font-size: 36px; color: #0b5fa5; margin: 0 0 .6em }
img { max-width: 84vw; max-height: 68vh; align-self: center } td { padding: .2em .8em .2em 0; vertical-align: top }
td:first-child { color: #b35900; text-align: right; white-space: nowrap } .ask { font-size: 44px }
footer { position: absolute; right: 2vw; bottom: 1vh; font-size: 16px; color: #595959 } a { color: #0b5fa5 }
@media print { section { display: flex; break-after: page; height: 100vh } footer { display: none } }
"""
SCRIPT = """
const slides = [...document.querySelectorAll("section")];
function here() { return Math.max(0, slides.findIndex(s => "#" + s.id === location.hash)); }
function go(n) { location.hash = slides[Math.min(Math.max(n, 0), slides.length - 1)].id; }
addEventListener("keydown", event => {
  if (["ArrowRight", "PageDown", " "].includes(event.key)) { event.preventDefault(); go(here() + 1); }
  if (["ArrowLeft", "PageUp"].includes(event.key)) { event.preventDefault(); go(here() - 1); }
});
"""


def main(out: Path) -> None:
    """Writes `index.html` into a folder."""
    slides = slides_of((DOCS / "course.md").read_text())
    sections = [
        f'<section id="s{number}">{body}<footer>{number} / {len(slides)}</footer></section>'
        for number, body in enumerate(slides, start=1)
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Search-R1, a course</title><style>{STYLE}</style>{''.join(sections)}<script>{SCRIPT}</script></html>"
    )
    print(f"{len(slides)} slides: {out / 'index.html'}")


def slides_of(course: str) -> list[str]:
    """The HTML of every slide, session after session."""
    title, *parts = re.split(r"^## ", course, flags=re.M)
    slides = [f"<h1>{title.splitlines()[0].removeprefix('# ')}</h1>{rendered('Search-R1, from the first question')}"]
    for part in parts:
        name, _, body = part.partition("\n")
        if re.match(r"\d ", name):
            slides += of_session(name, body)
    return slides


def of_session(name: str, body: str) -> list[str]:
    """A title with the goal, each picture, the plan, each question, the capstone."""
    heading = f"<h2>{html.escape(name)}</h2>"
    plan = [(match["minutes"], match["text"]) for match in PLAN.finditer(body)]
    slides = [f"<h1>{html.escape(name)}</h1>{rendered(paragraph(body, 'Goal'))}"]
    slides += [heading + picture(match["file"], match["about"]) for match in PICTURE.finditer(body)]
    rows = "".join(f"<tr><td>{minutes} min</td><td>{rendered(text)}</td></tr>" for minutes, text in plan)
    slides.append(f"{heading}<table>{rows}</table>")
    asked = [text.split("*Ask:*", 1)[1].strip() for _, text in plan if "*Ask:*" in text]
    slides += [f'{heading}<div class="ask">{rendered(question)}</div>' for question in asked]
    return [*slides, f"{heading}{rendered('**Capstone.** ' + paragraph(body, 'Capstone'))}"]


def paragraph(body: str, name: str) -> str:
    """The paragraph that begins with a name in bold, such as `**Goal:**` or `**Capstone, the bug hunt:**`."""
    match = re.search(rf"^\*\*{name}[^*]*:\*\* (.*?)(?:\n\n|\Z)", body, flags=re.M | re.S)
    if match is None:
        raise SystemExit(f"docs/course.md: a session has no **{name}:**")
    return match[1]


def rendered(text: str) -> str:
    """Markdown as HTML; links lead nowhere from a slide, so that their text alone stays."""
    return MarkdownIt().render(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text))


def picture(file: str, about: str) -> str:
    """A picture inside the page."""
    kind = {".svg": "svg+xml", ".png": "png"}[Path(file).suffix]
    data = base64.b64encode((DOCS / file).read_bytes()).decode()
    return f'<img alt="{html.escape(about)}" src="data:image/{kind};base64,{data}">'


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else DOCS.parent / "slides"))

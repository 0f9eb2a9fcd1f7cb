"""`make slides`: every session of the course is there, pictures inside, and nothing is asked of the network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_slides_hold_every_session_and_every_picture(tmp_path):
    subprocess.run([sys.executable, ROOT / "docs" / "slides.py", tmp_path], check=True, capture_output=True)
    page, course = (tmp_path / "index.html").read_text(), (ROOT / "docs" / "course.md").read_text()
    for session in re.findall(r"^## (\d .*)$", course, flags=re.M):
        assert page.count(f"<h1>{session}</h1>") == 1
    pictures = re.findall(r"^!\[", course, flags=re.M)
    assert page.count('src="data:image/') == len(pictures) > 5
    assert page.count('class="ask"') == course.count("*Ask:*") > 3
    assert page.count("Capstone.") == len(re.findall(r"^\*\*Capstone", course, flags=re.M)) == 7
    assert not re.search(r'(src|href)="https?:', page)


def test_every_session_has_goal_minutes_question_and_capstone():
    course = (ROOT / "docs" / "course.md").read_text()
    parts = re.split(r"^## ", course, flags=re.M)
    sessions = {part.partition("\n")[0]: part for part in parts if re.match(r"\d ", part)}
    assert [int(name[0]) for name in sessions] == [1, 2, 3, 4, 5, 6, 7]
    for name, part in sessions.items():
        assert sum(map(int, re.findall(r"^\| (\d+) \|", part, flags=re.M))) == 90, name
        assert re.search(r"^!\[.+\]\(course_\w+\.svg\)$", part, flags=re.M) and "*Ask:*" in part, name
        assert len(re.findall(r"^\*\*Goal:\*\* ", part, flags=re.M)) == 1, name
        assert len(re.findall(r"^\*\*Capstone[^*]*:\*\* ", part, flags=re.M)) == 1, name
    (exam,) = (part for part in parts if part.startswith("Ten questions for an exam"))
    assert len(re.findall(r"^\d+\. ", exam, flags=re.M)) == 10

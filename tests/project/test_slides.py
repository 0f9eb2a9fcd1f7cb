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
    assert page.count("Capstone.") == len(re.findall(r"^\*\*Capstone", course, flags=re.M)) == 6
    assert not re.search(r'(src|href)="https?:', page)

"""What a run leaves to read: metrics that survive a kill, text that cannot forge markup or escape codes."""

from __future__ import annotations

import json
import math
import re
import sys
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from coloraide import Color
from helpers.guards import Tags
from helpers.handed_in import settings_with
from helpers.paths import ROOT
from helpers.report_runs import SUMMARY, fill_run, trajectory
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.pages.charts import COLORS, DASHES, Chart, decades, line_label, picture, spread, ticks
from searchr1_mini.pages.report import METRICS, write_curves_svg, write_report
from searchr1_mini.pages.report_data import run_names
from searchr1_mini.run.log import (
    Tracker,
    render_trajectory,
    shows_color,
    summary_table,
    truncate_metrics,
)
from searchr1_mini.storage.commit import keep_commit
from searchr1_mini.storage.files import read_jsonl, read_metrics, write_json_atomic
from searchr1_mini.storage.printable import plain


def test_metrics_are_one_valid_object_a_step(tmp_path):
    fill_run(tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["kl"] is None and rows[0]["reward"] == pytest.approx(1 / 3)


def test_a_torn_line_and_later_steps_are_dropped_on_resume(tmp_path):
    fill_run(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "rew')
    truncate_metrics(path, 2)
    assert [row["step"] for row in read_jsonl(path)] == [1, 2]


def test_tensorboard_files_are_written(tmp_path):
    with Tracker(tmp_path, 1, 1, True, False, {}, "r") as tracker:
        tracker.log(1, {"reward": 0.5})
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_missing_logger_is_told(tmp_path):
    with pytest.raises(UserError, match="pip install wandb"):
        Tracker(tmp_path, 1, 1, False, True, {}, "r")


def test_the_report_holds_the_run_and_asks_for_nothing(tmp_path):
    fill_run(tmp_path)
    page = write_report(tmp_path).read_text()
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page
    tags = Tags()
    tags.feed(page)
    names = [tag for tag, _ in tags.tags]
    assert names.count("polyline") >= len(METRICS) - 1
    assert names.count("script") == 2 and not {"img", "link", "iframe", "object"} & set(names)
    attributes = {name for _, pairs in tags.tags for name, _ in pairs}
    assert not {"src", "href", "action", "style"} & attributes - {"href"} and not any(
        n.startswith("on") for n in attributes
    )
    assert [dict(pairs)["href"] for tag, pairs in tags.tags if tag == "a"] == ["#trajectories"]
    assert "world-2hop (10)" in tags.text and "0.250" in tags.text
    assert all(METRICS[key][2] in tags.text for key in METRICS if key != "kl")
    assert "k3" not in METRICS["kl"][2]  # k1 and k2 stand in the same log


def test_the_report_tells_every_commit_of_a_run(tmp_path):
    fill_run(tmp_path)
    (tmp_path / "train.log").write_text("$ python train.py\n")
    write_json_atomic(tmp_path / "config.json", {"git_commit": "a" * 40})
    keep_commit(tmp_path, "b" * 40)
    assert "at commit aaaaaaaaa, then bbbbbbbbb<" in write_report(tmp_path).read_text()


def test_arms_of_a_study_are_told_apart_by_folder_and_flags(tmp_path):
    """All their runs are called by their seeds."""
    arms = {"masked": "", "unmasked": "--no-mask-observations"}
    for arm, flags in arms.items():
        (tmp_path / arm).mkdir()
        fill_run(tmp_path / arm / "seed-0")
        write_json_atomic(tmp_path / arm / "seed-0" / "config.json", settings_with(flags))
    path = write_report(*(tmp_path / arm / "seed-0" for arm in arms))
    assert path == tmp_path / "masked" / "seed-0" / "report-masked-seed-0-unmasked-seed-0.html"
    tags = Tags()
    tags.feed(path.read_text())
    assert "masked/seed-0 and unmasked/seed-0" in tags.text
    assert "A: masked/seed-0 · model tiny" in tags.text and "B: unmasked/seed-0 · model tiny" in tags.text
    assert [run["name"] for run in json.loads(tags.json)["runs"]] == ["masked/seed-0", "unmasked/seed-0"]
    assert tags.text.count("changed: ") == 1 and "changed: --no-mask-observations" in tags.text


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (["/runs/a"], ["a"]), (["/runs/a", "/runs/b"], ["a", "b"]), (["/x/a", "/y/a"], ["x/a", "y/a"]),
        (["/x/1/a", "/y/1/a", "/x/1/b"], ["x/1/a", "y/1/a", "x/1/b"]), (["/a", "/x/a"], ["a", "x/a"]),
        (["/x/a", "/x/a"], ["a", "a"]), (["/x/a", "/x/a", "/y/a"], ["x/a", "x/a", "y/a"]),
    ],
)  # fmt: skip
def test_runs_are_named_by_as_many_folders_as_it_takes(folders, told):
    assert run_names([Path(folder) for folder in folders]) == told


def test_a_report_of_a_young_run_is_written(tmp_path):
    (tmp_path / "run").mkdir()
    assert "Trajectories" in write_report(tmp_path / "run").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"st')
    assert "<polyline" in write_report(tmp_path / "run").read_text()


@settings(max_examples=40, deadline=None)
@given(
    text=st.text(max_size=40) | st.sampled_from(["</pre><script>x</script>", "\"'><b onload=x>", "&lt;", "<!--", "]]>"])
)
def test_no_text_forges_markup(tmp_path_factory, text):
    run_dir = tmp_path_factory.mktemp("run")
    counts = []
    for content in ("hello", text):
        fill_run(run_dir, content)
        (run_dir / "metrics.jsonl").unlink()
        tags = Tags()
        tags.feed(write_report(run_dir).read_text())
        counts.append(tags.tags)
    assert counts[0] == counts[1]
    assert plain(text).strip() in tags.text.replace("\r", "") or "\r" in text


@given(st.text(max_size=60))
def test_no_text_sends_escape_codes_to_the_terminal(text):
    shown = render_trajectory(trajectory(text), color=False)
    assert not any(ord(char) < 32 and char not in "\n\t" for char in shown)
    assert "\x9b" not in shown
    colored = render_trajectory(trajectory(text), color=True)
    assert colored.count("\x1b") == 8


@pytest.mark.parametrize(("is_terminal", "asked", "shown"), [(True, "", True), (True, "1", False), (False, "", False)])
def test_colors_are_for_terminals_where_nobody_minds(monkeypatch, is_terminal, asked, shown):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setenv("NO_COLOR", asked)
    assert shows_color() == shown


def test_a_long_prompt_is_folded_in_the_terminal():
    lines = [f"line {n}" for n in range(40)]
    long = Trajectory("q", [Segment("prompt", [1], text="\n".join(lines) + "\n"), Segment("policy", [2], text="so")])
    shown = render_trajectory(long, color=False).splitlines()
    assert len(shown) == 7 and shown[0].endswith("line 0") and shown[1].endswith("(.. 35 more lines)")
    assert shown[-2].endswith("line 39") and shown[-1].endswith("policy | so")
    short = Trajectory("q", [Segment("prompt", [1], text="\n".join(lines[:6]))])
    assert len(render_trajectory(short, color=False).splitlines()) == 6


def test_the_picture_is_an_svg_with_both_curves(tmp_path):
    fill_run(tmp_path)
    picture = write_curves_svg(tmp_path, tmp_path / "curves.svg").read_text()
    assert picture.count("<polyline") == 2 and "Searches per question" in picture


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_cover_the_range(low, span):
    marks = ticks(low, low + span)
    step = marks[1] - marks[0]
    assert marks[0] <= low + 1e-6 * max(abs(low), 1) and marks[-1] >= low + span - 1e-6 * max(abs(low + span), 1)
    assert 2 <= len(marks) <= 8 and step > 0 and all(math.isfinite(mark) for mark in marks)


def test_labels_do_not_overlap():
    moved = spread([10.0, 11.0, 10.5], 240)
    assert sorted(b - a for a, b in zip(sorted(moved), sorted(moved)[1:], strict=False))[0] >= 14


def test_labels_of_low_lines_stay_in_the_picture():
    assert spread([100.0, 239.0, 240.0, 238.0], 240) == [100, 226, 240, 212]


def test_the_table_lines_up():
    lines = summary_table({"before": SUMMARY, "after": SUMMARY}).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "world-2hop (10)" in lines[5] and lines[5].split()[-2:] == ["0.250", "0.250"]


def test_the_table_lines_up_where_letters_are_two_wide():
    (part, *_) = SUMMARY["by_source"].values()
    lines = summary_table(
        {"before": SUMMARY | {"by_source": {"\u4e2d\u6587\u95ee\u9898": part, "b": part}}}
    ).splitlines()
    assert len({cell_len(line) for line in lines}) == 1


def test_tensorboard_shows_a_resumed_run_once(tmp_path):
    """What was logged after the checkpoint that the run went on from is no longer shown."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, values in ((1, [0.1, 0.2, 0.9]), (2, [0.3, 0.4])):
        with Tracker(tmp_path, 3, first, True, False, {}, "r") as tracker:
            for step, value in enumerate(values, start=first):
                tracker.log(step, {"reward": value})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("reward")] == [(1, 0.1), (2, 0.3), (3, 0.4)]


STYLES = (ROOT / "searchr1_mini/pages/report_page/style.css", ROOT / "searchr1_mini/chat/page/index.html")


def test_writers_have_one_palette_everywhere():
    light = []
    for path in (*STYLES, ROOT / "docs/course_pictures.py", ROOT / "notebooks/lesson.py"):
        text = path.read_text(encoding="utf-8").lower()
        light.append([re.search(f'{writer}"?: "?(#\\w+)', text)[1] for writer in ("policy", "observation")])
    assert light == [["#9ccbe8", "#f5ce7e"]] * 4
    dark = [re.findall(r"--(?:policy|observation|blue|orange): (#\w+)", path.read_text())[4:] for path in STYLES]
    assert sorted(dark[0]) == sorted(dark[1]) and len(dark[0]) == 4


def test_lines_of_a_chart_are_told_apart_without_hue():
    """By dash, or by a lightness that differs by 10 in CIEDE2000; each stands out from the card by 3 to 1."""
    style = STYLES[0].read_text()
    dark = [re.search(rf"\.s{n} {{ color: (#\w+)", style)[1] for n in range(len(COLORS))]
    for colors, card in ((COLORS, "#fff"), (dark, "#1c2027")):
        assert f"--card: {card}" in style and len(COLORS) == 2 * len(DASHES) == 2 * len(set(DASHES))
        grays = [Color(color).filter("grayscale") for color in colors]
        for one, other in combinations(range(len(colors)), 2):
            assert one % len(DASHES) != other % len(DASHES) or grays[one].delta_e(grays[other], method="2000") >= 10
        assert all(Color(color).contrast(card, method="wcag21") >= 3 for color in colors)


@given(st.floats(1e-12, 1e12), st.floats(1, 1e12))
def test_decades_cover_the_top_and_nine_powers_below_it(low, factor):
    marks = decades(low, low * factor)
    assert marks[-1] >= low * factor * (1 - 1e-6) and 2 <= len(marks) <= 7
    assert marks[0] <= max(low, marks[-1] / 1e9) * (1 + 1e-6)
    assert len({round(math.log10(after / before)) for before, after in pairwise(marks)}) == 1


def test_a_name_that_is_too_long_is_cut_and_its_value_is_not():
    assert line_label("world-2hop", 0.8765, 20) == "world-2hop 0.876"
    assert line_label("a data set with a long name", 0.8765, 21) == "a data set wi.. 0.876"
    assert line_label("", 0.5, 20) == "0.5"


def test_as_many_lines_as_the_largest_study_has_look_different():
    drawn = picture([Chart({f"arm {n}": [(0, n), (1, n)] for n in range(13)}, "EM", "")], "a study")
    looks = re.findall(r'color="(#[0-9a-f]+)">\n<polyline[^>]*stroke-dasharray="([^"]+)"', drawn)
    assert len(looks) == len(set(looks)) == 13

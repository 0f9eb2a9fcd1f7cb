"""What a study found: its table, intervals and sentences."""

from __future__ import annotations

import json
import re

import pytest
from helpers.files import write_lines

from searchr1_mini.ablations.findings import curves_svg, finding, interval, measures, of_commits, table, write_study
from searchr1_mini.ablations.studies import STUDIES
from searchr1_mini.storage.commit import keep_commit


def test_a_study_tells_every_commit_and_what_nobody_can_tell():
    assert of_commits(["a" * 40]) == ", commit aaaaaaaaa" and of_commits([None]) == ", an unknown commit"
    assert of_commits([None, "1" * 40]) == ", **of different commits**: an unknown commit, 111111111"


def test_each_arm_is_compared_with_its_own_reference_over_seeds():
    runs = {"a": [0.9, 0.8], "b": [0.5, 0.4], "c": [0.4, 0.5]}
    results = {arm: [{"EM 1hop": em, "EM 2hop": em, "KL": 9.0} for em in ems] for arm, ems in runs.items()}
    told = finding(results, {"c": "b"})
    assert "a reached exact match 0.850 ± " in told
    assert "b -0.400 against a (cannot be told: it is the same in every seed, which gives no interval);" in told
    assert "c +0.000 ± 1.3 against b (no difference that these seeds can tell)" in told


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_what_the_paper_found_is_told_in_whole_sentences(tmp_path, study):
    """A report puts it before what was found here, with no words of its own around it."""
    folder = tmp_path / "run"
    folder.mkdir()
    after = {"searches": 1.5, "response_tokens": 50.0, "by_source": {"world-1hop": {"em": 0.9}}}
    (folder / "summary.json").write_text(json.dumps({"after": after}))
    (folder / "config.json").write_text("{}")
    write_lines(folder / "metrics.jsonl", [{"step": 1, "reward": 0.5, "response_tokens": 50.0}])
    *_, told = write_study(study, "x", tmp_path, {"a": [folder]}).split("\n\n")
    paper, here = told.split(" Here: ")
    assert re.match(r"(In the paper|The paper|None of these methods is in the paper)\b", paper) and paper.endswith(".")
    assert len(re.findall(r"\bthe paper\b", paper, re.IGNORECASE)) == 1 and here == "a reached exact match 0.900."


def test_a_kl_that_an_arm_does_not_measure_is_a_dash_and_no_line(tmp_path):
    """The arm without one is the second, so that the third must keep its color."""
    runs = {}
    for arm, kl in (("k3", 0.2), ("none", None), ("k2", 0.4)):
        runs[arm] = [tmp_path / arm / f"seed-{seed}" for seed in range(2)]
        for folder in runs[arm]:
            folder.mkdir(parents=True)
            after = {"searches": 1.5, "response_tokens": 50.0, "by_source": {"world-1hop": {"em": 0.9}}}
            (folder / "summary.json").write_text(json.dumps({"after": after}))
            (folder / "config.json").write_text(json.dumps({"git_commit": f"{'ab'[arm == 'k2']}123456789"}))
            if arm == "none":
                keep_commit(folder, "c123456789-dirty")
            rows = [{"step": 1, "reward": 0.5, "entropy": 0.1} | ({"kl": kl} if kl else {})]
            rows += [{"step": 1, "eval/em": 2 / 3}]
            write_lines(folder / "metrics.jsonl", rows)
    text = write_study(STUDIES["kl"], "kl", tmp_path, runs, model="my base")
    assert "`python -m searchr1_mini.ablate kl --seeds 2 --model 'my base'`, **of different commits**: " in text
    assert "a12345678, b12345678, c12345678-dirty;" in text
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["common"]["steps"] == 40
    write_study(STUDIES["kl"], "kl", tmp_path, runs, steps=7)
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["common"]["steps"] == 7
    assert "| none | 0.9 | 1.5 | 50 | 0.5 | - | 0.1 | - |" in text
    assert "| k2 | 0.9 | 1.5 | 50 | 0.5 | 0.4 | 0.1 | 0.4 |" in text
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["results"]["none"][0]["KL"] is None and written["commits"][0] == "a123456789"
    measured = {"eval/em": {"1": 0.6667}, "kl": {}, "entropy": {"1": 0.1}, "response_tokens": {}}
    assert written["curves"]["none"] == [measured, measured]
    assert written["curves"]["k2"][1]["kl"] == {"1": 0.4} and list(written["curves"]) == ["k3", "none", "k2"]
    curves = (tmp_path / "curves.svg").read_text()
    lines = {title: re.findall(r'<g class="s\d" color="(#[0-9a-f]+)">', chart) for title, chart in
             re.findall(r'class="title"[^>]*>(\w+)(.*?)\n</g>', curves, re.DOTALL)}  # fmt: skip
    assert lines["KL"] == [lines["Entropy"][0], lines["Entropy"][2]] and len(lines["Entropy"]) == 3


def test_figures_of_a_collapsed_run_are_not_those_of_before(tmp_path):
    """From step 5 on the first seed's groups all agree: nothing is trained on, and neither KL nor entropy is logged."""
    folders = [tmp_path / f"seed-{seed}" for seed in range(3)]
    for folder in folders:
        folder.mkdir()
        after = {"searches": 1.5, "response_tokens": 50.0, "by_source": {"world-1hop": {"em": 0.9}}}
        (folder / "summary.json").write_text(json.dumps({"after": after}))
        (folder / "config.json").write_text("{}")
        n_trained = 4 if folder is folders[0] else 15
        rows = [{"step": step, "reward": 0.5, "response_tokens": 50.0} for step in range(1, 16)]
        rows = [row | ({"kl": row["step"] / 10, "entropy": 0.1} if row["step"] <= n_trained else {}) for row in rows]
        write_lines(folder / "metrics.jsonl", rows)
    collapsed, sound, _ = map(measures, folders)
    assert collapsed["KL"] is None and collapsed["entropy"] is None and collapsed["largest KL"] == 0.4
    assert sound["KL"] == pytest.approx(1.05) and collapsed["reward"] == 0.5
    text = write_study(STUDIES["kl"], "kl", tmp_path, {"GRPO": folders, "sound": [*folders[1:], folders[1]]})
    assert "| GRPO | 0.9 | 1.5 | 50 | 0.5 | 1.05 (2 of 3 seeds) | 0.1 (2 of 3 seeds) | 1.13 ± " in text
    assert "| sound | 0.9 | 1.5 | 50 | 0.5 | 1.05 | 0.1 | 1.5 |" in text
    assert "(the fewest in brackets): kl of GRPO (2 of 3), entropy of GRPO (2 of 3).\n" in text
    assert "in brackets" not in write_study(STUDIES["kl"], "kl", tmp_path, {"sound": folders[1:]})


def test_an_arm_whose_kl_explodes_leaves_the_others_visible(tmp_path):
    """On a log axis: as far from 0.001 to 0.1 as from 0.1 to 10; what is 0 at the first step has no place there."""
    runs = {}
    for arm, kls in (("masked", (0.0, 0.001, 0.1)), ("unmasked", (0.0, 0.1, 10.0))):
        runs[arm] = [tmp_path / arm]
        runs[arm][0].mkdir()
        rows = [{"step": step, "kl": kl, "entropy": 0.5} for step, kl in enumerate(kls, start=1)]
        write_lines(runs[arm][0] / "metrics.jsonl", rows)
    curves_svg(runs, tmp_path / "curves.svg")
    kl, entropy = re.findall(r'class="title".*?\n</g>', (tmp_path / "curves.svg").read_text(), re.DOTALL)
    heights = [
        [float(point.split(",")[1]) for point in line.split()] for line in re.findall('<polyline points="(.*?)"', kl)
    ]
    (lowest, one), (other, highest) = heights
    assert one == other and lowest - one == pytest.approx(other - highest, abs=0.2) and lowest > one > highest
    assert re.findall(r'text-anchor="end">(.*?)<', kl) == ["0.001", "0.01", "0.1", "1", "10"]
    assert "log axis" in kl and "log axis" not in entropy and ">0.1<" in entropy


def test_intervals_are_students():
    mean, width = interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and width == pytest.approx(4.30 / 3**0.5)
    assert interval([5.0]) == (5.0, None)


@pytest.mark.parametrize(
    ("ems", "told"),
    [(([0.90, 0.92], [0.91, 0.93]), "+0.010"), (([0.88, 0.92, 0.94], [0.86, 0.90, 0.92]), "-0.020"),
     (([0.3, 0.7], [0.3, 0.7]), "+0.000")],
)  # fmt: skip
def test_a_difference_that_all_seeds_share_cannot_be_told(ems, told):
    """No interval follows from a spread of 0, nor from one that rounding alone gave."""
    results = {arm: [{"EM 1hop": em} for em in seeds] for arm, seeds in zip("ab", ems, strict=True)}
    (one, two) = ems
    assert len({round(b - a, 9) for a, b in zip(one, two, strict=True)}) == 1
    verdict = "cannot be told: it is the same in every seed, which gives no interval"
    assert finding(results, {}).endswith(f"; b {told} against a ({verdict}).")
    assert table({"a": [{"KL": 1e6 / 3}, {"KL": 1e6 / 3 + 1e-6}]}).endswith("| a | 3.33e+05 |")
    assert interval([0.0334, 0.0335])[1] is not None


def test_one_seed_has_no_interval_and_tells_no_difference():
    results = {arm: [{"EM 1hop": em, "KL": None}] for arm, em in (("a", 0.9), ("b", 0.2))}
    told = finding(results, {})
    assert told == "a reached exact match 0.900; b -0.700 against a (one seed tells no difference from chance)."
    assert table(results).splitlines()[2:] == ["| a | 0.9 | - |", "| b | 0.2 | - |"]


def test_a_seed_that_diverged_is_told_and_in_no_difference():
    results = {"a": [{"EM 1hop": 0.9}, {"EM 1hop": 0.7}, None], "b": [None, {"EM 1hop": 0.3}, {"EM 1hop": 0.2}]}
    assert table(results).splitlines()[2:] == [
        "| a (1 of 3 diverged) | 0.8 ± 1.3 |",
        "| b (1 of 3 diverged) | 0.25 ± 0.64 |",
    ]
    told = finding(results | {"c": [None, None, None]}, {})
    assert told.startswith("a (1 of 3 diverged) reached exact match 0.800 ± 1.3; b (1 of 3 diverged) -0.400 against a")
    assert told.endswith("; c (3 of 3 diverged) cannot be compared with a.")

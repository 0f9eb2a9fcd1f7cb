"""What an evaluation counts: scores and failures by hand, intervals and tests against obvious references, tables."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from searchr1_mini.core.questions import Example
from searchr1_mini.core.scores import FAILURES, bootstrap_interval, failure, mcnemar, score, summarize
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.data.world import make_world, world_examples
from searchr1_mini.evaluation import paper
from searchr1_mini.evaluation.grid import Grid, latex, markdown, terminal
from searchr1_mini.evaluation.plan import Row
from searchr1_mini.evaluation.tables import Results, difference, subset_name, write_tables
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve

EXAMPLE = Example("q/1", "Where is Oslo?", ("Norway",), "q", (("Oslo", ""), ("Norway", "")))
FOUND, OTHER = "Doc 1(Title: Oslo) Oslo is in Norway.", "Doc 1(Title: Bern) Bern is in Switzerland."


def trajectory(answer=None, retrieved=(), titles=(), reason="answer", invalid=0) -> Trajectory:
    segments = [Segment("prompt", [1]), Segment("policy", [2, 3], [-1.0, -1.0]), Segment("observation", [4])]
    return Trajectory(
        "q/1", [*segments, Segment("policy", [5], [-1.0])], reason, answer,
        ["Oslo"] * len(retrieved), list(retrieved), list(titles), invalid_actions=invalid,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (trajectory("Norway"), None),
        (trajectory(None, [FOUND], reason="turns"), "no answer"),
        (trajectory(None, reason="length"), "no answer"),
        (trajectory(None, reason="turns", invalid=2), "malformed"),
        (trajectory(None, reason="eos", invalid=1), "malformed"),
        (trajectory(None, reason="length", invalid=1), "no answer"),
        (trajectory("Sweden", [OTHER]), "never retrieved"),
        (trajectory("Sweden"), "never retrieved"),
        (trajectory("Sweden", [OTHER, FOUND]), "misread"),
        (trajectory("It is in Norway", [FOUND]), "inexact"),
    ],
)
def test_each_failure_has_one_name(made, why):
    assert failure(EXAMPLE, made) == why
    figures = score(EXAMPLE, made)
    assert [name for name in FAILURES if figures[f"failure/{name}"]] == ([why] if why else [])
    assert figures["em"] + sum(figures[f"failure/{name}"] for name in FAILURES) == 1
    assert sum(value for name, value in figures.items() if name.startswith("finish/")) == 1


NO_FILM, YES = "Doc 1(Title: List) There is no such film in the list.", replace(EXAMPLE, golden_answers=("Yes.",))


@pytest.mark.parametrize(
    ("example", "titles", "found"),
    [
        (replace(EXAMPLE, golden_answers=("no",)), ["Oslo"], False),
        (replace(EXAMPLE, golden_answers=("no", "false")), ["Norway", "Oslo"], True),
        (YES, ["Norway", "Oslo"], True),
        (replace(EXAMPLE, golden_answers=("no",), supporting=()), ["Oslo"], False),
        (replace(EXAMPLE, golden_answers=("no such film",), supporting=()), ["List"], True),
    ],
)
def test_a_no_in_a_passage_is_not_the_answer(example, titles, found):
    """Of yes and no the supporting passages tell whether there was something to read it from."""
    made = trajectory("Sweden", [NO_FILM], [titles])
    assert score(example, made)["gold_retrieved"] == found
    assert failure(example, made) == ("misread" if found else "never retrieved")


def test_figures_of_a_trajectory_by_hand():
    made = trajectory("in Norway", [OTHER, FOUND], [["Bern", "Basel"], ["Oslo"]], invalid=1)
    figures = score(EXAMPLE, made)
    wanted = {"em": 0, "f1": 2 / 3, "sub_em": 1, "searches": 2, "response_tokens": 3, "turns": 2, "invalid_actions": 1}
    wanted |= {"answered": 1, "gold_retrieved": 1, "support_retrieved": 1, "all_support_retrieved": 0}
    assert {name: figures[name] for name in wanted} == pytest.approx(wanted)
    all_found = score(EXAMPLE, trajectory("x", [FOUND], [["Norway", "Oslo"]]))
    assert all_found["all_support_retrieved"] == 1
    unknown = Example("q/2", "Who?", ("x",), "p")
    assert "support_retrieved" not in score(unknown, made)
    summary = summarize([EXAMPLE, unknown], [made, trajectory("x")])
    assert summary["em"] == 0.5 and summary["n"] == 2 and summary["valid_actions"] == 1 - 1 / 4
    assert summary["support_retrieved"] == 1  # of the one question where it is known
    assert summary["by_source"]["p"]["em"] == 1 and summary["by_source"]["q"]["n"] == 1


@given(st.lists(st.integers(0, 1), min_size=1, max_size=60))
def test_bootstrap_intervals_contain_the_mean_and_are_repeatable(values):
    low, high = bootstrap_interval(values)
    assert 0 <= low <= sum(values) / len(values) <= high <= 1
    assert (low, high) == bootstrap_interval(values)


def test_a_bootstrap_interval_is_as_wide_as_theory_says():
    low, high = bootstrap_interval([1.0] * 300 + [0.0] * 700)
    assert high - low == pytest.approx(2 * 1.96 * (0.3 * 0.7 / 1000) ** 0.5, rel=0.06)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=10))
def test_mcnemar_counts_all_sign_patterns(pairs):
    """The p value is the share of all ways to flip the discordant pairs that are as lopsided as what was seen."""
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    signs = [a - b for a, b in pairs if a != b]
    seen = abs(sum(signs))
    flips = list(product((-1, 1), repeat=len(signs)))
    assert mcnemar(ours, theirs) == pytest.approx(sum(abs(sum(flip)) >= seen for flip in flips) / len(flips))
    assert mcnemar(ours, theirs) == mcnemar(theirs, ours)


def test_mcnemar_by_hand():
    assert mcnemar([1] * 10, [0] * 10) == pytest.approx(2 / 2**10)
    assert mcnemar([1, 0] * 5, [1, 0] * 5) == 1.0
    assert mcnemar([1] * 8 + [0] * 2, [0] * 8 + [1] * 2) == pytest.approx(2 * (1 + 10 + 45) / 2**10)


def line_of(example: Example, answered: Trajectory) -> dict:
    """What a table reads of a line of a cell's file."""
    asked = {"source": example.source, "example_id": example.id, "question": example.question}
    return asked | {"scores": score(example, answered)}


def results_of(**answers) -> Results:
    """label -> answers to two questions of nq and one of hotpotqa, all with the gold answer `Norway`."""
    settings = with_options(resolve(make(TrainConfig, model="Qwen2.5-3B")), corpus="passages.jsonl")
    results = Results()
    for label, texts in answers.items():
        rows = []
        for number, (text, source) in enumerate(zip(texts, ("nq", "nq", "hotpotqa"), strict=True)):
            example = Example(f"{source}/{number}", "?", ("Norway",), source)
            rows.append(line_of(example, trajectory(text)))
        for part in (rows[:2], rows[2:]):
            method = "search-r1" if label == "ours" else label
            results.add(Row(label, method, settings), part[0]["source"], settings, part)
    return results


def test_tables_hold_what_was_measured_in_four_forms(tmp_path):
    results = results_of(direct=["Norway", "x", "x"], ours=["Norway", "Norway", "x"])
    text = write_tables(results, tmp_path, False, None, ["sft is left out"])
    assert (
        "Exact match" in text and "sft is left out" in text and "2 of nq (subset " in text and "1 of hotpotqa" in text
    )
    main = (tmp_path / "table.md").read_text().split("\n\n")[1].splitlines()
    assert main[0] == "| exact match | nq | hotpotqa | mean | against ours |"
    assert main[2] == "| direct | 0.500 | 0.000 | 0.250 | -0.333 (p = 1.000) |"
    assert main[3] == "| ours | 1.000 | 0.000 | 0.500 |  |"
    tex = (tmp_path / "table.tex").read_text()
    assert tex.count("\\begin{tabular}") == 3 == tex.count("\\end{tabular}") and "direct & 0.500 & 0.000" in tex
    saved = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert saved["ours"]["by_source"]["nq"]["em"] == 1 and saved["direct"]["by_source"]["nq"]["n"] == 2
    assert saved["direct"]["by_source"]["nq"]["em_interval"] == [0.0, 1.0]


def test_the_papers_rows_stand_beneath_ours_and_are_told_apart(tmp_path):
    results = results_of(direct=["Norway", "x", "x"], ours=["Norway", "Norway", "x"])
    text = write_tables(results, tmp_path, True, "direct", [])
    lines = [line.split() for line in text.splitlines()]
    (direct,) = (line for line in lines if line[:3] == ["paper:", "direct", "inference,"])
    assert direct[3:] == ["3B", "0.106", "0.149", "0.128"]  # the mean over what both have
    assert sum(line[:2] == ["paper:", "Search-R1"] for line in lines) == 4
    assert "21 million passages" in text and "not to be read as a replication" in text
    assert "paper" not in write_tables(results, tmp_path, False, None, [])


def test_equal_names_of_subsets_mean_equal_questions():
    """Worlds of one seed and another difficulty share ids, and no question."""

    def name_of(difficulty: str, labels: str = "a", seed: int = 3) -> str:
        results, world = Results(), make_world(seed, "eval", difficulty)
        lines = [line_of(example, trajectory()) for example in world_examples(world, [1], 5, seed)]
        for label in labels:
            results.add(Row(label, "rag", resolve(TrainConfig())), "world", resolve(TrainConfig()), lines)
        return subset_name(results, "world-1hop")

    assert name_of("infobox") == name_of("infobox", "ab") and name_of("infobox").startswith("5 of world-1hop (subset ")
    assert len({name_of("infobox"), name_of("natural"), name_of("infobox", seed=4)}) == 3


AVERAGES = {
    "direct inference": (0.181, 0.134), "CoT": (0.106, 0.015), "IRCoT": (0.226, 0.181), "Search-o1": (0.206, 0.255),
    "RAG": (0.304, 0.270), "SFT": (0.207, 0.176), "R1-base": (0.276, 0.229), "R1-instruct": (0.271, 0.224),
    "rejection sampling": (0.348, 0.265), "Search-R1 PPO base": (0.431, 0.303),
    "Search-R1 PPO instruct": (0.385, 0.325), "Search-R1 GRPO base": (0.350, 0.312),
    "Search-R1 GRPO instruct": (0.396, 0.336),
}  # fmt: skip


def test_the_papers_figures_average_to_what_the_paper_prints():
    """But for IRCoT with 7B, where the paper prints .239 over seven figures whose mean is .226."""
    seen = {}
    for rows in paper.RESULTS.values():
        for name, sizes in rows.items():
            figures = [[float(figure) for figure in sizes[size].split()] for size in ("7B", "3B")]
            assert all(len(row) == len(paper.PAPER_DATASETS) for row in figures)
            seen[name] = tuple(sum(row) / len(row) for row in figures)
    assert seen.keys() == AVERAGES.keys()
    for name, averages in AVERAGES.items():
        assert seen[name] == pytest.approx(averages, abs=6e-4), name


def test_a_source_in_two_data_sets_has_two_columns():
    """The mean leaves the world out, but not a user's file that is only named like it."""
    results, settings = Results(), resolve(TrainConfig())
    row = Row("rag", "rag", settings)
    for dataset, source, answer in (("nq", "nq", "Norway"), ("nq_hotpotqa", "nq", "x"), ("world", "world-1hop", "x")):
        example = Example("nq/0", "?", ("Norway",), source)
        results.add(row, dataset, settings, [line_of(example, trajectory(answer))])
    assert results.sources == ["nq", "nq_hotpotqa: nq", "world-1hop"]
    assert [results.values("rag", source) for source in results.sources] == [[1], [0], [0]]
    assert results.mean("rag") == 0.5
    example = Example("world-capitals/0", "?", ("Norway",), "world-capitals")  # a file of the user's, for all its name
    results.add(row, "world-capitals.jsonl", settings, [line_of(example, trajectory("Norway"))])
    assert results.mean("rag") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("Qwen2.5-7B", "7B"),
        ("Qwen/Qwen2.5-14B-Instruct", "7B"),
        ("unsloth/Qwen2.5-7B-Instruct-bnb-4bit", "7B"),
        ("Qwen2.5-3B-Instruct-GPTQ-8bit", "3B"),
        ("Qwen3-1.7B", "3B"),
        ("Qwen2.5-0.5B", "3B"),
        ("tiny", "3B"),
    ],
)
def test_a_model_is_compared_with_the_nearer_size(model, size):
    assert paper.paper_size(model) == size


def test_a_wide_table_is_shown_whole():
    """Eight data sets and a long reference, or a name of wide characters: no cell is cut, no column left out."""
    header = ["exact match", *(f"data-set-{n}-{'x' * 30}" for n in range(8)), "mean", "against " + "東京" * 20]
    rows = [["a row of a long name " * 4, *(f"0.{n}00" for n in range(8)), "0.350", "-0.120 (p = 0.001)"]]
    drawn = terminal(Grid("Exact match", header, rows)).splitlines()
    assert drawn[0] == "Exact match" and len(drawn) == 5
    for line, cells in ((drawn[2], header), (drawn[4], rows[0])):
        assert line.split() == " ".join(cells).split()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_table_fits_its_terminal_and_loses_no_cell(width):
    """Columns that do not fit go below, each part with the columns that name its rows; some names are wide."""
    header = ["row", "source", *(f"\u91cf {n}" for n in range(9))]
    rows = [["\u6771\u4eac\u6771", "hotpotqa", *(f"0.{line}{n}" for n in range(9))] for line in range(1, 3)]
    drawn = terminal(Grid("Each cell", header, rows), width)
    assert max(map(cell_len, drawn.splitlines())) <= width
    assert all(cell in drawn for row in (header, *rows) for cell in row)
    assert drawn.count("source") == drawn.count("Each cell")


@given(st.text(max_size=30))
def test_names_from_outside_are_text_in_every_form(name):
    """Neither markup nor escape codes nor a broken table: a run's folder may be called anything."""
    grid = Grid("t", ["row", "x"], [[name, "1"], ["[red]b[/b]", "2"]])
    drawn = terminal(grid)
    assert "\x1b" not in drawn and "[red]b[/b]" in drawn
    assert all(line.startswith("|") for line in markdown(grid).split("\n\n", 1)[1].split("\n"))
    assert latex(Grid("t", ["row"], [["a_b & 50% \\x"]])).count("a\\_b \\& 50\\% \\textbackslash{}x") == 1


@pytest.mark.parametrize(("value", "n"), [(0.0, 20), (1.0, 125)])
def test_an_interval_of_equal_answers_has_a_width(value, n):
    """By the rule of three, the bound is near 3 / n, and a little wider by Wilson's."""
    low, high = bootstrap_interval([value] * n)
    assert (low, high)[int(value)] == value and 3 / n < high - low < 4 / n


def test_a_difference_is_of_the_questions_that_the_mean_is_of():
    results, settings = Results(), resolve(TrainConfig())
    for label, real, made_up in (("ours", "Norway", "x"), ("theirs", "x", "Norway")):
        row = Row(label, "rag", settings)
        for dataset, answer in (("nq", real), ("world", made_up)):
            example = Example(f"{dataset}/0", "?", ("Norway",), dataset)
            results.add(row, dataset, settings, [line_of(example, trajectory(answer))])
    assert results.mean("ours") > results.mean("theirs") and difference(results, "ours", "theirs").startswith("+1.000")

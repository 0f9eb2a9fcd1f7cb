"""The tables of an evaluation: for the terminal, Markdown, LaTeX and JSON, with the paper's figures on demand."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from searchr1_mini import paper
from searchr1_mini.config import TrainConfig, suggest
from searchr1_mini.defaults import SEARCHING
from searchr1_mini.errors import UserError
from searchr1_mini.evaluation import FAILURES, FINISH_REASONS, bootstrap_interval, mcnemar, means
from searchr1_mini.tracking import plain, write_json_atomic, write_text_atomic

MEASURES = {
    "F1": "f1",
    "sub-EM": "sub_em",
    "searches": "searches",
    "valid actions": "valid_actions",
    "tokens": "response_tokens",
    "gold retrieved": "gold_retrieved",
    "support retrieved": "support_retrieved",
    "all support": "all_support_retrieved",
}


@dataclass
class Results:
    """What was found: label -> source -> id -> scores of one answer; sources in the order of their data sets."""

    scores: dict[str, dict[str, dict[str, dict[str, float]]]] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    methods: dict[str, str] = field(default_factory=dict)
    settings: dict[str, TrainConfig] = field(default_factory=dict)

    def add(self, label: str, method: str, settings: TrainConfig, rows: Sequence[dict]) -> None:
        """Takes the rows of one finished cell."""
        self.methods[label], self.settings[label] = method, settings
        self.sources += sorted({row["source"] for row in rows} - set(self.sources))
        for row in rows:
            self.scores.setdefault(label, {}).setdefault(row["source"], {})[row["example_id"]] = row["scores"]

    def values(self, label: str, source: str, name: str = "em") -> list[float]:
        """One figure of every question of a cell."""
        return [scores[name] for scores in self.scores[label].get(source, {}).values()]


@dataclass(frozen=True)
class Grid:
    """A table of texts; the first column is left-aligned, the others are numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]


def write_tables(
    results: Results, out: Path, model: str, compare: bool, against: str | None, notes: Sequence[str]
) -> str:
    """Writes table.md, table.tex and results.json; returns the tables as text for the terminal.

    Raises:
        UserError: `against` names no row.
    """
    reference = against or list(results.scores)[-1]
    if reference not in results.scores:
        raise UserError(
            f"--against {reference}: no such row{suggest(reference, results.scores)}; rows: {', '.join(results.scores)}"
        )
    grids = [main_grid(results, model, compare, reference), detail_grid(results), failure_grid(results)]
    remarks = [*setup(results), *(differences(results, model) if compare else ()), *notes]
    out.mkdir(parents=True, exist_ok=True)
    write_text_atomic(out / "table.md", "\n\n".join([*map(markdown, grids), *remarks]) + "\n")
    write_text_atomic(
        out / "table.tex", "\n\n".join([*map(latex, grids), *(f"% {remark}" for remark in remarks)]) + "\n"
    )
    write_json_atomic(out / "results.json", as_json(results, reference))
    return "\n\n".join([*map(terminal, grids), *remarks])


def main_grid(results: Results, model: str, compare: bool, reference: str) -> Grid:
    """Exact match a row and source, the mean over sources as in the paper, and the difference from the reference."""
    sources = results.sources
    several = len(results.scores) > 1
    header = ["exact match", *sources, "mean", *([f"against {reference}"] if several else [])]
    rows = []
    told: set[str] = set()
    for label in results.scores:
        cells = {source: fmean(values) for source in sources if (values := results.values(label, source))}
        tested = [difference(results, label, reference)] if several else []
        rows.append([label, *(_share(cells.get(source)) for source in sources), _share(fmean(cells.values())), *tested])
        for name, figures in paper.rows_of(results.methods[label], model).items() if compare else ():
            if name not in told:
                told.add(name)
                both = [figures[source] for source in sources if source in figures]
                shown = [_share(figures.get(source)) for source in sources]
                rows.append([f"  {name}", *shown, _share(fmean(both) if both else None), *([""] if several else [])])
    return Grid("Exact match", header, rows)


def difference(results: Results, label: str, reference: str) -> str:
    """`-0.120 (p = 0.001)`: mean paired difference from the reference over shared questions, McNemar's exact test."""
    if label == reference:
        return ""
    ours, theirs = ({id_: s["em"] for of in results.scores[name].values() for id_, s in of.items()}
                    for name in (label, reference))  # fmt: skip
    shared = [id_ for id_ in ours if id_ in theirs]
    if not shared:
        return "no shared question"
    pairs = [ours[id_] for id_ in shared], [theirs[id_] for id_ in shared]
    p = mcnemar(*pairs)
    return f"{fmean(pairs[0]) - fmean(pairs[1]):+.3f} ({'p < 0.001' if p < 0.001 else f'p = {p:.3f}'})"


def detail_grid(results: Results) -> Grid:
    """Each cell: exact match with its 95 % bootstrap interval, and the other measures."""
    header = ["row", "source", "n", "EM", "95 % interval", *MEASURES]
    rows = []
    for label, by_source in results.scores.items():
        for source in results.sources:
            if source in by_source:
                em = results.values(label, source)
                low, high = bootstrap_interval(em)
                part = means(list(by_source[source].values()))
                shown = [_figure(part.get(key), key) for key in MEASURES.values()]
                rows.append([label, source, str(len(em)), _share(fmean(em)), f"{low:.3f}-{high:.3f}", *shown])
    return Grid("Each cell", header, rows)


def failure_grid(results: Results) -> Grid:
    """Why answers were not exactly right, and how trajectories ended, as shares of all questions of a row."""
    keys = [f"failure/{name}" for name in FAILURES] + [f"finish/{name}" for name in FINISH_REASONS]
    header = ["row", "right", *FAILURES, *(f"ended: {name}" for name in FINISH_REASONS)]
    rows = []
    for label, by_source in results.scores.items():
        part = means([scores for of in by_source.values() for scores in of.values()])
        rows.append([label, *(_share(part[key]) for key in ("em", *keys))])
    return Grid("Failures", header, rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _figure(value: float | None, key: str) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if key == "response_tokens" else f"{value:.2f}" if key == "searches" else f"{value:.3f}"


def setup(results: Results) -> list[str]:
    """What the figures rest on: model, retriever, corpus, bounds, questions."""
    settings = list(results.settings.values())[-1]
    questions = ", ".join(subset_name(results, source) for source in results.sources)
    adapter = "full fine-tuning" if settings.lora_rank == 0 else f"LoRA rank {settings.lora_rank}"
    bits = ", base in 4 bits" if settings.load_in_4bit else ""
    searching = [results.settings[label] for label, method in results.methods.items() if method in SEARCHING]
    corpora = sorted(set(map(corpus_name, searching))) or ["none, as no row searches"]
    retrievers = ", ".join(dict.fromkeys(setting.retriever for setting in searching or [settings]))
    return [
        f"Model {settings.model} ({adapter}{bits}); retriever {retrievers}, {settings.topk} passages a search; "
        f"corpus: {', '.join(corpora)}; at most {settings.max_turns} actions, {settings.max_new_tokens} tokens a turn, "
        f"{settings.max_total_tokens} in all. Questions: {questions}.",
    ]


def subset_name(results: Results, source: str) -> str:
    """`500 of nq (subset 1f0c2a)`: two evaluations with the same name were of the same questions."""
    ids = sorted({id_ for by_source in results.scores.values() for id_ in by_source.get(source, ())})
    return f"{len(ids)} of {source} (subset {hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:6]})"


def corpus_name(settings: TrainConfig) -> str:
    """What the passages were."""
    if settings.dataset == "world":
        return f"the synthetic world ({settings.world_difficulty}, seed {settings.seed})"
    own = f"the paragraphs of {settings.data_path}" if settings.data_path else "HotpotQA's paragraphs"
    return own if settings.corpus in (None, "hotpotqa") else settings.corpus


def differences(results: Results, model: str) -> list[str]:
    """What differs between our rows and the paper's, so that nobody mistakes one for the other."""
    return [
        f"The paper's rows are Qwen2.5-{paper.size_of(model)} (.. of its Table 2: 16 bits, full fine-tuning, 500 steps "
        "of 512 prompts), with E5 over 21 million passages of Wikipedia 2018 and the whole test or development sets. "
        "Ours have what is named above: another retriever, corpus, adapter, precision, number of steps and questions. "
        "They are not to be read as a replication of these figures.",
    ]


def as_json(results: Results, reference: str) -> dict:
    """Every figure of the tables, unrounded, with the settings of each row."""
    rows = {}
    for label, by_source in results.scores.items():
        cells = {}
        for source, of in by_source.items():
            low, high = bootstrap_interval(results.values(label, source))
            cells[source] = means(list(of.values())) | {"em_interval": [low, high]}
        settings = vars(results.settings[label])
        rows[label] = {"method": results.methods[label], "by_source": cells, "settings": settings}
        rows[label]["against"] = {"row": reference, "em": difference(results, label, reference)}
    return {"rows": rows}


def one_line(cell: str) -> str:
    """Text without line breaks, so that it stays in its cell."""
    return " ".join(plain(cell).split())


def markdown(grid: Grid) -> str:
    """A Markdown table with its title."""
    cells = [[one_line(cell).replace("|", "\\|") for cell in row] for row in (grid.header, *grid.rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|---" + "|---:" * (len(grid.header) - 1) + "|")
    return f"**{grid.title}**\n\n" + "\n".join(lines)


def latex(grid: Grid) -> str:
    """A LaTeX tabular with booktabs' rules."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(_escape_latex(one_line(cell)) for cell in cells) + r" \\"

    columns = "l" + "r" * (len(grid.header) - 1)
    body = "\n".join(map(line, grid.rows))
    return (
        f"% {grid.title}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(grid.header)}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}"
    )


def _escape_latex(text: str) -> str:
    special = {**{char: "\\" + char for char in "&%$#_{}"}, "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
               "\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}"}  # fmt: skip
    return "".join(special.get(char, char) for char in text)


def terminal(grid: Grid) -> str:
    """A table drawn by rich, as plain text; names from outside cannot send markup or escape codes."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=grid.title, box=SIMPLE, title_justify="left")
    for index, name in enumerate(grid.header):
        table.add_column(Text(plain(name)), justify="right" if index else "left", no_wrap=True)
    for row in grid.rows:
        table.add_row(*(Text(plain(cell).replace("\n", " ")) for cell in row))
    text = io.StringIO()
    Console(file=text, width=240, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").split("\n"))

"""The tables of an evaluation: for the terminal, Markdown, LaTeX and JSON, with the paper's figures on demand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from searchr1_mini.core.scores import FAILURES, FINISH_REASONS, bootstrap_interval, mcnemar, means
from searchr1_mini.evaluation import paper
from searchr1_mini.evaluation.grid import Grid, latex, markdown, terminal
from searchr1_mini.evaluation.plan import Row
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import SEARCHING
from searchr1_mini.options.nested import flat
from searchr1_mini.retrievers.engines import configured_engine, described
from searchr1_mini.storage.files import write_json_atomic, write_text_atomic
from searchr1_mini.storage.printable import markdown_text, one_line

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
PARAGRAPHS = {"hotpotqa": "HotpotQA's paragraphs", "squad": "SQuAD's paragraphs"}


@dataclass
class Results:
    """What was found: label -> source -> id -> scores of one answer; sources in the order of their data sets.

    `questions` has what was asked, source -> (id, question): an id of the world is another question in another world.
    """

    scores: dict[str, dict[str, dict[str, dict[str, float]]]] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    dataset_of: dict[str, str] = field(default_factory=dict)
    questions: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    corpora: dict[str, None] = field(default_factory=dict)
    retrievers: dict[str, None] = field(default_factory=dict)

    def add(self, row: Row, dataset: str, settings: TrainConfig, lines: Sequence[dict]) -> None:
        """Takes the lines of one finished cell; a source that two data sets share is told apart by theirs."""
        self.rows[row.label] = row
        if row.method in SEARCHING:
            self.corpora[corpus_name(settings)] = None  # of the cell, whose retriever may be another than the row's
            self.retrievers[
                f"{described(configured_engine(settings.retrieval))}, {settings.retrieval.topk} passages per search"
            ] = None
        for line in sorted(lines, key=lambda line: line["source"]):
            source = line["source"]
            if self.dataset_of.setdefault(source, dataset) != dataset:
                source = f"{dataset}: {source}"
                self.dataset_of.setdefault(source, dataset)
            self.scores.setdefault(row.label, {}).setdefault(source, {})[line["example_id"]] = line["scores"]
            self.questions.setdefault(source, set()).add((line["example_id"], line["question"]))

    @property
    def sources(self) -> list[str]:
        """Every column of the table."""
        return list(self.dataset_of)

    def values(self, label: str, source: str, name: str = "em") -> list[float]:
        """Returns one figure of every question of a cell."""
        return [scores[name] for scores in self.scores[label].get(source, {}).values()]

    @property
    def averaged(self) -> list[str]:
        """The columns that the mean is of, as in the paper: without the synthetic world if there are others."""
        return [source for source, dataset in self.dataset_of.items() if dataset != "world"] or self.sources

    def mean(self, label: str) -> float:
        """Averages exact match over sources."""
        return fmean(fmean(values) for source in self.averaged if (values := self.values(label, source)))


def write_tables(results: Results, out: Path, compare: bool, against: str | None, notes: Sequence[str]) -> str:
    """Writes table.md, table.tex and results.json; returns the tables as text for the terminal."""
    reference = against or list(results.scores)[-1]
    grids = [main_grid(results, compare, reference), detail_grid(results), failure_grid(results)]
    remarks = [one_line(text) for text in (*setup(results), *(differences(results) if compare else ()), *notes)]
    out.mkdir(parents=True, exist_ok=True)
    write_text_atomic(out / "table.md", "\n\n".join([*map(markdown, grids), *map(markdown_text, remarks)]) + "\n")
    write_text_atomic(out / "table.tex", "\n\n".join([*map(latex, grids), *(f"% {text}" for text in remarks)]) + "\n")
    write_json_atomic(out / "results.json", as_json(results, reference))
    return "\n\n".join([*map(terminal, grids), *remarks])


def main_grid(results: Results, compare: bool, reference: str) -> Grid:
    """Tabulates exact match per row and source, the mean over sources, and the difference from the reference."""
    several = len(results.scores) > 1
    header = ["exact match", *results.sources, "mean", *([f"against {reference}"] if several else [])]
    rows = []
    theirs: dict[str, dict[str, float]] = {}
    for label, row in results.rows.items():
        values = [results.values(label, source) for source in results.sources]
        tested = [difference(results, label, reference)] if several else []
        shares = [_share(fmean(cell) if cell else None) for cell in values]
        rows.append([label, *shares, _share(results.mean(label)), *tested])
        published = paper.paper_rows(row.method, row.settings.run.model)
        new = {name: figures for name, figures in published.items() if name not in theirs}
        theirs |= new
        for name, figures in new.items() if compare else ():
            both = [figures[source] for source in results.sources if source in figures]
            shares = [_share(figures.get(source)) for source in results.sources]
            rows.append([f"  {name}", *shares, _share(fmean(both) if both else None), *([""] if several else [])])
    return Grid("Exact match", header, rows)


def difference(results: Results, label: str, reference: str) -> str:
    """Renders `-0.120 (p = 0.001)`: mean difference from the reference over the questions of the sources that are
    averaged, paired, and McNemar's exact test.
    """
    if label == reference:
        return ""
    ours, theirs = (
        {
            (source, id_): s["em"]
            for source in results.averaged
            for id_, s in results.scores[name].get(source, {}).items()
        }
        for name in (label, reference)
    )
    shared = [key for key in ours if key in theirs]
    if not shared:
        return "no shared question"
    pairs = [ours[key] for key in shared], [theirs[key] for key in shared]
    p = mcnemar(*pairs)
    return f"{fmean(pairs[0]) - fmean(pairs[1]):+.3f} ({'p < 0.001' if p < 0.001 else f'p = {p:.3f}'})"


def detail_grid(results: Results) -> Grid:
    """Tabulates each cell: exact match with its 95 % bootstrap interval, and the other measures."""
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
    """Tabulates why answers were not exactly right, and how trajectories ended, as shares of a row's questions."""
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
    """Tells what the figures rest on: model, retriever, corpus, bounds, questions."""
    questions = ", ".join(subset_name(results, source) for source in results.sources)
    models, bounds = {}, {}
    for row in results.rows.values():
        settings = row.settings
        adapter = "full fine-tuning" if settings.weights.lora_rank == 0 else f"LoRA rank {settings.weights.lora_rank}"
        bits = ", base in 4 bits" if settings.weights.load_in_4bit else ""
        models[f"{settings.run.model} ({adapter if row.weights else 'as it is'}{bits})"] = None
        tokens = f"{settings.rollout.max_new_tokens} tokens per turn, {settings.rollout.max_total_tokens} in all"
        bounds[f"at most {settings.rollout.max_turns} actions, {tokens}"] = None
    retrievers = "; ".join(results.retrievers) or "none, as no row searches"
    return [
        f"Models: {'; '.join(models)}. Retrievers: {retrievers}. Corpora: {'; '.join(results.corpora) or 'none'}. "
        f"Bounds: {'; '.join(bounds)}. Questions: {questions}.",
    ]


def subset_name(results: Results, source: str) -> str:
    """Names a subset, `500 of nq (subset 1f0c2a)`: equal names mean equal questions."""
    asked = sorted(results.questions[source])
    return f"{len(asked)} of {source} (subset {hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:6]})"


def corpus_name(settings: TrainConfig) -> str:
    """Names what the passages were."""
    if settings.retrieval.retriever == "http":
        return f"that of the server at {settings.retrieval.retriever_url}"
    if settings.data.dataset == "world":
        return f"the synthetic world ({settings.data.world_difficulty}, seed {settings.optimization.seed})"
    corpus, file, dataset = settings.data.corpus, settings.data.data_path, settings.data.dataset
    of_the_hub = PARAGRAPHS.get(corpus or ("" if file else dataset))
    return of_the_hub or corpus or f"the paragraphs of {file or dataset}"


def differences(results: Results) -> list[str]:
    """Tells what differs between our rows and the paper's, so that nobody mistakes one for the other."""
    sizes = sorted({paper.paper_size(row.settings.run.model) for row in results.rows.values()})
    return [
        f"The paper's rows are Qwen2.5-{' and '.join(sizes)} (its Table 2): 16 bits, full fine-tuning, 500 steps of "
        "512 prompts, E5 over 21 million passages of Wikipedia 2018, the whole test or development sets. Ours have "
        "what is named above: another retriever, corpus, adapter, precision, number of steps and questions. They are "
        "not to be read as a replication of these figures.",
    ]


def as_json(results: Results, reference: str) -> dict:
    """Returns every figure of the tables, unrounded, with the settings of each row."""
    rows = {}
    for label, by_source in results.scores.items():
        cells = {}
        for source, of in by_source.items():
            low, high = bootstrap_interval(results.values(label, source))
            cells[source] = means(list(of.values())) | {"em_interval": [low, high]}
        row = results.rows[label]
        rows[label] = {"method": row.method, "by_source": cells, "settings": flat(row.settings)}
        rows[label]["against"] = {"row": reference, "em": difference(results, label, reference)}
    return {"rows": rows}

"""What a study found: a table of its arms with intervals over seeds, curves, and how each arm differs in a sentence."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from searchr1_mini.ablations.side_by_side import ran_on
from searchr1_mini.ablations.studies import Study
from searchr1_mini.pages.charts import Bands, Chart, Series, picture
from searchr1_mini.storage.commit import all_trained_at, named, short
from searchr1_mini.storage.files import read_json, read_metrics, write_json_atomic, write_text_atomic
from searchr1_mini.storage.forms import OF_AN_ARM

# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom
STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
SAME = 1e-9  # what rounding alone puts between equal figures, as a share of them or of 1
LAST_STEPS = 10  # training metrics are means over so many last steps, of those that logged them
CURVES = {
    "eval/em": "Held-out exact match (greedy)",
    "kl": "KL to the reference (nats per token, log axis)",
    "entropy": "Entropy (nats per token)",
    "response_tokens": "Response length (tokens)",
}
Results = Mapping[str, Sequence[dict[str, float | None] | None]]  # by arm, seed by seed; None of one that diverged


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and half-width of its 95 % interval (Student's t over seeds).

    None is the half-width of a single value, and of values that are all the same, up to rounding.
    """
    mean = fmean(values)
    if max(values) - min(values) <= SAME * max(1.0, *map(abs, values)):
        return mean, None
    quantile = STUDENT_T[min(len(values) - 2, len(STUDENT_T) - 1)]
    return mean, quantile * stdev(values) / len(values) ** 0.5


def with_interval(values: Sequence[float], form: str) -> str:
    """Returns `0.927 ± 0.19`, or the mean alone where there is no interval; `form` is the mean's format."""
    mean, width = interval(values)
    return format(mean, form) if width is None else f"{mean:{form}} ± {width:.2g}"


def measures(folder: Path) -> dict[str, float | None]:
    """Measures a finished run: held-out figures at its end, training metrics as means over its last steps.

    None is what none of those steps logged: the KL of a run without a KL term, or of one that has collapsed, since
    nothing is trained on in a step whose groups all agree.
    """
    after = read_json(folder / "summary.json", OF_AN_ARM)["after"]
    rows = read_metrics(folder / "metrics.jsonl")
    n_steps = max((row["step"] for row in rows), default=0)

    def last(key: str) -> float | None:
        values = [row[key] for row in rows if row["step"] > n_steps - LAST_STEPS and row.get(key) is not None]
        return fmean(values) if values else None

    by_source = {f"EM {name.removeprefix('world-')}": part["em"] for name, part in sorted(after["by_source"].items())}
    return by_source | {
        "searches": after["searches"],
        "tokens": after["response_tokens"],
        "reward": last("reward"),
        "KL": last("kl"),
        "entropy": last("entropy"),
        "largest KL": max((row["kl"] for row in rows if row.get("kl") is not None), default=None),
    }


def write_study(
    study: Study,
    name: str,
    out: Path,
    runs: dict[str, list[Path]],
    steps: int | None = None,
    model: str = "tiny",
    diverged: Collection[Path] = (),
) -> str:
    """Writes report.md, curves.svg and, with every run's figures and curves, results.json; returns the report's text.

    Args:
        steps, model: as they were run.
        diverged: folders of runs that came to no end; they have no figures.
    """
    n_seeds = len(next(iter(runs.values())))
    if steps is not None:
        study = replace(study, common=study.common | {"steps": steps})
    settings = asdict(study) | {"model": model, "seeds": n_seeds}
    given = {"seeds": n_seeds, "steps": steps, "model": None if model == "tiny" else shlex.quote(model)}
    flags = " ".join(f"--{flag} {value}" for flag, value in given.items() if value is not None)
    results = {
        arm: [None if folder in diverged else measures(folder) for folder in folders] for arm, folders in runs.items()
    }
    every_run = [folder for folders in runs.values() for folder in folders]
    commits = all_trained_at(every_run)
    drawn = {arm: [kept_curves(folder / "metrics.jsonl") for folder in folders] for arm, folders in runs.items()}
    kept = {"settings": settings, "commits": commits, "machine": ran_on(every_run), "results": results, "curves": drawn}
    write_json_atomic(out / "results.json", kept)
    curves_svg(runs, out / "curves.svg")
    over = f"mean and 95 % interval over {n_seeds} seeds, the mean alone where all agree"
    over = over if n_seeds > 1 else "one seed, which gives no interval"
    text = (
        f"# {study.title}\n\n`python -m searchr1_mini.ablate {name} {flags}`{of_commits(commits)}; {over}. "
        f"EM, searches and tokens are greedy, on held-out questions; the rest are means over the last {LAST_STEPS} "
        f"training steps, of those that logged them, `-` where no run did.\n\n{table(results)}\n\n"
        f"![curves](curves.svg)\n\n{of_fewer(drawn)}{study.paper} Here: {finding(results, study.against)}"
    )
    write_text_atomic(out / "report.md", text + "\n")
    return text


def of_commits(commits: Sequence[str | None]) -> str:
    """Says of which commit a study is, or that it is of several, whose figures one should not compare."""
    if len(commits) > 1:
        return f", **of different commits**: {', '.join(map(short, commits))}"
    return f", {named(commits[0])}"


def table(results: Results) -> str:
    """Renders a markdown table, one line per arm; `-` is what none of its runs measured.

    A cell of fewer runs than came to their end says of how many.
    """
    ended = {arm: [run for run in runs if run is not None] for arm, runs in results.items()}
    names = list(dict.fromkeys(key for runs in ended.values() for run in runs for key in run))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for arm, runs in ended.items():
        measured = [[run[key] for run in runs if run.get(key) is not None] for key in names]
        cells = [with_interval(values, ".3g") + part_of(values, runs) if values else "-" for values in measured]
        lines.append(f"| {arm}{lost_of(results[arm])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def part_of(values: Sequence[float], runs: Sequence[Any]) -> str:
    """Says of how many runs a cell is, where not all of them measured it."""
    return f" ({len(values)} of {len(runs)} seeds)" if len(values) < len(runs) else ""


def lost_of(runs: Sequence[Any]) -> str:
    """Says how many seeds of an arm diverged; nothing where none did."""
    lost = sum(run is None for run in runs)
    return f" ({lost} of {len(runs)} diverged)" if lost else ""


def finding(results: Results, against: dict[str, str]) -> str:
    """Tells each arm's difference in exact match from the first arm, or from what it is `against`, over all seeds.

    A seed that diverged in one of the two is in no difference of theirs.
    """
    first, *others = results
    em = {
        arm: [run and fmean(value for key, value in run.items() if key.startswith("EM ")) for run in runs]
        for arm, runs in results.items()
    }
    reached = [value for value in em[first] if value is not None]
    told = f"reached exact match {with_interval(reached, '.3f')}" if reached else "did not come to its end"
    sentences = [f"{first}{lost_of(em[first])} {told}"]
    for arm in others:
        reference = against.get(arm, first)
        pairs = zip(em[arm], em[reference], strict=True)
        differences = [one - two for one, two in pairs if one is not None and two is not None]
        if not differences:
            sentences.append(f"{arm}{lost_of(em[arm])} cannot be compared with {reference}")
            continue
        difference, width = interval(differences)
        if len(differences) == 1:
            verdict = "one seed tells no difference from chance"
        elif width is None:
            verdict = "cannot be told: it is the same in every seed, which gives no interval"
        else:
            verdict = "no difference that these seeds can tell" if abs(difference) <= width else "a difference"
        named = f"{arm}{lost_of(em[arm])}"
        sentences.append(f"{named} {with_interval(differences, '+.3f')} against {reference} ({verdict})")
    return "; ".join(sentences) + "."


def curves_svg(runs: dict[str, list[Path]], path: Path) -> None:
    """Draws means over seeds of the metrics that tell arms apart, a line per arm, with the range of the seeds."""
    logs = {arm: [read_metrics(folder / "metrics.jsonl") for folder in folders] for arm, folders in runs.items()}
    drawn = {key: curves(logs, key) for key in CURVES}
    charts = [
        Chart(series, CURVES[key], "", bands, is_log=key == "kl")  # one arm's may be a thousand times another's
        for key, (series, bands) in drawn.items()
        if any(series.values())
    ]
    write_text_atomic(path, picture(charts, "Arms of the study", width=500))


def kept_curves(path: Path) -> dict[str, dict[int, float]]:
    """Returns the curves of one run, as metric -> step -> value in 4 significant digits, so that each can be told."""
    rows = read_metrics(path)
    return {key: {row["step"]: float(f"{row[key]:.4g}") for row in rows if row.get(key) is not None} for key in CURVES}


def of_fewer(drawn: Mapping[str, Sequence[Mapping[str, Mapping[int, float]]]]) -> str:
    """Names the curves that are not the mean over all seeds at every step, in a paragraph; nothing where all are.

    Args:
        drawn: arm -> of each seed its curves, see `kept_curves`.
    """
    told = []
    for arm, seeds in drawn.items():
        for key in CURVES:
            n_logged = Counter(step for seed in seeds for step in seed[key])
            fewest = min(n_logged.values(), default=len(seeds))
            told += [f"{key} of {arm} ({fewest} of {len(seeds)})"] if fewest < len(seeds) else []
    what = "A line is the mean over the seeds that logged the figure at a step. Not all did at every step"
    return f"{what} (the fewest in brackets): {', '.join(told)}.\n\n" if told else ""


def curves(logs: dict[str, list[list[dict]]], key: str) -> tuple[Series, Bands]:
    """Returns a metric's mean, lowest and highest value over seeds at each step; no points where an arm has none."""
    series: Series = {}
    bands: Bands = {}
    for arm, seeds in logs.items():
        by_step: dict[int, list[float]] = {}
        for rows in seeds:
            for row in rows:
                if row.get(key) is not None:
                    by_step.setdefault(row["step"], []).append(row[key])
        series[arm] = [(step, fmean(values)) for step, values in sorted(by_step.items())]
        bands[arm] = [(step, min(values), max(values)) for step, values in sorted(by_step.items())]
    return series, bands

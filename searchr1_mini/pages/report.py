"""Runs as one self-contained page: curves, before and after, and every token with who wrote it and what it was worth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.options.changes import changes
from searchr1_mini.options.resolve import config_from, resumed_config
from searchr1_mini.pages.charts import Chart, Series, html_text, line_chart, picture, svg
from searchr1_mini.pages.report_data import as_json, read_config, report_data, run_names
from searchr1_mini.pages.self_contained import write_page
from searchr1_mini.run.diagnosis import DIAGNOSIS
from searchr1_mini.run.log import COLD_START, summary_table
from searchr1_mini.storage.commit import short, trained_at
from searchr1_mini.storage.files import read_jsonl, read_metrics, read_summary, write_text_atomic
from searchr1_mini.storage.forms import WARNING
from searchr1_mini.storage.printable import counted, plain

PAGE = Path(__file__).parent / "report_page"
N_CHARTS = 4  # that are not folded
METRICS = {  # key -> (title, unit, what it tells)
    "reward": ("Reward", "mean", "mean reward of the step's rollouts, sampled at the run's temperature"),
    "em": ("Exact match of rollouts", "share", "right answers among the step's rollouts, whatever else the reward pays for"),
    "searches": ("Searches", "a question", "executed queries a rollout"),
    "response_tokens": ("Response length", "tokens", "tokens that the policy wrote in a rollout, over all of its turns"),
    "observation_tokens": ("Observations", "tokens", "tokens that the engine returned in a rollout"),
    "invalid_actions": ("Invalid actions", "a question", "turns that were neither a search nor an answer"),
    "zero_variance_groups": ("Zero-variance rollouts", "share", "rollouts whose group all got the same reward: no signal"),
    "kl": ("KL to the reference", "nats a token", "to the model before training, as --kl-estimator says"),
    "entropy": ("Entropy", "nats a token", "of the policy's distribution over its own tokens; a collapse shows here first"),
    "explained_variance": ("Explained variance", "of the critic", "1 is a perfect critic, 0 one that knows only the mean"),
    "value_loss": ("Value loss", "of the critic", "half the squared error of the values, clipped"),
    "correct_loglik_change": ("Likelihood of right rollouts", "nats a token", "what a step's first updates did to them; "
                              "below 0 for long, a collapse is near"),
    "loss": ("Loss", "", "what an update of the policy minimizes; where it imitates, -log pi in nats a token"),
    "policy_loss": ("Policy loss", "", "the surrogate alone, without the KL and entropy terms"),
    "clip_fraction": ("Clip fraction", "share of tokens", "tokens whose gradient the clipped objective took away"),
    "grad_norm": ("Gradient norm", "before clipping", "spikes announce trouble"),
    "logprob_diff_max": ("Sampled vs. recomputed", "nats, largest", "log-probs at sampling against a forward of the same "
                         "weights; must be noise"),
    "fed_ratio": ("Tokens fed / tokens", "ratio", "at most 1: nothing is computed twice; below 1: shared prompts"),
    "seconds": ("Time a step", "seconds", "rollouts, rewards and update; evaluations are not in it"),
    "rollout_seconds": ("Time of the rollouts", "seconds", "decoding and retrieval, of the time a step"),
    "tokens_per_second": ("Speed", "tokens per second", "tokens of all trajectories over the whole step, update included"),
}  # fmt: skip


def write_report(*run_dirs: Path, output: Path | None = None) -> Path:
    """Writes the page from whatever the runs' folders hold so far; returns its path.

    Args:
        run_dirs: one run, or several to put side by side.
        output: the file [default: report.html in the run's folder, of several report-A-B.html in the first's].

    Raises:
        UserError: a file of a run is damaged.
    """
    names = run_names(run_dirs)
    several = cut_name("-".join(names).replace("/", "-"))
    path = output or run_dirs[0] / ("report.html" if len(names) == 1 else f"report-{several}.html")
    data = report_data(run_dirs)
    style, *scripts = (
        (PAGE / name).read_text(encoding="utf-8") for name in ("style.css", "browser.js", "watch.js", "charts.js")
    )
    parts = {
        "title": html_text(" and ".join(names)),
        "before": _before(run_dirs),
        "curves": _all_curves(run_dirs),
        "sample": html_text(_sample(data)),
        "data": as_json(data),
    }
    return write_page(path, PAGE / "page.html", parts, style, "".join(scripts))


def cut_name(text: str, most: int = 200) -> str:
    """Makes a name for a file of at most so many bytes."""
    return text if len(os.fsencode(text)) <= most else os.fsencode(text)[:most].decode(errors="ignore")


def _letters(run_dirs: Sequence[Path]) -> Sequence[str]:
    return ascii_uppercase[: len(run_dirs)] if len(run_dirs) > 1 else [""]


def _before(run_dirs: Sequence[Path]) -> str:
    """What the page begins with: the runs, what they learned, held-out scores, warnings."""
    summaries = [_summary(run_dir) for run_dir in run_dirs]
    letters = _letters(run_dirs)
    names = run_names(run_dirs)
    heads = [_head(*each) for each in zip(letters, names, run_dirs, summaries, strict=True)]
    title = html_text(" and ".join(names))
    tables = [_table(letter, summary) for letter, summary in zip(letters, summaries, strict=True) if summary]
    held_out = f'<h2>Held-out questions</h2>\n<div class="tables">{"".join(tables)}</div>' if tables else ""
    diagnoses = [_diagnosis(run_dir) for run_dir in run_dirs]
    warnings = [_warnings(letter, run_dir) for letter, run_dir in zip(letters, run_dirs, strict=True)]
    return "\n".join([f"<h1>{title}</h1>", *heads, *diagnoses, held_out, *warnings])


def _all_curves(run_dirs: Sequence[Path]) -> str:
    letters, summaries = _letters(run_dirs), [_summary(run_dir) for run_dir in run_dirs]
    metrics = [read_metrics(run_dir / "metrics.jsonl") for run_dir in run_dirs]
    cold = [read_metrics(run_dir / COLD_START / "metrics.jsonl") for run_dir in run_dirs]
    curves = _curves(dict(zip(letters, zip(metrics, summaries, strict=True), strict=True)))
    return "\n".join([_cold_start(dict(zip(letters, cold, strict=True))), curves])


def _summary(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / "summary.json"
    return read_summary(path) if path.exists() else None


def _head(letter: str, name: str, run_dir: Path, summary: dict[str, Any] | None) -> str:
    config = read_config(run_dir)
    told = [f"{letter}: {name}"] if letter else []
    told += [
        f"{key} {config[key]}"
        for key in ("model", "method", "algorithm", "dataset", "seed")
        if config.get(key) is not None
    ]
    if config.get("started_from"):
        told.append(f"started from {config['started_from']}")
    if summary:
        trained = f"{counted(summary['steps'], 'step')} in {summary['train_seconds']} s"
        told.append(f"{trained}, peak {summary['peak_memory_gb']} GB")
    lines = [f'<p class="soft">{html_text(" · ".join(told))}</p>']
    if summary:
        learned = f"{summary['before']['em']:.2f} → {summary['after']['em']:.2f} exact match"
        lines.insert(0, f'<p class="learned">{html_text(f"{letter} {learned}".strip())}</p>')
    if command := _command(run_dir):
        commits = [short(commit) for commit in trained_at(run_dir)] if config.get("git_commit") else []
        commit = f" at commit {', then '.join(commits)}" if commits else ""
        lines.append(f'<p class="soft"><code>{html_text(command)}</code> {html_text(commit)}</p>')
    if flags := _changed(run_dir):
        lines.append(f'<p class="soft">changed: <code>{html_text(" ".join(flags))}</code></p>')
    return "\n".join(lines)


def _changed(run_dir: Path) -> list[str]:
    """What the run was told beyond the defaults of its model, as flags; nothing where its config.json cannot tell."""
    try:
        return changes(config_from(resumed_config(run_dir)))
    except UserError:  # it is damaged, or there is none
        return []


def _command(run_dir: Path) -> str | None:
    """The command line that began the run, as its log has it."""
    path = run_dir / "train.log"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="backslashreplace") as lines:
        first = next(lines, "")
    return first.removeprefix("$ ").strip() if first.startswith("$ ") else None


_COLUMNS = {
    "before": "before",
    "after cold start": "after_cold_start",
    "after": "after",
    "after, empty retriever": "after_without_retriever",
}


def _table(letter: str, summary: dict[str, Any]) -> str:
    columns = {f"{letter} {name}".strip(): summary[key] for name, key in _COLUMNS.items() if summary.get(key)}
    return f'<pre class="table" tabindex="0" role="region" aria-label="{f"scores {letter}".strip()}">{escape(summary_table(columns))}</pre>'


def _warnings(letter: str, run_dir: Path) -> str:
    rows = read_jsonl(run_dir / "warnings.jsonl", WARNING)
    items = "".join(f"<li>step {row['step']}: {html_text(row['warning'])}</li>" for row in rows)
    of = f" in {letter}" if letter else ""
    return f"<h2>What the stability watch saw{of}</h2>\n<ul>{items}</ul>" if rows else ""


def _diagnosis(run_dir: Path) -> str:
    """Why the run could learn nothing, where that was seen at its start and still holds."""
    path = run_dir / DIAGNOSIS
    return (
        f'<pre class="table" tabindex="0" role="region" aria-label="diagnosis">{escape(plain(path.read_text(encoding="utf-8")))}</pre>'
        if path.exists()
        else ""
    )


def _sample(data: dict[str, Any]) -> str:
    """Which rollouts the page holds, and by what rule."""
    steps = [step for run in data["runs"] for step in run["steps"]]
    if not steps:
        return "No rollouts of training steps."
    n_groups, n_all = sum(len(step["groups"]) for step in steps), sum(step["n_groups"] for step in steps)
    return (
        f"The page holds {n_groups} of the {n_all} questions of {len(steps)} steps, each with all of its rollouts: the first "
        "of every step, in the order in which they were drawn, as many as fit; of long runs every second, 5th, 10th .. "
        "step. All are in rollouts/. Ratios, the probability after the step's updates over that at sampling, are "
        "logged at the steps of an evaluation."
    )


def metric_series(metrics: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Returns the line of a metric; steps without a value are left out."""
    return [(row["step"], row[key]) for row in metrics if row.get(key) is not None]


def eval_series(metrics: list[dict[str, Any]], summary: dict[str, Any] | None, key: str) -> Series:
    """Returns a held-out measure per source, with the measurement before the first step as step 0."""
    keys = dict.fromkeys(name for row in metrics for name in row)
    start, end = "eval/", f"/{key}"
    names = [name[len(start) : -len(end)] for name in keys if name.startswith(start) and name[4:].endswith(end)]
    start_of_rl = (summary or {}).get("after_cold_start") or (summary or {}).get("before") or {}
    before = start_of_rl.get("by_source", {})
    series = {}
    for name in filter(None, names):
        line = metric_series(metrics, start + name + end)
        series[name] = ([(0, before[name][key])] if name in before else []) + line
    return {name: line for name, line in series.items() if line}


def _cold_start(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Charts of what was imitated before RL, over its updates; nothing where nothing was."""
    charts = {
        "loss": ("Cold start: loss", "nats a token", "-log pi of the scripted turns, before each update on them"),
        "entropy": (
            "Cold start: entropy",
            "nats a token",
            "of the policy's distribution over the tokens of the scripts",
        ),
    }
    figures = []
    for key, words in charts.items():
        lines = {letter: metric_series(metrics, key) for letter, metrics in runs.items()}
        figures.append(_figure({letter: line for letter, line in lines.items() if line}, *words, over="update"))
    charts_html = "\n".join(filter(None, figures))
    return f'<h2>Cold start</h2>\n<div class="charts">{charts_html}</div>' if charts_html else ""


def _curves(runs: dict[str, tuple[list[dict[str, Any]], dict[str, Any] | None]]) -> str:
    """Charts of (metrics, summary) of each run, a line a run; of a held-out measure a line for each source too."""
    charts = [
        ("Held-out exact match", "exact match", "greedy, on held-out questions", "em"),
        ("Held-out searches", "a question", "executed queries, greedy", "searches"),
    ]
    figures = []
    for *words, key in charts:
        lines = {(letter, name): line for letter, run in runs.items() for name, line in eval_series(*run, key).items()}
        figures.append(_figure({" ".join(filter(None, names)): line for names, line in lines.items()}, *words))
    for key, words in METRICS.items():
        lines = {letter: metric_series(metrics, key) for letter, (metrics, _) in runs.items()}
        figures.append(_figure({letter: line for letter, line in lines.items() if line}, *words))
    figures = list(filter(None, figures))
    rest = "\n".join(figures[N_CHARTS:])
    folded = f'<details><summary>{len(figures) - N_CHARTS} more</summary>\n<div class="charts">{rest}</div></details>'
    first = "\n".join(figures[:N_CHARTS])
    return f'<h2>Curves</h2>\n<div class="charts">{first}</div>\n{folded if rest else ""}'


def _figure(series: Series, title: str, unit: str, meaning: str, over: str = "step") -> str:
    if not series:
        return ""
    size = 380, 260  # small, so that a phone need not shrink the letters
    chart = line_chart(series, title, over, unit, width=size[0], height=size[1])
    chart = svg(chart, *size, f"{title}: {meaning}", "")
    return f"<figure>{chart}<figcaption>{html_text(meaning)}</figcaption></figure>"


def write_curves_svg(run_dir: Path, path: Path) -> Path:
    """Draws a run: held-out exact match and searches per question over the steps, on a white card."""
    metrics, summary = read_metrics(run_dir / "metrics.jsonl"), _summary(run_dir)
    charts = [
        Chart(eval_series(metrics, summary, "em"), "Held-out exact match (greedy)", "exact match"),
        Chart(eval_series(metrics, summary, "searches"), "Searches per question", "searches"),
    ]
    write_text_atomic(path, picture(charts, "What training changed"))
    return path

"""A run as one self-contained page: curves, before and after, and trajectories coloured by who wrote what."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from searchr1_mini.charts import Series, html_text, line_chart, picture, svg
from searchr1_mini.files import read_json
from searchr1_mini.printable import plain
from searchr1_mini.tracking import read_jsonl, summary_table, write_text_atomic

METRICS = {  # key -> (title, unit, what it tells)
    "reward": ("Reward", "exact match", "mean reward of the step's rollouts, sampled at the run's temperature"),
    "searches": ("Searches", "a question", "executed queries a rollout"),
    "response_tokens": ("Response length", "tokens", "tokens that the policy wrote in a rollout, over all of its turns"),
    "observation_tokens": ("Observations", "tokens", "tokens that the engine returned in a rollout; masked out of the loss"),
    "invalid_actions": ("Invalid actions", "a question", "turns that were neither a search nor an answer"),
    "zero_variance_groups": ("Zero-variance rollouts", "share", "rollouts whose group all got the same reward: no signal"),
    "kl": ("KL to the reference", "nats a token", "k3 estimate against the model before training"),
    "entropy": ("Entropy", "nats a token", "of the policy's distribution over its own tokens; a collapse shows here first"),
    "explained_variance": ("Explained variance", "of the critic", "1 is a perfect critic, 0 one that knows only the mean"),
    "value_loss": ("Value loss", "of the critic", "half the squared error of the values, clipped"),
    "correct_loglik_change": ("Likelihood of right rollouts", "nats a token", "what a step's first updates did to them; "
                              "below 0 for long, a collapse is near"),
    "clip_fraction": ("Clip fraction", "share of tokens", "tokens whose gradient the clipped objective took away"),
    "grad_norm": ("Gradient norm", "before clipping", "spikes announce trouble"),
    "logprob_diff_max": ("Sampled vs. recomputed", "nats, largest", "log-probs at sampling against a forward of the same "
                         "weights; must be noise"),
    "fed_ratio": ("Tokens fed / tokens", "ratio", "at most 1: nothing is computed twice; below 1: shared prompts"),
    "tokens_per_second": ("Speed", "tokens a second", "tokens of all trajectories over the whole step, update included"),
}  # fmt: skip

CSP = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1f2430; --soft: #5b6472; --page: #fbfbfa; --card: #fff; --line: #dfe3e8;
  --policy: #d8f5e0; --observation: #dbe8ff; --prompt: #eef0f2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #a3acba; --page: #14171c; --card: #1c2027;
  --line: #333a45; --policy: #173d27; --observation: #1b3358; --prompt: #262b33; } }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); background: var(--page);
  max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.soft, small, summary small { color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .4rem .6rem .6rem; }
figcaption { font-size: .85rem; color: var(--soft); }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--ink); } svg .name { font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: .86rem/1.5 ui-monospace, Menlo, Consolas, monospace; margin: 0; }
pre.table { white-space: pre; overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem; }
.policy { background: var(--policy); } .observation { background: var(--observation); } .prompt { background: var(--prompt); }
.policy, .observation, .prompt { border-radius: 3px; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem; margin: .5rem 0; }
summary { cursor: pointer; }
"""


def write_report(run_dir: Path) -> Path:
    """Writes report.html from whatever the run's folder holds so far; returns its path."""
    metrics = read_jsonl(run_dir / "metrics.jsonl")
    summary = _read_json(run_dir / "summary.json")
    config = _read_json(run_dir / "config.json") or {}
    parts = [_head(run_dir, config, summary)]
    if summary:
        columns = {name: summary[key] for name, key in _COLUMNS.items() if summary.get(key)}
        parts.append(f'<h2>Held-out questions</h2>\n<pre class="table">{escape(summary_table(columns))}</pre>')
    parts += [_warnings(run_dir), _curves(metrics, summary), _trajectories(run_dir)]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CSP}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html_text(run_dir.name)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    path = run_dir / "report.html"
    write_text_atomic(path, page)
    return path


_COLUMNS = {"before": "before", "after": "after", "after, empty retriever": "after_without_retriever"}


def _read_json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def _head(run_dir: Path, config: dict[str, Any], summary: dict[str, Any] | None) -> str:
    told = [
        f"{key} {config[key]}"
        for key in ("model", "method", "algorithm", "dataset", "seed")
        if config.get(key) is not None
    ]
    if summary:
        told.append(f"{summary['steps']} steps in {summary['train_seconds']} s, peak {summary['peak_memory_gb']} GB")
    return f'<h1>{html_text(run_dir.name)}</h1>\n<p class="soft">{html_text(" · ".join(told))}</p>'


def _warnings(run_dir: Path) -> str:
    rows = read_jsonl(run_dir / "warnings.jsonl")
    items = "".join(f"<li>step {row['step']}: {html_text(row['warning'])}</li>" for row in rows)
    return f"<h2>What the stability watch saw</h2>\n<ul>{items}</ul>" if rows else ""


def series_of(metrics: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """The line of a metric; steps without a value are left out."""
    return [(row["step"], row[key]) for row in metrics if row.get(key) is not None]


def eval_series(metrics: list[dict[str, Any]], summary: dict[str, Any] | None, key: str) -> Series:
    """A held-out measure per source, with the measurement before training as step 0."""
    keys = dict.fromkeys(name for row in metrics for name in row)
    start, end = "eval/", f"/{key}"
    names = [name[len(start) : -len(end)] for name in keys if name.startswith(start) and name[4:].endswith(end)]
    before = ((summary or {}).get("before") or {}).get("by_source", {})
    series = {}
    for name in filter(None, names):
        line = series_of(metrics, start + name + end)
        series[name] = ([(0, before[name][key])] if name in before else []) + line
    return {name: line for name, line in series.items() if line}


def _curves(metrics: list[dict[str, Any]], summary: dict[str, Any] | None) -> str:
    charts = [
        ("Held-out exact match", "exact match", "greedy, on questions whose entities never occur in training", "em"),
        ("Held-out searches", "a question", "executed queries, greedy", "searches"),
    ]
    figures = [_figure(eval_series(metrics, summary, key), *words) for *words, key in charts]
    figures += [
        _figure({"": line} if (line := series_of(metrics, key)) else {}, *words) for key, words in METRICS.items()
    ]
    return '<h2>Curves</h2>\n<div class="charts">' + "\n".join(filter(None, figures)) + "</div>"


def _figure(series: Series, title: str, unit: str, meaning: str) -> str:
    if not series:
        return ""
    chart = svg(line_chart(series, title, "step", unit), 460, 280, f"{title}: {meaning}", "")
    return f"<figure>{chart}<figcaption>{html_text(meaning)}</figcaption></figure>"


def _trajectories(run_dir: Path) -> str:
    files = sorted((run_dir / "rollouts").glob("step-*.jsonl"))
    picked = dict.fromkeys([*files[:1], *files[len(files) // 2 : len(files) // 2 + 1], *files[-1:]])
    parts = [
        "<h2>Trajectories</h2>\n<p>Who wrote what: "
        '<span class="prompt">the prompt</span>, <span class="policy">the policy (trained on)</span>, '
        '<span class="observation">the engine (masked out of the loss)</span>.</p>'
    ]
    for path in picked:
        rows = read_jsonl(path)
        best = sorted(rows, key=lambda row: -(row["reward"] or 0))
        for row in dict.fromkeys(map(id, [*best[:2], *best[-1:]])):
            parts.append(_trajectory(path.stem, next(r for r in rows if id(r) == row)))
    return "\n".join(parts)


def _trajectory(step: str, row: dict[str, Any]) -> str:
    advantage = "" if row.get("advantage") is None else f", advantage {row['advantage']:+.2f}"
    told = (
        f"{step}: reward {row['reward']:g}{advantage}, {len(row['queries'])} searches, ended by {row['finish_reason']}"
    )
    spans = "".join(
        f'<span class="{html_text(segment["kind"])}">{escape(plain(segment["text"]))}</span>'
        for segment in row["segments"]
    )
    gold = " / ".join(row["golden_answers"])
    return (
        f"<details open><summary>{html_text(row['question'])}<br><small>{html_text(told)}; gold: {html_text(gold)}</small></summary>"
        f"<pre>{spans}</pre></details>"
    )


def write_curves_svg(run_dir: Path, path: Path) -> Path:
    """The picture of a run: held-out exact match and searches a question over the steps, on a white card."""
    metrics, summary = read_jsonl(run_dir / "metrics.jsonl"), _read_json(run_dir / "summary.json")
    charts = [
        (eval_series(metrics, summary, "em"), "Held-out exact match (greedy)", "exact match", {}),
        (eval_series(metrics, summary, "searches"), "Searches a question", "searches", {}),
    ]
    write_text_atomic(path, picture(charts, "What training changed"))
    return path

"""What a run measures of itself: the base before it, the policy on its way, and both at the end, with a report."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote

import torch

from searchr1_mini.core.distributed import is_main
from searchr1_mini.core.rewards import exact_match
from searchr1_mini.core.scores import evaluate
from searchr1_mini.retrievers.probes import EmptyRetriever
from searchr1_mini.run.diagnosis import diagnose, tell, tell_again
from searchr1_mini.run.log import render_trajectory, summary_table
from searchr1_mini.run.session import Session
from searchr1_mini.storage.files import write_json_atomic


def measure(run: Session, is_empty: bool = False) -> dict:
    """Greedy evaluation on the held-out questions; with `is_empty` the retriever finds nothing."""
    retriever = EmptyRetriever() if is_empty else run.held_out.retriever
    summary, samples = evaluate(run.held_out.examples, run.make_method, run.policy, retriever, run.limits)
    if not is_empty:
        run.samples = samples
    return summary


def measure_before(run: Session) -> None:
    """The base on the held-out questions, once a run; its first trajectories are kept to compare with."""
    if run.before is None:
        run.before = measure(run)
        run.samples_before = run.samples[:20]
        if is_main() and not run.config.imitation.cold_start:
            tell(run.folder, diagnose(run.samples, run.config, bool(run.policy.tokenizer.chat_template)))


def finish(run: Session, write_report: Callable[[Path], Path] | None = None) -> None:
    """Measures the trained policy, writes summary.json (and a report), and prints both and one question twice."""
    after = measure(run)
    total_seconds = run.total_seconds
    emptied = measure(run, is_empty=True) if run.config.run.method == "search-r1" else None
    if not is_main():
        return
    summary = {
        "before": run.before,
        "after_cold_start": run.after_cold_start,
        "after": after,
        "after_without_retriever": emptied,
        "cold_start_seconds": round(run.cold_start_seconds, 1),
        "train_seconds": round(run.train_seconds, 1),
        "total_seconds": round(total_seconds, 1),
        "steps": run.config.optimization.steps,
        "peak_memory_gb": round(_peak_memory_gb(run.policy.device), 2),
    }
    write_json_atomic(run.folder / "summary.json", summary)
    index = _most_telling(run)
    colour = sys.stdout.isatty()
    for title, trajectory in (("Before", run.samples_before[index]), ("After", run.samples[index])):
        print(f"\n{title} training, on a held-out question:\n{render_trajectory(trajectory, colour)}")
    columns = {"before": run.before, "after cold start": run.after_cold_start, "after": after}
    columns["after, empty retriever"] = emptied
    print("\n" + summary_table({name: column for name, column in columns.items() if column}))
    tell_again(run.folder, after)
    print(
        f"\ntrained {run.config.optimization.steps} steps in {run.train_seconds:.0f} s, {total_seconds:.0f} s with evaluation"
    )
    if write_report:
        print(f"report: {write_report(run.folder)}")
    print(f"evaluate it: python eval.py --run {quote(str(run.folder))}", flush=True)


def _most_telling(run: Session) -> int:
    """The kept question whose trajectory after training searched most, right answers first."""

    def key(index: int) -> tuple[float, int]:
        sample, example = run.samples[index], run.held_out.examples[index]
        return exact_match(sample.answer, example.golden_answers), len(sample.queries)

    return max(range(len(run.samples_before)), key=key)


def _peak_memory_gb(device: torch.device) -> float:
    """Peak memory in 10^9 bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024) / 1e9

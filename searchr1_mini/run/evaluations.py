"""What a run measures of itself: the base before it, the policy on its way, and both at the end."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice, zip_longest
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import torch

from searchr1_mini.core.distributed import is_main
from searchr1_mini.core.questions import Example
from searchr1_mini.core.rewards import exact_match
from searchr1_mini.core.scores import evaluate
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.models.names import is_instructed
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import WITHOUT_SEARCH
from searchr1_mini.options.nested import flat
from searchr1_mini.retrievers.probes import EmptyRetriever
from searchr1_mini.run.diagnosis import diagnose, tell, tell_again
from searchr1_mini.run.log import render_trajectory, shows_color, summary_table, trajectory_row, write_watched
from searchr1_mini.storage import status
from searchr1_mini.storage.files import write_json_atomic
from searchr1_mini.storage.printable import counted

if TYPE_CHECKING:
    from searchr1_mini.run.run import Run


NO_SETTINGS = ("output_dir", "resume", "date")  # where and when it ran
N_WATCHED = 5  # questions of which the report shows the answer at every evaluation


class Evaluations:
    """What was measured: the base, the policy after the cold start, and the policy at its last evaluation.

    Attributes:
        before, after_cold_start: summaries; None before they are measured.
        samples_before: the first trajectories of the base.
        last, at_step: the last evaluation of the policy, and the step after which it was made.
        samples: its trajectories; empty where an earlier process made it.
        seconds: that an evaluation took.
    """

    def __init__(self) -> None:
        self.before: dict | None = None
        self.after_cold_start: dict | None = None
        self.last: dict | None = None
        self.samples_before: list[Trajectory] = []
        self.samples: list[Trajectory] = []
        self.at_step = 0
        self.seconds = 0.0

    def is_due(self, step: int, config: TrainConfig) -> bool:
        """Tells whether the policy is still to be evaluated after this step, which is whole."""
        is_wanted = step > 0 and (step % config.logging.eval_every == 0 or step == config.optimization.steps)
        return is_wanted and self.at_step != step

    def measure(self, run: Run, what: str = "the policy") -> dict:
        """Evaluates the base, or what became of it, greedily on the held-out questions."""
        began = time.perf_counter()
        self.last, self.samples = measured(run, what)
        self.seconds = time.perf_counter() - began
        if is_main():
            name = "base" if self.before is None else f"step-{run.whole_step:06d}"
            pairs = [(self.samples[n], run.held_out.examples[n]) for n in watched(run.held_out.examples)]
            write_watched(
                run.folder, name, (trajectory_row(t, e, exact_match(t.answer, e.golden_answers)) for t, e in pairs)
            )
        return self.last

    def measure_before(self, run: Run) -> None:
        """Evaluates the base on the held-out questions, once per run; keeps its first trajectories to compare with."""
        if self.before is not None:
            return
        self.before = self.measure(run, "the base")
        self.samples_before = self.samples[:20]
        is_shown = run.config.imitation.cold_start or run.config.run.algorithm == "sft"
        if is_main() and not is_shown:  # else the first steps show it the form
            tell(run.folder, diagnose(self.samples, run.config, is_instructed(run.policy.base_name)))

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs."""
        return {
            "before": self.before,
            "after_cold_start": self.after_cold_start,
            "samples_before": [asdict(trajectory) for trajectory in self.samples_before],
            "evaluated_at": self.at_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, or an older version, which saved after its evaluation where it could."""
        self.before, self.after_cold_start = state["before"], state.get("after_cold_start")
        self.samples_before = [Trajectory.from_json(row) for row in state["samples_before"]]
        self.at_step = state.get("evaluated_at", state["step"] - bool(state.get("unlogged")))


def watched(examples: Sequence[Example]) -> list[int]:
    """Tells which held-out questions the report shows at every evaluation: the first ones of each source in turn."""
    of_sources: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        of_sources.setdefault(example.source, []).append(number)
    in_turn = (number for numbers in zip_longest(*of_sources.values()) for number in numbers if number is not None)
    return list(islice(in_turn, N_WATCHED))


def measured(run: Run, what: str = "the policy", is_empty: bool = False) -> tuple[dict, list[Trajectory]]:
    """Evaluates the policy on the held-out questions; with `is_empty` the retriever finds nothing."""
    retriever = EmptyRetriever() if is_empty else run.held_out.retriever
    with status.phase(f"evaluating {what}"):
        return evaluate(run.held_out.examples, run.make_method, run.policy, retriever, run.limits)


def finish(run: Run, write_report: Callable[[Path], Path] | None = None) -> None:
    """Measures the trained policy, writes summary.json (and a report), and prints both and one question twice."""
    evaluations, clock = run.evaluations, run.clock
    has_last = evaluations.samples and evaluations.at_step == run.config.optimization.steps
    after = evaluations.last if has_last else evaluations.measure(run)
    total_seconds = clock.total_seconds
    emptied = None
    if run.config.run.method not in WITHOUT_SEARCH:
        emptied, _ = measured(run, "with an empty retriever", is_empty=True)
    if not is_main():
        return
    summary = {
        "before": evaluations.before,
        "after_cold_start": evaluations.after_cold_start,
        "after": after,
        "after_without_retriever": emptied,
        "cold_start_seconds": round(clock.cold_start_seconds, 1),
        "train_seconds": round(clock.train_seconds, 1),
        "total_seconds": round(total_seconds, 1),
        "steps": run.config.optimization.steps,
        "peak_memory_gb": round(_peak_memory_gb(run.policy.device), 2),
        "settings": {name: value for name, value in flat(run.config).items() if name not in NO_SETTINGS},
    }
    write_json_atomic(run.folder / "summary.json", summary)
    index = _most_telling(run)
    color = shows_color()
    for title, trajectory in (("Before", evaluations.samples_before[index]), ("After", evaluations.samples[index])):
        print(f"\n{title} training, on a held-out question:\n{render_trajectory(trajectory, color)}")
    columns = {"before": evaluations.before, "after cold start": evaluations.after_cold_start, "after": after}
    columns["after, empty retriever"] = emptied
    print("\n" + summary_table({name: column for name, column in columns.items() if column}))
    tell_again(run.folder, after)
    print(
        f"\ntrained {counted(run.config.optimization.steps, 'step')} in {clock.train_seconds:.0f} s, "
        f"{total_seconds:.0f} s with evaluation"
    )
    if write_report:
        with status.phase("writing the report"):
            page = write_report(run.folder)
        print(f"report: {page}")
    print(f"evaluate it: python eval.py --run {quote(str(run.folder))}", flush=True)


def _most_telling(run: Run) -> int:
    """The kept question whose trajectory after training searched most, right answers first."""

    def key(index: int) -> tuple[float, int]:
        sample, example = run.evaluations.samples[index], run.held_out.examples[index]
        return exact_match(sample.answer, example.golden_answers), len(sample.queries)

    return max(range(len(run.evaluations.samples_before)), key=key)


def _peak_memory_gb(device: torch.device) -> float:
    """Peak memory in 10^9 bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024) / 1e9

"""What a run leaves to read: metrics.jsonl, a line per step, TensorBoard or W&B, rollouts, text for the terminal."""

from __future__ import annotations

import math
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any
from uuid import uuid4

from tqdm import tqdm

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.questions import Example
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.storage.files import append_jsonl, read_jsonl, write_jsonl_atomic, write_text_atomic
from searchr1_mini.storage.forms import METRICS, MOST
from searchr1_mini.storage.printable import one_line, plain

PROMPT_LINES = 6  # of a prompt in the terminal; a chat template with worked examples has dozens
WATCHED = "watched"  # folder of what is answered to the same questions at every evaluation
COLD_START = "cold_start"  # folder of what comes before the first step of RL
SHOWN = {  # in a step's line: the name there, and the form
    "reward": ("reward", "{:.2f}"),
    "searches": ("searches", "{:.2f}"),
    "response_tokens": ("tokens", "{:.0f}"),
    "kl": ("kl", "{:.3f}"),
    "tokens_per_second": ("tokens/s", "{:.0f}"),
}
COLORS = {"prompt": "\x1b[2m", "policy": "\x1b[1;94m", "observation": "\x1b[33m"}


def loggable(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Returns numbers as metrics.jsonl holds them: null for one that is not finite, or beyond all measure."""
    return {key: value if math.isfinite(value) and abs(value) <= MOST else None for key, value in metrics.items()}


class Tracker:
    """Writes the metrics of each step; a context manager that closes what it opened.

    Args:
        run_dir: the run's folder.
        total_steps: of the run.
        first_step: 1, or the step after the checkpoint that a run was resumed from.
        tensorboard, wandb: also write there.
        config: shown by W&B.
        run_name: name of the run in W&B.

    Raises:
        UserError: a logger was asked for whose package is missing.
    """

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        first_step: int,
        tensorboard: bool,
        wandb: bool,
        config: dict,
        run_name: str,
    ) -> None:
        self.total_steps = total_steps
        self.metrics, self.warnings = run_dir / "metrics.jsonl", run_dir / "warnings.jsonl"
        append_jsonl(self.metrics, [])
        self.board = self.wandb = None
        with self._optional("board"):
            self.board = _open_tensorboard(run_dir, first_step) if tensorboard else None
        with self._optional("wandb"):
            self.wandb = _open_wandb(run_name, config, run_dir) if wandb else None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_) -> None:
        with self._optional("board"):
            if self.board:
                self.board.close()
        with self._optional("wandb"):
            if self.wandb:
                self.wandb.finish()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Writes one line of metrics.jsonl; see `loggable`."""
        append_jsonl(self.metrics, [{"step": step, **loggable(metrics)}])
        with self._optional("board"):
            if self.board:
                for key, value in metrics.items():
                    self.board.add_scalar(key, value, step)
        with self._optional("wandb"):
            if self.wandb:
                self.wandb.log(metrics, step=step)

    @contextmanager
    def _optional(self, name: str) -> Iterator[None]:
        """A logger that fails is left out from then on, with a warning: metrics.jsonl holds all that it is told."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each has exceptions of its own
            setattr(self, name, None)
            logger = {"board": "TensorBoard", "wandb": "Weights & Biases"}[name]
            print(f"warning: {logger} is left out from here on: {error}", file=sys.stderr)

    def progress(self, step: int, metrics: dict[str, float], seconds_left: float) -> None:
        """Prints a step's line."""
        shown = [f"{name} {form.format(metrics[key])}" for key, (name, form) in SHOWN.items() if key in metrics]
        shown.append(f"left {tqdm.format_interval(seconds_left)}")
        print(f"step {step}/{self.total_steps} {' '.join(shown)}", flush=True)

    def show_scores(self, step: int, scores: dict[str, float]) -> None:
        """Prints exact match of each source at an evaluation."""
        of_sources = {one_line(key[5:-3]): em for key, em in scores.items() if re.fullmatch(r"(?s)eval/.+/em", key)}
        told = ", ".join(f"{name} {em:.2f}" for name, em in of_sources.items())
        print(f"step {step}: held-out EM {told}", flush=True)

    def warn(self, step: int, warnings: Iterable[str]) -> None:
        """Shows what the stability watch found, and adds it to warnings.jsonl."""
        for warning in warnings:
            print(f"step {step}: warning: {warning}", file=sys.stderr)
            append_jsonl(self.warnings, [{"step": step, "warning": warning}])


def _open_tensorboard(run_dir: Path, first_step: int):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "TensorBoard is not installed; run `pip install tensorboard`, or add --no-tensorboard"
        ) from error
    _silence(threads_of="tensorboard.")
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step if first_step > 1 else None)


def _silence(threads_of: str) -> None:
    """Keeps the tracebacks of a library's threads off the terminal: TensorBoard raises the same again in `log`."""
    told = threading.excepthook

    def tell(failed) -> None:
        if not type(failed.thread).__module__.startswith(threads_of):
            told(failed)

    threading.excepthook = tell


def _open_wandb(name: str, config: dict, run_dir: Path):
    try:
        import wandb
    except ImportError as error:
        raise UserError("Weights & Biases is not installed; run `pip install wandb`, or leave out --wandb") from error
    kept = run_dir / "wandb_id"  # by which a resumed run goes on with its curves
    if not kept.exists():
        write_text_atomic(kept, uuid4().hex)
    return wandb.init(
        project="searchr1-mini", id=kept.read_text(), name=name, config=config, dir=str(run_dir), resume="allow"
    )


def truncate_metrics(path: Path, step: int, form: Any = METRICS) -> list[dict[str, Any]]:
    """Drops what was logged after `step`, so that a resumed run logs every step once; returns what is left."""
    rows = [row for row in read_jsonl(path, form) if row["step"] <= step]
    if path.exists():
        write_jsonl_atomic(path, rows)
    return rows


def trajectory_row(
    trajectory: Trajectory,
    example: Example,
    reward: float,
    advantage: float | None = None,
    of_tokens: Mapping[str, Sequence[float | None]] | None = None,
) -> dict:
    """Makes one line of rollouts/step-N.jsonl: the question, the outcome, and every segment with ids and log-probs.

    Args:
        trajectory, example, reward: the rollout, its question, and what it earned.
        advantage: of all of its tokens, where they share one.
        of_tokens: name -> numbers of the tokens from the second on, None where masked; a segment that is trained on
            gets its own under that name.
    """
    ends = list(accumulate(len(segment.token_ids) for segment in trajectory.segments))

    def numbers(segment: Segment, end: int) -> dict[str, list[float]]:
        span = slice(max(end - len(segment.token_ids) - 1, 0), end - 1)
        parts = {name: values[span] for name, values in (of_tokens or {}).items()}
        return {name: [round(v, 5) for v in part] for name, part in parts.items() if part and None not in part}

    return {
        "example_id": example.id,
        "question": example.question,
        "golden_answers": list(example.golden_answers),
        "source": example.source,
        "reward": reward,
        "advantage": advantage,
        "finish_reason": trajectory.finish_reason,
        "answer": trajectory.answer,
        "queries": trajectory.queries,
        "segments": [
            {"kind": s.kind, "text": s.text, "token_ids": s.token_ids, "logprobs": [round(p, 5) for p in s.logprobs]}
            | numbers(s, end)
            for s, end in zip(trajectory.segments, ends, strict=True)
        ],
    }


def write_rollouts(run_dir: Path, step: int, rows: Iterable[dict]) -> Path:
    """Writes rollouts/step-000010.jsonl, one trajectory per line."""
    folder = run_dir / "rollouts"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.jsonl"
    write_jsonl_atomic(path, rows)
    return path


def write_watched(run_dir: Path, name: str, rows: Iterable[dict]) -> None:
    """Writes watched/base.jsonl, watched/step-000010.jsonl: the same few held-out questions at every evaluation."""
    folder = run_dir / WATCHED
    folder.mkdir(exist_ok=True)
    write_jsonl_atomic(folder / f"{name}.jsonl", rows)


def render_segment(kind: str, text: str, color: bool) -> str:
    """Renders one segment for the terminal: colored by who wrote it, or with the writer's name before each line."""
    if color:
        return f"{COLORS[kind]}{plain(text)}\x1b[0m"
    lines = plain(text).strip("\n").split("\n")
    return "".join(f"{kind:>11} | {line}\n" for line in lines)


def shows_color() -> bool:
    """Tells whether standard output is to be colored: it is a terminal, and nobody set NO_COLOR (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def render_trajectory(trajectory: Trajectory, color: bool) -> str:
    """Renders a trajectory for the terminal, see `render_segment`; of a long prompt its end, with the question."""
    texts = [folded(s.text) if s.kind == "prompt" else s.text for s in trajectory.segments]
    pairs = zip(trajectory.segments, texts, strict=True)
    return "".join(render_segment(segment.kind, text, color) for segment, text in pairs).rstrip("\n")


def folded(text: str) -> str:
    """Folds a text to at most `PROMPT_LINES` lines: the first, how many are left out, and the last."""
    lines = text.strip("\n").split("\n")
    if len(lines) <= PROMPT_LINES:
        return text
    left_out = len(lines) - PROMPT_LINES + 1
    return "\n".join([lines[0], f"(.. {left_out} more lines)", *lines[left_out + 1 :], ""])


def summary_table(columns: dict[str, dict]) -> str:
    """Renders held-out EM, searches per question and response length in tokens, by source and in all, as columns."""
    from rich.cells import cell_len, set_cell_size  # a Chinese letter takes two columns

    measures = {"EM": ("em", "{:.3f}"), "searches": ("searches", "{:.2f}"), "tokens": ("response_tokens", "{:.1f}")}
    first = next(iter(columns.values()))
    rows = [["held-out questions", "", *columns]]
    for source in [*sorted(first["by_source"]), None]:
        parts = [summary["by_source"][source] if source else summary for summary in columns.values()]
        for label, (key, form) in measures.items():
            name = f"{one_line(source or 'all')} ({parts[0]['n']})" if label == "EM" else ""
            rows.append([name, label, *(form.format(part[key]) for part in parts)])
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, label, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[2:], strict=True)]
        lines.append("  ".join([set_cell_size(name, widths[0]), label.ljust(widths[1]), *numbers]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])

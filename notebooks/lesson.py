"""What the notebooks share: the tiny policy, a run without its printed lines, one step, and pictures of tokens."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path

import matplotlib.pyplot as plt
import PIL.Image
import torch
from IPython.display import Image, display
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from transformers import PreTrainedTokenizerBase

from searchr1_mini.core.policy import Policy
from searchr1_mini.core.training import Reward, train_policy
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.models.loading import load_policy, pick_device
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve, resolve_model
from searchr1_mini.pages.report import write_report
from searchr1_mini.run.museum import HINTS, active_bug, planted
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.run import Run
from searchr1_mini.run.training import configured_reward, train
from searchr1_mini.run.variant import configured_variant
from searchr1_mini.storage.files import read_jsonl

# Okabe and Ito's colors, told apart by every eye; those of writers are light enough for dark text
BLUE, ORANGE, GREEN, RED, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
WRITERS = {"prompt": "#DDDDDD", "policy": "#9CCBE8", "observation": "#F5CE7E"}
NEWLINE, BLANK = "↵", "·"


def load_tiny(weights: Path | None = None, **options) -> tuple[TrainConfig, Policy]:
    """The tiny base with its adapter, in float32, on the best device there is.

    Args:
        weights: of a run, `<checkpoint>/model`.
        options: of `TrainConfig`.

    Returns:
        The resolved config, and the policy.
    """
    config = resolve(make(TrainConfig, **options))
    policy = load_policy(
        resolve_model("tiny"),
        lora_rank=config.weights.lora_rank,
        lora_alpha=config.weights.lora_alpha,
        load_in_4bit=False,
        dtype=torch.float32,
        device=pick_device("auto"),
        weights=weights,
        seed=config.optimization.seed,
    )
    return config, policy


def train_quietly(folder: str, **options) -> Path:
    """`train.py` with these options into `folder`, without its printed lines; returns the folder."""
    config = resolve(make(TrainConfig, output_dir=folder, tensorboard=False, **options))
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return train(config, write_report)


def read_rollouts(folder: Path, step: int) -> tuple[list[dict], list[Trajectory]]:
    """Reads the rollouts of a run's step: the N lines of their file, and what they tell as N trajectories."""
    lines, trajectories = read_jsonl(folder / "rollouts" / f"step-{step:06d}.jsonl"), []
    for line in lines:
        segments = [Segment(s["kind"], s["token_ids"], s["logprobs"], s["text"]) for s in line["segments"]]
        asked = line["finish_reason"], line["answer"], line["queries"]
        trajectories.append(Trajectory(line["example_id"], segments, *asked))
    return lines, trajectories


class OneStep:
    """A run as the loop sees it when it has one step; `metrics` holds what that step logs, and nothing is printed."""

    def __init__(self, run: Run, step: int) -> None:
        self.run, self.step, self.metrics = run, step, {}

    def __getattr__(self, name: str):
        return getattr(self.run, name)

    def steps(self) -> Iterator[int]:
        """The step, then no more: neither an evaluation nor a checkpoint follows it."""
        self.run.step, self.run.step_began, self.run.log_step = self.step, time.perf_counter(), self.metrics.update
        try:
            yield self.step
        finally:
            del self.run.log_step  # the run's own again
        self.run.finish_step(self.step, self.metrics)


def one_step(run: Run, step: int, reward: Reward | None = None) -> dict[str, float]:
    """Trains one step of a run by the loop itself; returns the step's row of metrics.jsonl.

    Args:
        run: opened.
        step: its number, which with the run's seed draws questions and tokens.
        reward: what a rollout earns, instead of what the run's options say.
    """
    one, config = OneStep(run, step), run.config
    reward = reward or configured_reward(config)
    parts = run.policy, run.critic, run.environment, run.optimizer
    train_policy(*parts, config, one, reward, configured_variant(config))
    return one.metrics


def first_step(take: Callable[[Run], dict[str, float]], **options) -> list[float]:
    """What the first step of a new run logs when `take(run)` trains it, under the fault that the options plant.

    Args:
        take: trains the step and returns its row, as `lambda run: one_step(run, 1)` does.
        options: of `TrainConfig`.

    Returns:
        The row's numbers in the order of their names, without times and without what a hunt does not log; none if
        `take` returned no row.
    """
    config = resolve(make(TrainConfig, output_dir=f"{tempfile.mkdtemp()}/run", tensorboard=False, **options))
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        run = open_run(config)
        with planted(active_bug(config.run), run.policy.tokenizer):
            row = take(run) or {}
    return [row[name] for name in sorted(row) if "second" not in name and name not in HINTS]


def pieces_of(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each token spells, with blanks and line ends made visible."""
    texts = [tokenizer.decode([token]) for token in token_ids]
    return [text.replace(" ", BLANK).replace("\n", NEWLINE) or "?" for text in texts]


def draw_tokens(
    pieces: Sequence[str],
    colors: Sequence[str],
    legend: dict[str, str],
    title: str = "",
    struck: Sequence[int] = (),
    columns: int = 96,
) -> None:
    """Shows tokens as boxes, in reading order; a line ends where a token ends in a line feed, or is full.

    Args:
        pieces: N texts, see `pieces_of`.
        colors: N.
        legend: meaning -> color.
        struck: indices of tokens that get a thick red frame.
        columns: characters a line.
    """
    places, x, y = [], 0, 0
    for piece in pieces:
        if x + len(piece) > columns:
            x, y = 0, y + 1
        places.append((x, y))
        x += len(piece)
        if piece.endswith(NEWLINE):
            x, y = 0, y + 1
    n_lines = max(line for _, line in places) + 1
    figure, axes = plt.subplots(figsize=(10, 0.24 * n_lines + 0.7))
    for index, (piece, color, (left, line)) in enumerate(zip(pieces, colors, places, strict=True)):
        is_struck = index in struck
        edge = {"edgecolor": RED, "linewidth": 2, "zorder": 2} if is_struck else {"edgecolor": "white", "linewidth": 1}
        axes.add_patch(Rectangle((left, line), len(piece), 0.9, facecolor=color, **edge))
        axes.text(left + len(piece) / 2, line + 0.45, piece, family="monospace", fontsize=9, ha="center", va="center",
                  zorder=3, parse_math=False)  # fmt: skip
    axes.set(xlim=(0, columns), ylim=(n_lines, 0), title=title)
    axes.axis("off")
    handles = [Patch(facecolor=color, label=meaning) for meaning, color in legend.items()]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(handles), frameon=False)
    figure.tight_layout()
    _show_small(figure)


def _show_small(figure: Figure) -> None:
    """Displays a figure as a PNG of 48 colors: a quarter of the size, and no difference to be seen."""
    full, small = BytesIO(), BytesIO()
    figure.savefig(full, dpi=90)
    plt.close(figure)
    PIL.Image.open(full).convert("RGB").quantize(48).save(small, "PNG", optimize=True)
    display(Image(small.getvalue()))


def draw_trajectory(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, title: str = "") -> None:
    """Shows a trajectory's tokens, colored by who wrote them."""
    ids = trajectory.token_ids
    colors = [WRITERS[segment.kind] for segment in trajectory.segments for _ in segment.token_ids]
    draw_tokens(pieces_of(ids, tokenizer), colors, WRITERS, title)

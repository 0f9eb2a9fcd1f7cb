"""Runs as they lie on disk, small and known to the last number, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.hostile import Hostile

from searchr1_mini.core.questions import Example
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.pages.report import METRICS
from searchr1_mini.run.log import Tracker, trajectory_row, write_rollouts

LOGPROB, RATIO, ADVANTAGES = -0.5, 1.25, (1.5, -0.5)  # of each policy token; PPO's of the first half, of the second


def row(tokenizer, question: str, turn: str, passage: str, reward: float, finish: str, gold: str, ppo=False) -> dict:
    """One rollout: the question, a turn, a passage, the turn again, in the tokens of a real tokenizer."""
    segments = []
    for kind, text in (
        ("prompt", f"Question: {question}\n"),
        ("policy", turn),
        ("observation", passage),
        ("policy", turn),
    ):
        ids = tokenizer(text)["input_ids"]
        segments.append(Segment(kind, ids, [LOGPROB] * len(ids) if kind == "policy" else [], text))
    mask = [segment.kind == "policy" for segment in segments for _ in segment.token_ids][1:]
    of_tokens: dict[str, list[float | None]] = {"ratios": [RATIO if is_ours else None for is_ours in mask]}
    if ppo:
        halves = [ADVANTAGES[2 * index >= len(mask)] for index in range(len(mask))]
        of_tokens["advantages"] = [value if is_ours else None for value, is_ours in zip(halves, mask, strict=True)]
    trajectory = Trajectory(question, segments, finish, gold if reward else "Bern", [question])
    example = Example(question, question, (gold,), "world-1hop")
    return trajectory_row(trajectory, example, reward, None if ppo else 2 * reward - 1, of_tokens) | {"in_update": True}


def write_run(folder: Path, tokenizer, ppo: bool = False) -> Path:
    """Three steps of three questions with four rollouts each.

    Right are the second rollout of the second question and the third of the third, but for step 1, where none is. The
    last rollout of each question was cut by the limit.
    """
    fill_run(folder)
    tokenizer.save_pretrained(folder / "checkpoints" / "step-000003" / "model")
    (folder / "config.json").write_text(json.dumps({"model": "tiny", "algorithm": "ppo" if ppo else "grpo", "seed": 0}))
    for step in (1, 2, 3):
        rows = [
            row(
                tokenizer,
                f"Who founded town {question}?",
                f"<think> Step {step}, rollout {k}. </think>\n<search> founder of town {question} </search>",
                f"\n\n<information>Doc 1(Title: Town {question}) It was founded by Ada.</information>\n\n",
                float(step > 1 and 0 < k == question),
                "length" if k == 3 else "answer",
                "Ada",
                ppo,
            )
            for question in range(3)
            for k in range(4)
        ]
        write_rollouts(folder, step, rows)
    return folder


def write_hostile_run(folder: Path, hostile: list[Hostile], tokenizer=None) -> Path:
    """A run that asks one question for each hostile set; its passage, turn, gold answer and ending are hostile too.

    Without a tokenizer the ids mean nothing, and the text of a segment is shown as it is.
    """
    fill_run(folder, hostile[0].question)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "checkpoints" / "step-000003" / "model")
    for step in (1, 2, 3):
        rows = []
        for one in hostile[step - 1 :: 3]:
            passage = "\n".join(text for pair in one.passages for text in pair)[:3000]
            if tokenizer is None:
                segments = [Segment(kind, [1], [LOGPROB] if kind == "policy" else [], text) for kind, text in
                            (("prompt", one.question), ("policy", one.question), ("observation", passage))]  # fmt: skip
                trajectory = Trajectory(one.name, segments, one.question, one.question)
                example = Example(one.name, one.question, (one.question,), one.question)
                rows.append(trajectory_row(trajectory, example, 1.0, 0.5))
            else:
                made = row(tokenizer, one.question, one.question, passage, 1.0, "answer", one.question)
                rows.append(made | {"example_id": one.name})
        write_rollouts(folder, step, rows)
    return folder


PART = {"em": 0.5, "f1": 0.5, "searches": 1.0, "response_tokens": 30.0, "answered": 1.0, "n": 10}


SUMMARY = {**PART, "n": 20, "by_source": {"world-1hop": PART, "world-2hop": {**PART, "em": 0.25}}}


def trajectory(text: str) -> Trajectory:
    kinds = ("prompt", "policy", "observation", "policy")
    return Trajectory(
        "q", [Segment(kind, [1], [-0.5] if kind == "policy" else [], text) for kind in kinds], "answer", text
    )


def row_of(text: str) -> dict:
    return trajectory_row(trajectory(text), Example("q", text, (text,), "s"), 1.0, 0.5)


def fill_run(run_dir, text="hello"):
    run_dir.mkdir(exist_ok=True)
    with Tracker(run_dir, 3, 1, False, False, {}, "r") as tracker:
        for step in (1, 2, 3):
            metrics = {key: step / 3 for key in METRICS} | {"eval/world-1hop/em": 0.1 * step}
            tracker.log(step, metrics | {"eval/world-1hop/searches": 1.0, "kl": float("nan")})
            write_rollouts(run_dir, step, [row_of(text)])
    (run_dir / "summary.json").write_text(
        json.dumps({"before": SUMMARY, "after": SUMMARY, "after_without_retriever": SUMMARY, "train_seconds": 1,
                    "total_seconds": 2, "steps": 3, "peak_memory_gb": 0.5})
    )  # fmt: skip
    (run_dir / "config.json").write_text(json.dumps({"model": "tiny", "seed": 0}))

"""Learning by imitation, the paper's trained baselines: SFT on gold answers, and rejection sampling.

Both are maximum likelihood on trajectories, with the loss mask of RL (paper, section 4.2): SFT imitates `question ->
answer` without a search; rejection sampling imitates those of 5 rollouts a question, with search, that were right.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch

from searchr1_mini.core import interrupt
from searchr1_mini.core.algorithms import loss_weights
from searchr1_mini.core.batch import Batch, build_batch, mini_batches
from searchr1_mini.core.distributed import any_of, gather, on_main
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.optimizer import over_micro_batches
from searchr1_mini.core.prompts import opening_of
from searchr1_mini.core.questions import Example
from searchr1_mini.core.rewards import exact_match
from searchr1_mini.core.rollout import rollout
from searchr1_mini.core.schedule import learning_rates, set_learning_rates
from searchr1_mini.core.trajectory import Segment, Trajectory, opened_by
from searchr1_mini.core.update import apply_gradients, forward, means_over_updates
from searchr1_mini.data.datasets import subset
from searchr1_mini.run.invariants import check_batch
from searchr1_mini.run.session import Session
from searchr1_mini.storage.files import append_jsonl, read_jsonl
from searchr1_mini.storage.forms import DEMONSTRATIONS

CHUNK = 64  # questions that are sampled, and kept, at a time


def imitates(algorithm: str) -> bool:
    """Whether the algorithm learns from demonstrations, not from rewards."""
    return algorithm in ("sft", "rejection-sampling")


def demonstrations(run: Session) -> list[Trajectory]:
    """What the run imitates; sampled rollouts are kept in its folder, so that an interrupted run samples on.

    Raises:
        Stopped: the user asked to stop; what was sampled is kept.
        UserError: no rollout was right.
    """
    examples = subset(run.train.examples, run.config.imitation.demonstration_questions)
    if run.config.run.algorithm == "sft":
        return [gold_demonstration(run, example) for example in examples]
    path = run.folder / "demonstrations.jsonl"
    rows = on_main(lambda: read_jsonl(path, DEMONSTRATIONS))
    for row in sample_chunks(run, examples[len(rows) * CHUNK :], len(rows)):
        append_jsonl(path, [row])
        rows.append(row)
        if any_of(interrupt.is_asked()):
            raise interrupt.Stopped
    kept = [Trajectory.from_json(trajectory) for row in rows for trajectory in row["right"]]
    n_sampled = sum(row["sampled"] for row in rows)
    print(f"rejection sampling: {len(kept)} of {n_sampled} rollouts were right and are learnt from", flush=True)
    if not kept:
        raise UserError(
            f"none of {n_sampled} rollouts was right, so that there is nothing to imitate; raise --group-size or "
            "--demonstration-questions, or take a stronger --model"
        )
    return kept


def gold_demonstration(run: Session, example: Example) -> Trajectory:
    """The method's prompt, then the first gold answer in its tags as if the policy had written it."""
    text = run.make_method(example.question).send(None).text
    prompt = run.policy.encode_prompt(text)
    answer = f"<answer> {example.golden_answers[0]} </answer>".removeprefix(opening_of(text))
    if opened_by(run.policy.tokenizer.decode(prompt)).strip() == "<think>":  # by the chat template
        answer = "</think>\n" + answer
    ids = run.policy.tokenizer(answer, add_special_tokens=False)["input_ids"]
    segments = [Segment("prompt", prompt, text=text), Segment("policy", ids, [0.0] * len(ids), answer)]
    return Trajectory(example.id, segments, "answer", example.golden_answers[0])


def sample_chunks(run: Session, examples: Sequence[Example], first: int) -> Iterator[dict]:
    """Samples `CHUNK` questions at a time, `group_size` rollouts each; yields the number of them and the right ones."""
    config = run.config
    for start in range(0, len(examples), CHUNK):
        group = [example for example in examples[start : start + CHUNK] for _ in range(config.optimization.group_size)]
        trajectories, _ = rollout(
            group, run.make_method, run.policy, run.train.retriever, run.limits,
            temperature=config.rollout.temperature, seed=config.run.seed * 1_000_003 + first + start // CHUNK,
        )  # fmt: skip
        pairs = zip(trajectories, group, strict=True)
        right = [asdict(trajectory) for trajectory, e in pairs if exact_match(trajectory.answer, e.golden_answers)]
        yield {"sampled": len(group), "right": right}


def imitation_step(run: Session, chosen: Sequence[Trajectory]) -> dict[str, float]:
    """`epochs` passes over some demonstrations in `mini_batches` optimiser steps each; returns means of their logs."""
    config = run.config
    began = time.perf_counter()
    batch = build_batch(chosen, [1.0] * len(chosen), range(len(chosen)), run.policy.tokenizer.pad_token_id)
    check_batch(batch, chosen, mask_observations=True)
    batch = batch.to(run.policy.device)
    shuffle = torch.Generator().manual_seed(run.updates * 7919 + config.run.seed)
    n_updates = config.optimization.epochs * min(config.optimization.mini_batches, len(chosen))
    logs: list[dict[str, float]] = []
    for _ in range(config.optimization.epochs):
        for rows in mini_batches(range(len(chosen)), config.optimization.mini_batches, shuffle):
            if rows:
                set_learning_rates(run.optimizer, learning_rates(config, run.step, n_updates - len(logs) - 1))
                logs.append(imitation_update(run, batch.select(rows), is_first=not logs))
    seconds = time.perf_counter() - began
    return means_over_updates(logs) | {"seconds": seconds, "tokens_per_second": int(batch.lengths.sum()) / seconds}


def imitation_update(run: Session, batch: Batch, is_first: bool) -> dict[str, float]:
    """One optimiser step on the loss -mean log pi over policy tokens, gradients accumulated over micro-batches."""
    weights = loss_weights(batch.loss_mask, "token")

    def backward(rows: list[int]) -> tuple[float, float]:
        part = batch.select(rows)
        logprobs, entropy = forward(run.policy, part, temperature=1.0)
        part_weights = weights[rows, : logprobs.shape[1]]
        loss = -(logprobs * part_weights).sum()
        run.scaler.scale(loss).backward()
        return loss.item(), (entropy * part_weights).sum().item()

    with run.policy.training(run.config.weights.gradient_checkpointing):
        logs = over_micro_batches(run, batch, backward, may_stop=is_first)
    totals = dict(zip(("loss", "entropy"), map(sum, zip(*gather(logs), strict=True)), strict=True))
    return totals | apply_gradients(run, totals["loss"])

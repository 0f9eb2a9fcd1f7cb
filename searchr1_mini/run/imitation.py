"""Learning by imitation, the paper's trained baselines: SFT on gold answers, and rejection sampling.

Both are maximum likelihood on trajectories, with the loss mask of RL (paper, section 4.2): SFT imitates `question ->
answer` without a search; rejection sampling imitates those of 5 rollouts per question, with search, that were right.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor

from searchr1_mini.core import interrupt
from searchr1_mini.core.algorithms import loss_weights
from searchr1_mini.core.batch import build_batch
from searchr1_mini.core.config import OptimizationConfig
from searchr1_mini.core.distributed import any_process
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.experience import Experience, policy_logprobs, update_rows
from searchr1_mini.core.optimizer import Optimizer
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.prompts import neutralize_tags
from searchr1_mini.core.questions import Example, step_slice
from searchr1_mini.core.rewards import exact_match
from searchr1_mini.core.rollout import rollout
from searchr1_mini.core.trajectory import Segment, Trajectory, opened_by
from searchr1_mini.data.datasets import subset
from searchr1_mini.data.scripts import written
from searchr1_mini.run.invariants import check_batch
from searchr1_mini.run.processes import on_main
from searchr1_mini.run.templates import template_opening
from searchr1_mini.storage.files import append_jsonl, read_jsonl
from searchr1_mini.storage.forms import DEMONSTRATIONS

if TYPE_CHECKING:
    from searchr1_mini.run.run import Run

CHUNK = 64  # questions that are sampled, and kept, at a time


def imitates(algorithm: str) -> bool:
    """Tells whether the algorithm learns from demonstrations, not from rewards."""
    return algorithm in ("sft", "rejection-sampling")


def demonstrations(run: Run) -> list[Trajectory]:
    """Returns what the run imitates; sampled rollouts are kept in its folder, so that an interrupted run samples on.

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
        if any_process(interrupt.is_asked()):
            raise interrupt.Stopped
    kept = [Trajectory.from_json(trajectory) for row in rows for trajectory in row["right"]]
    n_sampled = sum(row["sampled"] for row in rows)
    print(f"rejection sampling: {len(kept)} of {n_sampled} rollouts were right and will be imitated", flush=True)
    if not kept:
        raise UserError(
            f"none of {n_sampled} rollouts was right, so there is nothing to imitate; raise --group-size or "
            "--demonstration-questions, or take a stronger --model"
        )
    return kept


def gold_demonstration(run: Run, example: Example) -> Trajectory:
    """Returns the method's prompt, then the first gold answer in its tags as if the policy had written it."""
    text = run.make_method(example.question).send(None).text
    prompt = run.policy.encode_prompt(text)
    gold = example.golden_answers[0]
    answer = f"<answer> {neutralize_tags(gold)} </answer>".removeprefix(template_opening(text))
    if opened_by(run.policy.tokenizer.decode(prompt)).strip() == "<think>":  # by the chat template
        answer = "</think>\n" + answer
    answer, ids = written(answer, run.policy.tokenizer)
    segments = [Segment("prompt", prompt, text=text), Segment("policy", ids, [0.0] * len(ids), answer)]
    return Trajectory(example.id, segments, "answer", gold)


def sample_chunks(run: Run, examples: Sequence[Example], first: int) -> Iterator[dict]:
    """Samples `CHUNK` questions at a time, `group_size` rollouts each; yields the number of them and the right ones."""
    config = run.config
    for start in range(0, len(examples), CHUNK):
        group = [example for example in examples[start : start + CHUNK] for _ in range(config.optimization.group_size)]
        trajectories, _ = rollout(
            group, run.make_method, run.policy, run.train.retriever, run.limits,
            temperature=config.rollout.temperature, seed=config.optimization.seed * 1_000_003 + first + start // CHUNK,
        )  # fmt: skip
        pairs = zip(trajectories, group, strict=True)
        right = [asdict(trajectory) for trajectory, e in pairs if exact_match(trajectory.answer, e.golden_answers)]
        yield {"sampled": len(group), "right": right}


def imitate(run: Run, demonstrations: Sequence[Trajectory]) -> None:
    """Takes every step of a run of imitation: a batch of demonstrations, drawn by the run's seed."""
    config = run.config.optimization
    for step in run.steps():
        chosen = step_slice(demonstrations, step, config.questions_per_step, config.seed)
        run.log_step(imitation_step(run.policy, run.optimizer, chosen, step, config))


def imitation_step(
    policy: Policy, optimizer: Optimizer, chosen: Sequence[Trajectory], step: int, config: OptimizationConfig
) -> dict[str, float]:
    """Makes `epochs` passes over demonstrations in `mini_batches` optimizer steps each; returns means of their logs.

    The loss is -mean log pi over the tokens that the policy is to write.
    """
    began = time.perf_counter()
    batch = build_batch(chosen, [1.0] * len(chosen), range(len(chosen)), policy.tokenizer.pad_token_id)
    check_batch(batch, chosen, mask_observations=True)
    batch = batch.to(policy.device)

    def losses(part: Experience) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        logprobs, entropy = policy_logprobs(policy, part.batch, temperature=1.0)
        loss = -(logprobs * part.weights).sum()
        yield loss, {"loss": loss.detach(), "entropy": (entropy * part.weights).sum().detach()}

    passes = update_rows(range(len(chosen)), config, optimizer.updates)
    optimizer.begin(step, sum(map(len, passes)))
    for rows in chain.from_iterable(passes):
        part = batch.select(rows)
        optimizer.step(Experience(part, weights=loss_weights(part.loss_mask, "token")), losses)
    seconds = time.perf_counter() - began
    told = {"trained_tokens": int(batch.loss_mask.sum()) * config.epochs, "seconds": seconds}
    return optimizer.metrics() | told | {"tokens_per_second": int(batch.lengths.sum()) / seconds}

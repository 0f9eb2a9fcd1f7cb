"""What any critic could know of a finished PPO run on the tiny base: `python benchmarks/critic_ceiling.py runs/NAME`.

Explained variance of the returns (gamma = lambda = 1) on the rollouts of its last steps, for two kinds of values: those
of an oracle that expects the mean until the answer is written and then knows whether it is right, and those of ridge
regressions on all the hidden states and log-probs of the trained policy, fitted on the steps before.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from searchr1_mini.core.algorithms import explained_variance
from searchr1_mini.core.batch import build_batch, micro_batches
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.models.loading import load_policy
from searchr1_mini.options.resolve import resolve_model
from searchr1_mini.storage import checkpoint
from searchr1_mini.storage.files import read_jsonl


@dataclass
class Tokens:
    """Policy tokens of some steps: `features` (N, D), `returns` (N,), `is_known` (N,): the answer stands already."""

    features: Tensor
    returns: Tensor
    is_known: Tensor


def main() -> None:
    """Fits on all but the last steps and prints both values on the last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=20, help="that are read, from the last")
    parser.add_argument("--held-out", type=int, default=6, help="of them, to measure on")
    args = parser.parse_args()
    torch.set_num_threads(2)
    weights = checkpoint.latest_checkpoint(args.run) / "model"
    policy = load_policy(
        resolve_model("tiny"),
        lora_rank=16,
        lora_alpha=32,
        load_in_4bit=False,
        dtype=torch.float32,
        device=torch.device("cpu"),
        weights=weights,
    )
    files = sorted((args.run / "rollouts").glob("step-*.jsonl"))[-args.steps :]
    seen, unseen = (tokens_of(part, policy) for part in (files[: -args.held_out], files[-args.held_out :]))
    mean = unseen.returns.mean()
    print(f"{args.run}: mean return {mean:.3f} over the last {args.held_out} steps, {len(unseen.returns)} tokens")
    show("oracle that knows from the answer on", torch.where(unseen.is_known, unseen.returns, mean), unseen)
    for penalty in (1e2, 1e3, 1e4, 1e5):
        show(f"ridge regression, penalty {penalty:g}", ridge(seen, unseen.features, penalty), unseen)


def show(name: str, values: Tensor, tokens: Tokens) -> None:
    """Prints one explained variance."""
    print(f"{name}: {explained_variance(values, tokens.returns, torch.ones_like(tokens.is_known)).item():.3f}")


def ridge(seen: Tokens, features: Tensor, penalty: float) -> Tensor:
    """Values (N,) by linear regression on standardized features."""
    mean, std = seen.features.mean(0), seen.features.std(0) + 1e-4
    x = (seen.features - mean) / std
    gram = x.T @ x + penalty * torch.eye(x.shape[1])
    weights = torch.linalg.solve(gram, x.T @ (seen.returns - seen.returns.mean()))
    return (features - mean) / std @ weights + seen.returns.mean()


def tokens_of(files: list[Path], policy: Policy) -> Tokens:
    """Every policy token's state just before it is written, with the policy's own log-probs up to there."""
    parts: list[Tokens] = []
    rows = [row for file in files for row in read_jsonl(file)]
    names = [field.name for field in fields(Segment)]
    segments = [[Segment(**{name: part[name] for name in names}) for part in row["segments"]] for row in rows]
    trajectories = [Trajectory(row["example_id"], parts) for row, parts in zip(rows, segments, strict=True)]
    batch = build_batch(trajectories, [row["reward"] for row in rows], range(len(rows)), 0)
    answered = torch.tensor([answer_length(row, policy) for row in rows])
    for chosen in micro_batches(batch.lengths.tolist(), 8192):
        part = batch.select(chosen)
        with torch.no_grad():
            out = policy.model(part.input_ids, position_ids=part.position_ids, output_hidden_states=True)
        log_p = out.logits[:, :-1].log_softmax(-1)
        entropy, sampled = -(log_p.exp() * log_p).sum(-1), part.old_logprobs * part.loss_mask
        before = torch.cat([torch.zeros_like(sampled[:, :1]), sampled[:, :-1]], 1)
        own = torch.stack([entropy, log_p.amax(-1), before.cumsum(1), before.cummin(1).values], -1)
        features = torch.cat([hidden[:, :-1] for hidden in out.hidden_states[1:]] + [own], -1)
        to_come = part.loss_mask.flip(1).cumsum(1).flip(1)
        is_known = to_come <= answered[chosen, None]
        returns = part.rewards[:, None].expand_as(is_known)
        parts.append(Tokens(*(values[part.loss_mask] for values in (features, returns, is_known))))
    return Tokens(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def answer_length(row: dict, policy: Policy) -> int:
    """Tokens that the policy still wrote after its answer's last word; 0 without an answer."""
    last = [segment["token_ids"] for segment in row["segments"] if segment["kind"] == "policy"][-1]
    for n in range(1, len(last)):
        if row["answer"] and row["answer"] in policy.tokenizer.decode(last[:n]):
            return len(last) - n
    return 0


if __name__ == "__main__":
    main()

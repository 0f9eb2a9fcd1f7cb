"""How far log-probs of sampling and of the update lie apart before any update: `python benchmarks/sampler_noise.py`.

Takes train.py's flags. A step's rollouts are sampled, and their log-probs computed again as the update computes them.
The differences are rounding, and what a clip of a sequence's ratio would make of them is counted.
"""

from __future__ import annotations

import tempfile

from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import with_options
from searchr1_mini.options.resolve import resolve

CLIPS = ((0.0003, 0.0004), (0.003, 0.004), (0.2, 0.2))  # GSPO's, ten times that, GRPO's


def main() -> None:
    """Prints the differences of each token and of each trajectory's mean, in nats."""
    config = resolve(parse(TrainConfig, "sampler_noise.py", __doc__.splitlines()[0]))
    with tempfile.TemporaryDirectory() as folder:
        measure(with_options(config, output_dir=f"{folder}/run", tensorboard=False))


def measure(config: TrainConfig) -> None:
    """One step's rollouts, and a forward over them."""
    from searchr1_mini.core.batch import build_batch
    from searchr1_mini.core.experience import all_logprobs
    from searchr1_mini.core.training import collect
    from searchr1_mini.run.opening import open_run
    from searchr1_mini.run.training import configured_reward

    run = open_run(config)
    rollouts = collect(run.policy, run.environment, config, 1, configured_reward(config))
    batch = build_batch(rollouts.trajectories, rollouts.rewards, rollouts.group_ids, run.policy.tokenizer.pad_token_id)
    batch = batch.to(run.policy.device)
    with run.policy.training():
        now = all_logprobs(run.policy, batch, config.rollout.temperature, run.optimizer.micro_batches)
    change = (now - batch.old_logprobs) * batch.loss_mask
    of_tokens = change[batch.loss_mask].abs()
    ratios = (change.sum(1) / batch.loss_mask.sum(1)).exp()
    quantiles = ", ".join(f"{q:.0%} {of_tokens.quantile(q).item():.2g}" for q in (0.5, 0.9, 0.99))
    print(
        f"{len(of_tokens)} tokens of {len(ratios)} trajectories: mean {of_tokens.mean().item():.2g}, {quantiles}, "
        f"largest {of_tokens.max().item():.2g}; ratios of trajectories {ratios.min().item():.4f} to "
        f"{ratios.max().item():.4f}"
    )
    for low, high in CLIPS:
        n_outside = int(((ratios < 1 - low) | (ratios > 1 + high)).sum())
        print(f"outside of 1 - {low:g} to 1 + {high:g}: {n_outside} of {len(ratios)}")


if __name__ == "__main__":
    main()

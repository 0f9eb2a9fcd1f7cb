"""Options of the method, one dataclass per concern; each option is declared once, with its meaning and its bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

MOST_STEPS, MOST_TOKENS = 10**6, 2**20
MOST_SEED = 2**32 - 1  # seeds of steps, rounds and updates are made of it, and torch takes 64 bits


def option(default: Any, help_text: str, **bounds: float):
    """A field with its meaning and unit for --help, and its `least` (or `above`) and `most`."""
    return field(default=default, metadata={"help": help_text, "least": None, "above": None, "most": None} | bounds)


@dataclass(frozen=True)
class RolloutConfig:
    """What bounds a rollout, and how it is sampled."""

    max_turns: int = option(4, "actions a question; then one last turn without search", least=1, most=1000)
    max_new_tokens: int | None = option(None, "tokens a turn", least=1, most=MOST_TOKENS)
    max_total_tokens: int | None = option(None, "tokens a trajectory, prompt included", least=16, most=MOST_TOKENS)
    max_observation_tokens: int | None = option(None, "tokens an observation", least=16, most=MOST_TOKENS)
    temperature: float = option(1.0, "of sampling, in rollouts and in the loss alike", above=0, most=100)
    rollout_batch_size: int | None = option(
        None,
        "conversations decoded at a time; lower it to save memory",
        least=1,
        most=10**6,
    )


@dataclass(frozen=True)
class OptimizationConfig:
    """Steps, and what each of them learns from at which rate."""

    seed: int = option(0, "of the world, the order of questions, sampling and the adapter", least=0, most=MOST_SEED)
    steps: int | None = option(None, "training steps", least=1, most=MOST_STEPS)
    questions_per_step: int | None = option(None, "questions a step", least=1, most=10**6)
    stratify: bool = option(
        False, "take equal shares of every source into a step; in the world, of every number of hops"
    )
    group_size: int | None = option(None, "rollouts a question (G); 1 is REINFORCE", least=1, most=10_000)
    mini_batches: int = option(2, "optimizer steps a pass over the rollouts", least=1, most=10**6)
    epochs: int = option(1, "passes over the rollouts of a step", least=1, most=1000)
    learning_rate: float | None = option(
        None,
        "[default: LoRA 3e-3 for tiny, else 2e-5; full fine-tuning 5e-4 for tiny, else 1e-6]",
        above=0,
        most=10,
    )
    warmup_steps: int | None = option(None, "steps of linear warm-up, then constant", least=0, most=MOST_STEPS)
    decay_steps: int | None = option(
        None,
        "last steps, over which the learning rate falls to 0",
        least=0,
        most=MOST_STEPS,
    )
    weight_decay: float = option(0.0, "of AdamW", least=0, most=10)
    grad_clip: float = option(1.0, "largest norm of the gradient", above=0, most=1e9)
    tokens_per_micro_batch: int | None = option(
        None,
        "tokens a forward and backward; lower it to save memory",
        least=1,
        most=2**24,
    )
    max_skipped_updates: int = option(
        10,
        "stop after so many updates in a row whose loss or gradient was not finite",
        least=1,
        most=MOST_STEPS,
    )


@dataclass(frozen=True)
class RewardConfig:
    """What a trajectory earns."""

    reward: Literal["em", "sub-em", "f1", "format"] | str = option(
        "em",
        "format: exact match with the public code's partial credit for a well-formed trajectory; or your own as "
        "my_rewards.py:name",
    )
    retrieval_bonus: float = option(
        0.0, "added to a wrong answer's reward if a passage held the right one", least=0, most=10
    )
    search_cost: float = option(0.0, "taken off a right answer for each search beyond the first", least=0, most=1)
    overlong: Literal["keep", "drop", "penalise"] = option(
        "keep", "trajectories cut by --max-total-tokens: keep, drop from the loss, or penalise softly (DAPO)"
    )
    overlong_buffer: int = option(
        64, "tokens before the limit over which the penalty grows to 1", least=1, most=MOST_TOKENS
    )


@dataclass(frozen=True)
class ObjectiveConfig:
    """The objective of GRPO and its relatives, and of PPO's policy."""

    baseline: Literal["group", "leave-one-out", "batch", "group-batch", "none"] = option(
        "group",
        "what a reward is compared with: the group's mean, the others' (RLOO), the step's mean (REINFORCE++), the "
        "group's mean over the step's std (REINFORCE++ with a baseline), nothing (REINFORCE)",
    )
    normalize_std: bool = option(True, "divide a group's advantages by the std of its rewards; Dr. GRPO does not")
    drop_zero_variance: bool | None = option(None, "leave out groups whose rewards are all equal")
    dynamic_sampling: int = option(
        1,
        "rounds of rollouts a step at most, to replace groups whose rewards are all equal (DAPO)",
        least=1,
        most=100,
    )
    loss_aggregation: Literal["token", "sequence", "constant"] = option(
        "token",
        "mean over tokens (DAPO), over sequences of their means (GRPO), or sum over a constant (Dr. GRPO)",
    )
    ratio: Literal["token", "sequence"] = option(
        "token", "importance ratio of each token, or of the whole trajectory (GSPO)"
    )
    clip_eps: float = option(0.2, "the ratio is clipped below at 1 - this", above=0, most=1)
    clip_eps_high: float | None = option(
        None, "and above at 1 + this; more is DAPO's clip-higher [default: --clip-eps]", above=0, most=1000
    )
    kl_coef: float = option(0.001, "beta, weight of the KL to the reference; 0 does without", least=0, most=1000)
    kl_estimator: Literal["k1", "k2", "k3"] | None = option(
        None, "of the KL [default: k3, in the loss, for grpo; k1, in the reward, for ppo]"
    )
    entropy_coef: float = option(0.0, "weight of an entropy bonus", least=0, most=1000)
    importance_cap: float | None = option(
        None,
        "weigh tokens by trainer / sampler probability, at most this [default: no weights]",
        above=0,
        most=10_000,
    )
    llds_coef: float = option(
        0.0, "weight of the likelihood-preserving regularizer LLDS (arXiv 2512.04220)", least=0, most=1000
    )
    mask_observations: bool = option(True, "keep what the engine returned out of the loss (paper, section 5.4)")


@dataclass(frozen=True)
class PPOConfig:
    """What PPO has besides: a critic, and GAE."""

    critic_learning_rate: float | None = option(
        None, "of the critic's adapter and value head [default: 3e-3 for tiny, else 1e-4]", above=0, most=10
    )
    critic_warmup_steps: int = option(
        2, "steps of the critic's linear warm-up, then constant", least=0, most=MOST_STEPS
    )
    gamma: float = option(1.0, "discount a policy token", least=0, most=1)
    gae_lambda: float = option(1.0, "lambda of GAE; 1 is the return less the value", least=0, most=1)
    value_clip: float = option(
        0.5, "a value moves at most this far from its old one in a step's loss", above=0, most=1e6
    )

"""Options of the method, one dataclass per concern; each option is declared once, with its meaning and its bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

MOST_STEPS, MOST_TOKENS = 10**6, 2**20
MOST_SEED = 2**32 - 1  # seeds of steps, rounds and updates are made of it, and torch takes 64 bits


def option(default: Any, help_text: str, **bounds: float):
    """Declares a field with its meaning and unit for --help, and its `least` (or `above`) and `most`."""
    return field(default=default, metadata={"help": help_text, "least": None, "above": None, "most": None} | bounds)


@dataclass(frozen=True)
class RolloutConfig:
    """The limits of a rollout, and how it is sampled."""

    max_turns: int | None = option(None, "actions before a last turn without a search [default: 4]", least=1, most=1000)
    max_new_tokens: int | None = option(None, "token limit per turn", least=1, most=MOST_TOKENS)
    max_total_tokens: int | None = option(
        None, "token limit per trajectory, prompt included", least=16, most=MOST_TOKENS
    )
    max_observation_tokens: int | None = option(None, "token limit per observation", least=16, most=MOST_TOKENS)
    temperature: float = option(1.0, "sampling temperature, in rollouts and in the loss alike", above=0, most=100)
    rollout_batch_size: int | None = option(
        None, "conversations decoded at a time; fewer save memory", least=1, most=10**6
    )


@dataclass(frozen=True)
class OptimizationConfig:
    """How many steps there are, what each learns from, and at which rate."""

    seed: int = option(
        0, "random seed for the world, the order of questions, sampling and the adapter", least=0, most=MOST_SEED
    )
    steps: int | None = option(None, "training steps", least=1, most=MOST_STEPS)
    questions_per_step: int | None = option(None, "questions per step", least=1, most=10**6)
    stratify: bool = option(False, "equal shares of every source in a step; in the world, of every number of hops")
    group_size: int | None = option(None, "rollouts per question (G); 1 is REINFORCE", least=1, most=10_000)
    mini_batches: int = option(2, "optimizer steps per pass over the rollouts", least=1, most=10**6)
    epochs: int = option(1, "passes over the rollouts of a step", least=1, most=1000)
    learning_rate: float | None = option(
        None,
        "learning rate of the policy [default: LoRA 3e-3 for tiny, else 2e-5; full fine-tuning 5e-4 for tiny, else "
        "1e-6]",
        above=0,
        most=10,
    )
    warmup_steps: int | None = option(
        None, "steps of linear warm-up, after which the rate is constant", least=0, most=MOST_STEPS
    )
    decay_steps: int | None = option(
        None, "number of last steps over which the learning rate falls to 0", least=0, most=MOST_STEPS
    )
    weight_decay: float = option(0.0, "weight decay of AdamW", least=0, most=10)
    grad_clip: float = option(1.0, "largest norm of the gradient", above=0, most=1e9)
    tokens_per_micro_batch: int | None = option(
        None, "tokens per forward and backward pass; fewer save memory", least=1, most=2**24
    )
    max_skipped_updates: int = option(
        10,
        "updates in a row with a loss or gradient that is not finite, after which the run stops",
        least=1,
        most=MOST_STEPS,
    )


@dataclass(frozen=True)
class RewardConfig:
    """The reward of a trajectory."""

    reward: Literal["em", "sub-em", "f1", "format"] | str = option(
        "em",
        "reward of a trajectory; format is exact match with the public code's partial credit for a well-formed one; "
        "your own as my_rewards.py:name",
    )
    retrieval_bonus: float = option(0.0, "bonus for a wrong answer or none if the right one was read", least=0, most=10)
    search_cost: float = option(0.0, "cost of each search beyond the first, taken off a right answer", least=0, most=1)
    overlong: Literal["keep", "drop", "penalize"] = option(
        "keep",
        "fate of trajectories cut by --max-total-tokens: kept, dropped from the loss, or penalized softly (DAPO)",
    )
    overlong_buffer: int = option(
        64, "tokens before the limit over which the penalty grows to 1", least=1, most=MOST_TOKENS
    )


@dataclass(frozen=True)
class ObjectiveConfig:
    """The objective of GRPO and its relatives, and of PPO's policy."""

    drop_zero_variance: bool | None = option(None, "leave out groups whose rewards are all equal")
    dynamic_sampling: int = option(
        1, "most rounds of rollouts per step, to replace groups whose rewards are all equal (DAPO)", least=1, most=100
    )
    loss_aggregation: Literal["token", "sequence", "constant"] = option(
        "token", "mean over tokens (DAPO), mean over sequences of their means (GRPO), or sum over a constant (Dr. GRPO)"
    )
    clip_eps: float = option(0.2, "lower clip range: the ratio is clipped at 1 - this", above=0, most=1)
    clip_eps_high: float | None = option(
        None,
        "upper clip range, at 1 + this; a larger one is DAPO's clip-higher [default: --clip-eps]",
        above=0,
        most=1000,
    )
    kl_coef: float = option(0.001, "beta, weight of the KL to the reference; 0 leaves it out", least=0, most=1000)
    kl_estimator: Literal["k1", "k2", "k3"] | None = option(
        None, "estimator of the KL [default: k3, in the loss, for grpo; k1, in the reward, for ppo]"
    )
    entropy_coef: float = option(0.0, "weight of an entropy bonus", least=0, most=1000)
    importance_cap: float | None = option(
        None,
        "largest weight of a token by its trainer / sampler probability [default: no weights]",
        above=1,
        most=10_000,
    )
    llds_coef: float = option(
        0.0, "weight of the likelihood-preserving regularizer LLDS (arXiv 2512.04220)", least=0, most=1000
    )
    mask_observations: bool = option(True, "keep what the engine returned out of the loss (paper, section 5.4)")


@dataclass(frozen=True)
class PPOConfig:
    """What PPO adds: a critic, and GAE."""

    critic_learning_rate: float | None = option(
        None,
        "learning rate of the critic's adapter and value head [default: 3e-3 for tiny, else 1e-4]",
        above=0,
        most=10,
    )
    critic_warmup_steps: int = option(
        2, "steps of the critic's linear warm-up, after which its rate is constant", least=0, most=MOST_STEPS
    )
    gamma: float = option(1.0, "discount per policy token", least=0, most=1)
    gae_lambda: float = option(1.0, "lambda of GAE; with 1 an advantage is the return minus the value", least=0, most=1)
    value_clip: float = option(0.5, "clip range of a value around its old one in the loss", above=0, most=1e6)

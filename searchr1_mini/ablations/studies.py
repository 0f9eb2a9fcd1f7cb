"""The ablations of the paper (its section 5) and of this repository: what is varied, and what the paper found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import get, make
from searchr1_mini.options.resolve import filled


@dataclass(frozen=True)
class Times:
    """A number as a factor of the model's own default, so that an arm is what its name says with any model."""

    factor: float

    def of(self, default: float) -> float:
        """Multiplies the default; whole numbers stay whole, others keep 6 digits."""
        number = default * self.factor
        return round(number) if isinstance(default, int) else float(f"{number:.6g}")


# where studies share an arm (GRPO as it stands), they share its runs: `take_over` in ablate.py
SMALL_STEP = {
    "steps": 40,
    "questions_per_step": 8,
    "group_size": 8,
    "eval_questions": 100,
    "eval_every": 10,
    "save_every": 20,
    "decay_steps": 0,
}
PPO_STEP = {"algorithm": "ppo", "questions_per_step": 64, "group_size": 1}
ROOM_FOR_MORE = {"max_observation_tokens": Times(1.5625), "max_total_tokens": Times(1.6)}  # 400, 1,024 on the tiny base
NOISE = {"world_noise": 4} | ROOM_FOR_MORE


@dataclass(frozen=True)
class Study:
    """One question, and the training arms that differ in one thing to answer it.

    Attributes:
        title: what is varied.
        paper: what the paper found, in whole sentences that name it.
        arms: name -> options over `common`; a number that depends on the model is a factor, see `Times`.
        against: what an arm is compared with, where that is not the first arm.
        common: options of every arm.
        seeds: runs per arm.
        warm: arms that start from the warmed-up base.
    """

    title: str
    paper: str
    arms: dict[str, dict[str, Any]]
    common: dict[str, Any] = field(default_factory=lambda: SMALL_STEP)
    seeds: int = 5
    warm: tuple[str, ...] = ()
    against: dict[str, str] = field(default_factory=dict)


STUDIES = {
    "mask": Study(
        "Masking what the engine returned out of the loss",
        "In the paper Qwen2.5-7B reached 0.431 exact match on average with the mask, and 0.343 without it; the 3B "
        "model reached 0.303 and 0.262 (section 5.4).",
        {
            "masked": {},
            "unmasked": {"mask_observations": False},
            "masked, noise": NOISE,
            "unmasked, noise": NOISE | {"mask_observations": False},
        },
        SMALL_STEP | {"dataset": "world", "steps": 104, "questions_per_step": 4, "eval_every": 26, "decay_steps": 52},
        seeds=3,
        against={"unmasked, noise": "masked, noise"},
    ),
    "mask-why": Study(
        "Why training on what the engine returned costs more here than in the paper",
        "In the paper the 7B model lost 0.088 exact match on average without the mask (section 5.4); all its weights "
        "are trained, at a learning rate of 1e-6.",
        {
            "masked": {},
            "unmasked": {"mask_observations": False},
            "masked, a third of the rate": {"learning_rate": Times(1 / 3)},
            "unmasked, a third of the rate": {"mask_observations": False, "learning_rate": Times(1 / 3)},
            "unmasked, 1 passage": {"mask_observations": False, "topk": 1},
            "unmasked, KL 0.1": {"mask_observations": False, "kl_coef": 0.1},
            "unmasked, without the std": {"mask_observations": False, "normalize_std": False},
        },
        against={"unmasked, a third of the rate": "masked, a third of the rate"},
    ),
    "algorithm": Study(
        "GRPO or PPO",
        "In the paper GRPO converges faster, then may collapse; PPO is slower and steadier. On average PPO and GRPO "
        "reached 0.431 and 0.350 on the 7B base model, and 0.303 and 0.312 on the 3B (section 5.1).",
        {
            "GRPO": {},
            "PPO": PPO_STEP,
            "Dr. GRPO": {"normalize_std": False, "loss_aggregation": "constant"},
            "RLOO": {"baseline": "leave-one-out"},
            # ten times the clip range of its paper, for a learning rate as much above full fine-tuning's
            "GSPO": {"ratio": "sequence", "loss_aggregation": "sequence", "clip_eps": 0.003, "clip_eps_high": 0.004},
            "DAPO": {"clip_eps_high": 0.28, "dynamic_sampling": 3, "overlong": "penalize", "kl_coef": 0.0},
        },
    ),
    "rloo-why": Study(
        "Why RLOO fell where GRPO did not",
        "The paper does not train with RLOO.",
        {
            "RLOO": {"baseline": "leave-one-out"},
            "GRPO": {},
            "GRPO without the std": {"normalize_std": False},
            "RLOO, half the rate": {"baseline": "leave-one-out", "learning_rate": Times(0.5)},
            "RLOO, KL 0.1": {"baseline": "leave-one-out", "kl_coef": 0.1},
            "RLOO, groups of 16": {"baseline": "leave-one-out", "questions_per_step": 4, "group_size": 16},
        },
    ),
    "methods": Study(
        "What others have published since",
        "None of these methods is in the paper; docs/algorithms.md names the papers that they come from.",
        {
            "GRPO": {},
            "LLDS": {"llds_coef": 0.1},
            "SAPO": {"sapo_coef": 0.1},
            "CISPO": {"surrogate": "cispo"},
            "masked weights": {"importance_cap": 2.0, "importance_mode": "mask"},
            "GiGPO": {"turn_coef": 1.0},
            "Tree-GRPO": {"tree_branches": 3},
            "REINFORCE++": {"baseline": "batch"},
            "REINFORCE++ with a baseline": {"baseline": "group-batch"},
            "F1 and action penalty": {"reward": "f1", "action_penalty": 0.1},
            "cold start, 50": {"cold_start": 50},
            "cold start, 200": {"cold_start": 200},
            "cold start, 800": {"cold_start": 800},
        },
    ),
    "group-size": Study(
        "Rollouts per question in GRPO, at the same number of rollouts per step",
        "In the paper the 7B model reached 0.410, 0.363 and 0.350 exact match on average with groups of 1, 3 and 5; "
        "larger groups converge faster and are less stable (its appendix on group size).",
        {
            "5": {"group_size": 5, "questions_per_step": 12},
            "3": {"group_size": 3, "questions_per_step": 20},
            "1": {"group_size": 1, "questions_per_step": 60},
        },
    ),
    "topk": Study(
        "Passages per search",
        "In the paper the 7B model reached 0.375, 0.431 and 0.400 exact match on average under PPO with 1, 3 and 5 "
        "passages (its appendix).",
        {
            "3": {"topk": 3},
            "1": {"topk": 1},
            "5": {"topk": 5} | ROOM_FOR_MORE,
        },
    ),
    "kl": Study(
        "Weight and estimator of the KL to the reference",
        "The paper trains with beta = 0.001 throughout and does not vary it.",
        {
            "k3, 0.001": {},
            "none": {"kl_coef": 0.0},
            "k3, 0.1": {"kl_coef": 0.1},
            "k2, 0.1": {"kl_coef": 0.1, "kl_estimator": "k2"},
            "k1, 0.1": {"kl_coef": 0.1, "kl_estimator": "k1"},
        },
    ),
    "max-turns": Study(
        "Actions per question",
        "The paper allows 4 actions throughout and does not vary them.",
        {"4": {}, "2": {"max_turns": 2}, "1": {"max_turns": 1}},
    ),
    "reward": Study(
        "The reward",
        "The paper rewards exact match alone (equation 4); it has no format reward, since its models keep the format.",
        {
            "EM": {},
            "sub-EM": {"reward": "sub-em"},
            "F1": {"reward": "f1"},
            "format": {"reward": "format"},
            "EM + retrieval": {"retrieval_bonus": 0.1},
        },
    ),
    "base-vs-warm": Study(
        "Starting from the base, or from a base that was first shown right episodes",
        "In the paper instruction-tuned models start higher and converge faster; base models catch up (section 5.2).",
        {"base": {}, "warm": {}},
        warm=("warm",),
    ),
    "bugs": Study(
        "The museum of bugs: faults that public code had, beside the sound run",
        "The paper does not discuss these faults; its public code re-encodes turns, lets two data sets share group "
        "numbers and reads the reward from the whole text.",
        {
            "sound": {},
            "re-tokenized turns": {"bug": "retokenize"},
            "no mask": {"mask_observations": False},
            "colliding groups": {"bug": "colliding-groups"},
            "masked in mean": {"bug": "masked-in-denominator"},
            "tool tokens in length": {"bug": "tool-tokens-in-length"},
            "no last turn": {"bug": "no-last-turn"},
            "whole-text reward": {"bug": "reward-from-whole-text"},
        },
        common=SMALL_STEP | {"dataset": "world"},  # of two sources, whatever the model
    ),
}


def fitted(study: Study, model: str) -> Study:
    """Returns the study with what its arms state as factors in the numbers of a model."""
    return replace(study, arms={arm: in_numbers(study, arm, model) for arm in study.arms})


def in_numbers(study: Study, arm: str, model: str) -> dict[str, Any]:
    """Returns an arm's own options, each factor as the number that it comes to with a model."""
    own = study.arms[arm]
    plain = {name: value for name, value in (study.common | own).items() if not isinstance(value, Times)}
    defaults = filled(make(TrainConfig, model=model, **plain))
    return {name: value.of(get(defaults, name)) if isinstance(value, Times) else value for name, value in own.items()}

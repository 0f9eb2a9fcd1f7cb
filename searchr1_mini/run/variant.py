"""The variant of GRPO that the options name."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from searchr1_mini.core.algorithms import clipped_surrogate, group_advantages
from searchr1_mini.core.batch import Batch
from searchr1_mini.core.training import Rollouts, Variant
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.variants.baselines import batch_advantages
from searchr1_mini.variants.losses import cispo, llds_penalty, sapo_penalty
from searchr1_mini.variants.ratios import importance_weights, sequence_log_ratio
from searchr1_mini.variants.tree import add_tree_advantages, tree_rollout
from searchr1_mini.variants.turns import add_turn_advantages


def configured_variant(config: TrainConfig) -> Variant:
    """Puts together what the loop is to do in another way; nothing by default."""
    variant, objective = config.variant, config.objective
    leaves, penalties, added = 1 + variant.tree_branches, {}, []
    std, mode, cap = variant.normalize_std, variant.importance_mode, objective.importance_cap
    compare = partial(group_advantages, baseline=variant.baseline, normalize_std=std)
    if variant.baseline in ("batch", "group-batch"):
        within = variant.baseline == "group-batch"
        compare = partial(batch_advantages, normalize_std=std, within_groups=within)
    if objective.llds_coef:
        penalties["llds"] = objective.llds_coef, llds_penalty
    if variant.sapo_coef:
        penalties["sapo"] = variant.sapo_coef, partial(sapo_penalty, threshold=variant.sapo_threshold)
    if variant.turn_coef:
        how = {"coef": variant.turn_coef, "gamma": variant.turn_gamma, "normalize_std": std}
        added.append(partial(add_turn_advantages, **how))
    if leaves > 1:
        added.append(partial(add_tree_advantages, leaves=leaves, normalize_std=std))

    def add_advantages(rollouts: Rollouts, batch: Batch) -> Tensor:
        return sum(add(rollouts, batch) for add in added)

    return Variant(
        roll_out=partial(tree_rollout, leaves=leaves) if leaves > 1 else None,
        compare=compare,
        add_advantages=add_advantages if added else None,
        importance=partial(importance_weights, cap=cap, mode=mode) if cap else None,
        ratio=sequence_log_ratio if variant.ratio == "sequence" else None,
        surrogate=cispo if variant.surrogate == "cispo" else clipped_surrogate,
        penalties=penalties,
    )

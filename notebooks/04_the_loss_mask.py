# %% [markdown]
# # 4. The loss mask, on real tokens
#
# A trajectory holds tokens from two writers. What the policy wrote can be made more or less likely; what the engine wrote
# is not the policy's doing. Search-R1 therefore takes every observation token out of the loss (paper, section 3.1: the
# indicator $I(y_t)$; measured in its section 5.4). The idea takes one line. This notebook shows that line on real tokens,
# and three ways in which code that looks right gets it wrong.

# %%
import matplotlib.pyplot as plt
import torch
from exercises import check, check_code
from lesson import BLUE, WRITERS, draw_tokens, load_tiny, pieces_of

from searchr1_mini.core.rollout import rollout
from searchr1_mini.run.opening import configured_method, rollout_limits
from searchr1_mini.run.task import load_task

config, policy = load_tiny(eval_questions=64)
tokenizer, task = policy.tokenizer, load_task(config, "eval")
group = [example for example in task.examples[:16] for _ in range(8)]
trajectories, _ = rollout(
    group, configured_method(config), policy, task.retriever, rollout_limits(config), temperature=1.0, seed=0
)
searched = [trajectory for trajectory in trajectories if trajectory.queries][:4]
print(f"{len(searched)} trajectories with a search, {[len(t.token_ids) for t in searched]} tokens")

# %% [markdown]
# ## The mask
#
# `core/batch.py:build_batch` lays trajectories side by side and shifts once: position t of every per-token tensor belongs
# to the *target* t, the token that position t predicts. The mask comes from the segments, whose kind was recorded when
# each token was written (`core/trajectory.py:Segment`). It depends on neither the text nor the ids.

# %%
from searchr1_mini.core.batch import build_batch

n = len(searched)
batch = build_batch(searched, rewards=[1.0] * n, group_ids=[0] * n, pad_token_id=tokenizer.pad_token_id)
for name in ("input_ids", "targets", "loss_mask"):
    print(f"{name:10}", tuple(getattr(batch, name).shape))

# %%
LEGEND = {"in the loss": "#9CCBE8", "masked": "#DDDDDD"}
IN, OUT = LEGEND.values()
length = int(batch.lengths[0]) - 1
colors = [IN if inside else OUT for inside in batch.loss_mask[0, :length].tolist()]
draw_tokens(pieces_of(batch.targets[0, :length], tokenizer), colors, LEGEND, "targets of the first row")

# %% [markdown]
# The prompt and the observation are masked, and each turn counts from its first token to the one that holds its stop
# string. The first target of a turn is predicted from the last token of the prompt or of the observation: that position's
# *input* is foreign, but its target is the policy's, so it counts.

# %%
figure, axes = plt.subplots(figsize=(10, 1.8))
kinds = torch.zeros(batch.targets.shape)
for row, trajectory in enumerate(searched):
    writers = [segment.kind for segment in trajectory.segments for _ in segment.token_ids][1:]
    kinds[row, : len(writers)] = torch.tensor(
        [{"prompt": 1.0, "observation": 1.0, "policy": 2.0}[kind] for kind in writers]
    )
axes.imshow(
    kinds, aspect="auto", cmap=plt.matplotlib.colors.ListedColormap(["white", "#BBBBBB", BLUE]), interpolation="nearest"
)
axes.set(
    xlabel="target position (blue: in the loss, gray: masked, white: padding)",
    ylabel="row",
    yticks=range(len(searched)),
)
figure.tight_layout()
assert ((kinds == 2) == batch.loss_mask).all()

# %% [markdown]
# A row that searched is mostly observation. Without the mask most of the loss would be about words that the engine wrote,
# and the policy would learn to recite them.

# %%
n_policy = int(batch.loss_mask.sum())
n_all = int((batch.lengths - 1).sum())
print(f"policy tokens {n_policy} of {n_all}: {n_policy / n_all:.0%}")
unmasked = build_batch(
    searched, [1.0] * len(searched), [0] * len(searched), tokenizer.pad_token_id, mask_observations=False
)
n_observed = int(unmasked.loss_mask.sum()) - n_policy
print(f"with --no-mask-observations, {n_observed / (n_policy + n_observed):.0%} of the loss's tokens are the engine's")

# %% [markdown]
# ## What the gradient sees
#
# The loss is $-\frac{1}{\sum_t I(y_t)} \sum_t I(y_t) A \log \pi(y_t)$ at the first update, where the ratio of policies
# is 1 (paper, equation 3; `core/algorithms.py:policy_loss` and `loss_weights`). A masked token gets a gradient of
# exactly 0, not a small one: even a NaN there would not matter.

# %%
from searchr1_mini.core.algorithms import loss_weights, policy_loss

weights = loss_weights(batch.loss_mask, "token")
logprobs = batch.old_logprobs.clone()
logprobs[~batch.loss_mask] = float("nan")
logprobs.requires_grad_()
loss, _ = policy_loss(
    logprobs,
    batch.old_logprobs,
    torch.ones_like(weights),
    weights,
    clip_eps=config.objective.clip_eps,
    clip_eps_high=config.objective.clip_eps,
)
loss.backward()
print("gradients on masked tokens: ", logprobs.grad[~batch.loss_mask].unique().tolist())
print("gradients on policy tokens: ", [round(g, 5) for g in logprobs.grad[batch.loss_mask].unique().tolist()])
print(f"minus 1 / {n_policy} =        {-1 / n_policy:.5f}")

# %% [markdown]
# ## Wrong in three ways
#
# **From the text.** Decode the trajectory, find `<information> .. </information>`, and mask everything in between. This
# fails as soon as a policy writes such a tag itself, or a passage quotes one, and it has to map character positions onto
# tokens that do not end where the tags do.

# %%
from searchr1_mini.core.trajectory import Segment, Trajectory


def to_ids(text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


turns = [
    ("prompt", "Question: Where does Ada Brook work?\n"),
    ("policy", "<think> The <information> may help. </think>\n<search> Ada Brook </search>"),
    ("observation", "\n\n<information>Doc 1(Title: Ada Brook) Ada Brook works for Opal Bank.\n</information>\n\n"),
    ("policy", "<answer> Opal Bank </answer>"),
]
segments = [
    Segment(kind, to_ids(text), [0.0] * len(to_ids(text)) if kind == "policy" else [], text) for kind, text in turns
]
forged = Trajectory("forged", segments)

# %%
import re


def mask_from_text(trajectory):
    """True where a token lies outside of the first tag to the first closing tag, and after the prompt: wrong."""
    pieces = [tokenizer.decode([id_]) for id_ in trajectory.token_ids]
    found = re.search(r"<information>.*?</information>", "".join(pieces), re.DOTALL)
    starts = [sum(map(len, pieces[:index])) for index in range(len(pieces))]
    n_prompt = len(trajectory.segments[0].token_ids)
    return [index >= n_prompt and not found.start() <= at < found.end() for index, at in enumerate(starts)]


true_mask = [False, *build_batch([forged], [1.0], [0], tokenizer.pad_token_id).loss_mask[0].tolist()]
guessed = mask_from_text(forged)
wrong = [index for index, (one, other) in enumerate(zip(true_mask, guessed, strict=True)) if one != other]
colors = [IN if inside else OUT for inside in guessed]
draw_tokens(pieces_of(forged.token_ids, tokenizer), colors, LEGEND,
            f"mask from text: {len(wrong)} tokens wrong (framed)", struck=wrong)  # fmt: skip

# %% [markdown]
# The thought and the search of the first turn are not learned, because the policy mentioned a tag.
#
# **From pad ids.** Many base models pad with EOS. A mask that says *not the pad id* then drops every EOS that the policy
# sampled, and with it the only lesson on when to stop.

# %%
ids = [*to_ids("<answer> Opal Bank </answer>"), tokenizer.eos_token_id]
stopped = Trajectory("eos", [Segment("prompt", to_ids("Question: ?\n")), Segment("policy", ids, [0.0] * len(ids))])
row = build_batch([stopped, forged], [1.0, 1.0], [0, 0], pad_token_id=tokenizer.eos_token_id)
by_pad_id = row.loss_mask[0] & (row.targets[0] != tokenizer.eos_token_id)
print("policy tokens by provenance:", int(row.loss_mask[0].sum()), " by pad id:", int(by_pad_id.sum()))
assert row.loss_mask[0].sum() - by_pad_id.sum() == 1

# %% [markdown]
# **From the text, encoded again.** Decode each turn, cut it at its stop string, strip it, and encode it again. The ids
# then differ from those that were sampled, so the log-probs of sampling no longer belong to any token.
# `run/museum.py:retokenized` does this, and `python -m searchr1_mini.ablate bugs` trains with it.

# %%
from searchr1_mini.run.museum import retokenized

sampled = [segment for trajectory in trajectories for segment in trajectory.of_kind("policy")]
again = [segment for trajectory in trajectories for segment in retokenized(trajectory, tokenizer).of_kind("policy")]
changed = [(one, other) for one, other in zip(sampled, again, strict=True) if one.token_ids != other.token_ids]
print(f"{len(changed)} of {len(sampled)} turns have other ids once decoded, cut and encoded again")
for one, other in changed[:2]:
    print(
        "  sampled", pieces_of(one.token_ids[-6:], tokenizer), "\n  again  ", pieces_of(other.token_ids[-6:], tokenizer)
    )

# %% [markdown]
# ## What it costs
#
# `python -m searchr1_mini.ablate mask` trains with and without the mask, with three seeds per arm, and
# [Ablations](../docs/ablations.md) has the findings. The effect is already visible in one batch, as the share of the
# loss's weight that lies on each writer's tokens.

# %%
figure, axes = plt.subplots(figsize=(6, 2.2))
for place, mask in enumerate((batch.loss_mask, unmasked.loss_mask)):
    weight = loss_weights(mask, "token")
    own = float((weight * batch.loss_mask).sum())
    axes.barh(place, own, color=WRITERS["policy"], label="policy" if not place else None)
    axes.barh(
        place,
        float(weight.sum()) - own,
        left=own,
        color=WRITERS["observation"],
        label="observation" if not place else None,
    )
axes.set_yticks([0, 1], ["masked", "not masked"])
axes.set(xlabel="share of the loss's weight", xlim=(0, 1))
axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.3), ncols=2)
figure.tight_layout()

# %% [markdown]
# ## Exercises
#
# **4.1** A row has a prompt of 4 tokens, a turn of 3, an observation of 5, and a turn of 2. How many entries of its
# shifted `loss_mask` are true?

# %%
answer = ...  # a number
check("4.1", answer, "aec9a9b01e59", hint="the prompt is not empty, so no policy token is lost by the shift")

# %% [markdown]
# <details><summary>Solution</summary>
#
# The shift drops the first token of the row, which is the prompt's.
#
# ```python
# answer = 3 + 2
# ```
#
# </details>
#
# **4.2** In the same row, at which index of the shifted mask (from 0) does the second turn begin?

# %%
answer = ...  # a number
check("4.2", answer, "74ed83daef74", hint="4 + 3 + 5 tokens stand before it; then shift by one")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = 4 + 3 + 5 - 1
# ```
#
# </details>
#
# **4.3** Write `loss_weights(loss_mask, "sequence")` yourself: weights (B, T) under which every trajectory counts the
# same (GRPO, equation 3). Each policy token of a row weighs 1 / (B x policy tokens of the row); masked tokens weigh 0.

# %%
answer = ...  # a function of a mask (B, T)
cases = [(batch.loss_mask,), (unmasked.loss_mask,), (torch.tensor([[True, False], [False, False]]),)]
check_code(
    "4.3",
    answer,
    lambda mask: loss_weights(mask, "sequence"),
    cases,
    hint="a row without policy tokens must not divide by 0",
)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def answer(loss_mask):
#     mask = loss_mask.float()
#     return mask / (len(mask) * mask.sum(1, keepdim=True).clamp(min=1))
# ```
#
# </details>

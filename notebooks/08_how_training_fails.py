# %% [markdown]
# # 8. Ablations, and how training fails
#
# A run that fails seldom says why. Here the failures are made on purpose: the mask off, the KL off and the steps too
# large, and faults that public code bases had. The long studies, with three seeds per arm, are in
# [Ablations](../docs/ablations.md). This miniature takes some seconds and has one seed per arm: it shows what a failure
# looks like, and proves nothing.

# %%
import math
import tempfile

import matplotlib.pyplot as plt
import torch
from exercises import check, check_code
from IPython.utils.capture import capture_output
from lesson import BLUE, GREEN, ORANGE, one_step

from searchr1_mini.core.algorithms import group_advantages, loss_weights
from searchr1_mini.core.batch import build_batch
from searchr1_mini.core.training import collect
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run import museum
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.training import configured_reward
from searchr1_mini.run.watch import SIGNS, Watch

# %% [markdown]
# ## Three runs
#
# The three are the sound run; the paper's ablation, which also trains on what the engine wrote (Search-R1, section 5.4);
# and a run without a KL whose learning rate is seven times too large. `Watch` sees what the run's own stability watch
# sees.

# %%
EASY = dict(
    world_difficulty="infobox", world_hops="1", steps=6, questions_per_step=4, group_size=8, warmup_steps=1,
    decay_steps=0, max_turns=2, max_new_tokens=40, eval_questions=20, tensorboard=False,
)  # fmt: skip


def opened(**changes):
    with capture_output():
        return open_run(resolve(make(TrainConfig, **EASY | changes, output_dir=f"{tempfile.mkdtemp()}/run")))


def trained(**changes):
    run, watch, log, warned = opened(**changes), Watch(), [], {}
    for step in range(1, run.config.optimization.steps + 1):
        log.append(one_step(run, step))
        warned |= {f"step {step}, {sign}": words for sign, words in watch.see(step, log[-1]).items()}
    return log, warned


# %%
arms = {
    "sound": {},
    "no mask": {"mask_observations": False},
    "no KL, rate x 7": {"kl_coef": 0.0, "learning_rate": 0.02, "steps": 7},
}
logs, told = {}, {}
for name, changes in arms.items():
    logs[name], told[name] = trained(**changes)

# %%
panels = (("reward", "mean reward"), ("entropy", "entropy, nats per token"), ("kl", "KL to the base, nats per token"))
fig, axes = plt.subplots(1, 3, figsize=(9.5, 3), layout="constrained")
for axis, (key, label) in zip(axes, panels, strict=True):
    for (name, log), color, mark in zip(logs.items(), (BLUE, ORANGE, GREEN), "os^", strict=True):
        if key != "kl" or arms[name].get("kl_coef") != 0:
            values = [m.get(key, math.nan) for m in log]  # a step whose groups all agree trains on nothing
            axis.plot(range(1, len(log) + 1), values, color=color, marker=mark, label=name)
    axis.set(xlabel="step", ylabel=label)
axes[2].set_yscale("symlog", linthresh=0.1)
_ = fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)

# %%
for name, warned in told.items():
    print(f"{name}: {'nothing to tell' if not warned else ''}")
    for sign, words in warned.items():
        print(f"    {sign}: {words}")
last = {name: log[-1]["reward"] for name, log in logs.items()}
assert last["sound"] > max(last["no mask"], last["no KL, rate x 7"])

# %% [markdown]
# Without the mask most of the gradient comes from passages that the policy is taught to recite: the loss asks it to
# predict made-up names. Its entropy rises when it should fall, and the KL shows the cost. The third run learns faster
# than the sound one, until a step carries it out of the language that it can write; then all rollouts of a group fail
# alike, the advantages are 0, and nothing brings it back.
#
# `python -m searchr1_mini.ablate mask` is the mask study in full, with 104 steps and three seeds per arm:
#
# ![reward, exact match, entropy and KL of four arms](../docs/ablation_mask.svg)
#
# `python -m searchr1_mini.ablate algorithm --seeds 3` compares six objectives over 40 steps. One of them is
# DAPO, which trains without a KL but with steps of the right size, and does not fail:
#
# ![curves of six algorithms](../docs/ablation_algorithm.svg)
#
# ## Reward hacking
#
# A reward is what it computes, not what it is meant to be. `--bug reward-from-whole-text` pays if a gold answer stands
# *anywhere* in the text, passages included. Then searching pays, and answering is not needed. Here are some rollouts of
# the base, which guesses at random, on two-hop questions:

# %%
run = opened(world_hops="1,2", questions_per_step=12)
rollouts = collect(run.policy, run.environment, run.config, step=1, reward=configured_reward(run.config))
rows = list(zip(rollouts.trajectories, rollouts.examples, rollouts.rewards, strict=True))
paid = [museum.whole_text_reward(t, e.golden_answers) for t, e, _ in rows]
n_hacked = sum(p > r for p, (_, _, r) in zip(paid, rows, strict=True))
print(f"{len(rows)} rollouts: {sum(rollouts.rewards):.0f} right; {sum(paid):.0f} paid by the whole text, "
      f"{n_hacked} of them for a wrong answer")  # fmt: skip
assert n_hacked > 0

# %% [markdown]
# The sign in a log is `reward` above `em`; this is why they are two numbers. `run/rewards.py:reward` reads only the
# policy's tokens.
#
# ## The museum of bugs
#
# `run/museum.py` brings back more faults, each of them a single line in public code, and none of them a crash; `train.py
# --bug NAME` plants one around the sound loop. We look at what each does to the batch that was just sampled:
#
# **Turns encoded again** (`--bug retokenize`). The text of a turn is decoded, cut at its stop string, stripped and
# tokenized anew. If the ids differ, the policy is trained on what it did not write, and the sampler's log-probs fit no
# token.

# %%
again = [museum.retokenized(t, run.policy.tokenizer) for t in rollouts.trajectories]
turns = [
    (one.token_ids, two.token_ids)
    for t, u in zip(rollouts.trajectories, again, strict=True)
    for one, two in zip(t.of_kind("policy"), u.of_kind("policy"), strict=True)
]
changed = sum(one != two for one, two in turns)
one, two = next(pair for pair in turns if pair[0] != pair[1])
decode = run.policy.tokenizer.convert_ids_to_tokens
print(f"{changed} of {len(turns)} turns change; the last tokens of one:")
print("  sampled:", decode(one[-4:]), "\n  trained:", decode(two[-4:]))

# %% [markdown]
# **Groups that collide** (`--bug colliding-groups`). Questions are numbered within their data set, so question 0 of one
# and question 0 of the other become one group. A right answer to a hard question is then compared with right answers to
# an easy one.

# %%
rewards, group_ids = torch.tensor(rollouts.rewards), torch.tensor(rollouts.group_ids)
collided = torch.tensor(museum.colliding_group_ids(rollouts.examples))
sound, mixed = (group_advantages(rewards, ids) for ids in (group_ids, collided))
fig, axis = plt.subplots(figsize=(4.2, 4), layout="constrained")
axis.plot([-3, 4], [-3, 4], color="0.8")
for value, color, mark, name in ((1.0, BLUE, "o", "right"), (0.0, ORANGE, "x", "wrong")):
    axis.scatter(sound[rewards == value], mixed[rewards == value], color=color, marker=mark, label=name)
axis.set(xlabel="advantage in the question's own group", ylabel="advantage in the collided group")
_ = axis.legend()
print(f"{len(group_ids.unique())} groups became {len(collided.unique())}")

# %% [markdown]
# **Masked tokens in the mean** (`--bug masked-in-denominator`): the loss is divided by the number of all positions,
# padding included, so the step's size depends on the longest row. **Observations in the length** (`--bug
# tool-tokens-in-length`): a trajectory weighs less for every passage that it read. The weights should sum to 1, and
# should not depend on how much a trajectory searches:

# %%
pad = run.policy.tokenizer.pad_token_id
mask = build_batch(rollouts.trajectories, rollouts.rewards, rollouts.group_ids, pad).loss_mask
searched = torch.tensor([bool(t.queries) for t in rollouts.trajectories])
ways = {
    "token": loss_weights(mask, "token"),
    "token, bug": museum.weights_over_all_tokens(mask),
    "sequence": loss_weights(mask, "sequence"),
    "sequence, bug": museum.weights_by_whole_length(mask),
}
for name, weights in ways.items():
    each = weights.sum(1) * len(mask)
    print(f"{name:14} sum {weights.sum():.2f}   a row that searched {each[searched].mean():.2f}, "
          f"one that did not {each[~searched].mean():.2f}")  # fmt: skip
assert abs(ways["token"].sum() - 1) < 1e-5 and ways["token, bug"].sum() < 0.5

# %% [markdown]
# `python -m searchr1_mini.ablate bugs` trains with each fault beside the sound run.
#
# ## The signs
#
# `run/watch.py` warns, names the likely cause and a flag to try, and never changes a run. It reads most signs off the
# mean of five steps. This log looks healthy by its reward alone:

# %%
watch = Watch()
for step in range(1, 13):
    metrics = {"em": 0.3 + 0.02 * step, "kl": 0.02 * 1.6**step, "entropy": 0.5, "valid_actions": 1 - 0.05 * step}
    for sign, words in watch.see(step, metrics).items():
        print(f"step {step}, {sign}: {words}\n")
print("all signs:", ", ".join(SIGNS))

# %% [markdown]
# [Troubleshooting](../docs/troubleshooting.md) goes from symptoms to remedies.
#
# ## Exercises
#
# **8.1** Two trajectories are padded to 100 positions each; the policy wrote 10 tokens in one and 30 in the other. What
# is the sum of the weights under `--bug masked-in-denominator`?

# %%
answer = ...  # a number
check("8.1", answer, "03bdb1b4ecce", hint="all positions of both rows are counted below the line")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = (10 + 30) / (2 * 100)
# ```
#
# </details>
#
# **8.2** Write the repaired weights as a function of a loss mask (N, T): every trajectory counts the same, by its policy
# tokens alone.

# %%
answer = ...  # a function of loss_mask
check_code("8.2", answer, lambda m: loss_weights(m, "sequence"), [(mask,), (mask[:3],)], hint="rows sum to 1 / N")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def answer(loss_mask):
#     return loss_mask / loss_mask.sum(1, keepdim=True) / len(loss_mask)
# ```
#
# </details>
#
# **8.3** A log shows `reward` 1.00, `em` 0.10, `searches` 1.00 and no warning. Which fault of the museum is in it?

# %%
answer = ...  # a text: the NAME of --bug
check("8.3", answer, "e1974392d4cc", hint="who is paid, and for what?")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = "--bug reward-from-whole-text"
# ```
#
# </details>

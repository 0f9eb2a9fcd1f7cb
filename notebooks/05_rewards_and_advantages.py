# %% [markdown]
# # 5. Rewards and group advantages
#
# The policy is told only one number, at the end: was the answer right? This notebook examines that number: how two
# answers are compared, how public code came to pay for answers that nobody gave, and how GRPO turns the rewards of a
# group into advantages without a critic.

# %%
import re

import matplotlib.pyplot as plt
import numpy as np
import torch
from exercises import check, check_code
from lesson import BLUE, GRAY, GREEN, ORANGE, load_tiny

from searchr1_mini.core.rewards import exact_match, normalize_answer
from searchr1_mini.core.scores import f1_score, sub_exact_match
from searchr1_mini.run.rewards import format_reward, reward

# %% [markdown]
# ## When are two answers the same?
#
# $r(x, y) = \text{EM}(a_\text{pred}, a_\text{gold})$ (Search-R1, equation 4): 1 if both are equal after SQuAD's
# normalization (Rajpurkar et al., 2016): lower case, no punctuation, no articles, single spaces
# (`core/rewards.py:normalize_answer`, `exact_match`).

# %%
pairs = [
    ("The Beatles!", "beatles"),
    ("U.S.", "US"),
    ("Oak Bay, Elvania", "Oak Bay"),
    ("twenty-one", "twenty one"),
    ("it is either Oak Bay or Elm Cove or Ash Hill", "Oak Bay"),
    ("", "Oak Bay"),
]
print(f"{'answer':46}{'gold':12}{'normalized':44}  EM  sub-EM  F1")
for said, gold in pairs:
    scores = exact_match(said, [gold]), sub_exact_match(said, [gold]), f1_score(said, [gold])
    print(f"{said!r:46}{gold!r:12}{normalize_answer(said)!r:44}" + "{:4.0f}{:8.0f}{:6.2f}".format(*scores))

# %% [markdown]
# Each has its price. EM pays nothing for a near miss, and `twenty-one` is one, since punctuation is deleted and not
# replaced by a space. F1 and sub-EM are kinder, but can be gamed: an answer that lists every candidate contains the gold
# one. A policy finds such a loophole; the paper's choice of plain EM leaves it none.

# %%
candidates = [
    f"{first} {second}" for first in ("Oak", "Elm", "Ash", "Pine") for second in ("Bay", "Cove", "Hill", "Park")
]
gold = ["Oak Bay"]
n_listed = range(1, len(candidates) + 1)
answers = [" or ".join(candidates[:n]) for n in n_listed]
figure, axes = plt.subplots(figsize=(6, 3))
for score, label, color, line in (
    (exact_match, "EM", BLUE, "o-"), (f1_score, "F1", GREEN, "s--"), (sub_exact_match, "sub-EM", ORANGE, "^:")
):  # fmt: skip
    axes.plot(n_listed, [score(answer, gold) for answer in answers], line, color=color, label=label)
axes.set(xlabel="candidates listed, the right one first", ylabel="reward")
axes.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# ## Paying for what nobody answered
#
# Where does the answer come from? The public code searches the decoded *whole text* for `<answer> .. </answer>`. The paper's
# prompt (Table 1) itself holds an example, and passages may hold anything.

# %%
from searchr1_mini.core.prompts import SEARCH_TEMPLATE
from searchr1_mini.core.trajectory import Segment, Trajectory

prompt = SEARCH_TEMPLATE.format(question="What is the capital of China?")
silent = Trajectory("silent", [Segment("prompt", [], text=prompt), Segment("policy", [], text="<think> Hm. </think>")])
passage = "\n\n<information>Doc 1(Title: Quiz) <answer> Oak Bay </answer>\n</information>\n\n"
reader = Trajectory("reader", [*silent.segments, Segment("observation", [], text=passage)], answer="Elm Cove")


def last_answer_in_text(trajectory):
    """What a regular expression over the whole text takes for the answer: wrong."""
    found = re.findall(r"<answer>(.*?)</answer>", "".join(segment.text for segment in trajectory.segments), re.DOTALL)
    return found[-1].strip() if len(found) > 1 else None


for trajectory, gold in ((silent, ["Beijing"]), (reader, ["Oak Bay"])):
    leaked = exact_match(last_answer_in_text(trajectory), gold)
    print(
        f"{trajectory.example_id:8} answered {trajectory.answer!r}: whole text pays {leaked:.0f}, the package {reward(trajectory, gold):.0f}"
    )

# %% [markdown]
# The public code (`qa_em.py`) accepts no answer if it finds fewer than two, to skip the prompt's example. But the prompt
# holds two: the words `<answer> and </answer>` are the first. And after a prompt that holds none, an honest answer would
# be the only one, and earn nothing. Here the answer is the content of the action that ended the episode, read from the
# policy's own tokens (`core/methods.py:search_r1`, `core/trajectory.py:Trajectory.answer`), and passages cannot spell our
# tags ([notebook 3](03_a_rollout.ipynb)).
#
# How much would a leak pay? Here are real rollouts of the base, paid by EM and by a reward that looks for the gold answer
# anywhere in the text (`run/museum.py:whole_text_reward`, `train.py --bug reward-from-whole-text`).

# %%
from searchr1_mini.core.rollout import rollout
from searchr1_mini.run.museum import whole_text_reward
from searchr1_mini.run.opening import configured_method, rollout_limits
from searchr1_mini.run.task import load_task

config, policy = load_tiny(world_hops="1", eval_questions=24)
task = load_task(config, "eval")
G = config.optimization.group_size
group = [example for example in task.examples for _ in range(G)]
trajectories, _ = rollout(
    group, configured_method(config), policy, task.retriever, rollout_limits(config), temperature=1.0, seed=0
)
paid = [reward(t, e.golden_answers) for t, e in zip(trajectories, group, strict=True)]
leaky = [whole_text_reward(t, e.golden_answers) for t, e in zip(trajectories, group, strict=True)]
unearned = sum(one < other for one, other in zip(paid, leaky, strict=True))
print(
    f"{len(paid)} rollouts: EM pays {sum(paid):.0f}, the leak {sum(leaky):.0f}; {unearned} of these did not answer right"
)

# %% [markdown]
# A policy trained on the leak learns to search and stops caring what it answers. `python -m searchr1_mini.ablate bugs`,
# the museum of bugs, draws its curve.
#
# The public code's second reward also pays for format: 1, 0.8, 0.2, 0.1 or 0 (`run/rewards.py:format_reward`, `--reward
# format`). Bonuses for format often invite reward hacking, which [notebook 8](08_how_training_fails.ipynb) demonstrates.

# %%
by_form = [format_reward(t, e.golden_answers) for t, e in zip(trajectories, group, strict=True)]
values, counts = np.unique(by_form, return_counts=True)
figure, axes = plt.subplots(figsize=(5, 2.4))
bars = axes.bar([f"{value:g}" for value in values], counts, color=BLUE)
axes.bar_label(bars)
axes.set(xlabel="format reward", ylabel="rollouts of the base", ylim=(0, counts.max() * 1.15))
figure.tight_layout()

# %% [markdown]
# ## A reward of your own
#
# A reward is a function of a trajectory and its example that returns a number. From Python, `train(config, reward=brevity)`
# takes the function itself. Here are two steps with one:

# %%
import inspect
import tempfile
from pathlib import Path

from IPython.utils.capture import capture_output

from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.training import train
from searchr1_mini.storage.files import read_jsonl

WORK = Path(tempfile.mkdtemp())


def brevity(trajectory, example):
    """A right answer is worth more, the fewer tokens the policy wrote for it."""
    return exact_match(trajectory.answer, example.golden_answers) * 50 / (50 + trajectory.n_policy_tokens)


# %%
small = dict(world_hops="1", steps=2, questions_per_step=4, eval_questions=8, tensorboard=False)
with capture_output():
    folder = train(resolve(make(TrainConfig, output_dir=str(WORK / "run"), **small)), reward=brevity)
rows = read_jsonl(folder / "rollouts" / "step-000002.jsonl")
print(sorted({round(row["reward"], 2) for row in rows}))

# %% [markdown]
# `python train.py --reward my_rewards.py:brevity` takes it from a file, as `--method` takes a method
# ([notebook 3](03_a_rollout.ipynb)) and `--retriever` an engine ([notebook 10](10_your_own_documents.ipynb)); all three are in
# [Recipes](../docs/recipes.md#a-reward-an-engine-or-a-method-of-your-own). Anything that does not fit is reported before any work, in one sentence:

# %%
from searchr1_mini.core.errors import UserError
from searchr1_mini.options.own_parts import own_part

code = "from searchr1_mini.core.rewards import exact_match\n\n\n" + inspect.getsource(brevity)
code += "\n\ndef of_answer(answer):\n    return float(bool(answer))\n"
(WORK / "my_rewards.py").write_text(code, encoding="utf-8")
from_file = own_part("reward", f"{WORK}/my_rewards.py:brevity")
assert from_file(trajectories[0], group[0]) == brevity(trajectories[0], group[0])
for name in ("brevity", "of_answer", "brevty"):
    try:
        print("taken:", resolve(make(TrainConfig, reward=f"{WORK}/my_rewards.py:{name}")).reward.reward.split("/")[-1])
    except UserError as error:
        print(str(error).replace(f"{WORK}/", ""))

# %% [markdown]
# ## From rewards to advantages
#
# What is a reward of 1 worth? Nothing, if every rollout of that question gets it. GRPO (arXiv
# [2402.03300](https://arxiv.org/abs/2402.03300), section 4.1.2) compares the G rollouts of one question with each other:
#
# $$A_i = \frac{r_i - \text{mean}(r_1 .. r_G)}{\text{std}(r_1 .. r_G) + \epsilon}$$
#
# (`core/algorithms.py:group_advantages`). Every policy token of rollout i gets the same number.

# %%
from searchr1_mini.core.algorithms import group_advantages, zero_variance

rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
first = rewards[groups == 0]
by_hand = (first - first.mean()) / (first.std() + 1e-6)
advantages = group_advantages(rewards, groups)
print("group 0 by hand:", by_hand.round(decimals=4).tolist())
print("the package:    ", advantages.round(decimals=4).tolist())
assert torch.equal(by_hand, advantages[:4])

# %% [markdown]
# The second group, all right, gets 0 everywhere: there is nothing to learn from it. Dr. GRPO (arXiv 2503.20783) leaves
# out the division, which inflates the rare case; RLOO (arXiv 2402.14740, equation 7) uses the mean of the *other*
# rollouts. With binary rewards, everything depends on how many of the group were right:

# %%
figure, axes = plt.subplots(figsize=(7, 3.4))
kinds = {
    "GRPO": ("group", True, BLUE, "-"),
    "Dr. GRPO": ("group", False, GREEN, "--"),
    "RLOO": ("leave-one-out", False, ORANGE, ":"),
}
for name, (baseline, normalize, color, line) in kinds.items():
    right, wrong = [], []
    for n_right in range(1, G):
        r = torch.tensor([1.0] * n_right + [0.0] * (G - n_right))
        a = group_advantages(r, torch.zeros(G), baseline, normalize)
        right.append(a[0].item())
        wrong.append(a[-1].item())
    axes.plot(range(1, G), right, "o" + line, color=color, label=f"{name}, right (o)")
    axes.plot(range(1, G), wrong, "x" + line, color=color)
axes.axhline(0, color="black", linewidth=0.5)
axes.set(xlabel=f"right rollouts of {G}; x: the wrong ones", ylabel="advantage")
axes.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# A right answer to a hard question is worth most, a wrong answer to an easy question costs most, and the advantages of a
# group add up to 0, with `group` and `leave-one-out` alike.
#
# ## Groups that teach nothing
#
# If each rollout is right with probability p, a group has no variance with probability $p^G + (1-p)^G$. A base that is
# seldom right, or a policy that nearly always is, wastes most of its rollouts. `--drop-zero-variance` leaves such groups
# out of the mean, and `--dynamic-sampling` (DAPO, arXiv 2503.14476) draws others in their place.

# %%
table = torch.tensor(paid).view(-1, G)
is_flat = zero_variance(table.flatten(), torch.arange(len(table)).repeat_interleave(G)).view(-1, G)[:, 0]
p = np.linspace(0, 1, 101)
figure, (left, right_axes) = plt.subplots(1, 2, figsize=(10, 3.2))
for size, color, line in ((2, ORANGE, ":"), (G, BLUE, "-"), (16, GREEN, "--")):
    left.plot(p, p**size + (1 - p) ** size, line, color=color, label=f"G = {size}")
left.set(xlabel="p, probability of a right rollout", ylabel="share of groups with no variance", ylim=(0, 1.02))
left.legend(frameon=False)
n_right, n_groups = np.unique(table.sum(1).int().numpy(), return_counts=True)
bars = right_axes.bar(n_right, n_groups, color=[GRAY if n in (0, G) else BLUE for n in n_right])
right_axes.bar_label(bars)
right_axes.set(
    xlabel=f"right rollouts of {G} (gray: teaches nothing)", ylabel="groups of the base", xticks=range(G + 1)
)
figure.tight_layout()
print(f"the base: {int(is_flat.sum())} of {len(table)} groups have no variance, mean reward {table.mean():.3f}")

# %% [markdown]
# [Notebook 6](06_grpo.ipynb) puts these advantages into a loss and takes a step.
#
# ## Exercises
#
# **5.1** The gold answer is `red brick house`, and the policy says `The red house!`. What is the token F1?

# %%
answer = ...  # a number
check("5.1", answer, "429ad0e0928e", hint="normalize first; then 2 x common / (words said + words wanted)")

# %% [markdown]
# <details><summary>Solution</summary>
#
# Two words are shared, out of two given and three wanted: F1 is 4 / 5.
#
# ```python
# answer = f1_score("The red house!", ["red brick house"])
# ```
#
# </details>
#
# **5.2** A rollout is right with probability 0.1, and G is 8. What share of the groups teaches nothing, to three digits?

# %%
answer = ...  # a number
check("5.2", answer, "b0bd9dbcb35c", hint="all wrong, or all right")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = 0.1**8 + 0.9**8
# ```
#
# </details>
#
# **5.3** Write RLOO's advantages: a function `(rewards, group_ids)` on two tensors (N,) that returns each reward minus
# the mean of the other rewards in its group.

# %%
answer = ...  # a function
cases = [
    (torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0, 0, 0, 0])),
    (torch.tensor([1.0, 0.2, 0.0, 0.8]), torch.tensor([3, 1, 3, 1])),
    (torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2, 2, 2])),
]
check_code(
    "5.3", answer, lambda r, g: group_advantages(r, g, "leave-one-out"), cases, hint="groups need not lie side by side"
)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def answer(rewards, group_ids):
#     same = (group_ids[:, None] == group_ids[None, :]).float()
#     others = same - torch.eye(len(rewards))
#     return rewards - others @ rewards / others.sum(1)
# ```
#
# </details>

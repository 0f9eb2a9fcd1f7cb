# %% [markdown]
# # 1. The problem: a model that cannot know
#
# A language model answers from its weights. It makes up what it never read, or read once and forgot. A search engine
# holds the fact; the model has to learn to ask for it. This notebook shows the gap in a world that no model can know, and
# how few steps of reinforcement learning close most of it.
#
# Search-R1 (Jin et al., 2025, [arXiv 2503.09516](https://arxiv.org/abs/2503.09516)) is the method; the notebooks build
# what section 3 of the paper describes. Everything here runs on a base of one million parameters, on a CPU.

# %%
from collections import Counter
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
from exercises import check
from lesson import BLUE, ORANGE, draw_trajectory, load_tiny, train_quietly

from searchr1_mini.data.world import make_world, world_examples

# %% [markdown]
# ## A world that nobody can know
#
# `data/world.py:make_world` draws people, cities, companies and countries, and facts between them. Training and
# evaluation never share a name (`data/world.py:assign_split`), so no fact learned in training helps in evaluation. An answer
# can only come from a passage.

# %%
world = make_world(seed=0, split="eval")
print(
    len(world.passages), "passages;", len(world.facts), "facts;", {kind: len(x) for kind, x in world.entities.items()}
)
examples = world_examples(world, hops=[1, 2], n=48, seed=0)
for source in ("world-1hop", "world-2hop"):
    example = next(example for example in examples if example.source == source)
    print(f"\n{source}: {example.question}\nanswer: {example.golden_answers[0]}")
    for title, words in example.supporting:
        passage = next(p for p in world.passages if p.title == title and words in p.text)
        print(f"  needs {title!r}: {passage.text}")

# %% [markdown]
# A question of two hops needs two passages, and the second cannot be found before the first is read: its title is nowhere
# in the question. One search with the question itself is not enough, and so searching is a skill.
#
# ## What the base does
#
# The tiny base was pre-trained on texts that sometimes search and mostly do not ([how it was
# made](../docs/tiny_base.md)). With greedy decoding it claims to remember.

# %%
from searchr1_mini.core.scores import evaluate
from searchr1_mini.run.opening import configured_method, rollout_limits
from searchr1_mini.run.task import load_task

config, policy = load_tiny(eval_questions=48)
task = load_task(config, "eval")
summary, trajectories = evaluate(
    task.examples, configured_method(config), policy, task.retriever, rollout_limits(config)
)
draw_trajectory(trajectories[1], policy.tokenizer, "the base, greedily")
print("gold answer:", task.examples[1].golden_answers[0])
print(f"exact match {summary['em']:.3f}, searches per question {summary['searches']:.2f}")

# %% [markdown]
# *Exact match* (EM) is the reward of the paper (equation 4; `core/rewards.py:exact_match`): 1 if the answer equals the
# gold answer after normalization, and 0 otherwise.
#
# Sampled at temperature 1 the base searches now and then. That is enough to see what search changes. We put four
# engines behind it (`run/task.py:load_task`, `retrievers/probes.py`):
#
# * **none**: there is no engine; a search is an invalid action,
# * **empty**: the engine finds nothing,
# * **bm25**: the real engine, on this world's passages,
# * **oracle**: the engine returns the supporting passages whatever the query, in the same order at every search. Nothing
#   is missing, but a policy that reads the first passage of each search can do worse on two hops than with BM25.

# %%
from searchr1_mini.options.nested import with_options

ENGINES = {"none": "none", "empty": "empty", "bm25": "auto", "oracle": "oracle"}


def by_engine(policy, temperature):
    """Engine -> (summary, trajectories) on the same questions."""
    results = {}
    for name, retriever in ENGINES.items():
        settings = with_options(config, retriever=retriever)
        task, limits = load_task(settings, "eval"), rollout_limits(settings)
        results[name] = evaluate(
            task.examples, configured_method(settings), policy, task.retriever, limits, temperature=temperature
        )
    return results


base = by_engine(policy, temperature=1.0)
for name, (summary, _) in base.items():
    print(f"{name:7} EM {summary['em']:.3f}  searches per question {summary['searches']:.2f}")

# %% [markdown]
# Without an engine, or with an empty one, no answer is right: there is no source to know it from. With the oracle the
# base is right more often than with BM25, but still mostly wrong, since it seldom asks. So the engine is not the problem.
# Split the sampled answers by whether they searched:

# %%
summary, trajectories = base["bm25"]
right = Counter()
asked = Counter()
for example, trajectory in zip(task.examples, trajectories, strict=True):
    kind = "searched" if trajectory.queries else "did not search"
    asked[kind] += 1
    right[kind] += trajectory.answer in example.golden_answers
for kind, n in asked.items():
    print(f"{kind}: {n} of {len(trajectories)} answers, {right[kind]} right")
assert right["did not search"] == 0

# %% [markdown]
# ## A few steps of reinforcement learning
#
# Nothing tells the model to search. A reward of 1 for a right answer is enough, because only rollouts that searched can
# be right. We take four steps of GRPO on a LoRA adapter, with questions of one hop in the *training* world, which shares
# no name with the questions above. [Notebook 6](06_grpo.ipynb) builds this step by hand; `core/training.py:train_policy`
# is the loop. A full run is `python train.py`: 40 steps, both hops.

# %%
from searchr1_mini.storage.checkpoint import latest_checkpoint

runs = TemporaryDirectory()
folder = train_quietly(
    runs.name + "/four",
    steps=4,
    questions_per_step=8,
    world_hops="1",
    learning_rate=5e-3,
    warmup_steps=1,
    decay_steps=0,
    eval_questions=2,
)
_, trained = load_tiny(weights=latest_checkpoint(folder) / "model")
after = by_engine(trained, temperature=0.0)
before = by_engine(policy, temperature=0.0)

# %%
figure, (left, right_axes) = plt.subplots(1, 2, figsize=(10, 3.4))
for offset, results, label, color in ((-0.2, before, "base", ORANGE), (0.2, after, "after 4 steps", BLUE)):
    places = [index + offset for index in range(len(ENGINES))]
    for axes, figure_name in ((left, "em"), (right_axes, "searches")):
        bars = axes.bar(places, [results[name][0][figure_name] for name in ENGINES], 0.4, color=color, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
        axes.set_xticks(range(len(ENGINES)), ENGINES)
        axes.set_xlabel("search engine")
left.set(ylabel="exact match, greedy", ylim=(0, 1))
right_axes.set(ylabel="searches per question")
left.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# The bars can be read in two ways. *What was learned*: to search whenever there is an engine, even one that finds
# nothing. *What was not learned*: facts. With an empty engine the trained model is as wrong as the base. That pair of
# bars tests any claim that a model searches, and `python eval.py --run RUN --retriever auto,oracle,random,empty,none`
# runs the test on a run of yours.

# %%
draw_trajectory(after["bm25"][1][1], trained.tokenizer, "after 4 steps")
hops = {source: figures["em"] for source, figures in after["bm25"][0]["by_source"].items()}
print({source: round(em, 2) for source, em in hops.items()})

# %% [markdown]
# To see where it errs, look at the hops: this short run saw only questions of one hop. The full run trains on both, and
# [the tiny base](../docs/tiny_base.md) has its figures.
#
# ## Exercises
#
# **1.1** A policy searches on a share $s$ of the questions. It is right with probability $p$ if it searched, and never
# otherwise. A run has $s = 0.4$ and an EM of 0.3. What EM would it have if it searched on every question, at the same
# $p$?

# %%
answer = ...  # a number
check("1.1", answer, "655c121fa2c4", hint="EM = s p; what is p?")

# %% [markdown]
# <details><summary>Solution</summary>
#
# $p = 0.3 / 0.4$, and with $s = 1$ the EM is $p$: most of the gain is in asking at all.
#
# ```python
# answer = 0.3 / 0.4
# ```
#
# </details>
#
# **1.2** Two runs have the same EM of 0.6 with BM25. With the empty engine run A has 0.0 and run B 0.5. Which of them
# answers from its weights?

# %%
answer = ...  # "A" or "B"
check("1.2", answer, "c44ec6b76796", hint="an empty engine tells nothing: whatever is still right was known before")

# %% [markdown]
# <details><summary>Solution</summary>
#
# B, which is right half of the time with nothing to read.
#
# ```python
# answer = "B"
# ```
#
# </details>
#
# **1.3** How many facts of `world` have the mayor of a city as their relation? (`world.facts` is keyed by subject and
# relation.)

# %%
answer = ...  # a number
check("1.3", answer, "474e354cd8bc", hint="the relation is named mayor; every city has one")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = sum(relation == "mayor" for _, relation in world.facts)
# ```
#
# </details>

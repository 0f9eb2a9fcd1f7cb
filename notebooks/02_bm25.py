# %% [markdown]
# # 2. BM25, from its formula to the index
#
# The policy asks, and something must answer. Search-R1 gives its policy E5, a dense encoder (paper, section 4.3). The
# interface is one call, and BM25 can serve it just as well, without a model or a GPU, and with scores that can be
# computed by hand. This notebook does so on ten passages, compares the result with both engines of the package, and
# measures what BM25 finds on the world of [notebook 1](01_the_problem.ipynb).

# %%
from math import log

import matplotlib.pyplot as plt
import numpy as np
from exercises import check, check_code
from lesson import BLUE, GREEN, ORANGE, RED

from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data.world import make_world, world_examples
from searchr1_mini.retrievers.bm25 import BM25S, K1, B, RankBM25, best_rows, index_terms
from searchr1_mini.retrievers.terms import tokenize

world = make_world(seed=0, split="eval")
ten = [p for p in world.passages if p.title in sorted(world.entities["city"])[:10]][:10]
ten = [Passage(str(number), passage.title, passage.text) for number, passage in enumerate(ten)]
for passage in ten:
    print(passage.id, passage.title, "|", passage.text)

# %% [markdown]
# ## Terms
#
# BM25 sees a bag of terms: lower-cased words of title and text, without English function words
# (`retrievers/terms.py:tokenize`, `retrievers/bm25.py:index_terms`). Order and meaning are lost; what remains is how
# often a term occurs in a passage (tf), how many passages hold it (n), and how long the passage is (|d|).

# %%
query = f"Who is the mayor of {ten[3].title}?"
asked = tokenize(query)
bags = [index_terms(passage) for passage in ten]
lengths = np.array([len(bag) for bag in bags])  # (N,) terms
counts = np.array([[bag.count(term) for term in asked] for bag in bags])  # (N, terms of the query): tf
held_by = (counts > 0).sum(0)  # (terms,): n
print("query:", query, "->", asked)
print("lengths:", lengths, "mean", lengths.mean())
print("n of each term:", dict(zip(asked, held_by.tolist(), strict=True)))

# %% [markdown]
# ## The formula
#
# Robertson and Zaragoza, *The Probabilistic Relevance Framework: BM25 and Beyond* (2009), section 3. For N passages:
#
# $$\text{norm}(d) = k_1 \left(1 - b + b \, \frac{|d|}{\text{avgdl}}\right) \qquad
# \text{score}(q, d) = \sum_{t \in q} \text{idf}(t) \, \frac{\text{tf}(t, d) \, (k_1 + 1)}{\text{tf}(t, d) + \text{norm}(d)}$$
#
# Two forms of idf are in use. Okapi's, used by rank-bm25 (`retrievers/bm25.py:RankBM25`), is the older one; Lucene's,
# used by bm25s (`retrievers/bm25.py:BM25S`), is never negative, and bm25s leaves out the constant factor $k_1 + 1$:
#
# $$\text{idf}_\text{Okapi}(t) = \ln \frac{N - n + 0.5}{n + 0.5} \qquad
# \text{idf}_\text{Lucene}(t) = \ln\left(1 + \frac{N - n + 0.5}{n + 0.5}\right)$$

# %%
N = len(ten)
norm = K1 * (1 - B + B * lengths / lengths.mean())[:, None]  # (N, 1)
okapi_idf = np.array([log((N - n + 0.5) / (n + 0.5)) for n in held_by])
lucene_idf = np.array([log(1 + (N - n + 0.5) / (n + 0.5)) for n in held_by])
lucene_parts = lucene_idf * counts / (counts + norm)  # (N, terms): what each term adds to each passage
lucene = lucene_parts.sum(1)
print("idf, Okapi: ", dict(zip(asked, okapi_idf.round(3).tolist(), strict=True)))
print("idf, Lucene:", dict(zip(asked, lucene_idf.round(3).tolist(), strict=True)))
print("scores, Lucene:", lucene.round(3))

# %% [markdown]
# Every passage here names a mayor: a term that most passages hold says little about any of them, and Okapi's idf becomes
# negative. rank-bm25 then replaces it by a quarter of the mean idf over all terms of the corpus. With that, both engines
# give our numbers.

# %%
vocabulary = sorted({term for bag in bags for term in bag})
n_of = {term: sum(term in bag for bag in bags) for term in vocabulary}
mean_idf = np.mean([log((N - n + 0.5) / (n + 0.5)) for n in n_of.values()])
mended = np.where(okapi_idf < 0, 0.25 * mean_idf, okapi_idf)
okapi = (mended * counts * (K1 + 1) / (counts + norm)).sum(1)

for name, engine, ours in (("rank-bm25", RankBM25(ten), okapi), ("bm25s", BM25S(ten), lucene)):
    (hits,) = engine.search([query], topk=3)
    print(name, [(hit.passage.title, round(hit.score, 4)) for hit in hits])
    for hit in hits:
        assert abs(hit.score - ours[int(hit.passage.id)]) < 1e-4
print("by hand  ", [(ten[row].title, round(float(okapi[row]), 4)) for row in best_rows(okapi, okapi > 0, 3)])

# %%
figure, axes = plt.subplots(figsize=(10, 3))
bottom = np.zeros(N)
for part, term, color in zip(lucene_parts.T, asked, (ORANGE, BLUE, GREEN), strict=False):
    axes.barh([passage.title for passage in ten], part, left=bottom, color=color, label=term)
    bottom += part
axes.invert_yaxis()
axes.set(xlabel="score (Lucene)", title=query)
axes.legend(title="term", frameon=False)
figure.tight_layout()

# %% [markdown]
# ## What k1 and b do
#
# $k_1$ says how fast a repeated term saturates: the second occurrence adds less than the first, and no number of them
# adds more than $k_1 + 1$ times the idf. $b$ says how much of a long passage's term counts is put down to its length
# alone: nothing with 0, in full proportion with 1.

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.2))
tf = np.linspace(0, 10, 60)
styles = (ORANGE, "--"), (BLUE, "-"), (GREEN, ":")
for k1, (color, line) in zip((0.5, K1, 3.0), styles, strict=True):
    left.plot(tf, tf * (k1 + 1) / (tf + k1), line, color=color, label=f"k1 = {k1}")
for b, (color, line) in zip((0.0, B, 1.0), styles, strict=True):
    long = np.linspace(0.2, 4, 60)
    middle.plot(long, (K1 + 1) / (1 + K1 * (1 - b + b * long)), line, color=color, label=f"b = {b}")
share = np.linspace(0.01, 0.99, 60) * 100
right.plot(share, np.log((100 - share + 0.5) / (share + 0.5)), "--", color=ORANGE, label="Okapi")
right.plot(share, np.log(1 + (100 - share + 0.5) / (share + 0.5)), color=BLUE, label="Lucene")
right.axhline(0, color="black", linewidth=0.5)
left.set(xlabel="tf, in a passage of mean length", ylabel="weight of the term / idf")
middle.set(xlabel="length / mean length, tf = 1")
right.set(xlabel="n, of 100 passages", ylabel="idf")
for axes in (left, middle, right):
    axes.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# ## The index
#
# The formula needs only counts, so all of it can be computed before the first query. rank-bm25 keeps the counts and goes
# through every passage for every query: its code is short to read, but its time is linear in the corpus. bm25s computes
# $\text{idf} \cdot \text{tf} / (\text{tf} + \text{norm})$ once for every term *of a passage* and keeps the numbers by
# term (postings, a sparse matrix); a query adds up a few columns.

# %%
index = BM25S(world.passages).index
n_terms, n_passages, n_kept = len(index.vocab_dict), len(world.passages), len(index.scores["data"])
print(
    f"{n_terms} terms x {n_passages} passages, {n_kept} scores kept: {n_kept / n_terms / n_passages:.2%} of the matrix"
)
column = index.vocab_dict["mayor"]
first, last = index.scores["indptr"][column : column + 2]
print(f"'mayor' is in {last - first} passages; a query touches these and no others")

# %% [markdown]
# `--retriever auto` uses rank-bm25 below 2,000 passages, and bm25s from there on
# (`retrievers/engines.py:build_retriever`); [Performance](../docs/performance.md) times both on corpora of several sizes.
#
# ## What it finds
#
# An engine is measured here not by whether it answers but by whether it finds the passages that the answer rests on:
# *any@k* and *all@k* are the share of questions with at least one, or with every, supporting title among the best k
# (`retrieval_metrics.py:measure`). The query is the question itself.

# %%
from searchr1_mini.retrieval_metrics import measure

topks = [1, 2, 3, 5, 10]
found = {}
for hops in (1, 2):
    asked_of = world_examples(world, [hops], 100, seed=0)
    found[hops] = measure(RankBM25(world.passages), asked_of, topks)

figure, axes = plt.subplots(figsize=(6, 3.4))
axes.plot(topks, [found[1].all_recall[k] for k in topks], "o-", color=BLUE, label="1 hop: its passage")
axes.plot(topks, [found[2].any_recall[k] for k in topks], "s--", color=GREEN, label="2 hops: one of two")
axes.plot(topks, [found[2].all_recall[k] for k in topks], "^:", color=RED, label="2 hops: both")
axes.set(xlabel="k, passages returned", ylabel="share of questions", ylim=(0, 1.02), xticks=topks)
axes.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# One search finds the passage of a one-hop question, and the first passage of a two-hop question. It seldom finds both,
# and a larger k helps little: the title of the second passage is nowhere in the question. A second search, with the name
# that the first passage gives, finds it. No engine can do that by itself; the policy has to learn it.

# %%
engine = RankBM25(world.passages)
two_hop = world_examples(world, [2], 100, seed=0)
both = 0
for example in two_hop:
    (first, _), (second, _) = example.supporting
    queries = [example.question, second]  # the second as a reader of the first passage would ask
    titles = {hit.passage.title for hits in engine.search(queries, topk=3) for hit in hits}
    both += {first, second} <= titles
print(f"both passages, one search, k = 3:  {found[2].all_recall[3]:.2f}")
print(f"both passages, two searches:       {both / len(two_hop):.2f}")

# %% [markdown]
# `K1` and `B` are constants in `retrievers/bm25.py`. Do their values matter? For the same 100 questions of two hops, here
# is the share with the first passage on top:

# %%
k1s, bs = [0.3, 0.9, 1.5, 3.0], [0.0, 0.4, 0.75, 1.0]
grid = np.zeros((len(k1s), len(bs)))
for row, k1 in enumerate(k1s):
    for column, b in enumerate(bs):
        engine.index.k1, engine.index.b = k1, b
        grid[row, column] = measure(engine, two_hop, [1]).any_recall[1]
figure, axes = plt.subplots(figsize=(4.6, 3.2))
image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=1)
for (row, column), value in np.ndenumerate(grid):
    axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
axes.set_xticks(range(len(bs)), bs)
axes.set_yticks(range(len(k1s)), k1s)
axes.set(xlabel="b", ylabel="k1", title="any@1, two hops")
figure.colorbar(image)
figure.tight_layout()

# %% [markdown]
# Here k1 matters more than b: the passages have similar lengths, and the one that is wanted names its subject twice, in
# title and text. If lengths differ more, b matters more.
#
# ## Exercises
#
# **2.1** A term occurs in 3 of 10 passages. What is its idf by Lucene's formula, to three digits?

# %%
answer = ...  # a number
check("2.1", answer, "c52b39e87a45", hint="N = 10, n = 3, and mind the 1 inside the logarithm")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = log(1 + (10 - 3 + 0.5) / (3 + 0.5))
# ```
#
# </details>
#
# **2.2** In a corpus of 100 passages, what is the smallest n at which Okapi's idf is negative?

# %%
answer = ...  # a number
check("2.2", answer, "d2871531c83a", hint="at which n is the fraction exactly 1?")

# %% [markdown]
# <details><summary>Solution</summary>
#
# At n = 50 the fraction is 50.5 / 50.5, and the idf is 0.
#
# ```python
# answer = next(n for n in range(1, 101) if log((100 - n + 0.5) / (n + 0.5)) < 0)
# ```
#
# </details>
#
# **2.3** Write the ranking: a function `(scores, matches, topk)` that returns the indices of the `topk` largest scores
# among those where `matches` is true, best first, equal scores in the order of the corpus. The package's function
# (`retrievers/bm25.py:best_rows`) is linear in the corpus; yours may sort.

# %%
answer = ...  # a function
cases = [
    (np.array([1.0, 3.0, 2.0, 3.0]), np.array([True] * 4), 2),
    (np.array([1.0, 3.0, 2.0, 3.0]), np.array([True, False, True, True]), 3),
    (np.array([0.0, -1.0, 0.0]), np.array([True, True, False]), 3),
    (np.array([1.0, 1.0, 1.0]), np.array([False] * 3), 2),
]
check_code(
    "2.3", answer, best_rows, cases, hint="sort by (-score, index); leave out what does not match, not what is 0"
)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def answer(scores, matches, topk):
#     rows = [row for row in range(len(scores)) if matches[row]]
#     return sorted(rows, key=lambda row: (-scores[row], row))[:topk]
# ```
#
# </details>

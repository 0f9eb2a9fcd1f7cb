# %% [markdown]
# # 10. Your own documents: train a searcher on a folder of text
#
# This notebook goes from a folder of `.txt` files to a model that searches it: it cuts the files into passages, writes
# questions, tests the retriever alone, measures the base, trains, and asks. It writes its own files, in the plain English
# that the tiny base can read; with a real model (`--model Qwen2.5-3B`) they can be yours.

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from exercises import check, check_code
from IPython.utils.capture import capture_output
from lesson import BLUE, GREEN, ORANGE, one_step

from searchr1_mini.core.errors import UserError
from searchr1_mini.data.datasets import load_corpus, load_examples
from searchr1_mini.data.world import make_world, world_examples
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.retrieval_metrics import measure as measure_retriever
from searchr1_mini.retrievers.bm25 import RankBM25
from searchr1_mini.run.evaluations import measured
from searchr1_mini.run.log import render_trajectory
from searchr1_mini.run.opening import open_run

# %% [markdown]
# ## A folder of text
#
# There is one file per page, with an empty line between paragraphs. The pages are about people, cities and companies that
# do not exist, so no model can know them.

# %%
WORK = Path(tempfile.mkdtemp())
world = make_world(seed=77, split="train", difficulty="simple")
pages = {}
for passage in world.passages:
    pages.setdefault(passage.title, []).append(passage.text)
(WORK / "texts").mkdir()
for title, paragraphs in pages.items():
    (WORK / "texts" / f"{title}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
print(f"{len(pages)} files; one of them:\n")
print((WORK / "texts" / f"{sorted(pages)[0]}.txt").read_text(encoding="utf-8"))

# %% [markdown]
# ## Passages
#
# The unit of search is a passage: a paragraph or a few, about 100 words, with the title of its page, since a paragraph
# alone often does not say whom it is about. The file has one JSON object per line, with `id`, `title` and `text`;
# [Data](../docs/data.md) has the other forms. `--corpus texts` would cut the folder for you; here it is done by hand to
# show how.


# %%
def cut(text, most_words=100):
    """Paragraphs joined until the next would pass `most_words`."""
    pieces = []
    for paragraph in filter(None, map(str.strip, text.split("\n\n"))):
        if pieces and len(f"{pieces[-1]} {paragraph}".split()) <= most_words:
            pieces[-1] += f" {paragraph}"
        else:
            pieces.append(paragraph)
    return pieces


rows = []
for file in sorted((WORK / "texts").glob("*.txt")):
    pieces = cut(file.read_text(encoding="utf-8"), most_words=20)
    rows += [{"id": f"{file.stem}/{n}", "title": file.stem, "text": piece} for n, piece in enumerate(pieces)]
corpus = WORK / "passages.jsonl"
corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
passages = load_corpus(str(corpus), "jsonl", None)
print(f"{len(passages)} passages, the first: {passages[0]}")

# %% [markdown]
# ## Questions
#
# Each question comes with the answers that count as right. They are compared by exact match after SQuAD's normalization,
# so list every form that you would accept. `supporting_facts` (the titles that the answer rests on) is optional; with it
# the retriever can be judged on its own. A few hundred questions are a start; writing them is the part that takes work.

# %%
examples = world_examples(world, [1], 200, seed=77)
rows = [
    {
        "question": e.question,
        "golden_answers": list(e.golden_answers),
        "supporting_facts": [[t, 0] for t, _ in e.supporting],
    }
    for e in examples
]
questions = WORK / "questions.jsonl"
questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
training, held_out = (load_examples("jsonl", str(questions), split) for split in ("train", "eval"))
print(rows[0], f"\n{len(training)} questions for training, {len(held_out)} held out")

# %% [markdown]
# A tenth is held out, chosen by a hash of the question, so it is the same in every run. A line in the wrong form is
# reported with its place:

# %%
(WORK / "broken.jsonl").write_text('{"question": "Who?", "reply": "Ada"}\n', encoding="utf-8")
try:
    load_examples("jsonl", str(WORK / "broken.jsonl"), "train")
except UserError as error:
    print(str(error).replace(f"{WORK}/", ""))

# %% [markdown]
# ## The retriever alone
#
# Before any training: does a search for the question itself find its page? What BM25 cannot find, no policy can read.
# `recall@k` is the share of questions with a supporting passage, or with every one, among the best k. Besides our
# questions of one hop, we try some of two ("the mayor of the city where ..."), which rest on two pages:

# %%
topks = [1, 2, 3, 5, 10]
retriever = RankBM25(passages)
one_hop = measure_retriever(retriever, training + held_out, topks)
two_hops = measure_retriever(retriever, world_examples(world, [2], 100, seed=77), topks)
fig, axis = plt.subplots(figsize=(5.5, 3), layout="constrained")
axis.plot(topks, list(one_hop.any_recall.values()), "o-", color=BLUE, label="one hop, its page")
axis.plot(topks, list(two_hops.any_recall.values()), "s--", color=GREEN, label="two hops, one of its pages")
axis.plot(topks, list(two_hops.all_recall.values()), "^:", color=ORANGE, label="two hops, both")
axis.set(xlabel="k, passages per search", ylabel="recall@k", ylim=(0, 1.05), xticks=topks)
_ = axis.legend()

# %% [markdown]
# A two-hop question does not name its second page, so one search with the question does not find that page, however many
# passages come back. The model has to read the first page and search again.
#
# In a terminal: `python -m searchr1_mini.retrieval_metrics --dataset questions.jsonl --corpus passages.jsonl`.
#
# ## An engine of your own
#
# An engine is a class that is made from the list of passages, with `search(queries, topk)`: for each query at most `topk` hits, a
# passage and a score, best first. `python train.py --retriever my_engine.py:Engine` takes it from a file. One that looks at titles
# alone, beside BM25:

# %%
code = """
from searchr1_mini.core.retrieval import Hit

class Engine:
    '''Passages by how many words of the query their titles have.'''

    def __init__(self, passages):
        self.passages = [(set(passage.title.lower().split()), passage) for passage in passages]

    def search(self, queries, topk):
        return [self.best(set(query.lower().strip("?").split()), topk) for query in queries]

    def best(self, words, topk):
        hits = [Hit(passage, len(words & title)) for title, passage in self.passages if words & title]
        return sorted(hits, key=lambda hit: -hit.score)[:topk]
"""
_ = (WORK / "my_engine.py").write_text(code, encoding="utf-8")

# %%
from searchr1_mini.options.own_parts import own_part

by_title = own_part("retriever", f"{WORK}/my_engine.py:Engine")(passages)
for name, engine in (("BM25", retriever), ("titles alone", by_title)):
    recall = measure_retriever(engine, training + held_out, [1]).any_recall[1]
    (hits,) = engine.search(["Who is a mayor?"], topk=3)
    print(f"{name:13} recall@1 {recall:.2f}, hits for a query without a name: {len(hits)}")

# %% [markdown]
# These questions name the page that they need, so titles are enough here; a query without a name finds nothing.
#
# Anything that does not fit is reported before any work:

# %%
of_one_query = code.replace("def search(self, queries, topk)", "def search(self, query)")
_ = (WORK / "my_first.py").write_text(of_one_query, encoding="utf-8")
for name in ("my_first.py:Engine", "my_engine.py:Engin"):
    try:
        resolve(make(TrainConfig, retriever=f"{WORK}/{name}"))
    except UserError as error:
        print(str(error).replace(f"{WORK}/", ""))

# %% [markdown]
# ## The base, and a few steps of training
#
# Only `--dataset questions.jsonl --corpus passages.jsonl` differs from any other run.

# %%
config = resolve(
    make(
        TrainConfig,
        dataset=str(questions), corpus=str(corpus), steps=6, questions_per_step=8, group_size=8, warmup_steps=1,
        decay_steps=0, tensorboard=False, output_dir=str(WORK / "run"),
    )
)  # fmt: skip
with capture_output():
    run = open_run(config)
before, asked_before = measured(run)
log = [one_step(run, step) for step in range(1, config.optimization.steps + 1)]
after, asked_after = measured(run)

# %%
steps = range(1, len(log) + 1)
fig, axis = plt.subplots(figsize=(5.5, 3), layout="constrained")
axis.plot(steps, [m["reward"] for m in log], "o-", color=BLUE, label="reward")
axis.plot(steps, [m["searches"] for m in log], "s-", color=ORANGE, label="searches per question")
axis.set(xlabel="step", ylabel="mean over 64 rollouts", ylim=(0, None))
_ = axis.legend()
print(f"{len(held_out)} held-out questions: exact match {before['em']:.2f} before, {after['em']:.2f} after")
assert after["em"] > before["em"]

# %% [markdown]
# Twenty questions are few, so the interval of such a figure is wide. `python eval.py --run runs/NAME` prints it beside
# the figure.
#
# ## Ask
#
# We ask the same held-out question before and after training. The trajectory holds what the model read, so an answer can
# be checked.

# %%
index = next((i for i, t in enumerate(asked_after) if t.answer in held_out[i].golden_answers), 0)
for name, asked in (("before", asked_before), ("after", asked_after)):
    print(f"--- {name}\n{render_trajectory(asked[index], color=False)}\n")
print("right:", held_out[index].golden_answers)

# %% [markdown]
# In a terminal, with your files and a real model:
#
#     python train.py --model Qwen2.5-3B --dataset questions.jsonl --corpus passages.jsonl --output-dir runs/mine
#     python eval.py --run runs/mine
#     python eval.py --run runs/mine --ask "Who signed the lease of 1987?"
#
# If there are more documents than memory, `--corpus` may be a folder of `.jsonl.gz`; from 64 MB on it is indexed on disk.
# If words do not match, `--retriever hybrid` adds vectors ([Retrieval](../docs/retrieval.md)). For several trainers, use
# `python -m searchr1_mini.server --corpus passages.jsonl`. [Recipes](../docs/recipes.md) has more.
#
# ## Exercises
#
# **10.1** A file holds 250 different questions. How many does a run train on?

# %%
answer = ...  # a number
check("10.1", answer, "e3f79d7d1e55", hint="a tenth is held out")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = 250 - 250 // 10
# ```
#
# </details>
#
# **10.2** The paper's corpus has one field `contents` instead of title and text: the title in double quotes, a line
# break, and the text. Write a function of title and text that makes it.

# %%
answer = ...  # a function of (title, text)
cases = [("Oak Bay", "Oak Bay is a port in West Fenland."), ("A", "b\nc")]
check_code(
    "10.2",
    answer,
    lambda title, text: f'"{title}"\n{text}',
    cases,
    hint="look at retrievers/passages.py:split_contents",
)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def answer(title, text):
#     return '"' + title + '"\n' + text
# ```
#
# </details>
#
# **10.3** A row has `"golden_answers": ["Vienna, Austria"]`. What is the reward of the answer "Vienna"?

# %%
answer = ...  # a number
check("10.3", answer, "13f9801bd72e", hint="exact match compares the whole answer")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = 0  # so list both forms, or use --reward f1, which pays 0.67 for it
# ```
#
# </details>

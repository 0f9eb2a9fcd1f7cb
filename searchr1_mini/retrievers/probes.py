"""Retrievers that tell whether a policy really searches: what becomes of it if they find nothing, anything, or all."""

from __future__ import annotations

import random
from collections.abc import Sequence

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.core.rewards import compared_title, contains_gold


class EmptyRetriever:
    """Finds nothing: with it, an answer that is still right did not come from retrieval."""

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Returns an empty list for every query."""
        return [[] for _ in queries]


class RandomRetriever:
    """Passages drawn from the corpus, the same for the same query."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Draws passages at random, see `Retriever.search`; the scores are 0."""
        n = min(topk, len(self.passages))
        return [[Hit(passage, 0.0) for passage in random.Random(query).sample(self.passages, n)] for query in queries]


class OracleRetriever:
    """The supporting passages of the question that is being answered, whatever the query.

    Raises:
        UserError: no question has supporting passages in the corpus.
    """

    def __init__(self, passages: Sequence[Passage], examples: Sequence[Example]) -> None:
        wanted = {compared_title(title) for example in examples for title, _ in example.supporting}
        by_title: dict[str, list[Passage]] = {}
        for passage in passages:
            if (title := compared_title(passage.title)) in wanted:
                by_title.setdefault(title, []).append(passage)
        self.of_question = {example.id: supporting_passages(example, by_title) for example in examples}
        if not any(self.of_question.values()):
            raise UserError(
                "--retriever oracle needs questions whose supporting passages are known and in the corpus, as those of "
                "hotpotqa and of the synthetic world; take another data set, or leave the oracle out"
            )

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Refuses: a rollout asks an oracle by question, through `search_for`.

        Raises:
            TypeError: always.
        """
        raise TypeError("an oracle is asked by question, not by query")

    def search_for(self, example_ids: Sequence[str], topk: int) -> list[list[Hit]]:
        """Returns for each question at most `topk` of its supporting passages."""
        return [[Hit(passage, 1.0) for passage in self.of_question.get(id_, [])[:topk]] for id_ in example_ids]


def supporting_passages(example: Example, by_title: dict[str, list[Passage]]) -> list[Passage]:
    """Returns passages with a supporting title and the words that matter; first, in a page, one with a gold answer."""
    found = []
    for title, words in example.supporting:
        page = [passage for passage in by_title.get(compared_title(title), []) if words in passage.text]
        found += sorted(page, key=lambda passage: not contains_gold(passage.text, example.golden_answers))[:1]
    return list(dict.fromkeys(found))

"""What improves on one ranking: reciprocal-rank fusion of several retrievers, and a cross-encoder that re-ranks one."""

from __future__ import annotations

from collections.abc import Sequence

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Hit, Passage, Retriever
from searchr1_mini.retrievers.dense import load_model, passage_text

# fixed depths: what is found in the top 3 does not depend on how many more were asked for
FUSION_DEPTH = 100  # passages of each retriever that are fused
RERANK_DEPTH = 30  # passages per query that the cross-encoder reads; ten times the paper's top k
RRF_K = 60


def reciprocal_rank_fusion(rankings: Sequence[Sequence[Hit]], k: float = RRF_K) -> list[Hit]:
    """Fuses several rankings, by the sum over the rankings of 1 / (k + rank), the first rank being 1.

    Cormack, Clarke & Buettcher, SIGIR 2009, with their k = 60. Equal sums come in the order of the rankings.
    """
    scores: dict[Passage, float] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            scores[hit.passage] = scores.get(hit.passage, 0.0) + 1 / (k + rank)
    return sorted((Hit(*item) for item in scores.items()), key=lambda hit: -hit.score)


class FusedRetriever:
    """Several retrievers of one corpus as one."""

    def __init__(self, retrievers: Sequence[Retriever], depth: int = FUSION_DEPTH) -> None:
        self.retrievers, self.depth = retrievers, depth

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Finds the best passages, see `Retriever.search`; the scores are sums of reciprocal ranks."""
        found = [retriever.search(queries, max(topk, self.depth)) for retriever in self.retrievers]
        return [reciprocal_rank_fusion(rankings)[:topk] for rankings in zip(*found, strict=True)]


class Reranker:
    """Another retriever's best passages in the order of a cross-encoder, which reads query and passage together."""

    def __init__(self, retriever: Retriever, model: str, depth: int = RERANK_DEPTH) -> None:
        """Loads the cross-encoder.

        Raises:
            UserError: it is missing, or gives more than one score per pair.
        """
        self.retriever, self.depth = retriever, depth
        self.model = load_model("CrossEncoder", model, "--reranker")
        if self.model.num_labels != 1:
            raise UserError(
                f"--reranker {model} gives {self.model.num_labels} scores per pair; use a cross-encoder that gives one"
            )

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Finds the best passages, see `Retriever.search`, by the cross-encoder's scores; ties keep their order."""
        found = self.retriever.search(queries, max(topk, self.depth))
        pairs = [(q, passage_text(hit.passage)) for q, hits in zip(queries, found, strict=True) for hit in hits]
        scores = iter(self.model.predict(pairs, show_progress_bar=False).tolist() if pairs else ())
        rescored = [[Hit(hit.passage, next(scores)) for hit in hits] for hits in found]
        return [sorted(hits, key=lambda hit: -hit.score)[:topk] for hits in rescored]

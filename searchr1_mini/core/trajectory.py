"""What one rollout leaves behind: exactly the tokens that the model saw, and who wrote each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

# up to the end of a prompt: a thought begun, or a whole one with an answer begun
_OPENED = re.compile(r"<think>(?:[^<]*</think>\s*<answer>)?\s*")

Kind = Literal["prompt", "policy", "observation"]
FinishReason = Literal["answer", "eos", "turns", "length"]


def opened_by(prompt: str) -> str:
    """Returns what a prompt began of the policy's first turn: `<think>\\n` by the templates of R1's distillations.

    A thought that it has closed again (`<think>\\n\\n</think>`, Qwen3 without thinking) is none of the policy's.
    """
    begun = prompt[start:] if (start := prompt.rfind("<think>")) >= 0 else ""
    return begun if _OPENED.fullmatch(begun) else ""


@dataclass
class Segment:
    """A run of tokens from one writer. Provenance is recorded when a token is chosen, never inferred later.

    Attributes:
        kind: "prompt", "policy" (sampled by the model: trained on) or "observation" (written by the engine: masked).
        token_ids: the ids, as they were fed to or sampled from the model.
        logprobs: for "policy", log pi(token) at sampling time under logits / temperature, one per id; else empty.
        text: for reading and parsing; training never looks at it. For "policy", up to and including the stop string.
    """

    kind: Kind
    token_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    text: str = ""


@dataclass
class Trajectory:
    """One rollout y of one question x: prompt, then turns of policy and observation segments (paper, Algorithm 1).

    Attributes:
        example_id: unique id of the question; together with the step it keys the group.
        segments: in order; the concatenated ids are the sequence that is trained on, token in, token out.
        finish_reason: "answer", "eos" (the last turn held no answer), "turns" (action budget spent) or "length".
        answer: content of the `<answer>` that ended the episode, or None. Read from policy tokens only.
        queries: the search queries that were executed, in order.
        retrieved: the text of each observation of passages; none for a search whose result no longer fitted.
        titles: for each query, the titles of the passages that came back.
        asides: what was read and written beside the context, by turns (Search-o1); never trained on.
        invalid_actions: number of turns that were neither a search nor an answer.
    """

    example_id: str
    segments: list[Segment]
    finish_reason: FinishReason = "eos"
    answer: str | None = None
    queries: list[str] = field(default_factory=list)
    retrieved: list[str] = field(default_factory=list)
    titles: list[list[str]] = field(default_factory=list)
    asides: list[Segment] = field(default_factory=list)
    invalid_actions: int = 0

    def of_kind(self, kind: Kind) -> Iterator[Segment]:
        """Returns the segments of one writer, in order."""
        return (segment for segment in self.segments if segment.kind == kind)

    def turns(self) -> list[str]:
        """Returns the texts of the policy's turns; the first begins with the tag that the prompt has opened for it."""
        texts = [segment.text for segment in self.of_kind("policy")]
        prompt = next((segment.text for segment in self.of_kind("prompt")), "")
        return [opened_by(prompt) + texts[0], *texts[1:]] if texts else []

    @property
    def token_ids(self) -> list[int]:
        """All ids, in order: exactly the context that the model saw and produced."""
        return [token for segment in self.segments for token in segment.token_ids]

    @property
    def n_policy_tokens(self) -> int:
        """Counts the tokens that the policy wrote."""
        return sum(len(segment.token_ids) for segment in self.of_kind("policy"))

    @classmethod
    def from_json(cls, row: dict) -> Trajectory:
        """Inverts `dataclasses.asdict`, for what was written to disk."""
        parts = {name: [Segment(**part) for part in row.get(name, ())] for name in ("segments", "asides")}
        return cls(**{**row, **parts})

"""Drafts questions from documents with a local model, and keeps those whose answer BM25 finds.

    python -m searchr1_mini.make_questions notes/ --model Qwen2.5-3B-Instruct

For each passage the model writes a question and its short answer. A draft is kept if the answer stands in its passage
and not in the question, and if the question's own words find that passage; what is not kept is written beside, with the
reason, for a look.
"""

from __future__ import annotations

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()

import random
import re
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Passage, Retriever
from searchr1_mini.options.checks import check_data_files
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.needs import check_ranges
from searchr1_mini.options.nested import grouped, shared
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.paths import page_path
from searchr1_mini.options.resolve import resolve_model

PROMPT = """Read the passage, then write one short question that it answers, and the answer in as few words as possible.

Passage: Oslo became the capital of Norway in 1814. It lies at the northern end of the Oslofjord.
Question: When did Oslo become the capital of Norway?
Answer: 1814

Passage: {passage}
Question:"""
JSON_LINES = (".jsonl", ".ndjson")
MOST_WORDS = 8  # of an answer
MOST_READ = 300  # words of a passage that the model is shown
MOST_TOKENS = 64  # of a draft


@dataclass(frozen=True)
class QuestionsConfig:
    """Options of the drafting."""

    corpus: str | None = shared("documents", TrainConfig, "corpus")
    limit: int = grouped("documents", 200, "number of passages to draft from, drawn by the seed", least=1, most=10**6)
    seed: int = grouped("documents", 0, "random seed for the choice of passages", least=0, most=2**31)
    model: str = grouped(
        "model", "Qwen2.5-3B-Instruct", "model that drafts: a short name, a hub id, a folder or a GGUF file"
    )
    load_in_4bit: bool | None = grouped("model", None, "model in 4-bit NF4 [default: where there is a GPU]")
    device: Literal["auto", "cpu", "cuda", "mps"] = shared("model", TrainConfig, "device", "auto")
    dtype: Literal["auto", "fast", "float32", "bfloat16", "float16"] = shared("model", TrainConfig, "dtype", "fast")
    rows: int = grouped("model", 16, "number of passages to draft from at a time", least=1, most=4096)
    topk: int = grouped(
        "check",
        3,
        "number of search results among which a question must find its passage to be kept",
        least=1,
        most=1000,
    )
    out: str = grouped("check", "questions.jsonl", "jsonl file for the questions; rejected ones go to *.rejected.jsonl")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, drafts, checks, and writes both files.

    Raises:
        UserError: no documents, no such model, or a file that cannot be written or is there already.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--corpus")
    config = parse(QuestionsConfig, "python -m searchr1_mini.make_questions", __doc__.splitlines()[0], words)
    check_ranges(config)
    if config.corpus is None:
        raise UserError("name the documents: python -m searchr1_mini.make_questions notes/")
    check_data_files(None, config.corpus)
    resolve_model(config.model)
    out = page_path(config.out, "questions.jsonl", "--out")
    if out.suffix not in JSON_LINES:
        raise UserError(f"--out {out}: JSON lines are written; name a file that ends in {' or '.join(JSON_LINES)}")
    rejected = out.with_suffix(f".rejected{out.suffix}")
    if Path(config.corpus).is_dir() and out.resolve().is_relative_to(Path(config.corpus).resolve()):
        raise UserError(
            f"--out {out} lies among the documents of {config.corpus}, and would be read as one; name another"
        )
    for path in (out, rejected):
        if path.exists():
            raise UserError(f"{path} is there already; move it, or name another file with --out")

    from searchr1_mini.data.datasets import load_corpus
    from searchr1_mini.retrievers.engines import build_retriever, configured_engine
    from searchr1_mini.storage import status
    from searchr1_mini.storage.files import append_jsonl

    with status.phase("reading the documents"):
        passages = load_corpus(config.corpus, "jsonl", None)
        picked = random.Random(config.seed).sample(range(len(passages)), min(config.limit, len(passages)))
        chosen = [passages[index] for index in sorted(picked)]
        retriever = build_retriever(configured_engine(TrainConfig().retrieval), passages)
    reasons: Counter[str | None] = Counter()
    seen: set[str] = set()
    for batch, drafts in draft_questions(config, chosen):  # written batch by batch: Ctrl-C loses the one at hand
        for passage, text in zip(batch, drafts, strict=True):
            question, answer = parsed(text)
            reason = fault_of(question, answer, passage, retriever, config.topk, seen)
            row = {"question": question, "golden_answers": [answer], "passage": passage.title or passage.id}
            if reason is None:
                seen.add(question.lower())
                append_jsonl(out, [{"id": f"draft-{sum(reasons.values())}"} | row])
            else:
                append_jsonl(rejected, [row | {"reason": reason, "draft": text}])
            reasons[reason] += 1
    tell(reasons, out, rejected, config)


def tell(reasons: Counter[str | None], out: Path, rejected: Path, config: QuestionsConfig) -> None:
    """Prints what was kept, what was not and why, and what comes next."""
    n_kept = reasons[None]
    print(f"{n_kept} of {reasons.total()} drafts kept{f': {out}' if n_kept else ''}")
    for reason, n in reasons.most_common():
        if reason:
            print(f"  {n} not kept: {reason}")
    if n_kept < reasons.total():
        print(f"the others, with the reason: {rejected}")
    if n_kept:
        command = shlex.join(["--dataset", str(out), "--corpus", str(config.corpus), "--model", config.model])
        print(f"look through them, then train: python train.py {command}")


def draft_questions(config: QuestionsConfig, passages: Sequence[Passage]) -> Iterator[tuple[Sequence, list[str]]]:
    """Yields passages, `rows` at a time, with what the model writes after `Question:` for each."""
    from searchr1_mini.core.methods import Finish, Generate, Method, Prompt
    from searchr1_mini.core.questions import Example
    from searchr1_mini.core.rollout import RolloutLimits, rollout
    from searchr1_mini.models.bases import check_model
    from searchr1_mini.models.loading import load_policy, pick_device, pick_dtype
    from searchr1_mini.retrievers.probes import EmptyRetriever
    from searchr1_mini.storage import status

    def draft(passage: str) -> Method:
        yield Prompt(PROMPT.format(passage=passage))
        text = yield Generate(("\n\n", "\nPassage"), MOST_TOKENS)
        yield Finish(text, "answer")

    with status.phase(f"loading {config.model}"):
        device, source = pick_device(config.device), resolve_model(config.model)
        in_4_bits = device.type == "cuda" if config.load_in_4bit is None else config.load_in_4bit
        dtype = pick_dtype(config.dtype, device)
        policy = load_policy(source, lora_rank=1, lora_alpha=1, load_in_4bit=in_4_bits, dtype=dtype, device=device)
        examples = [
            Example(str(n), " ".join(passage.text.split()[:MOST_READ]), ("",), "draft")
            for n, passage in enumerate(passages)
        ]
        prompts = (policy.encode_prompt(PROMPT.format(passage=example.question)) for example in examples)
        longest = max(map(len, prompts)) + MOST_TOKENS + 1
        check_model(source, longest)
    for start in range(0, len(examples), config.rows):
        part = slice(start, start + config.rows)
        with status.phase(f"drafting questions {start}/{len(examples)}"):
            limits = RolloutLimits(config.rows, longest, 1)
            trajectories, _ = rollout(
                examples[part], draft, policy, EmptyRetriever(), limits, temperature=0.0, seed=config.seed
            )
        yield passages[part], [trajectory.answer or "" for trajectory in trajectories]


def parsed(text: str) -> tuple[str, str]:
    """Returns question and answer of a draft such as `When did it open? \\nAnswer: 1814`; "" for what is not there."""
    match = re.match(r"\s*(?:Question:)?\s*(?P<question>[^\n]*?)\s*\n+\s*Answer:\s*(?P<answer>[^\n]*)", text)
    return (match["question"], match["answer"].strip().rstrip(".")) if match else (text.strip().split("\n")[0], "")


def fault_of(
    question: str, answer: str, passage: Passage, retriever: Retriever, topk: int, seen: Collection[str] = ()
) -> str | None:
    """Tells why a draft is no question to train on, or None; `seen` are those kept already, in lower case."""
    from searchr1_mini.core.rewards import compared, contains_gold

    if not question.endswith(("?", "？", "؟")) or not answer:
        return "no question with an answer"
    if len(answer.split()) > MOST_WORDS:
        return f"its answer has more than {MOST_WORDS} words"
    if not compared(answer) or not contains_gold(passage.text, [answer]):
        return "its answer does not stand in the passage"
    if contains_gold(question, [answer]):
        return "the question gives the answer away"
    if question.lower() in seen:
        return "the same question again"
    found = [hit.passage.id for hit in retriever.search([question], topk)[0]]
    return None if passage.id in found else f"its words do not find the passage among {topk}"


if __name__ == "__main__":
    run_command(main)

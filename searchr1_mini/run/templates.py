"""The first message of each method, in the paper's words and in the tiny base's."""

from __future__ import annotations

from collections.abc import Sequence

from searchr1_mini.core.prompts import OBSERVATION_CLOSE, OBSERVATION_OPEN, SEARCH_TEMPLATE, neutralize_tags

REASON_TEMPLATE = (
    "Answer the given question. You must conduct reasoning inside <think> and </think> first, and then provide the "
    "answer inside <answer> and </answer>, without detailed illustrations. For example, <answer> Beijing </answer>. "
    "Question: {question}\n"
)
DIRECT_TEMPLATE = (
    "Answer the given question at once, without reasoning. Give the answer, a few words at most, inside <answer> and "
    "</answer>, for example <answer> Beijing </answer>. Question: {question}\n"
)
COT_TEMPLATE = (
    "Answer the given question. Think about it step by step inside <think> and </think>, then give the answer, a few "
    "words at most, inside <answer> and </answer>, for example <answer> Beijing </answer>. Question: {question}\n"
)
RAG_TEMPLATE = (
    "Answer the given question with the help of what a search engine found for it, which comes between <information> "
    "and </information>. Give the answer, a few words at most, inside <answer> and </answer>, for example <answer> "
    "Beijing </answer>. Question: {question}\n"
)
IRCOT_TEMPLATE = (
    "Answer the given question. Reason one sentence at a time, each on a line of its own. Every sentence is looked up "
    "by a search engine, and what it finds comes between <information> and </information>: read it before the next "
    "sentence. Once you know the answer, give it, a few words at most, inside <answer> and </answer>, for example "
    "<answer> Beijing </answer>. Question: {question}\n"
)
SEARCH_O1_TEMPLATE = (
    "Answer the given question. Reason step by step inside <think> and </think>. Whenever you are unsure of a fact, "
    "ask a search engine by <search> query </search>; a summary of what it found for your purpose comes back between "
    "<information> and </information>. Search as often as you need, then give the answer, a few words at most, inside "
    "<answer> and </answer>, for example <answer> Beijing </answer>. Question: {question}\n"
)
REASON_IN_DOCUMENTS = (
    "Of these passages I note down only what helps me to answer the question, in one or two sentences, or that nothing "
    "does.\n<think>"
)
SHORT_TEMPLATE = "Question: {question}\n"
Worked = tuple[str, str]  # a question, and all that follows it, from what the template begins of the answer on
# the tiny base has never seen instructions: the first words of the turn tell it which method it follows
SHORT = {
    "direct": SHORT_TEMPLATE + "<think> I know this. </think>\n<answer>",
    "cot": SHORT_TEMPLATE + "<think>",
}
PAPER = {
    "direct": DIRECT_TEMPLATE,
    "cot": COT_TEMPLATE,
    "ircot": IRCOT_TEMPLATE,
    "search-o1": SEARCH_O1_TEMPLATE,
    "rag": RAG_TEMPLATE,
    "r1": REASON_TEMPLATE,
    "search-r1": SEARCH_TEMPLATE,
}


def template_of(method: str, kind: str) -> str:
    """Returns the first message of a method; `kind` is "paper", or "short" for the tiny base."""
    return SHORT.get(method, SHORT_TEMPLATE) if kind == "short" else PAPER[method]


def with_shots(template: str, shots: Sequence[Worked]) -> str:
    """Returns a method's template with the worked examples before its question, all in one message."""
    if not shots:
        return template
    before, mark, after = template.rpartition("Question: {question}")
    lead = "Here are some examples.\n\n" if before else ""
    text = "".join(f"Question: {question}\n{answer}\n\n" for question, answer in shots)
    return f"{before}{lead}{text.replace('{', '{{').replace('}', '}}')}{mark}{after}"


def as_turns(method: str, kind: str, shots: Sequence[Worked]) -> list[Worked]:
    """Returns the worked examples as a chat: each time the method's message, and an answer as the method wants it.

    What is found by the question itself, before a word of the answer, is part of the message.
    """
    template = template_of(method, kind)
    message = template.removesuffix(answer_begun(template))
    turns = [(message.format(question=question), answer) for question, answer in shots]
    if method not in ("rag", "ircot"):
        return turns
    parts = [(asked, *answer.partition(OBSERVATION_CLOSE)) for asked, answer in turns]
    return [(asked + read + close, said) for asked, read, close, said in parts]


def answer_begun(template: str) -> str:
    """Returns what the template writes after the question: the beginning of the policy's first turn, or nothing."""
    return template.rpartition("{question}\n")[2]


def template_opening(template: str) -> str:
    """Returns the tag that the template has already opened for the policy, or nothing."""
    return next((tag for tag in ("<answer>", "<think>") if template.endswith(tag)), "")


def render_note(note: str) -> str:
    """Renders an observation of plain text: what was noted down while reading, instead of the passages themselves."""
    return OBSERVATION_OPEN + neutralize_tags(note).strip() + "\n" + OBSERVATION_CLOSE

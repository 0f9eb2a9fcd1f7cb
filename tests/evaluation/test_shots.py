"""Worked examples in prompts: each in the form of its method, from training questions, and part of what a cell is."""

from __future__ import annotations

import copy
import itertools
import json
import re
from functools import partial
from typing import Any

import pytest
from helpers.files import write_lines
from helpers.models import save_random_qwen2

from searchr1_mini.core.encoding import foreign_ids
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.methods import Aside, Finish, Generate, Request, Search
from searchr1_mini.core.prompts import OBSERVATION_OPEN, parse_action, render_observation
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.core.rewards import contains_gold
from searchr1_mini.data.datasets import load_examples
from searchr1_mini.data.scripts import Find, Hop, answer_hops
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.evaluation.plan import plan_evaluation
from searchr1_mini.evaluation.shots import comes_to_answer, draw_shots, write_shots
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.methods import make_method
from searchr1_mini.run.task import Library
from searchr1_mini.run.templates import answer_begun, template_of, with_shots

METHODS = ("direct", "cot", "rag", "ircot", "search-o1", "search-r1")
SETTINGS = resolve(TrainConfig())


@pytest.fixture(scope="module")
def drawn():
    return draw_shots(SETTINGS, 8, 0, Library(), METHODS)


@pytest.mark.parametrize("kind", ["paper", "short"])
@pytest.mark.parametrize("method", METHODS)
def test_each_example_has_a_question_and_ends_in_its_answer(drawn, method, kind):
    shots, find = drawn[0][method], drawn[1]
    examples = write_shots(method, shots, find, kind, 0)
    begun = answer_begun(template_of(method, kind))
    for (asked, example), (question, hops) in zip(examples, shots, strict=True):
        assert question.question in asked and example.startswith(begun)
        tail = example[example.rindex("<answer>") :]
        assert parse_action(tail).content == question.golden_answers[0]
        searches = {"search-r1": len(hops), "search-o1": len(hops)}.get(method, 0)
        assert example.count("<search>") == example.count("</search>") == searches
        read = {"direct": 0, "cot": 0, "rag": 1, "ircot": len(hops) + 1}.get(method, len(hops))
        assert example.count("<information>") == read
        assert example.count("<think>") == example.count("</think>")


@pytest.mark.parametrize("method", ["rag", "ircot", "search-r1"])
def test_passages_in_an_example_have_the_form_of_the_run(drawn, method):
    shots, find = drawn[0][method], drawn[1]
    forms = (partial(render_observation, form=form) for form in ("paper", "plain"))
    written = (write_shots(method, shots, find, "paper", 0, form) for form in forms)
    paper, plain = ("\n\n".join(answer for _, answer in examples) for examples in written)
    assert '(Title: "' in paper and "\n</information>" not in paper
    assert '(Title: "' not in plain and plain.count("\n</information>") == plain.count("</information>")


@pytest.mark.parametrize("method", METHODS)
def test_what_is_shown_is_what_its_method_would_write(drawn, method):
    """The method itself, given the example's turns, shows the same passages and ends with the same answer."""
    shots, find = drawn[0][method], drawn[1]
    make = make_method(method, template="short", max_turns=4, max_new_tokens=64, topk=3)
    assert method == "rag" or {len(hops) for _, hops in shots} == {1, 2}
    for shot in shots:
        rest = "Question: {}\n{}".format(*write_shots(method, [shot], find, "short", 0)[0])
        played = make(shot[0].question)
        request = played.send(None)
        while not isinstance(request, Finish):
            value, rest = served(request, rest, find)
            request = played.send(value)
        assert (request.answer, request.reason, rest) == (shot[0].golden_answers[0], "answer", "")


def served(request: Request, rest: str, find: Find) -> tuple[Any, str]:
    """What a method is resumed with by the rest of an example's text, and what then is left of that."""
    if isinstance(request, Search):
        return find(request.query), rest
    if isinstance(request, Aside):
        return rest.removeprefix(OBSERVATION_OPEN).partition("\n")[0], rest
    if isinstance(request, Generate):
        end = min(rest.find(stop) + len(stop) for stop in request.stop if stop in rest)
        return rest[:end], rest[end:]
    passages = getattr(request, "passages", None)
    shown = request.text if passages is None else render_observation(passages)
    assert rest.startswith(shown)
    return None, rest[len(shown) :]


def test_the_answer_is_read_before_it_is_said(drawn):
    """In RAG by the question alone, in IRCoT before the last sentence; other methods keep the other questions."""
    shots, find = drawn
    for method in ("rag", "ircot"):
        for example, hops in shots[method]:
            queries = [example.question] + [hop.said for hop in hops[:-1]] * (method == "ircot")
            passages = [passage.text for query in queries for passage in find(query)]
            assert any(contains_gold(text, example.golden_answers) for text in passages)
    assert shots["direct"] == shots["cot"] == shots["search-o1"] == shots["search-r1"] != shots["rag"]


def test_a_comparison_is_shown_with_all_its_support():
    """The word `no` stands in a passage, and answers nothing there."""
    pages = {title: Passage(title, title, f"{title} is no ferry.") for title in ("Ada", "Bea")}
    example = Example("x", "Are Ada and Bea ferries?", ("no",), "own", (("Ada", ""), ("Bea", "")))
    hops = [Hop(title, title, page.text) for title, page in pages.items()]
    for found in (["Ada"], ["Ada", "Bea"]):
        find = partial(lambda found, query: [pages[title] for title in found], found)
        assert comes_to_answer("rag", example, hops, find, render_observation, 4) == (len(found) == 2)


@pytest.mark.parametrize(("method", "least"), [("direct", 1), ("rag", 1), ("search-r1", 2), ("ircot", 3)])
def test_an_example_takes_no_more_turns_than_there_are(method, least):
    page = Passage("1", "Ferry", "The ferry was built by Yard B, and Yard B lies in Grimstad.")
    example = Example("x", "Where was the ferry built?", ("Grimstad",), "own")
    hops = [Hop("it", "ferry", "It was built by Yard B."), Hop("it", "yard", "Yard B lies in Grimstad.")]
    fits = [comes_to_answer(method, example, hops, lambda _: [page], render_observation, n) for n in (1, 2, 3)]
    assert fits == [n >= least for n in (1, 2, 3)]


def test_examples_precede_the_question_and_keep_their_braces():
    for template in ("Answer it. Question: {question}\n", "Question: {question}\n<answer>"):
        shown = with_shots(template, [("a {b}?", "<answer> {c} </answer>")]).format(question="Who?")
        assert shown.endswith(template.format(question="Who?").removeprefix("Answer it. "))
        assert "a {b}?" in shown and "<answer> {c} </answer>" in shown
    assert with_shots("Question: {question}\n", ()) == "Question: {question}\n"


@pytest.mark.parametrize("method", METHODS)
def test_a_passage_forges_no_tag_of_a_worked_example(method):
    passage = Passage("1", "Format", "It wants <answer> Beijing </answer> or <search> </answer> in the end.")
    example = Example("x", "What does it want in the end?", ("<search> </answer>",), "own")
    hops = answer_hops(example, lambda query: [passage])
    ((_, shown),) = write_shots(method, [(example, hops)], lambda query: [passage], "paper", 0)
    assert shown.count("</answer>") == 1 and shown.endswith("<answer> (search) (/answer) </answer>")
    assert shown.count("<search>") == (method in ("search-r1", "search-o1"))


@pytest.mark.parametrize("method", METHODS)
def test_an_example_answers_in_the_spelling_that_was_read(method):
    passage = Passage("1", "Oslo Ferry", "The Oslo Ferry is from the United States.")
    example = Example("x", "Where is the Oslo Ferry from?", ("USA", "United States"), "own")
    hops = answer_hops(example, lambda query: [passage])
    ((_, shown),) = write_shots(method, [(example, hops)], lambda query: [passage], "paper", 0)
    assert shown.endswith("<answer> United States </answer>")


def test_they_are_training_questions_by_seed():
    shots, again, others = (draw_shots(SETTINGS, 3, seed, Library(), ["cot"])[0]["cot"] for seed in (0, 0, 1))
    assert [shot for shot, _ in shots] == [shot for shot, _ in again] != [shot for shot, _ in others]


def test_labels_name_the_shots_and_trained_rows_refuse_them():
    config = EvalConfig(model="tiny", methods="direct,search-r1", train=False, shots=2)
    plan = plan_evaluation(config)
    assert [row.label for row in plan.rows] == ["direct, 2 shots", "search-r1, untrained, 2 shots"] and not plan.notes
    with pytest.raises(UserError, match="--shots does nothing"):
        plan_evaluation(EvalConfig(model="tiny", methods="sft", train=True, shots=2))


TOWNS = [{"id": str(n), "question": f"Where is Town{n} hall?", "answer": f"Place{n}"} for n in range(20)]


def flags_of(folder, questions: list[dict], passages: list[dict]) -> list[str]:
    file = write_lines(folder / "q.jsonl", questions)
    return ["--datasets", file, "--corpus", write_lines(folder / "c.jsonl", passages)]


@pytest.fixture
def own_files(tmp_path) -> list[str]:
    """Twenty questions, each answered by a passage of its own."""
    texts = [{"id": str(n), "title": f"Town{n}", "text": f"Town{n} hall is in Place{n}."} for n in range(20)]
    return flags_of(tmp_path, TOWNS, texts)


def evaluated(folder, own_files, *flags: str, model: str = "tiny") -> dict[str, list[dict]]:
    words = ["--output-dir", str(folder), "--model", model, "--no-train", "--max-new-tokens", "12", *own_files, *flags]
    evaluate_command(parse(EvalConfig, "eval.py", "", words))
    return {path.name: [json.loads(line) for line in path.open()] for path in (folder / "cells").glob("*.jsonl")}


def test_an_evaluation_asks_no_question_that_its_prompt_answers(tmp_path, own_files):
    """No run was trained on the file: its shots are left out of every row, and cells of other shots are others."""
    flags = ["--methods", "direct,rag", "--shots", "2"]
    cells = evaluated(tmp_path / "out", own_files, *flags)
    asked = {row["question"] for rows in cells.values() for row in rows}
    assert len(cells) == 2 and {len(rows) for rows in cells.values()} == {18}
    everything = {example.question for example in load_examples("jsonl", own_files[1], "all")}
    for rows in cells.values():
        prompt = rows[0]["segments"][0]["text"]
        shown = [question for question in everything if question in prompt and question != rows[0]["question"]]
        assert len(shown) == 2 and not asked & set(shown)
    assert len(evaluated(tmp_path / "out", own_files, *flags, "--seed", "5")) == 4


def test_no_row_is_asked_what_another_ones_prompt_answers(tmp_path):
    """RAG is shown no question of two hops, as one search does not find what answers it."""
    ferries = [
        {"id": f"f{n}", "question": f"Who leads the yard of Ferry{n}?", "answer": f"Ada{n}",
         "supporting_facts": [[f"Ferry{n}", 0], [f"Yard{n}", 0]]}
        for n in range(20)
    ]  # fmt: skip
    told = {f"Town{n}": f"Town{n} hall is in Place{n}." for n in range(20)}
    told |= {f"Ferry{n}": f"Ferry{n} belongs to Yard{n}." for n in range(20)}
    told |= {f"Yard{n}": f"Yard{n} is run by Ada{n}." for n in range(20)}
    passages = [{"id": title, "title": title, "text": text} for title, text in told.items()]
    files = flags_of(tmp_path, [*TOWNS, *ferries], passages)
    flags = ["--methods", "rag,search-r1", "--shots", "4", "--topk", "1", "--max-total-tokens", "1000"]
    cells = evaluated(tmp_path / "out", files, *flags)
    questions = [row["question"] for row in [*TOWNS, *ferries]]
    asked, shown = {}, {}
    for name, rows in cells.items():
        prompts = [row["segments"][0]["text"].rpartition("Question: ")[0] for row in rows]
        asked[name] = {row["question"] for row in rows}
        shown[name.partition("-")[0]] = {question for question in questions if question in prompts[0]}
    assert {len(of_row) for of_row in shown.values()} == {4} and len(set(map(frozenset, asked.values()))) == 1
    assert all("Town" in question for question in shown["rag"]) and any("Ferry" in text for text in shown["search"])
    assert not set.union(*shown.values()) & set.union(*asked.values())


def long_texts(is_first: bool) -> list[dict]:
    """The answer's sentence stands before, or behind, more words than an observation holds."""
    rest = "It is an old town. " * 200
    parts = [(f"Town{n} hall is in Place{n}.", rest)[:: 1 if is_first else -1] for n in range(20)]
    return [{"id": str(n), "title": f"Town{n}", "text": " ".join(part)} for n, part in enumerate(parts)]


SHORT = ["--shots", "2", "--topk", "1", "--max-observation-tokens", "100"]


def test_passages_in_an_example_are_cut_as_in_a_rollout(tmp_path, tokenizer):
    files = flags_of(tmp_path, TOWNS, long_texts(is_first=True))
    flags = ["--methods", "rag,ircot,search-r1", *SHORT, "--max-total-tokens", "1000"]
    for name, rows in evaluated(tmp_path / "out", files, *flags).items():
        shown = re.findall(r"\n\n<information>.*?</information>\n\n", rows[0]["segments"][0]["text"], re.DOTALL)
        assert len(shown) == (4 if name.startswith("ircot") else 2)
        assert all(50 < len(foreign_ids(text, tokenizer)) <= 100 for text in shown)


def test_an_answer_that_is_cut_away_is_not_shown(tmp_path):
    files = flags_of(tmp_path, TOWNS, long_texts(is_first=False))
    for method in ("rag", "search-r1"):
        with pytest.raises(UserError, match=f"--shots 2: only 0 of 18 questions give a worked example of {method},"):
            evaluated(tmp_path / method, files, "--methods", method, *SHORT)


def test_examples_that_fill_the_context_are_named(tmp_path):
    files = flags_of(tmp_path, TOWNS, long_texts(is_first=True))
    with pytest.raises(UserError, match=r"--shots 2: the worked examples of rag make a prompt of \d+ tokens"):
        evaluated(tmp_path / "out", files, "--methods", "rag", *SHORT, "--max-total-tokens", "200")


@pytest.mark.parametrize("template", ["paper", "short"])
def test_a_chat_model_is_shown_them_as_a_chat(tmp_path, own_files, tokenizer, template):
    """In every shown turn the method's own message is answered as the method wants it; the last one is left open."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]"
        "{% endif %}"
    )
    model = save_random_qwen2(tmp_path / "model", tokenizer)
    flags = ["--methods", "direct,rag,ircot,search-r1", "--shots", "2", "--no-load-in-4bit", "--template", template]
    for name, rows in evaluated(tmp_path / "out", own_files, *flags, model=str(model)).items():
        for row in rows:
            given = itertools.takewhile(lambda segment: segment["kind"] != "policy", row["segments"])
            before, *turns = "".join(segment["text"] for segment in given).split("[user]")
            asked, answers = zip(*(turn.split("[assistant]") for turn in turns), strict=True)
            assert not before and len(turns) == 3 and row["question"] in asked[2]
            own = [re.sub(r"Town\d+", "", message) for message in asked]
            own = [message.partition("\n\n<information>")[0].rstrip("\n") for message in own]
            assert own[0] == own[1] == own[2] and own[0].endswith("Question: Where is  hall?")
            kind = "search" if name.startswith("search") else "answer"
            assert [parse_action(answer).kind for answer in answers[:2]] == [kind, kind]
            assert all(answer.startswith(answers[2]) for answer in answers)
            of_user = name.startswith(("rag", "ircot"))  # who is asked with what the question finds
            assert [text.count("</information>\n\n") for text in asked] == [of_user] * 3
            assert ("<information>" in answers[0]) == name.startswith(("search", "ircot"))


def test_more_examples_than_can_be_written_are_refused(tmp_path, own_files):
    with pytest.raises(UserError, match="--shots 30: only"):
        evaluated(tmp_path / "out", own_files, "--methods", "direct", "--shots", "30")

"""Worked examples in prompts: each in the form of its method, from training questions, and part of what a cell is."""

from __future__ import annotations

import copy
import itertools
import json
import re

import pytest
from helpers.files import write_lines
from helpers.models import save_random_qwen2

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.methods import Generate, Observe, Prompt
from searchr1_mini.core.prompts import parse_action, render_observation
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data.datasets import load_examples
from searchr1_mini.data.scripts import answer_hops
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.evaluation.plan import plan_evaluation
from searchr1_mini.evaluation.shots import draw_shots, write_shots
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
    return draw_shots(SETTINGS, 3, 0, Library())


@pytest.mark.parametrize("kind", ["paper", "short"])
@pytest.mark.parametrize("method", METHODS)
def test_each_example_has_a_question_and_ends_in_its_answer(drawn, method, kind):
    shots, find = drawn
    examples = write_shots(method, shots, find, kind, 0)
    begun = answer_begun(template_of(method, kind))
    for (asked, example), (question, hops) in zip(examples, shots, strict=True):
        assert question.question in asked and example.startswith(begun)
        tail = example[example.rindex("<answer>") :]
        assert parse_action(tail).content == question.golden_answers[0]
        searches = {"search-r1": len(hops), "search-o1": len(hops)}.get(method, 0)
        assert example.count("<search>") == example.count("</search>") == searches
        assert example.count("<information>") == {"rag": 1, "direct": 0, "cot": 0}.get(method, len(hops))
        assert example.count("<think>") == example.count("</think>")


@pytest.mark.parametrize("method", ["rag", "ircot", "search-r1"])
def test_passages_in_an_example_have_the_form_of_the_run(drawn, method):
    shots, find = drawn
    written = (write_shots(method, shots, find, "paper", 0, form) for form in ("paper", "plain"))
    paper, plain = ("\n\n".join(answer for _, answer in examples) for examples in written)
    assert '(Title: "' in paper and "\n</information>" not in paper
    assert '(Title: "' not in plain and plain.count("\n</information>") == plain.count("</information>")


def test_what_search_r1_is_shown_is_what_its_method_would_write(drawn):
    """The method itself, given the example's turns, shows the same passages."""
    shots, find = drawn
    for shot in shots:
        text = "Question: {}\n{}".format(*write_shots("search-r1", [shot], find, "short", 0)[0])
        method = make_method("search-r1", template="short", max_turns=4, max_new_tokens=64, topk=3)(shot[0].question)
        request, told = method.send(None), ""
        rest = text
        while not (told and parse_action(told).kind == "answer"):
            if isinstance(request, Prompt):
                assert rest.startswith(request.text)
                rest, request = rest[len(request.text) :], method.send(None)
            elif isinstance(request, Generate):
                end = min(rest.find(stop) + len(stop) for stop in request.stop if stop in rest)
                told, rest = rest[:end], rest[end:]
                request = method.send(told)
            elif isinstance(request, Observe):
                shown = render_observation(request.passages)
                assert rest.startswith(shown)
                rest, request = rest[len(shown) :], method.send(None)
            else:
                request = method.send(find(request.query))
        assert rest.strip() == ""


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


def test_they_are_training_questions_by_seed(drawn):
    shots, _ = drawn
    again, _ = draw_shots(SETTINGS, 3, 0, Library())
    others, _ = draw_shots(SETTINGS, 3, 1, Library())
    assert [shot for shot, _ in shots] == [shot for shot, _ in again] != [shot for shot, _ in others]


def test_labels_name_the_shots_and_trained_rows_refuse_them():
    config = EvalConfig(model="tiny", methods="direct,search-r1", train=False, shots=2)
    plan = plan_evaluation(config)
    assert [row.label for row in plan.rows] == ["direct, 2 shots", "search-r1, untrained, 2 shots"] and not plan.notes
    with pytest.raises(UserError, match="--shots does nothing"):
        plan_evaluation(EvalConfig(model="tiny", methods="sft", train=True, shots=2))


@pytest.fixture
def own_files(tmp_path) -> list[str]:
    """Twenty questions, each answered by a passage of its own."""
    rows = [{"id": str(n), "question": f"Where is Town{n} hall?", "answer": f"Place{n}"} for n in range(20)]
    texts = [{"id": str(n), "title": f"Town{n}", "text": f"Town{n} hall is in Place{n}."} for n in range(20)]
    questions = write_lines(tmp_path / "q.jsonl", rows)
    return ["--datasets", questions, "--corpus", write_lines(tmp_path / "c.jsonl", texts)]


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
            assert ("<information>" in answers[0]) == name.startswith("search")


def test_more_examples_than_can_be_written_are_refused(tmp_path, own_files):
    with pytest.raises(UserError, match="--shots 30: only"):
        evaluated(tmp_path / "out", own_files, "--methods", "direct", "--shots", "30")

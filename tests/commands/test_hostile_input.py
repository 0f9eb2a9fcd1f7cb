"""Untrusted bytes: broken files and replies end in one sentence, 1 MB of tags costs linear time, nothing is run."""

from __future__ import annotations

import ast
import copy
import gzip
import json
from datetime import date
from pathlib import Path

import pytest
from helpers.files import write_lines
from helpers.guards import cpu_seconds, told
from helpers.paths import ROOT

from searchr1_mini.core.encoding import break_added_tokens, foreign_ids, observation_ids
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.prompts import neutralize_tags, parse_action
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.core.rewards import contains_gold, normalize_answer
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.data.datasets import load_corpus, load_examples
from searchr1_mini.models.prompting import prompt_ids
from searchr1_mini.retrievers.bm25 import BM25S, fingerprint
from searchr1_mini.retrievers.http_client import HTTPRetriever
from searchr1_mini.run.methods import make_method
from searchr1_mini.run.metrics import empty_think
from searchr1_mini.run.rewards import is_well_formed, reward

GOOD = json.dumps({"id": "1", "contents": '"Oslo"\nOslo is the capital of Norway.'}).encode() + b"\n"
BROKEN = {  # file -> its bytes, and what is said of it
    "nul.jsonl": (GOOD + b"\0\0\0\n", "line 2"),
    "nul-in-text.jsonl": (GOOD + b'{"id": "2", "contents": "a\0b\\nc"}\n', "line 2"),
    "no-utf-8.jsonl": (GOOD + b'{"id": "2", "contents": "a\xff\xfeb\\nc"}\n', "line 2: cannot be read: 'utf-8'"),
    "utf-16.jsonl": (GOOD.decode().encode("utf-16"), "line 1: cannot be read: 'utf-8'"),
    "half-a-pair.jsonl": (GOOD + b'{"id": "2", "contents": "a\\ud800b\\nc"}\n', "line 2"),
    "half-a-pair-id.jsonl": (GOOD + b'{"id": "\\ud800", "contents": "a\\nc"}\n', 'line 2: "id" is broken'),
    "last-line-cut.jsonl": (GOOD + GOOD[:-20], "line 2"),
    "cut.jsonl.gz": (gzip.compress(GOOD * 500)[:-20], "after line"),
    "checksum.jsonl.gz": (gzip.compress(GOOD * 3)[:-8] + b"12345678", "after line 3"),
    "no-gzip.jsonl.gz": (GOOD, "damaged"),
    "deep.jsonl": (GOOD + b"[" * 100_000 + b"\n", "line 2"),
    "long-number.jsonl": (GOOD + b'{"id": ' + b"9" * 5000 + b', "contents": "x\\ny"}\n', "line 2"),
    "10-mb-no-json.jsonl": (GOOD + b"{" * 10_000_000, "line 2"),
    "escape-codes.jsonl": (GOOD + b'{"id": "2", "\\u001b[31m": 1}\n', "line 2"),
    "no-utf-8.json": (b'[{"id": "\xff"}]', "no-utf-8.json"),
    "no-parquet.parquet": (b"PAR1xxxx", "no-parquet.parquet"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_corpus_gives_one_sentence_that_names_the_line(tmp_path, capsys, name):
    content, where = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    sentence = told(lambda: load_corpus(str(tmp_path / name), "jsonl", None), capsys)
    assert name in sentence and where in sentence and len(sentence) < 600


@pytest.mark.parametrize("field", ["question", "answer", "id", "data_source"])
def test_broken_unicode_in_a_question_file_is_told(tmp_path, capsys, field):
    rows = [{"question": "Who?", "answer": "x"}, {"question": "What?", "answer": "x", field: "\ud800"}]
    sentence = told(lambda: load_examples("jsonl", write_lines(tmp_path / "q.jsonl", rows), "all"), capsys)
    assert "q.jsonl, line 2" in sentence


def test_a_line_of_10_mb_and_nuls_in_json_are_read(tmp_path, tokenizer):
    """A passage as long as a book is found and shown within its budget; the work is not that of tokenizing it."""
    rows = [{"id": "long", "contents": "Oslo " * 2_000_000}, {"id": "nul", "contents": "Bern\0\n\0Bern is \0old."}]
    found = BM25S(load_corpus(write_lines(tmp_path / "c.jsonl", rows), "jsonl", None))
    for query, title in (("oslo", "Oslo"), ("bern", "Bern")):
        ((hit,),) = found.search([query], 1)
        ids, text = observation_ids([hit.passage], tokenizer, 100)
        assert title in text and len(ids) <= 100


def test_a_huge_title_does_not_evict_the_other_passages(tokenizer):
    passages = [Passage("0", "x y " * 1_000_000, "a"), Passage("1", "Oslo", "Oslo is the capital of Norway.")]
    _, text = observation_ids(passages, tokenizer, 120)
    assert "Doc 2(Title: Oslo) Oslo is the capital of Norway." in text


def test_only_titles_that_do_not_fit_are_cut(tokenizer):
    title = "A title of some length that stands in the way"
    (whole,) = ([Passage("0", title, "Short.")],)
    assert title in observation_ids(whole, tokenizer, 100)[1]
    assert title not in observation_ids([*whole, Passage("1", "B", "Long. " * 99)] * 2, tokenizer, 100)[1]


@pytest.mark.parametrize("token", ["    ", " x", "x x", "||", "aa"])
def test_an_added_token_of_any_form_ends_and_is_split(tokenizer, token):
    """Some tokenizers add runs of blanks: they are no control tokens, and splitting them would never end."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([token])
    text = break_added_tokens(f"a{token * 3}b", tokenizer)
    assert token.strip() not in text or len(token.strip()) < 2
    assert len(foreign_ids(text, tokenizer)) < 60


def test_our_own_tags_stay_whole_even_if_they_are_tokens(tokenizer):
    """Qwen3 has `<think>` as a token of its own: the template spells it, and must not be split."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>"])
    prompt = make_method("r1", template="paper", max_turns=1, max_new_tokens=9, topk=1)("<tool_call>").send(None).text
    shown = tokenizer.decode(prompt_ids(prompt, tokenizer, date(2026, 1, 1)))
    assert "inside <think> and </think>" in shown and "< tool_call>" in shown
    ids, _ = observation_ids([Passage("0", "<think>", "</think>")], tokenizer, 100)
    assert not set(tokenizer.get_added_vocab().values()) & set(ids)


def test_half_a_surrogate_pair_in_a_reply_is_replaced(server, tokenizer):
    url, replies, _ = server
    document = {"id": "\ud800", "contents": "Os\udc00lo\nIs \ud800 old."}
    replies.append((200, json.dumps({"result": [[{"document": document, "score": 1}]]})))
    ((hit,),) = HTTPRetriever(url).search(["a"], 1)
    assert (hit.passage.title, hit.passage.text) == ("Os?lo", "Is ? old.")
    assert observation_ids([hit.passage], tokenizer, 100) and fingerprint([hit.passage])


def test_a_reply_of_nested_brackets_is_told(server):
    url, replies, _ = server
    replies.append((200, '{"result": ' + "[" * 100_000))
    with pytest.raises(UserError, match="--retriever-url"):
        HTTPRetriever(url).search(["a"], 1)


def readers(text: str) -> None:
    """All that reads tags or answers, on one text."""
    trajectory = Trajectory("q", [Segment("policy", [1], [-1.0], text)], answer=text, retrieved=[text])
    thought = Trajectory("q", [Segment("policy", [1], [-1.0], f"<think>{text}</think>")])
    parse_action(text), neutralize_tags(text), normalize_answer(text), contains_gold(text, [text[:99], "x y"])
    for one in (trajectory, thought):
        is_well_formed(one), empty_think(one)
    for kind in ("em", "sub-em", "f1", "format"):
        reward(trajectory, ["x y"], kind, retrieval_bonus=0.1)
    ircot = make_method("ircot", template="short", max_turns=2, max_new_tokens=9, topk=1)("Who?")
    for result in (None, None, [], None):
        ircot.send(result)
    ircot.send(text)


@pytest.mark.parametrize(
    "unit",
    ["<search>", "<think>", "<think> ", "</answer", "</answer>", "<", "< ", "</ ", "<\n/", " ", "a ", "<answer>x"],
)
def test_a_megabyte_of_tags_is_read_in_linear_time(unit):
    """What is quadratic takes a quarter of an hour here, what is linear a second."""
    with cpu_seconds(30):
        readers(unit * (1_000_000 // len(unit)))


FORBIDDEN = {"eval", "exec", "compile", "__import__", "system", "popen", "getoutput", "getstatusoutput"}


def complaints(path: Path) -> list[str]:
    """Calls that would run text as code, give it to a shell, or read it as a regular expression.

    What unpickles is looked for in test_supply_chain.py.
    """
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        of = getattr(getattr(node.func, "value", None), "id", "")  # of `os.system`, `os`
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        is_code = name in FORBIDDEN and (isinstance(node.func, ast.Name) or of in ("os", "subprocess", "builtins"))
        is_shell = any(keyword.arg == "shell" for keyword in node.keywords)
        is_pattern = of == "re" and name != "escape" and not isinstance(node.args[0], ast.Constant)
        is_yaml = of == "yaml" and not name.startswith("safe_") and name != "YAMLError"
        if is_shell or is_code or is_pattern or is_yaml:
            found.append(f"{path.name}:{node.lineno} calls {of}.{name}")
    return found


def test_no_text_is_run_or_becomes_a_pattern(tmp_path):
    files = [*(ROOT / "searchr1_mini").rglob("*.py"), ROOT / "train.py", ROOT / "eval.py"]
    assert [said for path in files for said in complaints(path)] == []
    bad = ["eval(x)", "os.system(x)", "run(x, shell=True)", 're.sub(x, "", y)', "yaml.load(x)"]
    (tmp_path / "bad.py").write_text("\n".join(bad))
    assert len(complaints(tmp_path / "bad.py")) == len(bad)

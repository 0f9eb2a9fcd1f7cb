"""The chat in the terminal, as a user meets it: through a pipe, and through a terminal (pty) with colors and keys."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.chats import SEARCH, WIDE, chat_of
from helpers.dictated import LIMITS, OSLO, Dictated
from helpers.guards import unsafe
from helpers.hostile import FRAGMENTS
from helpers.models import save_random_qwen2
from helpers.paths import ROOT

from searchr1_mini.chat.terminal import MAX_QUESTION, CtrlC, Screen, verdict
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.interrupt import Stopped
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.core.rollout import rollout
from searchr1_mini.storage.printable import plain


def test_watching_changes_no_token_and_no_logprob(tiny_policy):
    """Sampled, with searches; and what is told is, piece by piece, the text of the trajectory."""
    chat, question = chat_of(tiny_policy, OSLO, temperature=1.0), "Who is the mayor of Oslo?"
    told: list[tuple[str, str]] = []
    watched = chat.answer(question, lambda *piece: told.append(piece))
    (alone,), _ = rollout(
        [Example("asked", question, (), "x")], chat.make_method, tiny_policy, chat.retriever, LIMITS,
        temperature=1.0, seed=0,
    )  # fmt: skip
    assert watched == alone and watched.n_policy_tokens > 10
    assert "".join(text for _, text in told) == "".join(plain(segment.text) for segment in alone.segments)
    assert sum(kind == "policy" for kind, _ in told) > watched.n_policy_tokens / 2


@pytest.mark.parametrize("name", FRAGMENTS)
def test_pieces_of_hostile_text_are_safe_to_show_and_whole(tokenizer, name):
    """Written by the policy, byte by byte where the tokenizer has nothing longer, and standing in a passage."""
    said = tokenizer(SEARCH)["input_ids"] + tokenizer(FRAGMENTS[name] + "\r\n<answer> x </answer>")["input_ids"]
    told: list[tuple[str, str]] = []
    chat = chat_of(Dictated(tokenizer, said), Passage("0", FRAGMENTS[name], f"a {FRAGMENTS[name]}"), limits=WIDE)
    trajectory = chat.answer(f"{FRAGMENTS[name]}?", lambda *piece: told.append(piece))
    assert not any(unsafe(text) for _, text in told)
    for kind in ("policy", "observation"):
        shown = "".join(text for writer, text in told if writer == kind)
        assert shown == "".join(plain(segment.text) for segment in trajectory.of_kind(kind))
    assert not unsafe(verdict(trajectory))


def test_only_whole_characters_are_shown_and_none_after_the_stop(tokenizer):
    """A character of several tokens, and a stop string that ends inside one."""
    ids = tokenizer("<answer> 🦜é漢 </answer>\n\n")["input_ids"]
    assert tokenizer.decode(ids[-1]) == ">\n\n"
    told: list[str] = []
    chat_of(Dictated(tokenizer, ids)).answer("Who?", lambda kind, text: told.append(text) if kind == "policy" else None)
    assert "".join(told) == "<answer> 🦜é漢 </answer>" and len(told) > 3


def test_an_aside_is_not_shown_and_can_be_stopped(tokenizer):
    said = tokenizer(SEARCH)["input_ids"] + tokenizer(" secret </think>")["input_ids"] + [tokenizer.eos_token_id]
    told: list[str] = []
    chat = chat_of(Dictated(tokenizer, [*said]), OSLO, name="search-o1")
    trajectory = chat.answer("Who?", lambda kind, text: told.append(text) if kind == "policy" else None)
    assert "secret" in trajectory.asides[-1].text and "secret" not in "".join(told)
    asked = iter([False] * (len(tokenizer(SEARCH)["input_ids"]) + 1))
    with pytest.raises(Stopped):
        chat_of(Dictated(tokenizer, [*said]), OSLO, name="search-o1").answer(
            "Who?", lambda *_: None, lambda: next(asked, True)
        )


@pytest.mark.parametrize(("question", "told"), [(" \n", "blank"), ("\ud800", "broken"), ("x" * 5000, "5000 char")])
def test_what_is_no_question_is_told(tokenizer, question, told):
    with pytest.raises(UserError, match=told):
        chat_of(Dictated(tokenizer, [])).answer(question, lambda *_: None)


def test_lines_of_a_pipe_name_who_wrote_them(tokenizer, capsys):
    ids = tokenizer(SEARCH)["input_ids"] + tokenizer("<answer> Norway </answer>")["input_ids"]
    Screen(chat_of(Dictated(tokenizer, ids), OSLO), color=False).answer("Where is Oslo?")
    assert capsys.readouterr().out.splitlines() == [
        "     policy | <think> x </think>",
        "     policy | <search> Oslo </search>",
        "observation | <information>Doc 1(Title: Oslo) Oslo is the capital of Norway.",
        "observation | </information>",
        "     policy | <answer> Norway </answer>",
        "",
        "answer: Norway",
        "searches: 1, tokens: " + str(len(ids)),
    ]


@pytest.fixture(scope="module")
def notes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("notes")
    (folder / "oslo.md").write_text("Oslo is the capital of Norway. \x1b[31m\u202e")
    return folder


def command(notes: Path, *flags: object) -> list[str]:
    flags = ("--methods", "rag", "--corpus", notes, *flags)
    return [sys.executable, "eval.py", "--chat", *map(str, flags)]


def test_a_pipe_is_answered_line_by_line_and_what_failed_is_told(notes):
    asked = b"\n".join(
        [
            b"Where is Oslo?",
            b"",
            b"\xff\xfe",
            b"/halp",
            b"/help",
            b"/corpus",
            b"1",
            b"y" * (MAX_QUESTION + 1),
            b"/quit",
            b"never",
        ]
    )
    done = subprocess.run(command(notes, "--model", "tiny"), input=asked, capture_output=True, cwd=ROOT, timeout=120)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 2 and "Traceback" not in err and "never" not in out
    assert out.count("\nanswer: ") == 2 and "   question | What is oslo?\n" in out
    assert "/quit, Ctrl-D  leave" in out and "on " in out and "made-up world" in out
    assert "   question | Where is Oslo?\n" in out
    assert r"observation | <information>Doc 1(Title: oslo) Oslo is the capital of Norway. \x1b[31m\u202e" in out
    for told in ("broken Unicode", "unknown command /halp", f"has {MAX_QUESTION + 1} characters", "2 of the questions"):
        assert told in err
    assert not unsafe(out)


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, arguments: list[str], env: dict[str, str]) -> None:
        self.shown = ""
        self.pid, self.end = pty.fork()
        if self.pid == 0:
            # a suite that runs in the background would hand on that Ctrl-C is ignored
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.chdir(ROOT)
            os.execve(arguments[0], arguments, os.environ | env)

    def clear_line(self) -> None:
        """Ctrl-C until there is a new prompt: a signal just before readline waits for a key is seen with the next."""
        while not re.search("> ", self.shown):
            self.type("\x03")
            while not re.search("> ", self.shown) and select.select([self.end], [], [], 10)[0]:
                self.shown += os.read(self.end, 1 << 16).decode(errors="replace")
        self.until("> ")

    def until(self, pattern: str) -> str:
        """What is shown up to the pattern, and takes it away."""
        while not (found := re.search(pattern, self.shown)):
            assert select.select([self.end], [], [], 120)[0], self.shown
            try:
                self.shown += os.read(self.end, 1 << 16).decode(errors="replace")
            except OSError:  # the program has left
                raise AssertionError(f"no {pattern!r} in {self.shown!r}") from None
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def leave(self) -> int:
        """Waits for the end; the exit code."""
        try:
            while os.read(self.end, 1 << 16):
                pass
        except OSError:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_ctrl_c_never_leaves_the_chat_by_chance(monkeypatch):
    """Wherever it comes: while a line is typed, twice in a row, between two lines, while an answer is written."""
    ctrl_c, calls = CtrlC(), []

    def interrupt(times: int) -> None:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)

    def typed(_prompt: str) -> str:
        calls.append(1)
        if len(calls) == 2:
            raise EOFError
        if len(calls) == 1:
            interrupt(1)
        return "Where is Oslo?"

    def printed() -> None:
        interrupt(1)  # while the cleared line is left

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr("builtins.print", printed)
    before = signal.getsignal(signal.SIGINT)
    with ctrl_c:
        assert list(ctrl_c.typed_lines()) == []
        interrupt(3)  # between two lines
        with ctrl_c.answering() as is_stopped:
            assert not is_stopped()
            interrupt(1)
            assert is_stopped()
            with pytest.raises(KeyboardInterrupt):
                interrupt(1)
        interrupt(1)
        with ctrl_c.answering() as is_stopped:
            assert not is_stopped()
    assert signal.getsignal(signal.SIGINT) == before and len(calls) == 2


def test_a_terminal_shows_tokens_as_they_come_and_obeys_its_keys(notes, tmp_path, tokenizer):
    """A random model that never ends a turn by itself: Ctrl-C ends the answer, not the chat; Ctrl-D leaves."""
    model = save_random_qwen2(tmp_path / "model", tokenizer)
    flags = ["--model", model, "--no-load-in-4bit", "--max-new-tokens", 3900, "--max-total-tokens", 4096]
    terminal = Terminal(command(notes, *flags), {"SEARCHR1_CACHE": str(tmp_path), "TERM": "xterm"})
    try:
        assert " with rag; auto on " in terminal.until("help lists what else can be typed")
        terminal.until("> ")
        terminal.type("a line that is cleared")
        terminal.until("cleared")
        terminal.clear_line()
        terminal.type("Where is Oslo?\r")
        shown = terminal.until("\x1b\\[1;94m[^\x1b]")  # the first piece of the policy's, thousands are to come
        assert "\x1b[33m" in shown and r"capital of Norway. \x1b[31m\u202e" in shown
        terminal.type("\x03")
        terminal.until("stopped")
        terminal.until("> ")
        terminal.type("\x1b[A")  # the last question comes back
        terminal.until("Where is Oslo")
        terminal.clear_line()
        terminal.type("\x04")
        assert terminal.leave() == 0
    except BaseException:
        os.kill(terminal.pid, signal.SIGKILL)
        raise
    assert (tmp_path / "chat_history").read_text().count("Where is Oslo?") == 1

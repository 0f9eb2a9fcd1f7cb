"""Questions of the user's own, answered while one watches: `Chat` answers, here it is shown in the terminal.

The page in the browser is web.py.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.interrupt import Stopped
from searchr1_mini.core.methods import MakeMethod
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.prompts import parse_action
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Retriever
from searchr1_mini.core.rollout import RolloutLimits, rollout
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.data.corpus import is_text
from searchr1_mini.models.names import is_instructed
from searchr1_mini.options.entry import lost_output
from searchr1_mini.run.log import render_segment
from searchr1_mini.storage.cache import cache_dir
from searchr1_mini.storage.printable import one_line, plain

MAX_QUESTION = 4_000  # characters
NO_ANSWER = {
    "eos": "the model ended without one",
    "turns": "no turn was left",
    "length": "the context was full",
}
HELP = """/examples      questions to begin with; its number alone asks one
/corpus        what is searched
/help          this
/quit, Ctrl-D  leave
Ctrl-C         ends an answer"""
NO_FORM = "; no turn held <search> or <answer>: this model does not know the form"
Tell = Callable[[str, str], None]  # who wrote it ("prompt", "policy", "observation"), and the next piece of text


@dataclass
class Chat:
    """What answers: a policy with its method, search engine and bounds, see `rollout`. It remembers no question.

    Attributes:
        about: what answers, and what it searches.
        examples: questions to begin with.
    """

    policy: Policy
    retriever: Retriever
    make_method: MakeMethod
    limits: RolloutLimits
    temperature: float
    seed: int
    about: str = ""
    examples: tuple[str, ...] = ()

    @property
    def is_instructed(self) -> bool:
        """Whether the model follows instructions, as far as its name tells."""
        return is_instructed(self.policy.base_name)

    def answer(self, question: str, tell: Tell, is_stopped: Callable[[], bool] = lambda: False) -> Trajectory:
        """Answers one question.

        Args:
            question: at most `MAX_QUESTION` characters.
            tell: told each piece of text as it is there, safe to show; the policy's by tokens.
            is_stopped: asked at every token.

        Raises:
            UserError: the question is blank or too long, or the retriever failed.
            Stopped: `is_stopped()`.
        """
        if not is_text(question):
            raise UserError("the question is blank or broken Unicode; ask in UTF-8")
        if len(question) > MAX_QUESTION:
            raise UserError(f"the question has {len(question)} characters; ask in at most {MAX_QUESTION}")
        n_told = 0

        def on_token(so_far: str) -> None:
            nonlocal n_told
            if is_stopped():
                raise Stopped
            so_far = so_far.removesuffix("\r")  # a line feed may follow
            if len(so_far) > n_told:
                tell("policy", plain(so_far[n_told:]))
                n_told = len(so_far)

        def on_segment(kind: str, text: str) -> None:
            nonlocal n_told
            rest, n_told = (text[n_told:], 0) if kind == "policy" else (text, 0)
            if rest:
                tell(kind, plain(rest))

        (trajectory,), _ = rollout(
            [Example("asked", question, (), "asked")], self.make_method, self.policy, self.retriever, self.limits,
            temperature=self.temperature, seed=self.seed, on_segment=on_segment, on_token=on_token,
        )  # fmt: skip
        return trajectory


def verdict(trajectory: Trajectory, is_instructed: bool = False) -> str:
    """The answer in one line, safe to show, or why there is none.

    Args:
        trajectory: of any method; some search by themselves, without an action of the policy.
        is_instructed: the model follows instructions, as far as its name tells.
    """
    if trajectory.answer:
        return one_line(trajectory.answer)
    why = NO_ANSWER.get(trajectory.finish_reason, trajectory.finish_reason)
    knows_form = any(parse_action(turn).kind != "invalid" for turn in trajectory.turns())
    if knows_form or not trajectory.invalid_actions:
        return f"no answer: {why}"
    knowing = "one that was trained with --cold-start 200"
    return f"no answer: {why}{NO_FORM}; take {knowing if is_instructed else f'an -Instruct model, or {knowing}'}"


class Screen:
    """Prints answers: with colors each piece as it comes, without them whole segments, line by line."""

    def __init__(self, chat: Chat, color: bool, shows_prompt: bool = False) -> None:
        self.chat, self.color, self.shows_prompt = chat, color, shows_prompt
        self.kind, self.pieces = "", []

    def answer(self, question: str, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Prints how a question is answered, the answer last; raises as `Chat.answer`."""
        try:
            trajectory = self.chat.answer(question, self.tell, is_stopped)
        finally:
            self.flush()
        print(f"\nanswer: {verdict(trajectory, self.chat.is_instructed)}")
        print(f"searches: {len(trajectory.queries)}, tokens: {trajectory.n_policy_tokens}", flush=True)

    def tell(self, kind: str, text: str) -> None:
        """Takes the next piece of text."""
        if kind == "prompt" and not self.shows_prompt:
            return
        if self.color:
            print(render_segment(kind, text, True), end="", flush=True)
            return
        if kind != self.kind:
            self.flush()
        self.kind = kind
        self.pieces.append(text)

    def flush(self) -> None:
        """Prints the segment that waits to be whole."""
        if self.pieces:
            print(render_segment(self.kind, "".join(self.pieces), False), end="", flush=True)
        self.kind, self.pieces = "", []


def chat_in_terminal(chat: Chat, color: bool) -> None:
    """Answers question after question, from the keyboard or a pipe, until its end or /quit.

    Raises:
        UserError: at the end of a pipe, if a question of it could not be answered.
    """
    screen = Screen(chat, color)
    if sys.stdin.isatty() and sys.stdout.isatty():
        print(f"{one_line(chat.about)}\n{numbered_list(chat.examples)}\n/help lists what else can be typed.")
        with line_editing(), CtrlC() as ctrl_c:
            for question in read_questions(ctrl_c.typed_lines(), chat):
                try:
                    with ctrl_c.answering() as is_stopped:
                        screen.answer(question, is_stopped)
                except Stopped:
                    print("\nstopped")
                except UserError as error:
                    print(f"error: {plain(str(error))}", file=sys.stderr)
        return
    sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no UTF-8 is told, and the next one is read
    n_failed = 0
    for question in read_questions(sys.stdin, chat):
        try:
            print(f"   question | {one_line(question)}", flush=True)
            screen.answer(question)
        except UserError as error:
            n_failed += 1
            print(f"error: {plain(str(error))}", file=sys.stderr, flush=True)
        if lost_output():  # whoever reads the answers has left, as `head` does
            break
    if n_failed:
        raise UserError(f"{n_failed} of the questions could not be answered; fix what is told above, and ask again")


def numbered_list(examples: Sequence[str]) -> str:
    """The examples, each with its number."""
    return "\n".join(f"  {number}  {one_line(question)}" for number, question in enumerate(examples, start=1))


def read_questions(lines: Iterator[str], chat: Chat) -> Iterator[str]:
    """The lines that ask something, up to /quit; an example's number stands for it, a word with a slash commands."""
    examples = numbered_list(chat.examples) or "there are none"
    told = {"/help": HELP, "/examples": examples, "/corpus": one_line(chat.about)}
    for line in lines:
        line = line.strip()
        if line == "/quit":
            return
        if line in told:
            print(told[line], flush=True)
        elif line.startswith("/") and " " not in line:
            print(f"unknown command {one_line(line[:40])}; /help lists them", file=sys.stderr, flush=True)
        elif line.isascii() and line.isdecimal() and 1 <= int(line) <= len(chat.examples):
            yield chat.examples[int(line) - 1]
        elif line:
            yield line


class CtrlC:
    """Inside, Ctrl-C clears the line that is typed, ends the answer, or, if it was told to end, the program.

    Between the two it does nothing, so that it never leaves the chat by chance.
    """

    def __init__(self) -> None:
        self.raises, self.stop = False, None

    def __enter__(self) -> CtrlC:
        self.previous = signal.signal(signal.SIGINT, self.on_signal)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def on_signal(self, *_) -> None:
        if self.raises:
            self.raises = False  # once: where it is caught, another one would not be
            raise KeyboardInterrupt
        if self.stop:
            self.stop.set()
            self.raises = True

    @contextmanager
    def answering(self) -> Iterator[Callable[[], bool]]:
        """Inside, a first Ctrl-C makes what it gives true, and a second one raises KeyboardInterrupt."""
        self.stop = threading.Event()
        try:
            yield self.stop.is_set
        finally:
            self.raises, self.stop = False, None

    def typed_lines(self) -> Iterator[str]:
        """Lines from the keyboard up to Ctrl-D."""
        while True:
            try:
                self.raises = True
                line = input("\n> ")
                self.raises = False
            except KeyboardInterrupt:
                print()
            except EOFError:
                self.raises = False
                print()
                return
            else:
                yield line


@contextmanager
def line_editing() -> Iterator[None]:
    """Inside, lines can be edited and recalled, those of earlier sessions too, where Python has readline."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    path = cache_dir() / "chat_history"
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)

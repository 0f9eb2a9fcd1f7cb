"""All commands behind one: `searchr1 train`, `searchr1 eval runs/NAME`, or `python -m searchr1_mini train`."""

from __future__ import annotations

import sys
from importlib import import_module
from multiprocessing import parent_process

from searchr1_mini import __version__
from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.options.entry import begin
from searchr1_mini.options.outcome import run_command

if parent_process() is not None:  # a worker of ablate or pretrain, whose main module this is
    begin(is_child=True)

COMMANDS = {  # name: module, words that it stands for, what it does
    "train": ("train", [], "trains a language model to search"),
    "eval": ("evaluate", [], "evaluates a run, or a table of methods, on held-out questions"),
    "ask": ("evaluate", ["--ask"], "answers one question: searchr1 ask QUESTION --run runs/NAME"),
    "chat": ("evaluate", ["--chat"], "answers your questions in the terminal; --web for the browser"),
    "report": ("report", [], "writes the page of one run or several"),
    "classroom": ("classroom", [], "puts the runs of a class on one board"),
    "export": ("export", [], "writes a run's weights and questions for other programs"),
    "ablate": ("ablate", [], "runs a study of the method's parts, with intervals"),
    "race": ("race", [], "measures how fast a setting learns, on worlds that nobody tuned on"),
    "preflight": ("preflight", [], "predicts the memory of a run"),
    "server": ("server", [], "serves a corpus to retrievers"),
    "retrieval-metrics": ("retrieval_metrics", [], "measures retrievers: recall, MRR, latency"),
    "make-questions": ("make_questions", [], "drafts questions from your documents with a local model"),
    "mystery": ("mystery", [], "grades a bug hunt: searchr1 mystery check runs/NAME GUESS"),
    "pretrain": ("pretrain", [], "makes the tiny base"),
}


def main() -> None:
    """Runs the command that the first word names."""
    begin()
    run_command(dispatch)


def dispatch() -> None:
    """Hands the other words to the command, or lists the commands.

    Raises:
        UserError: there is no such command.
    """
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        width = max(map(len, COMMANDS))
        lines = [f"  {command.ljust(width)}  {does}" for command, (_, _, does) in COMMANDS.items()]
        print("\n".join(["usage: searchr1 COMMAND ..., with --help after a command for its options", "", *lines]))
    elif name == "--version":
        print(f"searchr1_mini {__version__}")
    elif name not in COMMANDS:
        raise UserError(f"there is no command {name!r}{suggest(name, COMMANDS)}; `searchr1 --help` lists them")
    else:
        module, stands_for, _ = COMMANDS[name]
        if stands_for == ["--chat"] and words and not words[0].startswith("-"):
            words.insert(0, "--run")
        if {"--help", "-h"} & set(words) or (stands_for == ["--chat"] and "--web" in words):
            stands_for = []
        elif stands_for == ["--ask"] and (not words or words[0].startswith("-")):
            raise UserError("name the question first, in quotes: searchr1 ask QUESTION --run runs/NAME")
        import_module(f"searchr1_mini.{module}").main(stands_for + words)


if __name__ == "__main__":
    main()

"""The programs as a user runs them, each in a process of its own, which finds torch, transformers and peft imported.

Importing them takes several seconds, often more than what a test is about. A test of the imports themselves, of a
terminal, or of the interpreter's own variables starts Python anew, by `subprocess`.
"""

from __future__ import annotations

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from threading import Timer

from helpers.paths import ROOT

_FORKING = get_context("forkserver")
_FORKING.set_forkserver_preload(
    ["torch", "transformers.models.qwen2.modeling_qwen2", "peft", "tyro", "torch.utils.tensorboard"]
)
if not getattr(current_process(), "_inheriting", False):  # not in a child, which imports this too
    ensure_running()  # now, with an environment that no test has changed


class Program:
    """A program that runs, for a test that reads what it says and then kills it.

    Args:
        words: a script, a module after -m or code after -c, and its flags.
        environment: what it gets besides today's variables.
        folder: where it runs; the project's if none is named.

    Attributes:
        stdout: what it prints, line by line as it comes.
        send_signal, kill: as of a `subprocess.Popen`.
    """

    def __init__(self, *words: object, environment: Mapping[str, str] | None = None, folder: str | Path = ROOT):
        self.words = list(map(str, words))
        self._folder = tempfile.TemporaryDirectory()
        self._errors = os.path.join(self._folder.name, "stderr")
        reader, writer = _FORKING.Pipe(duplex=False)
        all_of_it = {**os.environ, **(environment or {})}
        self._process = _FORKING.Process(target=_be_program, args=(self.words, all_of_it, folder, writer, self._errors))
        self._process.start()
        writer.close()
        self.stdout = open(os.dup(reader.fileno()), encoding="utf-8")  # noqa: SIM115
        reader.close()

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess:
        """Reads to the end what it prints, and returns it with its errors and its exit code.

        Raises:
            subprocess.TimeoutExpired: it took longer than so many seconds, and was killed.
        """
        killer = Timer(timeout, self.kill)
        killer.start()
        with self._folder, self.stdout:
            out = self.stdout.read()
            self._process.join()
            in_time = killer.is_alive()
            killer.cancel()
            if not in_time:
                raise subprocess.TimeoutExpired(self.words, timeout)
            err = Path(self._errors).read_text("utf-8") if os.path.exists(self._errors) else ""
        return subprocess.CompletedProcess([sys.executable, *self.words], self._process.exitcode, out, err)


def run_program(*words: object, timeout: float = 300) -> subprocess.CompletedProcess:
    """Runs a script, a module after -m or code after -c, in the project's folder; waits for its end.

    Raises:
        subprocess.TimeoutExpired: it took longer than so many seconds, and was killed.
    """
    return Program(*words).wait(timeout)


def _be_program(words: list[str], environment: dict[str, str], folder: Path, out: Connection, errors: str) -> None:
    """Turns a fork of the server into what `python WORDS` would be."""
    os.dup2(out.fileno(), 1)
    out.close()
    file = os.open(errors, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, str(ROOT))
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except Exception:  # as the interpreter tells it, not as multiprocessing does
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()

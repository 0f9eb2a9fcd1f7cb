"""The programs as a user runs them, each in a process of its own, which finds torch, transformers and peft imported.

Importing them takes several seconds, often more than what a test is about. A test of the imports themselves, of
signals, or of the interpreter's own variables starts Python anew, by `subprocess`.
"""

from __future__ import annotations

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing import current_process, get_context
from multiprocessing.forkserver import ensure_running
from pathlib import Path

from helpers.paths import ROOT

_FORKING = get_context("forkserver")
_FORKING.set_forkserver_preload(["torch", "transformers", "peft"])
if not getattr(current_process(), "_inheriting", False):  # not in a child, which imports this too
    ensure_running()  # now, with an environment that no test has changed


def run_program(*words: object, timeout: float = 300) -> subprocess.CompletedProcess:
    """Runs a script, or after -m a module, in the project's folder with today's environment; waits for its end.

    Raises:
        subprocess.TimeoutExpired: it took longer than so many seconds, and was killed.
    """
    told = list(map(str, words))
    with tempfile.TemporaryDirectory() as folder:
        streams = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        process = _FORKING.Process(target=_be_program, args=(told, dict(os.environ), streams))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(told, timeout)
        out, err = (Path(path).read_text("utf-8") for path in streams)
    return subprocess.CompletedProcess([sys.executable, *told], process.exitcode, out, err)


def _be_program(words: list[str], environment: dict[str, str], streams: list[str]) -> None:
    """Turns a fork of the server into what `python WORDS` would be."""
    for descriptor, path in enumerate(streams, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except Exception:  # as the interpreter tells it, not as multiprocessing does
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()

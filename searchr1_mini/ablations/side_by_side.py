"""Runs side by side, each in a process and a folder of its own; what is finished is kept, what was begun goes on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import with_options
from searchr1_mini.options.paths import check_folder
from searchr1_mini.pages.report import write_report
from searchr1_mini.storage import status
from searchr1_mini.storage.files import read_json, write_json_atomic
from searchr1_mini.storage.printable import counted

DIVERGED = "diverged.json"
Key = tuple[str, int]  # name of the arm, and the seed


def open_folder(out: Path, settings: Mapping[str, Any], jobs: int | None, n_runs: int, name: str = "study") -> int:
    """Makes the folder of a study, or a race; refuses one that holds another, or the same with other settings.

    Args:
        jobs: see `train_all`.
        n_runs: of the whole study.

    Returns:
        The threads of every run, as at the folder's first start: results depend on their number.

    Raises:
        UserError: it does, and both are named; or it cannot be made.
    """
    check_folder(out)
    path = out / f"{name}.json"
    old = read_json(path, {"?threads": (int, None)}) if path.exists() else {}
    differing = [key for key, value in settings.items() if old.get(key) not in (None, value)]
    if differing:
        theirs, ours = ({key: each[key] for key in differing} for each in (old, settings))
        raise UserError(f"{out} holds the {name} {theirs}, not {ours}; name another --output-dir")
    threads = threads_per_run(out, old.get("threads"), jobs, n_runs)
    out.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, settings | old | {"threads": threads})
    return threads


def threads_per_run(out: Path, began: int | None, jobs: int | None, n_runs: int) -> int:
    """Returns what OMP_NUM_THREADS says, or what the folder began with, or a run's share of the cores.

    Raises:
        UserError: the first two differ.
    """
    word = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list is of nested loops
    given = int(word) if word.isdecimal() else 0
    if given and began and given != began:
        told = f"the runs in {out} have {counted(began, 'thread')} each, and OMP_NUM_THREADS is {given}"
        raise UserError(f"{told}; set it to {began}, or name another --output-dir")
    return given or began or max(n_cores() // min(jobs or usual_jobs(), n_runs), 1)


def n_cores() -> int:
    """Counts the cores that this process may use, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_jobs() -> int:
    """Returns the runs at a time where nobody says: one for each core, and one on a GPU."""
    with status.phase("loading torch"):
        import torch
    return 1 if torch.cuda.is_available() else n_cores()


def train_all(
    configs: Mapping[Key, TrainConfig], jobs: int | None, threads: int, goes_on: bool = False
) -> dict[Key, str]:
    """Trains what has no summary yet, `jobs` runs at a time.

    Args:
        jobs: None is `usual_jobs`.
        threads: of each run.
        goes_on: a run that diverges does not end the others, and stays as it is from then on.

    Returns:
        What became of the runs that diverged.
    """
    folders = {key: Path(config.run.output_dir) for key, config in configs.items()}
    ended = {key: folder / DIVERGED for key, folder in folders.items() if (folder / DIVERGED).exists()}
    diverged = {key: read_json(path, {"why": str})["why"] for key, path in ended.items()}
    waiting = [key for key in configs if key not in diverged and not (folders[key] / "summary.json").exists()]
    if not waiting:
        return diverged
    jobs = min(jobs or usual_jobs(), len(waiting))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the runs as they load torch
    done, context = len(configs) - len(waiting), process_context()
    with status.phase(f"training, {jobs} run{'s' * (jobs > 1)} at a time"), ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(in_a_process, configs[key], goes_on, context): key for key in waiting}
        try:
            for future in as_completed(futures):
                (arm, seed), told = futures[future], future.result()
                if isinstance(told, str):
                    diverged[arm, seed] = told
                done += 1
                ending = f"diverged: {told}" if isinstance(told, str) else f"held-out EM {told:.3f}"
                print(f"[{done}/{len(configs)}] {arm}, seed {seed}: {ending}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end_runs(futures)
            raise
    return diverged


def in_a_process(config: TrainConfig, keeps_divergence: bool, context: BaseContext) -> float | str:
    """Has `train_one` run in a process of its own; one pool for all would begin another run after Ctrl-C.

    Raises:
        UserError: the process was ended from outside, or the run itself failed so.
    """
    with ProcessPoolExecutor(1, mp_context=context) as alone:
        try:
            return alone.submit(train_one, config, keeps_divergence).result()
        except BrokenProcessPool as error:
            raise UserError(
                f"the process of {config.run.output_dir} was ended from outside, as a system does whose memory runs "
                "out; run it again with fewer --jobs, and what is finished is kept"
            ) from error


def process_context() -> BaseContext:
    """Returns how runs get their processes: on Linux without CUDA as forks of one that has loaded what a run loads.

    Loading torch, transformers and peft takes a run about ten seconds; a fork cannot use a GPU that its parent touched.
    """
    with status.phase("loading torch"):
        import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        return get_context("spawn")
    from multiprocessing.forkserver import ensure_running

    context = get_context("forkserver")
    context.set_forkserver_preload(["searchr1_mini.ablations.preloaded"])
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # is inherited: a study tells its runs of Ctrl-C
    ensure_running()
    signal.signal(signal.SIGINT, handler)
    return context


def end_runs(futures: Collection[Future]) -> None:
    """Tells each run to save and leave, once, since a second signal would have it leave at once; and waits."""
    print("\nstopping; runs that have begun save and leave", file=sys.stderr, flush=True)
    told: set[int] = set()
    while left := [future for future in futures if not future.done()]:
        wait(left, timeout=0.1)
        for run in active_children():
            if run.pid not in told:
                told.add(run.pid)
                run.terminate()


def end_with_parent() -> None:
    """Ends this process once the study's own is gone, however it went, so that no run is left with two writers."""

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def train_one(config: TrainConfig, keeps_divergence: bool = False) -> float | str:
    """One run, in a process of its own, with its output in ARM/seed-N.log; returns its final held-out exact match.

    Args:
        keeps_divergence: a run that diverges returns why, and notes it in its folder.
    """
    end_with_parent()
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # so that Ctrl-C reaches it once, through the study: a second signal would leave at once
    folder = Path(config.run.output_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(folder.name + ".log").open("a")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    from searchr1_mini.run.run import Diverged
    from searchr1_mini.run.training import train

    try:
        train(with_options(config, resume=(folder / "config.json").exists()), write_report)
    except Diverged as error:
        if not keeps_divergence:
            raise
        write_json_atomic(folder / DIVERGED, {"why": str(error)})
        return str(error)
    return read_json(folder / "summary.json", {"after": {"em": float}})["after"]["em"]


def ran_on(folders: Iterable[Path]) -> dict[str, list[Any]]:
    """Returns the devices and numbers of threads that runs had, each once; None is what an older version left out."""
    form = {"?resolved_device": (str, None), "?threads": (int, None)}
    configs = [read_json(folder / "config.json", form) for folder in folders]
    named = {"devices": "resolved_device", "threads": "threads"}
    return {name: sorted({each.get(key) for each in configs}, key=str) for name, key in named.items()}

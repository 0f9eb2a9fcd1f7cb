"""Finished runs of many people, side by side: what each reached, what it changed, and whether that can be compared."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from searchr1_mini.core import progress
from searchr1_mini.core.errors import UserError
from searchr1_mini.options.changes import changes, public
from searchr1_mini.options.checks import world_hops_list
from searchr1_mini.options.config import MAY_CHANGE, TrainConfig
from searchr1_mini.options.needs import shown, spelled
from searchr1_mini.options.nested import get, options_of, with_options
from searchr1_mini.options.resolve import checked, config_from, saved_config
from searchr1_mini.pages.classroom_faults import CONFIG, METRICS, SUMMARY, figure_faults, log_faults, setting_faults
from searchr1_mini.storage.commit import DIRTY, named, trained_at
from searchr1_mini.storage.files import read_metrics, read_summary
from searchr1_mini.storage.printable import one_line

OF_THE_FOLDER = ("output_dir", "resume", "date")  # what a summary's settings do not hold


@dataclass(frozen=True)
class Entry:
    """A line of the board.

    Attributes:
        who: the run's folder below the one that was named.
        em: held-out exact match after training; None where nobody measured it.
        hops: the same by source, as `world-2hop`.
        emptied: exact match with a retriever that finds nothing.
        steps, seconds: of training, a cold start included.
        changed: what differs from the default run of the model, as flags; None where nobody can tell.
        faults: why it cannot be compared with the others, in words.
        commits: those that it was trained at, None for one that nobody can tell; none without a config.json.
    """

    who: str
    em: float | None = None
    hops: dict[str, float] = field(default_factory=dict)
    emptied: float | None = None
    steps: int | None = None
    seconds: float | None = None
    changed: list[str] | None = None
    faults: list[str] = field(default_factory=list)
    commits: Sequence[str | None] = ()


def board(folders: Sequence[Path]) -> list[Entry]:
    """An entry for each run below some folders, the highest exact match first.

    Raises:
        UserError: there is no such folder, or no run below any.
    """
    found = [(base, run) for base in folders for run in runs_below(base)]
    runs = list({run.resolve(): (base, run) for base, run in reversed(found)}.values())[::-1]
    if not runs:
        named = ", ".join(map(str, folders))
        raise UserError(f"there is no run below {named} (no {SUMMARY}); name a folder that holds folders of runs")
    entries = []
    for number, ((_, run), who) in enumerate(zip(runs, names(runs), strict=True), start=1):
        entries.append(read_entry(run, who))
        progress.tell("runs", number, len(runs))
    name_copies(entries, [run / METRICS for _, run in runs])
    name_commits(entries)
    return sorted(entries, key=lambda entry: (entry.em is None, -(entry.em or 0), entry.who))


def name_copies(entries: Sequence[Entry], logs: Sequence[Path]) -> None:
    """Adds a fault to entries that are one run: no two runs take the same seconds to the last digit, step by step."""
    same: dict[str, list[Entry]] = defaultdict(list)
    for entry, log in zip(entries, logs, strict=True):
        if times := seconds_of(log):
            same[times].append(entry)
    for copies in same.values():
        for entry in copies if len(copies) > 1 else ():
            others = ", ".join(other.who for other in copies if other is not entry)
            entry.faults.append(f"the same run as {others}, to the last digit of its {METRICS}")


def seconds_of(log: Path) -> str:
    """The seconds of every step, however the file writes them, or all that it logs without them; empty if damaged."""
    try:
        rows = read_metrics(log)
    except UserError:  # of which the entry tells
        return ""
    times = [(row["step"], row["seconds"]) for row in rows if row.get("seconds") is not None]
    return json.dumps(times or rows, sort_keys=True) if rows else ""


def name_commits(entries: Sequence[Entry]) -> None:
    """Adds to what was changed any commit but the board's most common one; all of them, where several are."""
    times = Counter(commit for entry in entries for commit in entry.commits if not is_changed(commit))
    most = [commit for commit, n in times.items() if n == max(times.values())]
    for entry in entries:
        odd = [each for each in entry.commits if not is_changed(each) and (len(most) > 1 or each not in most)]
        if entry.changed is not None:
            entry.changed.extend(map(named, odd))


def is_changed(commit: str | None) -> bool:
    """Whether the code was changed since that commit."""
    return commit is not None and commit.endswith(DIRTY)


def runs_below(base: Path) -> list[Path]:
    """Folders of runs, finished or begun, in order; a run holds no other run, and links are not followed.

    Raises:
        UserError: there is no such folder.
    """
    if not base.is_dir():
        raise UserError(f"there is no folder {base}; name one that holds folders of runs")
    found = []
    for folder, inside, files in os.walk(base, onerror=_warn_unreadable):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        if SUMMARY in files or {CONFIG, METRICS} <= set(files):
            found.append(Path(folder))
            inside.clear()
    return found


def _warn_unreadable(error: OSError) -> None:
    told = one_line(f"{error.filename} cannot be read ({error.strerror})")
    print(f"warning: {told}; what is in it is left out", file=sys.stderr)


def names(runs: Sequence[tuple[Path, Path]]) -> list[str]:
    """What each run is called: its path below the folder that was named, and the whole path where two share that."""
    short = [run.relative_to(base).as_posix() if run != base else run.absolute().name for base, run in runs]
    times = Counter(short)
    return [name if times[name] == 1 else str(run) for name, (_, run) in zip(short, runs, strict=True)]


def read_entry(run: Path, who: str) -> Entry:
    """What a run's folder holds, whatever is damaged or missing in it."""
    try:
        entry = finished(run, who) if (run / SUMMARY).is_file() else unfinished(run, who)
    except UserError as error:
        entry = Entry(who, faults=[str(error)])
    commits, faults = code_of(run)
    return replace(entry, faults=list(dict.fromkeys(entry.faults + faults)), commits=commits)


def code_of(run: Path) -> tuple[Sequence[str | None], list[str]]:
    """The commits that a run was trained at, none without a config.json, and what they say against it."""
    try:
        commits = trained_at(run) if (run / CONFIG).is_file() else []
    except UserError as error:
        return [], [str(error)]
    changed = [named(commit) for commit in commits if is_changed(commit)]
    return commits, [f"{told}: its code was changed since, and nobody can tell how" for told in changed]


def finished(run: Path, who: str) -> Entry:
    """A run that has a summary.

    Raises:
        UserError: it is damaged.
    """
    summary = read_summary(run / SUMMARY)
    after, emptied = summary["after"], summary.get("after_without_retriever")
    config, faults = trained_with(run, summary)
    faults += figure_faults(summary) + log_faults(run, after["em"]) + (setting_faults(config) if config else [])
    return Entry(
        who,
        em=after["em"],
        hops={source: part["em"] for source, part in after["by_source"].items()},
        emptied=emptied["em"] if emptied else None,
        steps=summary["steps"],
        seconds=summary["train_seconds"] + summary.get("cold_start_seconds", 0),
        changed=changes(config) if config else None,
        faults=faults,
    )


def unfinished(run: Path, who: str) -> Entry:
    """A run that was begun: how far it came.

    Raises:
        UserError: a file of it is damaged.
    """
    config = config_from(saved_config(run))
    done = max((row["step"] for row in read_metrics(run / METRICS)), default=0)
    told = f"unfinished: {done} of {config.optimization.steps} steps, and no {SUMMARY}"
    return Entry(who, changed=changes(config), faults=[told, *setting_faults(config)])


def trained_with(run: Path, summary: dict[str, Any]) -> tuple[TrainConfig | None, list[str]]:
    """What a run was trained with, by its summary or else by its config.json, and where these are at odds.

    A summary of an older version holds no settings; there are none at all where config.json is missing too.
    """
    faults, beside, inside = [], None, None
    try:
        if summary.get("settings") is not None:
            inside = config_from(checked(run / SUMMARY, summary["settings"]))
        if (run / CONFIG).is_file():
            beside = config_from(saved_config(run))
    except UserError as error:
        faults.append(str(error))
    if inside and beside:
        kept = [name for name in options_of(TrainConfig) if name not in (*OF_THE_FOLDER, *MAY_CHANGE)]
        odd = [name for name in kept if get(inside, name) != get(beside, name)]
        told = [" and ".join(spelled(name, public(get(each, name))) for each in (inside, beside)) for name in odd]
        faults += [f"{SUMMARY} and {CONFIG} are of different runs: {told[0]}"] if told else []
    config = inside or beside
    if config is None:
        return None, faults or [
            f"nobody can tell how it was trained: {SUMMARY} is of an older version, without {CONFIG}"
        ]
    steps = config.optimization.steps
    if summary["steps"] != steps and (inside or summary["steps"] < steps):  # a run may be resumed for more steps
        faults.append(f"{SUMMARY} is of {summary['steps']} steps, and its settings of {steps}")
    n = summary["after"]["n"]
    if n > config.data.eval_questions:
        faults.append(f"{SUMMARY} is of {n} held-out questions, and its settings of {config.data.eval_questions}")
    if strange := _strange_sources(config, summary["after"]["by_source"]):
        faults.append(f"{SUMMARY} was measured on {shown(strange[0])}, which its settings do not ask for")
    return with_options(config, steps=summary["steps"]), faults


def _strange_sources(config: TrainConfig, sources: Iterable[str]) -> list[str]:
    """Sources that a run of these settings is not measured on."""
    if config.data.dataset != "world":
        return [source for source in sources if source.startswith("world-")]
    asked = {f"world-{hops}hop" for hops in world_hops_list(config)}
    return [source for source in sources if source not in asked]

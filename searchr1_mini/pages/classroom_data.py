"""Finished runs of many people, side by side: what each reached, what it changed, and whether that can be compared."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from searchr1_mini.core import progress
from searchr1_mini.core.errors import UserError
from searchr1_mini.options.changes import changes
from searchr1_mini.options.checks import world_hops_list
from searchr1_mini.options.config import MAY_CHANGE, TrainConfig
from searchr1_mini.options.needs import shown, spelled
from searchr1_mini.options.nested import get, make, options_of, with_options
from searchr1_mini.options.own_parts import is_own
from searchr1_mini.options.resolve import checked, filled, resolve, saved_config
from searchr1_mini.retrievers.names import MOST_EMPTIED, PROBES
from searchr1_mini.storage.files import read_metrics, read_summary
from searchr1_mini.storage.printable import one_line

SUMMARY, CONFIG, METRICS = "summary.json", "config.json", "metrics.jsonl"
ROUNDING = 0.002  # between a mean and the mean of its parts
DEFAULT = resolve(TrainConfig())  # what everybody is compared with
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
    """

    who: str
    em: float | None = None
    hops: dict[str, float] = field(default_factory=dict)
    emptied: float | None = None
    steps: int | None = None
    seconds: float | None = None
    changed: list[str] | None = None
    faults: list[str] = field(default_factory=list)


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
    return sorted(entries, key=lambda entry: (entry.em is None, -(entry.em or 0), entry.who))


def name_copies(entries: Sequence[Entry], logs: Sequence[Path]) -> None:
    """Adds a fault to entries that are one run: no two runs take the same seconds to the last digit, step by step."""
    same: dict[bytes, list[Entry]] = defaultdict(list)
    for entry, log in zip(entries, logs, strict=True):
        if log.is_file() and (logged := log.read_bytes()):
            same[hashlib.sha256(logged).digest()].append(entry)
    for copies in same.values():
        for entry in copies if len(copies) > 1 else ():
            others = ", ".join(other.who for other in copies if other is not entry)
            entry.faults.append(f"the same run as {others}, to the last digit of its {METRICS}")


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
        if not (run / SUMMARY).is_file():
            return unfinished(run, who)
        summary = read_summary(run / SUMMARY)
    except UserError as error:
        return Entry(who, faults=[str(error)])
    after, emptied = summary["after"], summary.get("after_without_retriever")
    config, faults = trained_with(run, summary)
    faults += figure_faults(summary) + (setting_faults(config) if config else [])
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


def config_from(saved: dict[str, Any]) -> TrainConfig:
    """What a file of checked options makes.

    Raises:
        UserError: its hops are none.
    """
    config = filled(make(TrainConfig, **{name: saved[name] for name in options_of(TrainConfig)}))
    if config.data.dataset == "world":
        world_hops_list(config)
    return config


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
        told = [" and ".join(spelled(name, get(each, name)) for each in (inside, beside)) for name in odd]
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


def figure_faults(summary: dict[str, Any]) -> list[str]:
    """What the figures of a summary say against it, whatever the run's settings were."""
    after, emptied, faults = summary["after"], summary.get("after_without_retriever"), []
    parts = list(after["by_source"].values())
    measured = [after, *parts, *([emptied] if emptied else [])]
    if not parts or not all(part["n"] > 0 and 0 <= part["em"] <= 1 for part in measured):
        return [f"{SUMMARY} holds figures that no evaluation gives"]
    n = sum(part["n"] for part in parts)
    mean = sum(part["n"] * part["em"] for part in parts) / n
    if n != after["n"] or abs(mean - after["em"]) > ROUNDING:
        faults.append(f"its exact match is {after['em']:.3f}, but by hops it comes to {mean:.3f}")
    wanted = DEFAULT.data.eval_questions
    if after["n"] < wanted:
        faults.append(f"measured on {after['n']} held-out questions, the default run on {wanted}")
    if emptied is None:
        faults.append("never measured with the retriever emptied")
    elif emptied["em"] > MOST_EMPTIED:
        told = f"exact match {emptied['em']:.3f} with the retriever emptied, above {MOST_EMPTIED}"
        faults.append(f"{told}: it answers without searching")
    return faults


def setting_faults(config: TrainConfig) -> list[str]:
    """What a run's settings say against comparing it with the default run."""
    run, data, faults = config.run, config.data, []
    if run.bug is not None:
        faults.append(f"--bug {run.bug}: the method is broken on purpose")
    if run.mystery is not None:
        faults.append(f"--mystery {run.mystery}: a bug hunt, the method is broken on purpose")
    if not config.objective.mask_observations:
        faults.append("--no-mask-observations: it was trained on what the engine wrote")
    if config.run.method != DEFAULT.run.method:
        faults.append(f"{spelled('method', run.method)}: another method than the default run's {DEFAULT.run.method}")
    if config.retrieval.retriever == "oracle":
        faults.append("--retriever oracle: its engine is handed the right passages")
    elif config.retrieval.retriever in PROBES:
        faults.append(f"{spelled('retriever', config.retrieval.retriever)}: it finds nothing, or anything")
    elif is_own(config.retrieval.retriever):
        engine = spelled("retriever", config.retrieval.retriever)
        faults.append(f"{engine}: an engine of its own, of which nobody can tell what it hands over")
    if data.dataset != DEFAULT.data.dataset:
        named = shown(data.data_path or data.dataset)
        return [*faults, f"measured on another data set than the default run: {named}"]
    odd = [
        name for name in ("world_difficulty", "world_hops", "world_noise") if get(config, name) != get(DEFAULT, name)
    ]
    if odd:
        told = ", ".join(spelled(name, get(config, name)) for name in odd)
        faults.append(f"measured on another world than the default run's: {told}")
    if config.optimization.seed != DEFAULT.optimization.seed:
        told = f"the default run's is {DEFAULT.optimization.seed}"
        faults.append(f"measured on the world of --seed {config.optimization.seed}, {told}")
    return faults

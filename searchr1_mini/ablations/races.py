"""The race: its rules, and what a setting needed until it searched and answered right, seed by seed.

The seeds are numbers that nobody tuned on: neither the tiny base nor the default run has seen their worlds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.needs import spelled
from searchr1_mini.options.nested import default_value, get, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.retrievers.names import MOST_EMPTIED
from searchr1_mini.run.data_identity import CONTENTS
from searchr1_mini.storage.files import joined_by_step, read_json, read_jsonl, read_summary
from searchr1_mini.storage.printable import counted

SEEDS = (7001, 7002, 7003)
TARGETS = {"world-1hop": 0.90, "world-2hop": 0.85}  # held-out exact match
OF_THE_RACE: dict[str, Any] = {"eval_questions": 400, "eval_every": 5, "save_every": 5, "tensorboard": False}
COUNTED = ("trained_tokens", "updates", "seconds")  # metrics that are summed over the steps
EM_METRICS = {source: f"eval/{source}/em" for source in TARGETS}
RULES: dict[str, tuple[str, ...]] = {  # why -> options that a setting leaves alone
    "the race begins with the tiny base as it ships": ("model", "init"),
    "every setting answers the same questions with the same engine": (
        *("method", "seed", "dataset", "data_path", "corpus", "world_difficulty", "world_hops", "world_noise"),
        *("template", "observation", "date", "retriever", "retriever_url", "topk", "stemming", "stop_words"),
        *("dense_model", "dense_index", "reranker", "max_turns"),
    ),
    "what is right is told by the reward alone": ("cold_start", "demonstrations", "demonstration_questions"),
    "the method stays sound": ("bug", "mystery", "mask_observations"),
    "the race sees to that itself": ("output_dir", "resume", *OF_THE_RACE),
}
HEADER = "| setting | tokens trained on | optimizer steps | seconds | seeds that got there | emptied, at most | on |"
RULE = "|---|---:|---:|---:|---|---:|---|"


@dataclass(frozen=True)
class Finish:
    """How far one seed came.

    Attributes:
        step, trained_tokens, updates, seconds: of training until the first evaluation that reached every target; None
            where none did. Evaluations, and what comes before the first step, are not counted.
        em: exact match by source at that evaluation, or at the one that came nearest.
        after, emptied: exact match in the end, and with the retriever emptied; None of a run that diverged.
        diverged: what its run ended with, where it did not come to its end.
    """

    seed: int
    step: int | None
    trained_tokens: float | None
    updates: float | None
    seconds: float | None
    em: dict[str, float]
    after: float | None = None
    emptied: float | None = None
    diverged: str | None = None

    @property
    def counts(self) -> bool:
        """Whether the seed got there, and searches for what it knows."""
        return self.step is not None and self.emptied is not None and self.emptied <= MOST_EMPTIED


def check_rules(setting: TrainConfig) -> None:
    """Refuses what would make it another race.

    Raises:
        UserError: names the flag and the rule.
    """
    if setting.run.algorithm not in ("grpo", "ppo"):
        raise UserError(f"--algorithm {setting.run.algorithm} imitates; the race is of grpo and ppo (docs/race.md)")
    for why, names in RULES.items():
        for name in names:
            if (value := get(setting, name)) != default_value(TrainConfig, name):
                raise UserError(f"{spelled(name, value)} is against the rules: {why}; leave it out (docs/race.md)")


def seed_config(setting: TrainConfig, unasked: set[str], seed: int, out: Path) -> TrainConfig:
    """The resolved config of a seed's run.

    Raises:
        UserError: the setting's options do not go together.
    """
    own = OF_THE_RACE | {"seed": seed, "output_dir": str(out / f"seed-{seed}")}
    return resolve(with_options(setting, **own), unasked)


def read_finish(folder: Path, seed: int, diverged: str | None = None) -> Finish:
    """What a seed's run comes to, by its metrics and its summary.

    Raises:
        UserError: a file of it is damaged, or of an older version.
    """
    sums, nearest, ems = dict.fromkeys(COUNTED, 0.0), -math.inf, {}
    got_there: dict[str, Any] = dict.fromkeys(("step", *COUNTED))
    # what else a run logs is not looked at: of one that diverges it may be no number
    form = {"step": int} | {f"?{name}": (float, None) for name in (*COUNTED, *EM_METRICS.values())}
    for row in joined_by_step(read_jsonl(folder / "metrics.jsonl", form)):
        for name in COUNTED:
            if row.get(name) is None:
                told = f"{folder / 'metrics.jsonl'} holds no {name} of step {row['step']}"
                raise UserError(f"{told}; race the setting anew, in another --output-dir")
            sums[name] += row[name]
        measured = {source: row.get(name) for source, name in EM_METRICS.items()}
        if None in measured.values():
            continue
        margin = min(measured[source] - target for source, target in TARGETS.items())
        if margin > nearest:
            nearest, ems = margin, measured
        if margin >= 0:
            got_there = {"step": row["step"], **sums}
            break
    if diverged is not None:
        return Finish(seed, *[None] * len(got_there), em=ems, diverged=diverged)
    summary = read_summary(folder / "summary.json")
    emptied = summary.get("after_without_retriever") or {"em": None}
    return Finish(seed, **got_there, em=ems, after=summary["after"]["em"], emptied=emptied["em"])


def describe_finish(finish: Finish) -> str:
    """One seed in a sentence."""
    ems = ", ".join(f"{em:.3f} on {source[6]} hop{'s' * (source[6] != '1')}" for source, em in finish.em.items())
    if finish.diverged is not None:
        came = f"diverged: {finish.diverged}"
    elif finish.step is None:
        came = f"never got there; {f'nearest {ems}' if ems else 'nothing was measured'}"
    else:
        came = (
            f"got there after step {finish.step} ({ems}): {finish.trained_tokens:,.0f} tokens, {finish.updates:,.0f} "
            f"optimizer steps, {finish.seconds:.0f} s"
        )
    if finish.emptied is not None:
        came += f"; {finish.emptied:.3f} emptied"
        came += f", which is above {MOST_EMPTIED}" if finish.emptied > MOST_EMPTIED else ""
    return f"seed {finish.seed} {came}"


def contents(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Returns the hashes of the files of one's own that the seeds ran with, by name; `""` where a seed has none."""
    saved = [read_json(folder / "config.json").get("data_hashes") or {} for folder in folders]
    names = sorted({name for hashes in saved for name in hashes if name.startswith(CONTENTS)})
    return {name.removeprefix(CONTENTS): sorted({hashes.get(name) or "" for hashes in saved}) for name in names}


def mixed(hashes: Mapping[str, Sequence[str]]) -> list[str]:
    """Names the files that were not the same for every seed, so that it was no race of one setting."""
    return [name for name, of_seeds in hashes.items() if len(of_seeds) > 1]


def on_machine(machine: Mapping[str, Any]) -> str:
    """What the runs computed on, as the last cell of a row: `cpu, 2 cores, 2 runs at a time, 1 thread a run`."""
    told = [" and ".join(map(str, machine["devices"])), f"{machine['cores']} cores"]
    told += [f"{machine['jobs']} runs at a time"] if machine["jobs"] > 1 else []
    known = [counted(threads, "thread") for threads in machine["threads"] if threads]
    return ", ".join([*told, f"{' or '.join(known)} a run"] if known else told)


def named(setting: Sequence[str]) -> str:
    """A setting by its flags."""
    return " ".join(setting) or "the default run"


def middle(finishes: Sequence[Finish], name: str) -> float:
    """The median of a figure over the seeds; one that does not count took for ever (inf)."""
    return median(_values(finishes, name))


def _values(finishes: Sequence[Finish], name: str) -> list[float]:
    return sorted(getattr(finish, name) if finish.counts else math.inf for finish in finishes)


def row(setting: Sequence[str], finishes: Sequence[Finish], machine: str) -> str:
    """The race's line of a table: median and range of each figure, how many seeds count, the emptied check."""

    def spread(name: str) -> str:
        lowest, *_, highest = (_number(value) for value in _values(finishes, name))
        return lowest if lowest == highest else f"{_number(middle(finishes, name))} ({lowest} to {highest})"

    got_there = f"{sum(finish.counts for finish in finishes)} of {len(finishes)}"
    emptied = [finish.emptied for finish in finishes if finish.emptied is not None]
    most = f"{max(emptied):.3f}" if len(emptied) == len(finishes) else "not measured on every seed"
    cells = [f"`{named(setting)}`" if setting else named(setting), *map(spread, COUNTED), got_there, most, machine]
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:,.0f}"

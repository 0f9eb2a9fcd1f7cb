"""How fast a setting learns to search, on worlds that nobody tuned on: `python -m searchr1_mini.race [FLAGS]`.

Trains three seeds until the end of their steps, each in OUT/seed-N, and writes what each needed until its held-out
exact match was 0.90 on 1 hop and 0.85 on 2 into OUT/race.json, with a row for the table of docs/race.md. The same
command goes on where it was interrupted. Every flag beside the two below is one of train.py, and makes the setting.
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):
    from searchr1_mini.options.entry import begin

    begin(is_child=__name__ != "__main__")

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from searchr1_mini.ablations import races
from searchr1_mini.ablations.side_by_side import n_cores, open_folder, ran_on, train_all
from searchr1_mini.options.changes import changes
from searchr1_mini.options.cli import parse, parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.needs import check_ranges
from searchr1_mini.options.nested import flag_name, get, grouped, options_of
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.own_parts import FITS, own_hashes, short_name
from searchr1_mini.options.resolve import resolve
from searchr1_mini.options.words import take
from searchr1_mini.retrievers.names import MOST_EMPTIED
from searchr1_mini.storage.commit import all_trained_at, short
from searchr1_mini.storage.files import read_json, write_json_atomic
from searchr1_mini.storage.printable import counted


@dataclass(frozen=True)
class RaceConfig:
    """Options of a race itself; those of the setting are train.py's."""

    output_dir: str = grouped("how", "runs/race", "folder of the race")
    jobs: int = grouped("how", 1, "runs at a time; their seconds are those of a shared machine", least=1, most=1000)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, trains what is missing, and writes race.json.

    Raises:
        UserError: anything that the user can fix.
    """
    own, words = split(list(sys.argv[1:] if argv is None else argv))
    config = parse(RaceConfig, "python -m searchr1_mini.race", __doc__, own)
    check_ranges(config)
    setting, unasked = parse_asked(TrainConfig, "train.py", "", words)
    races.check_rules(setting)
    flags, out = changes(resolve(setting, unasked)), Path(config.output_dir)
    configs = {("race", seed): races.seed_config(setting, unasked, seed, out) for seed in races.SEEDS}
    contents = own_hashes({name: get(setting, name) for name in FITS})
    settings = {"flags": flags, "jobs": config.jobs} | ({"contents": contents} if contents else {})
    threads = open_folder(out, settings, config.jobs, len(configs), "setting")
    steps = next(iter(configs.values())).optimization.steps
    named = " ".join(flags) or "the default run"
    seeds = ", ".join(map(str, races.SEEDS))
    print(f"racing {named}: {counted(steps, 'step')} on each of the seeds {seeds}, in {out}", flush=True)
    diverged = train_all(configs, config.jobs, threads, goes_on=True)
    folders = {key: Path(each.run.output_dir) for key, each in configs.items()}
    finishes = [races.read_finish(folder, key[1], diverged.get(key)) for key, folder in folders.items()]
    reward = setting.reward.reward
    asked = shlex.join(word.replace(reward, short_name(reward)) for word in words)
    result = write_race(out, flags, asked, config.jobs, finishes)
    print("\n".join([*map(races.describe_finish, finishes), "", races.HEADER, races.RULE, result["row"], ""]))
    if mixed := races.mixed(result["contents"]):
        told = f"the seeds ran with different contents of {', '.join(mixed)}"
        print(f"it does not count: {told}; race the setting anew in another --output-dir")
    elif not result["counts"]:
        print(f"it does not count: every seed must get there, with {MOST_EMPTIED} emptied at most")
    print(f"written to {out / 'race.json'}", flush=True)


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """The race's own words, and the setting's: what stands after a `--`, and every flag that the race does not have.

    Raises:
        UserError: an option of the race is without its value.
    """
    end = words.index("--") if "--" in words else len(words)
    own = [word for word in words[:end] if word in ("--help", "-h")]
    before = [word for word in words[:end] if word not in own]
    for name in options_of(RaceConfig):
        for flag in (flag_name(name), f"--{name}"):
            before, value = take(before, flag)
            own += [] if value is None else [flag_name(name), value]
    return own, before + words[end + 1 :]


def write_race(out: Path, flags: Sequence[str], words: str, jobs: int, finishes: Sequence[races.Finish]) -> dict:
    """Writes race.json; returns what is in it."""
    folders = [out / f"seed-{finish.seed}" for finish in finishes]
    ran, commits = read_json(folders[0] / "config.json"), all_trained_at(folders)
    if len(commits) > 1 or None in commits:
        several = f"different commits ({', '.join(map(short, commits))})"
        told = f"the seeds ran at {several if len(commits) > 1 else short(None)}"
        print(f"warning: {told}; race the setting anew in another --output-dir to send it in", file=sys.stderr)
    contents = races.contents(folders)
    machine = {name: ran.get(name) for name in ("resolved_dtype", "python", "versions")} | ran_on(folders)
    machine |= {"cores": n_cores(), "jobs": jobs}
    medians = {name: races.middle(finishes, name) for name in races.COUNTED}
    result = {
        "command": f"python -m searchr1_mini.race {words}".strip(),
        "flags": list(flags),
        "targets": races.TARGETS,
        "most_emptied": MOST_EMPTIED,
        "counts": all(finish.counts for finish in finishes) and not races.mixed(contents),
        "medians": {name: value if math.isfinite(value) else None for name, value in medians.items()},
        "seeds": [asdict(finish) for finish in finishes],
        "machine": machine,
        "commits": commits,
        "contents": contents,
        "row": races.row(flags, finishes, races.on_machine(machine)),
    }
    write_json_atomic(out / "race.json", result)
    return result


if __name__ == "__main__":
    run_command(main)

"""One study as one command: `python -m searchr1_mini.ablate mask` trains every arm over seeds and writes what it found.

Each arm and seed is a run of its own in OUT/ARM/seed-N, with all that a run leaves. What is finished is not run again
and what was interrupted goes on, so that the same command resumes. OUT/report.md has the table, curves.svg the curves.
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):
    from searchr1_mini.options.entry import begin

    begin(is_child=__name__ != "__main__")

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchr1_mini.ablations.alike import is_alike
from searchr1_mini.ablations.findings import write_study
from searchr1_mini.ablations.side_by_side import open_folder, train_all
from searchr1_mini.ablations.studies import STUDIES, Study, fitted, in_numbers
from searchr1_mini.core.config import MOST_STEPS
from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.options.changes import UNTOLD
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import LEARNING_RATES, TINY
from searchr1_mini.options.needs import check_ranges, shown
from searchr1_mini.options.nested import flat, grouped, make
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.resolve import resolve, resolve_model
from searchr1_mini.options.words import as_now
from searchr1_mini.storage import status
from searchr1_mini.storage.checkpoint import changed_since
from searchr1_mini.storage.commit import DIRTY, git_commit, trained_at
from searchr1_mini.storage.files import read_json


@dataclass(frozen=True)
class AblateConfig:
    """Options of a study."""

    study: str | None = grouped(
        "what", None, "study to run, one of those above; it may also stand first, without this flag"
    )
    model: str = grouped("what", "tiny", "model to train, as in train.py")
    output_dir: str | None = grouped("what", None, "folder for the study [default: runs/ablate-STUDY]")

    seeds: int | None = grouped(
        "how", None, "runs per arm, each with a seed of its own [default: the study's]", least=1, most=100
    )
    steps: int | None = grouped(
        "how", None, "training steps of every run [default: the study's]", least=1, most=MOST_STEPS
    )
    jobs: int | None = grouped(
        "how", None, "number of runs at a time [default: the number of CPU cores; 1 on a GPU]", least=1, most=1000
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, trains what is missing, and writes the report.

    Raises:
        UserError: anything that the user can fix.
    """
    config = parse_study(argv)
    study = fitted(STUDIES[config.study], config.model)
    out = Path(config.output_dir or f"runs/ablate-{config.study}")
    seeds, steps, model = range(config.seeds or study.seeds), config.steps, config.model
    configs = {(arm, seed): arm_config(study, arm, seed, out, steps, model) for arm in study.arms for seed in seeds}
    if study.warm and model != "tiny":
        raise UserError(
            f"{config.study} warms up the tiny base; compare a real model with its -Instruct sister instead"
        )
    settings = {"study": config.study, "steps": steps or study.common["steps"], "model": model}
    threads = open_folder(out, settings, config.jobs, len(configs))
    if study.warm and not (out / "warm_base" / "config.json").exists():
        make_warm_base(out / "warm_base")
    for one in configs.values():
        take_over(one, out, threads)
        check_trained(one)
    diverged = train_all(configs, config.jobs, threads, goes_on=True)
    runs = {arm: [run_folder(out, arm, seed) for seed in seeds] for arm in study.arms}
    with status.phase("writing the report"):
        text = write_study(study, config.study, out, runs, steps, model, {run_folder(out, *key) for key in diverged})
    print(text + f"\n\nwritten to {out / 'report.md'} and {out / 'curves.svg'}", flush=True)


def parse_study(argv: Sequence[str] | None) -> AblateConfig:
    """Reads the options of the command, whose first word is the study.

    Raises:
        UserError: an unknown study, with the closest known one, or an option that is wrong.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--study")
    studies = "".join(f"\n  {name:13} {study.title}" for name, study in STUDIES.items())
    config = parse(AblateConfig, "python -m searchr1_mini.ablate", f"{__doc__.splitlines()[0]}\n{studies}", words)
    check_ranges(config)
    if config.study is None:
        raise UserError(f"name the study: python -m searchr1_mini.ablate mask; known: {', '.join(STUDIES)}")
    if config.study not in STUDIES:
        near = suggest(config.study, STUDIES)
        raise UserError(f"unknown study {shown(repr(config.study))}{near}; known: {', '.join(STUDIES)}")
    return config


def run_folder(out: Path, arm: str, seed: int) -> Path:
    """Returns a run's folder, OUT/masked-noise/seed-0."""
    return out / re.sub(r"[^a-z0-9.]+", "-", arm.lower()).strip("-") / f"seed-{seed}"


def arm_config(study: Study, arm: str, seed: int, out: Path, steps: int | None, model: str) -> TrainConfig:
    """Resolves the config of one run; on the warmed-up tiny base, with settings of the tiny base's size."""
    values: dict[str, Any] = {"model": model} | study.common | in_numbers(study, arm, model)
    if steps is not None:
        values["steps"] = steps
    if arm in study.warm:
        tiny = TINY | {"learning_rate": LEARNING_RATES["tiny", "lora"]} if model == "tiny" else {}
        values = tiny | values | {"model": str(out / "warm_base")}
    values |= {"seed": seed, "output_dir": str(run_folder(out, arm, seed)), "tensorboard": False}
    return resolve(make(TrainConfig, **values))


def make_warm_base(folder: Path) -> None:
    """Makes a base that has seen some right episodes, as an instruction-tuned model has: 400,000 tokens.

    Raises:
        UserError: the pre-training failed.
    """
    aside = folder.with_name(".warm_base")
    command = [sys.executable, "-m", "searchr1_mini.pretrain", "--init", resolve_model("tiny"), "--warm-start"]
    command += ["--output", str(aside), "--tokens", "4e5", "--muon-lr", "0.004", "--adam-lr", "1e-3", "--no-compile"]
    shutil.rmtree(aside, ignore_errors=True)
    with status.meanwhile(None):  # the other process has a line of its own
        code = subprocess.run(command).returncode
    if code:
        raise UserError(f"the pre-training of the warmed-up base ended with exit code {code}; it says why above")
    aside.rename(folder)


def take_over(config: TrainConfig, out: Path, threads: int) -> None:
    """Copies a run that another study beside OUT has finished with the very same options, at this very commit alone.

    It must have been computed on what this study's runs are, with `threads` threads, and from the same base.
    """
    folder, commit = Path(config.run.output_dir), git_commit()
    if (folder / "config.json").exists() or commit is None or commit.endswith(DIRTY):
        return
    of_its_own = {"output_dir": None, "date": None}  # the day is filled in as a run begins
    wanted = flat(config) | of_its_own | {"git_commit": commit}
    for path in sorted(out.parent.glob(f"*/*/{folder.name}/summary.json")):
        saved = read_json(path.with_name("config.json")) | changed_since(path.parent) | of_its_own
        is_same = all(name in saved and saved[name] == value for name, value in wanted.items())
        if is_same and trained_at(path.parent) == [commit] and is_alike(path.parent, config, threads):
            aside = folder.with_name(f".{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(path.parent, aside)
            aside.rename(folder)
            return print(f"{folder} is that of {path.parent}", flush=True)


def check_trained(config: TrainConfig) -> None:
    """Refuses a run in the study's folder that was trained with other options than the arm has today.

    Options that change neither what is learned nor how it is measured in the end may differ.

    Raises:
        UserError: names them.
    """
    folder = Path(config.run.output_dir)
    if (folder / "config.json").exists():
        saved = read_json(folder / "config.json") | changed_since(folder)
        wanted = {name: value for name, value in flat(config).items() if name not in UNTOLD}
        if other := [name for name, value in wanted.items() if name in saved and as_now(saved[name]) != value]:
            raise UserError(
                f"{folder} was trained with another {', '.join(other)} than the arm has now; name another --output-dir"
            )


if __name__ == "__main__":
    run_command(main)

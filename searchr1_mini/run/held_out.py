"""The questions that a run is measured on as it trains, and those it is trained on: others are reported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.questions import Example
from searchr1_mini.data.datasets import question_key
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, options_of, with_options
from searchr1_mini.options.resolve import saved_config
from searchr1_mini.run.task import load_task
from searchr1_mini.storage.files import read_json, read_jsonl, write_json_atomic, write_jsonl_atomic

HELD_OUT = "held_out.jsonl"
TRAINED_ON = "trained_on.json"


def keep_held_out(run: Path, examples: Sequence[Example]) -> None:
    """Writes the questions into the run's folder, one a line."""
    write_jsonl_atomic(run / HELD_OUT, map(asdict, examples))


def keeps_held_out(run: Path) -> bool:
    """Tells whether a run began as one that keeps its held-out questions, though it may have been killed before."""
    path = run / "config.json"
    return path.is_file() and read_json(path).get("held_out_split") == "selection"


def keep_trained_on(run: Path, examples: Iterable[Example], *starts: str | None) -> None:
    """Writes the hashes of the training questions into the run's folder, once; an evaluation leaves them out.

    Args:
        starts: what the run starts from and its base; what these were trained on was trained on too.
    """
    if not (run / TRAINED_ON).is_file():
        before = trained_on(folders_of(*starts))
        write_json_atomic(run / TRAINED_ON, {"questions": sorted(before.union(map(question_key, examples)))})


def folders_of(*weights: str | None) -> list[Path]:
    """Returns the folders with a list of what weights were trained on: those they lie in, as a run's or an export's.

    Args:
        weights: names of files or folders; any other, as a hub id, was trained on nothing that is known.
    """
    places = [Path(name).expanduser().resolve() for name in weights if name not in (None, "tiny")]
    found = [folder for place in places if place.exists() for folder in (place, *place.parents)]
    return [folder for folder in dict.fromkeys(found) if (folder / TRAINED_ON).is_file()]


def learned_from_files(folder: Path) -> bool:
    """Tells whether a run learned from files, which may hold anything; so may what an unknown run left."""
    from searchr1_mini.models.initial import is_run  # heavy

    run = next(filter(is_run, (folder, *folder.parents)), None)
    saved = saved_config(run) if run else {}
    names = [name for name in ("data_path", "demonstrations", "init") if saved.get(name)]
    return not run or bool(names or folders_of(saved["model"]))


def trained_on(runs: Iterable[Path]) -> set[str]:
    """Returns the hashes of the questions that some runs were trained on; of older runs, which kept none, nothing.

    Raises:
        UserError: the file of them is damaged.
    """
    found: set[str] = set()
    for path in [run / TRAINED_ON for run in runs]:
        if path.is_file():
            found.update(read_json(path, {"questions": [str]})["questions"])
    return found


def chosen_by(runs: Iterable[Path]) -> list[Example]:
    """Returns the questions by which the best checkpoints of some runs were chosen.

    Raises:
        UserError: the file of them is damaged, or what an older run was measured on is not there.
    """
    return [example for run in runs for example in _read(run)]


def _read(run: Path) -> list[Example]:
    path = run / HELD_OUT
    if not path.is_file():  # a run of an older version, which kept no file
        saved = saved_config(run)
        settings = make(TrainConfig, **{name: saved[name] for name in options_of(TrainConfig)})
        return load_task(with_options(settings, retriever="empty", retriever_url=None), "eval").examples
    try:
        return [
            Example(
                row["id"], row["question"], tuple(row["golden_answers"]), row["source"],
                tuple((title, words) for title, words in row["supporting"]),
            )
            for row in read_jsonl(path)
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}); put back a copy, or leave out --checkpoint best") from error

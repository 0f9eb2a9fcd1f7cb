"""What the files of a finished run say against comparing it with the default run, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.options.changes import public
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.needs import shown, spelled
from searchr1_mini.options.nested import get
from searchr1_mini.options.own_parts import is_own
from searchr1_mini.options.resolve import resolve
from searchr1_mini.retrievers.names import MOST_EMPTIED, PROBES
from searchr1_mini.storage.files import read_metrics

SUMMARY, CONFIG, METRICS = "summary.json", "config.json", "metrics.jsonl"
ROUNDING = 0.002  # between a mean and the mean of its parts
DEFAULT = resolve(TrainConfig())  # what everybody is compared with


def figure_faults(summary: dict[str, Any]) -> list[str]:
    """What the figures of a summary say against it, whatever the run's settings were."""
    after, emptied, faults = summary["after"], summary.get("after_without_retriever"), []
    evaluations = {"": after} | ({"with the retriever emptied, ": emptied} if emptied else {})
    measured = [part for each in evaluations.values() for part in (each, *each["by_source"].values())]
    if not after["by_source"] or not all(part["n"] > 0 and 0 <= part["em"] <= 1 for part in measured):
        return [f"{SUMMARY} holds figures that no evaluation gives"]
    for when, each in evaluations.items():
        parts = each["by_source"].values()
        n = sum(part["n"] for part in parts)
        mean = sum(part["n"] * part["em"] for part in parts) / n
        if n != each["n"]:
            faults.append(f"{when}it counts {each['n']} questions, but by hops {n}")
        if abs(mean - each["em"]) > ROUNDING:
            faults.append(f"{when}its exact match is {each['em']:.3f}, but by hops it comes to {mean:.3f}")
    if emptied and emptied["n"] != after["n"]:
        faults.append(f"measured on {after['n']} questions, and on {emptied['n']} with the retriever emptied")
    wanted = DEFAULT.data.eval_questions
    if after["n"] < wanted:
        faults.append(f"measured on {after['n']} held-out questions, the default run on {wanted}")
    if emptied is None:
        faults.append("never measured with the retriever emptied")
    elif emptied["em"] > MOST_EMPTIED:
        told = f"exact match {emptied['em']:.3f} with the retriever emptied, above {MOST_EMPTIED}"
        faults.append(f"{told}: it answers without searching")
    return faults


def log_faults(run: Path, em: float) -> list[str]:
    """What a run's log says against the exact match of its summary; nothing of a run handed in without one."""
    try:
        rows = read_metrics(run / METRICS)
    except UserError as error:
        return [str(error)]
    measured = [row["eval/em"] for row in rows if row.get("eval/em") is not None]
    if not measured or abs(measured[-1] - em) <= ROUNDING:
        return []
    return [f"its exact match is {em:.3f} in {SUMMARY}, but {measured[-1]:.3f} at the end of {METRICS}"]


def setting_faults(config: TrainConfig) -> list[str]:
    """What a run's settings say against comparing it with the default run."""
    run, data, faults = config.run, config.data, []
    if run.bug is not None:
        faults.append(f"--bug {run.bug}: the method is broken on purpose")
    if run.mystery is not None:
        faults.append(f"--mystery {run.mystery}: a bug hunt, the method is broken on purpose")
    if run.model != DEFAULT.run.model:
        told = f"another base than the default run's {DEFAULT.run.model}"
        faults.append(f"{spelled('model', public(run.model))}: {told}")
    if run.init is not None:
        faults.append(f"{spelled('init', public(run.init))}: it begins with what another run has learned")
    if not config.objective.mask_observations:
        faults.append("--no-mask-observations: it was trained on what the engine wrote")
    if config.run.method != DEFAULT.run.method:
        told = f"{spelled('method', public(run.method))}: another method than the default run's {DEFAULT.run.method}"
        faults.append(told)
    if config.retrieval.retriever == "oracle":
        faults.append("--retriever oracle: its engine is handed the right passages")
    elif config.retrieval.retriever in PROBES:
        faults.append(f"{spelled('retriever', config.retrieval.retriever)}: it finds nothing, or anything")
    elif is_own(config.retrieval.retriever):
        engine = spelled("retriever", public(config.retrieval.retriever))
        faults.append(f"{engine}: an engine of its own, of which nobody can tell what it hands over")
    if data.dataset != DEFAULT.data.dataset:
        named = shown(public(data.data_path or data.dataset))
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

"""The README.md that goes with exported weights: what they are, how they were trained, how they are used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from searchr1_mini import __version__
from searchr1_mini.core.prompts import render_passage
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import HUB_MODELS
from searchr1_mini.options.own_parts import is_own, short_name
from searchr1_mini.run.templates import template_of
from searchr1_mini.storage.files import read_json, read_summary
from searchr1_mini.storage.printable import markdown_text

if TYPE_CHECKING:
    from searchr1_mini.models.merge import Merge

CARD = """---
{front_matter}
---

# {name}

{what}, trained with searchr1_mini {version}, an implementation of [Search-R1](https://arxiv.org/abs/2503.09516).

| | |
|---|---|
{table}

{prompt}

{protocol}```python
{usage}
```
"""
PROMPT = """The prompt that it was trained on, in the user's turn of the chat template where the tokenizer has one:

```text
{template}
```"""
OWN_PROMPT = "Its prompt is written by `{method}`, a method of its author's own, which is not part of these weights."
PROTOCOL = """A turn ends at `</search>` or `</answer>`. After a search, append what was found between `<information>`
and `</information>`, and let the model go on. Each passage is written `{line}`, a line each.

"""
USE_MERGED = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/merged", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("path/to/merged")"""
USE_ADAPTER = """from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("path/to/adapter", dtype="auto")  # loads the base as well"""
USE_ADAPTER_ON = """from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("path/to/base", dtype="auto")
model = PeftModel.from_pretrained(base, "path/to/adapter")"""
USE_ADAPTER_ON_GGUF = """from pathlib import Path

from peft import PeftModel
from searchr1_mini.models.gguf_base import unpacked
from transformers import AutoModelForCausalLM

# the numbers of the file in float32, with the rotary angles that it states, which transformers by itself does not read
base = AutoModelForCausalLM.from_pretrained(unpacked(Path("path/to/base.gguf")), dtype="auto")
model = PeftModel.from_pretrained(base, "path/to/adapter")
# merged weights (python -m searchr1_mini.export RUN --what merged) need neither the file nor this package"""


def model_card(
    settings: TrainConfig, run: Path, step: int, is_adapter: bool, merge: Merge | None = None, is_best: bool = False
) -> str:
    """Writes the card of a checkpoint, as Markdown with the hub's front matter.

    Args:
        settings: what the run was trained with, every value resolved.
        run: the run's folder; its summary.json, if it is there and of this step, has the exact match.
        step: of the checkpoint.
        is_adapter: the weights are the adapter alone.
        merge: what rounding made of merged weights.
        is_best: the checkpoint was chosen by its exact match.
    """
    base = HUB_MODELS.get(settings.run.model, settings.run.model)
    is_on_hub = "/" in base
    front = ["library_name: " + ("peft" if is_adapter else "transformers"), "pipeline_tag: text-generation"]
    front += [yaml.safe_dump({"base_model": base}, width=1000).strip()] * is_on_hub + ["tags:", "- search-r1"]
    named = "the tiny base of searchr1_mini" if base == "tiny" else markdown_text(base)
    whole = f"The weights of {named} with " + (
        "the trained adapter merged" if settings.weights.lora_rank else "all trained"
    )
    line = render_passage(1, Passage("", "title", "text"), settings.data.observation).strip()
    return CARD.format(
        front_matter="\n".join(front),
        name=f"{markdown_text(run.resolve().name)}, step {step}",
        what=f"A LoRA adapter for {named}" if is_adapter else whole,
        version=__version__,
        table="\n".join(
            f"| {key} | {markdown_text(value)} |" for key, value in facts(settings, run, step, merge, is_best).items()
        ),
        prompt=_prompt(settings),
        protocol=PROTOCOL.format(line=line) if settings.run.method == "search-r1" else "",
        usage=USE_MERGED if not is_adapter else _use_of_adapter(base),
    )


def _use_of_adapter(base: str) -> str:
    if base.lower().endswith(".gguf"):
        return USE_ADAPTER_ON_GGUF
    return USE_ADAPTER if "/" in base else USE_ADAPTER_ON


def _prompt(settings: TrainConfig) -> str:
    method = settings.run.method
    if is_own(method):
        return OWN_PROMPT.format(method=markdown_text(short_name(method)))
    return PROMPT.format(template=template_of(method, settings.data.template).rstrip("\n"))


def facts(settings: TrainConfig, run: Path, step: int, merge: Merge | None, is_best: bool) -> dict[str, str]:
    """Lists the rows of the card's table; without a summary of this step, no exact match."""
    optimization = settings.optimization
    data = settings.data.dataset if settings.data.dataset != "jsonl" else Path(settings.data.data_path).name
    if settings.data.dataset == "world":
        data = f"synthetic world, {settings.data.world_difficulty}, hops {settings.data.world_hops}"
    weights = f"LoRA of rank {settings.weights.lora_rank}" if settings.weights.lora_rank else "all of them"
    quantized = ", on a base in 4-bit NF4" if settings.weights.load_in_4bit else ""
    origin = read_json(run / "config.json").get("started_from") if settings.run.init else None
    rows = {
        "base": settings.run.model,
        "method": f"{short_name(settings.run.method)}, by {settings.run.algorithm}",
        "weights trained": weights + quantized,
        "questions": data,
        "steps": f"{step} of {optimization.questions_per_step} questions x {optimization.group_size} rollouts",
    }
    if origin:
        rows["started from"] = origin
    if settings.run.algorithm in ("sft", "rejection-sampling"):
        rows["steps"] = f"{step} of {settings.optimization.questions_per_step} demonstrations"
    if merge:
        rows["merged weights"] = merge.told()
    path = run / "summary.json"
    summary = read_summary(path) if path.is_file() else {}
    if summary.get("steps") == step:
        after = summary["after"]
        rows["exact match"] = f"{after['em']:.3f} on {after['n']} held-out questions, greedy"
        if is_best:
            rows["exact match"] += ", of the questions by which this checkpoint was chosen"
        if merge:
            rows["exact match"] += ", before the weights were merged"
        rows["exact match before training" if origin else "exact match of the base"] = f"{summary['before']['em']:.3f}"
    return rows

"""The paper's main table (its Table 2, Qwen2.5, exact match), to be printed beneath ours, and what differs."""

from __future__ import annotations

import re
from pathlib import Path

PAPER_DATASETS = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")

# method of our table -> the paper's name of a row -> size -> exact match on PAPER_DATASETS
RESULTS: dict[str, dict[str, dict[str, str]]] = {
    "direct": {"direct inference": {
        "7B": ".134 .408 .140 .183 .250 .031 .120", "3B": ".106 .288 .108 .149 .244 .020 .024"}},
    "cot": {"CoT": {"7B": ".048 .185 .054 .092 .111 .022 .232", "3B": ".023 .032 .005 .021 .021 .002 .000"}},
    "ircot": {"IRCoT": {"7B": ".224 .478 .301 .133 .149 .072 .224", "3B": ".111 .312 .200 .164 .171 .067 .240"}},
    "search-o1": {"Search-o1": {
        "7B": ".151 .443 .131 .187 .176 .058 .296", "3B": ".238 .472 .262 .221 .218 .054 .320"}},
    "rag": {"RAG": {"7B": ".349 .585 .392 .299 .235 .058 .208", "3B": ".348 .544 .387 .255 .226 .047 .080"}},
    "sft": {"SFT": {"7B": ".318 .354 .121 .217 .259 .066 .112", "3B": ".249 .292 .104 .186 .248 .044 .112"}},
    "r1": {
        "R1-base": {"7B": ".297 .539 .202 .242 .273 .083 .296", "3B": ".226 .455 .173 .201 .268 .055 .224"},
        "R1-instruct": {"7B": ".270 .537 .199 .237 .292 .072 .293", "3B": ".210 .449 .171 .208 .275 .060 .192"}},
    "rejection-sampling": {"rejection sampling": {
        "7B": ".360 .592 .380 .331 .296 .123 .355", "3B": ".294 .488 .332 .240 .233 .059 .210"}},
    "search-r1": {
        "Search-R1 PPO base": {"7B": ".480 .638 .457 .433 .382 .196 .432", "3B": ".406 .587 .435 .284 .273 .049 .088"},
        "Search-R1 PPO instruct": {
            "7B": ".393 .610 .397 .370 .414 .146 .368", "3B": ".341 .545 .378 .324 .319 .103 .264"},
        "Search-R1 GRPO base": {"7B": ".395 .560 .388 .326 .297 .125 .360", "3B": ".421 .583 .413 .297 .274 .066 .128"},
        "Search-R1 GRPO instruct": {
            "7B": ".429 .623 .427 .386 .346 .162 .400", "3B": ".397 .565 .391 .331 .310 .124 .232"}},
}  # fmt: skip


def paper_size(model: str) -> str:
    """Picks the size to compare with by the number before B (not in 4bit) in a model's name: 7B from 5 on, else 3B."""
    sizes = re.findall(r"(\d+(?:\.\d+)?)B(?![A-Z])", Path(model).name.upper())
    return "7B" if sizes and float(sizes[-1]) >= 5 else "3B"


def paper_rows(method: str, model: str) -> dict[str, dict[str, float]]:
    """Returns the paper's rows for a method, as `name, size` -> data set -> exact match."""
    size = paper_size(model)
    return {
        f"paper: {name}, {size}": dict(zip(PAPER_DATASETS, map(float, sizes[size].split()), strict=True))
        for name, sizes in RESULTS.get(method, {}).items()
    }

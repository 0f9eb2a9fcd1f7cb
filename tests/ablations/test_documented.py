"""What docs/ablations.md says of the studies is what their recorded figures come to."""

from __future__ import annotations

import json
import re

import pytest
from helpers.paths import ROOT

from searchr1_mini.ablations.findings import interval, table
from searchr1_mini.ablations.studies import STUDIES, fitted
from searchr1_mini.options.words import as_now

PAGE = (ROOT / "docs" / "ablations.md").read_text()
RECORDED = {
    path.stem.removeprefix("ablation_"): json.loads(path.read_text())
    for path in sorted((ROOT / "docs").glob("ablation_*.json"))
}
PROSE = {  # of each section, without its table
    title.removeprefix("What was found: "): " ".join(line for line in rest.splitlines() if not line.startswith("|"))
    for title, _, rest in (part.partition("\n") for part in PAGE.split("\n## "))
}


def of(study: str, arm: str, figure: str = "EM") -> list[float]:
    """A figure of every seed; the exact match is that of both kinds of questions."""
    runs = RECORDED[study]["results"][arm]
    return [(run["EM 1hop"] + run["EM 2hop"]) / 2 if figure == "EM" else run[figure] for run in runs]


def less(values: list[float], others: list[float]) -> list[float]:
    return [value - other for value, other in zip(values, others, strict=True)]


def against(study: str, reference: str, *arms: str, figure: str = "EM") -> list[list[float]]:
    """The differences of some arms from another, seed by seed."""
    return [less(of(study, arm, figure), of(study, reference, figure)) for arm in arms]


MASK = less(of("mask-why", "masked"), of("mask-why", "unmasked"))  # what the mask is worth, by itself and with others
MASK_OF_1 = less(of("topk", "1"), of("mask-why", "unmasked, 1 passage"))
MASK_WITH_KL = less(of("kl", "k3, 0.1"), of("mask-why", "unmasked, KL 0.1"))
MASK_WITHOUT_STD = less(of("rloo-why", "GRPO without the std"), of("mask-why", "unmasked, without the std"))
STATED = {  # section -> the values over seeds behind each mean with an interval, in the order of the text
    "methods published since": against(
        "methods", "GRPO", "REINFORCE++", "REINFORCE++ with a baseline", "GiGPO", figure="largest KL"
    ),
    "passages per search": against("topk", "3", "1", "5"),
    "actions per question": against("max-turns", "4", "2", "1"),
    "rollouts per question": against("group-size", "5", "3", "1"),
    "the reward": against("reward", "EM", "F1", "format", "EM + retrieval"),
    "the KL": [
        *against("kl", "k3, 0.001", "none", "k3, 0.1", "k2, 0.1", "k1, 0.1"),
        *against("kl", "k3, 0.001", "k3, 0.1", figure="KL"),
        of("kl", "k3, 0.1", "reward"),
        of("kl", "k3, 0.001", "reward"),
    ],
    "why the mask matters more here": [
        MASK,
        MASK_WITH_KL,
        MASK_WITHOUT_STD,
        *against("mask-why", "masked", "unmasked, a third of the rate"),
        *against("mask-why", "unmasked", "unmasked, a third of the rate"),
        *against("mask-why", "unmasked", "unmasked, 1 passage", figure="reward"),
        MASK_OF_1,
        MASK,
        less(MASK, MASK_OF_1),
        less(MASK_WITH_KL, MASK),
        less(MASK_WITHOUT_STD, MASK),
    ],
    "whether RLOO falls": [
        *against("rloo-why", "RLOO", "RLOO, KL 0.1", "GRPO without the std"),
        of("rloo-why", "RLOO"),
    ],
    "the museum of bugs": against("bugs", "sound", "no mask", "whole-text reward"),
    "a base that was shown right episodes": [
        *against("base-vs-warm", "base", "warm", figure="KL"),
        *against("base-vs-warm", "base", "warm", figure="largest KL"),
    ],
    "the algorithm": against("algorithm", "GRPO", "PPO", "Dr. GRPO", "RLOO", "GSPO", "DAPO"),
    "the mask": [*against("mask", "masked", "unmasked"), *against("mask", "masked, noise", "unmasked, noise")],
}


@pytest.mark.parametrize("section", [title for title, text in PROSE.items() if "±" in text])
def test_an_interval_in_the_text_is_that_of_the_figures(section):
    """A mean without a sign stands beside a word: below, lower, more."""
    told = re.findall(r"([-+]?)(\d+\.\d+) ± (\d+\.\d+)", PROSE[section])
    assert len(told) == PROSE[section].count("±") == len(STATED[section])
    for (sign, mean, width), values in zip(told, STATED[section], strict=True):
        exact = interval(values)
        n_digits = [len(text.partition(".")[2]) for text in (mean, width)]
        rounded = [f"{abs(number):.{n}f}" for number, n in zip(exact, n_digits, strict=True)]
        assert rounded == [mean, width] and (not sign or (sign == "-") == (exact[0] < 0))


def test_the_largest_kl_of_any_run_is_told():
    warm, base = (max(of("base-vs-warm", arm, "largest KL")) for arm in ("warm", "base"))
    told = f"of {warm:.2f} at most, where the base's runs come to 0.086 and {base:.1f}."
    assert told in PROSE["a base that was shown right episodes"]


@pytest.mark.parametrize("study", RECORDED)
def test_a_table_of_the_docs_is_what_a_study_would_write(study):
    assert table(RECORDED[study]["results"]) in PAGE


def test_the_seeds_that_were_run_are_told():
    assert {len(runs) for study in RECORDED.values() for runs in study["results"].values()} == {3}
    assert {name: study.seeds for name, study in STUDIES.items() if study.seeds != 5} == {"mask": 3}
    told = "with `--seeds 3`: every arm below has three seeds, though a study takes five by default (`mask` three)"
    assert told in PROSE["# Ablations"]


@pytest.mark.parametrize("name", RECORDED)
def test_the_tiny_models_arms_are_those_that_were_recorded(name):
    recorded, study = RECORDED[name]["settings"], fitted(STUDIES[name], "tiny")
    for arm, values in recorded["arms"].items():
        assert {option: as_now(value) for option, value in values.items()} == study.arms[arm]
    assert recorded["common"].items() <= study.common.items()

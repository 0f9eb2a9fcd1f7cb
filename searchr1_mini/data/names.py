"""Names of data sets."""

from __future__ import annotations

DATASETS = "world hotpotqa nq_hotpotqa nq triviaqa popqa 2wikimultihopqa musique bamboogle squad jsonl".split()
BRING_PASSAGES = ("hotpotqa", "squad")  # beside their questions
WORLD_DIFFICULTY = "natural"  # the hardest

"""Trains a language model to search: `python train.py` on a laptop, `python train.py --model Qwen2.5-3B` on one GPU.

for step: questions -> rollouts -> rewards -> advantages -> update -> log: see searchr1_mini/core/training.py.
"""

from __future__ import annotations

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()

    from searchr1_mini.options.outcome import run_command
    from searchr1_mini.train import main

    run_command(main)

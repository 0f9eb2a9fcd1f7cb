"""The report of a run: curves, rollouts, and cards of exported weights."""

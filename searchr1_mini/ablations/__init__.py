"""The studies of `python -m searchr1_mini.ablate`."""

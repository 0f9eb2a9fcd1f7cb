"""Ablations, and a museum of bugs."""

"""Bases loaded, checked, saved and merged."""

"""Experiments on rings and their reports: `ring bench`."""

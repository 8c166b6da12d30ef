"""Experiments on a running ring, and their reports."""

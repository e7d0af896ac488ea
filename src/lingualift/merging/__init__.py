"""Merging adapters as files: AdaMergeX and its baselines; no torch, transformers or peft in here."""

from lingualift.merging.engine import MergeReport, merge
from lingualift.merging.methods import METHODS, methods_table

__all__ = ["METHODS", "MergeReport", "merge", "methods_table"]

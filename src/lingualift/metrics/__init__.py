"""Scores of answers and the uncertainty of their differences: numbers in, numbers out; no model, no tokenizer."""

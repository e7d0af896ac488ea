"""Lift a task into languages that have no labels for it."""

"""Training adapters: encoded data with its loss, the one trainer, and what a step of it takes."""

"""Run folders: what a run made there and whose it is, and a finished one read back."""

"""What several tests use: backbones, folders, rows, experiments, processes. No test imports another."""

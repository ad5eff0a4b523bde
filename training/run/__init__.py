"""A run on disk: its files, logs, checkpoints and exports, and when they are written."""

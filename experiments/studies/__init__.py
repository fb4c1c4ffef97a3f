"""Studies whose results are published; they stay in the repository."""

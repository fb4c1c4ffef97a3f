"""Benchmarks; they stay in the repository."""

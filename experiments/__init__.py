"""Presets, sweeps, comparisons and benchmarks, with the commands behind every number."""

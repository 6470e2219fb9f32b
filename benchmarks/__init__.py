"""Measurements against PyTorch, side by side in one run: python -m benchmarks.run."""

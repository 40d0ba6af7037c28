"""Repairs a pruned model by training: whatever has an optimiser."""

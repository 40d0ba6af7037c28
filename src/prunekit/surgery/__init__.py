"""Applies plans: a new checkpoint on disk, the input untouched. Closed form only, no optimiser."""

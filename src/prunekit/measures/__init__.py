"""Measures: one number or table about a checkpoint, with everything needed to repeat it."""

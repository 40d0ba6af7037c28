"""Scores, plans and choosing: data that can be read, edited and fed back. No torch."""

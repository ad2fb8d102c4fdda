"""Figures: each file holds the series, which are the records' own numbers, and draws them."""

"""Recordings made into one checked Dataset, joined, selected, cached and written."""

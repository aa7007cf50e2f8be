"""Figures of runs and studies. Imports no torch."""

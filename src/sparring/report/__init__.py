"""Figures and tables. Imports no torch."""

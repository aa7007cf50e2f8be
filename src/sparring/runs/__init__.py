"""Runs: training a recipe in a folder, loading the trained models and evaluating them."""

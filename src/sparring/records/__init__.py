"""What is known of a run and of an evaluation, on disk and as numbers. Needs no torch."""

"""The step, the loop and what happens around them."""

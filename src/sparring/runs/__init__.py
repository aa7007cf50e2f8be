"""A recipe, trained in a folder, loaded and evaluated."""

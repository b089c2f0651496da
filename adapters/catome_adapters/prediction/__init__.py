"""How much time merging is predicted to save."""

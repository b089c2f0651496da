"""What merging is predicted to gain in a model, from its configuration alone."""

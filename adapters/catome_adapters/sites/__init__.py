"""Where a model keeps its tokens."""

"""Drawing the same pictures with and without merging, and what comes of it."""

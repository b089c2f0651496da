"""Which settings are best for a model: measured block by block on its own pictures, chosen, and checked."""

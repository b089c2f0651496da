"""Commands that write what the documentation shows."""

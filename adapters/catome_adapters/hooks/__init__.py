"""What happens to the tokens during a forward pass."""

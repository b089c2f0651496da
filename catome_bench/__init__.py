"""The shipped small model, and the `catome` command that shows what merging does to it."""

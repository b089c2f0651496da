"""The shipped small models, and the `catome` command that shows what merging does to them."""

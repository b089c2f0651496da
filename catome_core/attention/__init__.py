"""Everything that attention must know of slots: padding, sizes, and masks made for tokens."""

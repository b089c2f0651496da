"""What to merge, where and when: recipes by value, by name, and as calibration finds them."""

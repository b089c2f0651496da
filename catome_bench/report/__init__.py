"""One page of what a folder of results shows, without a network."""

"""Time contenders beside each other, count their graphs, and measure how faithful their results are."""

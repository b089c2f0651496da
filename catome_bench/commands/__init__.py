"""The subcommands of `catome`, one a file, and what `catome bench` measures."""

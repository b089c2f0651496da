"""Contenders for a race: blocks, networks, kernels and operations, and whole pictures, of ours and of the peers."""

"""Tiny models of every kind, with random weights: what the tests attach to.

Every entry builds a network (`network`) and calls it (`call`), so that `running.run` serves them all.

At these sizes merging cannot gain, and `attach` would leave the networks alone. So conftest.py gives every test a
machine on which merging costs nothing (`merging_is_free`); a test of predictions overrides that fixture.
"""

"""Consensus: what the log is made of. Pure: no I/O, no clock, no randomness of its own."""

"""Tests of the Raft core: direct ones, and a simulated cluster."""

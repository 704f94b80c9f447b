"""Devices without a board: the golden model and the simulated RTL."""

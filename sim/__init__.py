"""Devices without a board: the golden model, the model of time and the simulated RTL."""

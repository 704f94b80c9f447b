"""Gateware: the accelerator in Amaranth, its configuration, instructions and program file."""

"""Renders V80 kernels, memory images and the testbench from an artifact."""

"""Modules that own parameters: RotateConv2d and the baseline convolutions beside it."""

"""Tensors in, tensors out: the formula of a line kernel, its fast forms and its inverse, the fit.

No module, no configuration.
"""

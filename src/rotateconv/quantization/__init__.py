"""Fewer bits, and the file that holds them: quantize, train quantized, pack."""

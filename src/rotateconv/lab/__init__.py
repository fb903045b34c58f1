"""The laboratory: trains, compares and reports; nothing of the library imports it."""

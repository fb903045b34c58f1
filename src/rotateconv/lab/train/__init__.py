"""One run is one folder: the loop, its state, its checkpoints, and what is read back from them."""

"""A whole model in, a whole model out, at the same precision: convert, fuse, recalibrate."""

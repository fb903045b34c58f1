"""What the layer costs beside others: cases, forms, timing, and the record of a run."""

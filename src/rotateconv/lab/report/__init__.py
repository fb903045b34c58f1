"""Records become statistics, tables, pictures and pages; nothing here trains or loads a model."""

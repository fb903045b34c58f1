"""Records become statistics, tables, pictures and pages; nothing here trains or loads a model.

- Numbers: `statistics`, and `tables` of them; `frontier` for accuracy against bytes, `published` for those of others.
- Pictures: `figures` of a study, `run_figures` of a run, `html_charts`; `canvas` and `colors` are what they share.
- Pages: `page` and its `blocks`, `comparison`, `html`, `model_card`; `write` puts them into files.
"""

"""Many runs become records: the plan, its execution, sizes, conversions and the analysis of angles.

- What is done: `compare`, `search`, `convert`, `finish` (with `budget`), and `shrink` with `shrink_untrained` and
  `shrink_files`; `plan` says what is compared.
- Where its runs are done: `executor` keeps a `pool` of processes, in `turns` if so asked, or a `cluster` busy; `worker`
  is what a process does; `events` is what all report.
- What is found: `run_record`, `study_record`, `convert_record`, `shrink_record`; `sizes`, `angles`, `run_details`.
"""

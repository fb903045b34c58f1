"""What several commands share: how an option looks and what it means, what is printed, how a mistake ends.

- Options: `options`, `keys` of a configuration, `bits`, `budget`, `executors`; `settings` makes a configuration of
  them, and `unread` refuses those that no run would read.
- What is printed: `console`, `progress` of a run, `study_progress`, `shrink_progress`; `loading` gets the images of a
  command, `comparison` does the work of `compare` and shows its tables.
- Mistakes: `errors`.
"""

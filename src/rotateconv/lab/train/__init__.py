"""One run is one folder: the loop, its state, its checkpoints, and what is read back from them.

- The loop: `fit` is a run from its beginning to its end, `loop` its epochs and `step` what the device does in one,
  `captured` the same in a CUDA graph; `schedule`, `monitor`, `events`, `evaluate`.
- Its state: `build_state` makes a `train_state` of the model of `build` or `pretrained`; `average`, `running_metrics`,
  `quantized_start`; `saved_state` puts it into a checkpoint and back.
- The folder: `run_folder` and what lies in it, `run_results`, `environment`, `checkpoint`, `weights`; `load` makes a
  model of it again; `lock` lets one process write.
- Around it: `device`, `interrupts`, `process_memory`, `rehearsal`, `trackers`, `trust`.
"""

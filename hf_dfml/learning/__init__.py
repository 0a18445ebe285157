"""Tasks -> meta-model: inner loops, distillation, gradient combination, task grouping, weight-space fusion."""

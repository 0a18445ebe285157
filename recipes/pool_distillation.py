# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_dfml"]
#
# [tool.uv.sources]
# hf_dfml = { path = "..", editable = true }
# ///
"""Pool distillation: one network that answers as every member of a pool of pretrained classifiers does.

    accelerate launch recipes/pool_distillation.py --pool pools/cifar-fs --dataset cifar-fs --output_dir runs/pool
    accelerate launch recipes/pool_distillation.py --config hf_dfml/presets/pool-distillation-cifar-fs-cpu.yaml
    accelerate launch recipes/pool_distillation.py --pool my-org --arch resnet12      # a better student; no evaluation
    accelerate launch recipes/pool_distillation.py --pool http://127.0.0.1:8000 --max_queries 5000000  # black boxes
    accelerate launch recipes/pool_distillation.py ... --resume_from_checkpoint latest

The configuration wants --pool as well. Without --preset or --config, architecture, images and steps fit the pool.
"""

from hf_dfml.cli.recipe import main
from hf_dfml.methods.pool_distillation import PoolDistillation

if __name__ == "__main__":
    main(PoolDistillation)

"""Pool distillation: one network that answers as every member of a pool of pretrained classifiers does.

    accelerate launch recipes/pool_distillation.py --pool pools/cifar-fs --dataset cifar-fs --output_dir runs/pool
    accelerate launch recipes/pool_distillation.py --config hf_dfml/presets/pool-distillation-cifar-fs-cpu.yaml
    accelerate launch recipes/pool_distillation.py --pool my-org --arch resnet12      # a better student; no evaluation
    accelerate launch recipes/pool_distillation.py --pool http://127.0.0.1:8000 --max_queries 5000000  # black boxes
    accelerate launch recipes/pool_distillation.py ... --resume_from_checkpoint latest

The configuration wants --pool as well. Without options the schedule is the same, sized for two CPU cores.
"""

from hf_dfml.arguments import parse
from hf_dfml.errors import errors_in_a_sentence
from hf_dfml.methods.pool_distillation import PoolDistillation
from hf_dfml.pipeline import run
from hf_dfml.run_config import RunConfig

if __name__ == "__main__":
    with errors_in_a_sentence():
        run(PoolDistillation, *parse(PoolDistillation, RunConfig, description=__doc__))

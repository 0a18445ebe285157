"""FREE: faster and better data-free meta-learning (Wei et al., CVPR 2024) over a pool of pretrained classifiers.

    accelerate launch recipes/free.py --pool pools/cifar-fs --dataset cifar-fs --output_dir runs/free
    accelerate launch recipes/free.py --config hf_dfml/presets/free-cifar-fs-paper.yaml --pool pools/cifar-fs
    accelerate launch recipes/free.py --config hf_dfml/presets/free-cifar-fs-cpu.yaml --pool pools/cifar-fs
    accelerate launch recipes/free.py ... --adaptation_steps 2               # FREE_2
    accelerate launch recipes/free.py ... --five false --bell false          # Table 5: both, one or none of these
    accelerate launch recipes/free.py ... --resume_from_checkpoint latest    # go on after an interruption

Without options the schedule is the paper's (a GPU's work); the files in hf_dfml/presets are sized for other machines.
"""

from hf_dfml.arguments import parse
from hf_dfml.errors import errors_in_a_sentence
from hf_dfml.methods.free import FREE
from hf_dfml.pipeline import run
from hf_dfml.run_config import RunConfig

if __name__ == "__main__":
    with errors_in_a_sentence():
        run(FREE, *parse(FREE, RunConfig, description=__doc__))

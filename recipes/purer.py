"""PURER: episode curriculum inversion and ICFIL (Hu et al., CVPR 2023) over a pool of pretrained classifiers.

    accelerate launch recipes/purer.py --pool pools/cifar-fs --dataset cifar-fs --output_dir runs/purer
    accelerate launch recipes/purer.py --config hf_dfml/presets/purer-cifar-fs-paper.yaml --pool pools/cifar-fs
    accelerate launch recipes/purer.py --config hf_dfml/presets/purer-cifar-fs-cpu.yaml --pool pools/cifar-fs
    accelerate launch recipes/purer.py ... --icfil_episodes 100                # the evaluation with and without ICFIL
    accelerate launch recipes/purer.py ... --resume_from_checkpoint latest     # go on after an interruption

Members may differ in architecture, classes, image size and data set; --average true needs members of the meta-model's
own kind. Without options the schedule is the paper's (a GPU's work); the files in hf_dfml/presets are sized for other
machines.
"""

from hf_dfml.arguments import parse
from hf_dfml.errors import errors_in_a_sentence
from hf_dfml.methods.purer import PURER
from hf_dfml.pipeline import run
from hf_dfml.run_config import RunConfig

if __name__ == "__main__":
    with errors_in_a_sentence():
        run(PURER, *parse(PURER, RunConfig, description=__doc__))

"""TGR: task groupings regularisation (Wei et al., ICML 2024) over a pool of pretrained classifiers.

    accelerate launch recipes/tgr.py --pool pools/cifar-fs --dataset cifar-fs --output_dir runs/tgr
    accelerate launch recipes/tgr.py --config hf_dfml/presets/tgr-cifar-fs-cpu.yaml --pool pools/cifar-fs
    accelerate launch recipes/tgr.py --pool my-org --output_dir runs/tgr      # no labelled image at all: no evaluation
    accelerate launch recipes/tgr.py ... --resume_from_checkpoint latest      # go on after an interruption

Without options the schedule is the paper's (a GPU's work); the files in hf_dfml/presets are sized for other machines.
"""

from hf_dfml.arguments import parse
from hf_dfml.errors import errors_in_a_sentence
from hf_dfml.methods.tgr import TGR
from hf_dfml.pipeline import run
from hf_dfml.run_config import RunConfig

if __name__ == "__main__":
    with errors_in_a_sentence():
        run(TGR, *parse(TGR, RunConfig, description=__doc__))

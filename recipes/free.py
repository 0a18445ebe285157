# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_dfml"]
#
# [tool.uv.sources]
# hf_dfml = { path = "..", editable = true }
# ///
"""FREE: faster and better data-free meta-learning (Wei et al., CVPR 2024) over a pool of pretrained classifiers.

    accelerate launch recipes/free.py --pool pools/cifar-fs --dataset cifar-fs --output_dir runs/free
    accelerate launch recipes/free.py --config hf_dfml/presets/free-cifar-fs-paper.yaml --pool pools/cifar-fs
    accelerate launch recipes/free.py --config hf_dfml/presets/free-cifar-fs-cpu.yaml --pool pools/cifar-fs
    accelerate launch recipes/free.py ... --adaptation_steps 2               # FREE_2
    accelerate launch recipes/free.py ... --five false --bell none           # Table 5: the baseline (docs/papers.md)
    accelerate launch recipes/free.py ... --resume_from_checkpoint latest    # go on after an interruption

Without --preset or --config it takes `--preset cpu`; `--preset paper` is the paper's schedule (a GPU's work).
"""

from hf_dfml.cli.recipe import main
from hf_dfml.methods.free import FREE

if __name__ == "__main__":
    main(FREE)

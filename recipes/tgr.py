# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_dfml"]
#
# [tool.uv.sources]
# hf_dfml = { path = "..", editable = true }
# ///
"""TGR: task groupings regularisation (Wei et al., ICML 2024) over a pool of pretrained classifiers.

    accelerate launch recipes/tgr.py --pool pools/cifar-fs --dataset cifar-fs --output_dir runs/tgr
    accelerate launch recipes/tgr.py --config hf_dfml/presets/tgr-cifar-fs-cpu.yaml --pool pools/cifar-fs
    accelerate launch recipes/tgr.py --pool my-org --output_dir runs/tgr      # no labelled image at all: no evaluation
    accelerate launch recipes/tgr.py ... --resume_from_checkpoint latest      # go on after an interruption

Without --preset or --config it takes `--preset cpu`; `--preset paper` is the paper's schedule (a GPU's work).
"""

from hf_dfml.cli.recipe import main
from hf_dfml.methods.tgr import TGR

if __name__ == "__main__":
    main(TGR)

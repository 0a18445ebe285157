# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_dfml"]
#
# [tool.uv.sources]
# hf_dfml = { path = "..", editable = true }
# ///
"""PURER: episode curriculum inversion and ICFIL (Hu et al., CVPR 2023) over a pool of pretrained classifiers.

    accelerate launch recipes/purer.py --pool pools/cifar-fs --dataset cifar-fs --output_dir runs/purer
    accelerate launch recipes/purer.py --config hf_dfml/presets/purer-cifar-fs-paper.yaml --pool pools/cifar-fs
    accelerate launch recipes/purer.py --config hf_dfml/presets/purer-cifar-fs-cpu.yaml --pool pools/cifar-fs
    accelerate launch recipes/purer.py ... --icfil_episodes 100                # the evaluation with and without ICFIL
    accelerate launch recipes/purer.py ... --resume_from_checkpoint latest     # go on after an interruption

Members may differ in architecture, classes, image size and data set; --average true needs members of the meta-model's
own kind. Without --preset or --config it takes `--preset cpu`; `--preset paper` is the paper's
schedule (a GPU's work).
"""

from hf_dfml.cli.recipe import main
from hf_dfml.methods.purer import PURER

if __name__ == "__main__":
    main(PURER)

# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_dfml"]
#
# [tool.uv.sources]
# hf_dfml = { path = "..", editable = true }
# ///
"""BiDf-MKD: bi-level distillation (Hu et al., ICML 2023) over a pool of pretrained classifiers, or of black boxes.

    accelerate launch recipes/bidf_mkd.py --pool pools/cifar-fs --dataset cifar-fs --output_dir runs/bidf-mkd
    accelerate launch recipes/bidf_mkd.py --config hf_dfml/presets/bidf-mkd-cifar-fs-paper.yaml --pool pools/cifar-fs
    accelerate launch recipes/bidf_mkd.py --config hf_dfml/presets/bidf-mkd-cifar-fs-cpu.yaml --pool pools/cifar-fs
    accelerate launch recipes/bidf_mkd.py ... --gradient zero_order              # gradients by queries alone
    accelerate launch recipes/bidf_mkd.py ... --black_box probs --max_queries 5000000    # nothing but answers, so many
    accelerate launch recipes/bidf_mkd.py ... --pool http://127.0.0.1:8000       # a pool that `hf-dfml serve` serves
    accelerate launch recipes/bidf_mkd.py ... --pool endpoints.yaml              # Inference Endpoints
    accelerate launch recipes/bidf_mkd.py --config hf_dfml/presets/bidf-mkd-cifar-fs-black-box-cpu.yaml --pool ...
    accelerate launch recipes/bidf_mkd.py ... --resume_from_checkpoint latest    # go on after an interruption

Members may differ in architecture, classes, image size and data set. Without --preset or --config it takes `--preset
cpu`; `--preset paper` is the paper's schedule (a GPU's work). Black boxes show no batch-norm statistics: with a file
or preset that is named add --bn_weight 0 --tv_weight 0. docs/black_boxes.md compares the --zero_order_estimator's.
"""

from hf_dfml.cli.recipe import main
from hf_dfml.methods.bidf_mkd import BiDfMKD

if __name__ == "__main__":
    main(BiDfMKD)

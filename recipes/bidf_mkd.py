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

Members may differ in architecture, classes, image size and data set. Without options the schedule is the paper's (a
GPU's work); the files in hf_dfml/presets are sized for other machines. Black boxes show no batch-norm statistics: with
such a file add --bn_weight 0 --tv_weight 0. docs/black_boxes.md compares the --zero_order_estimator's.
"""

from hf_dfml.arguments import parse
from hf_dfml.errors import errors_in_a_sentence
from hf_dfml.methods.bidf_mkd import BiDfMKD
from hf_dfml.pipeline import run
from hf_dfml.run_config import RunConfig

if __name__ == "__main__":
    with errors_in_a_sentence():
        run(BiDfMKD, *parse(BiDfMKD, RunConfig, description=__doc__))

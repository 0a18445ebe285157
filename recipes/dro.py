# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_dfml"]
#
# [tool.uv.sources]
# hf_dfml = { path = "..", editable = true }
# ///
"""DRO: distributionally robust model fusion (Wang et al., UAI 2022): a meta-model from the members' weights alone.

    accelerate launch recipes/dro.py --pool pools/cifar-fs --dataset cifar-fs --shots 1 5 10 20 --output_dir runs/dro
    accelerate launch recipes/dro.py --online true --pool pools/cifar-fs --dataset cifar-fs --output_dir runs/online
    accelerate launch recipes/dro.py --align true --pool my-org --output_dir runs/dro     # channels matched first

Two minutes on a CPU for a hundred conv4 members; a step is an epoch (with --online one arriving member). The members
must be of one architecture and head size (`--arch` and `--ways` say which); evaluation takes longer than the method.
"""

from hf_dfml.cli.recipe import main
from hf_dfml.methods.dro import DRO

if __name__ == "__main__":
    main(DRO)

"""Steps with given gradients, and the statistics of batch norm."""

import torch

from hf_dfml.learning.optimisation import calibrate_batch_norm
from hf_dfml.networks import create_network


def test_statistics_do_not_depend_on_the_order_of_the_classes():
    """Batches of one class each would have no variance between classes."""
    brightness = torch.linspace(0.1, 0.9, 4).repeat_interleave(50)[:, None, None, None]
    images = (brightness + 0.05 * torch.randn(200, 3, 16, 16, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    network = create_network("conv4_16", num_classes=4, image_size=16)
    found = calibrate_batch_norm(network, images, batch_size=50).blocks[0].bn.running_var.clone()
    whole = calibrate_batch_norm(network, images, batch_size=200).blocks[0].bn.running_var
    assert torch.allclose(found, whole, rtol=0.02)

"""What all tests share."""

import torch

torch.set_num_threads(1)  # the tensors are tiny and the cores shared: more threads only wait for each other

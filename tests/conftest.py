"""The suite's networks are tiny: a second thread would wait longer than it works."""

import torch

torch.set_num_threads(1)

"""A table of rows, looked up by number."""

from __future__ import annotations

from torch import nn


class Table(nn.Embedding):
    """`torch.nn.Embedding` that is left without numbers on the meta device.

    A network is built there to be filled with a checkpoint's weights. Even there, random
    initialisation would load torch's compiler, which takes a second.
    """

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

"""The teacher of self-supervised training: a moving average of the student that takes no gradient."""

import torch
from torch import nn


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Each parameter of the teacher becomes momentum x itself + (1 - momentum) x the student's; buffers are copied.

    Both are of one architecture. Processes whose students are equal keep equal teachers without talking.
    """
    for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        ours.lerp_(theirs, 1 - momentum)
    for own, other in zip(teacher.buffers(), student.buffers(), strict=True):
        own.copy_(other)

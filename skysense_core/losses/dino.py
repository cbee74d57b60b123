"""L_CL of the paper: the student should say what the teacher, softened and centred, says (DINO, Caron et al. 2021).

Answers are cosines with K directions, for every pixel of every date. They are the largest tensors of a training and are
never there as a whole: loss and gradient are computed together, so many rows at a time as a cache (or a GPU) holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from skysense_core.losses import collectives
from skysense_core.losses.precision import in_float32

AT_ONCE = {"cpu": 2**19, "cuda": 2**27}
"""Answers that are held at a time: 2 MB on a CPU, 512 MB on a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What student and teacher say of the same things, before any temperature: x @ directions.T of each."""

    student: Float[Tensor, "n d"]
    teacher: Float[Tensor, "n d"]
    student_directions: Float[Tensor, "k d"]
    teacher_directions: Float[Tensor, "k d"]
    weight: Float[Tensor, "n"]
    """How much a row counts; 0 for what one of the two did not see."""
    centre: Float[Tensor, "k"]
    """Running mean of the teacher's answers to this kind of question."""


@in_float32
def cross_entropy(
    answers: Answers, *, student_temperature: float = 0.1, teacher_temperature: float = 0.04
) -> Float[Tensor, ""]:
    """Mean over all rows of all processes of -sum softmax((teacher - centre) / T) log softmax(student / T').

    Never below the mean entropy of the teacher's side, which it reaches where both sides agree. Computed in float32;
    the gradient goes to the student's vectors and directions alone. This process's part; see `collectives.mean`.
    """
    return _CrossEntropy.apply(
        answers.student.float() / student_temperature,
        answers.student_directions.float(),
        answers.teacher.float() / teacher_temperature,
        answers.teacher_directions.float(),
        answers.centre / teacher_temperature,
        collectives.shares(answers.weight),
    )


def mgcl(
    features: Mapping[str, Mapping[str, Answers]], *, student_temperature: float, teacher_temperature: float
) -> dict[str, Float[Tensor, ""]]:
    """Multi-granularity contrast [P Eq. 8 and 9]: the cross-entropy of every level of every feature, by name.

    `features` are modalities and the fused map, each with its levels (pixel, object, image). FGCL of a feature is the
    sum of its levels, MGCL the sum of all.
    """
    return {
        f"{feature}.{level}": cross_entropy(
            answers, student_temperature=student_temperature, teacher_temperature=teacher_temperature
        )
        for feature, levels in features.items()
        for level, answers in levels.items()
    }


@in_float32
@torch.no_grad()
def moved_centre(answers: Answers, momentum: float = 0.9) -> Float[Tensor, "k"]:
    """momentum x centre + (1 - momentum) x the mean of the teacher's answers in all processes.

    Where no row has a weight the centre stays.
    """
    mean, _, count = collectives.moments(answers.teacher, answers.weight)
    mean = mean @ answers.teacher_directions.float().mT
    return torch.where(count > 0, torch.lerp(mean, answers.centre, momentum), answers.centre)


class _CrossEntropy(torch.autograd.Function):
    """The sum over rows of -share x softmax(t - centre) . log softmax(s), with s = x @ directions.T and t alike."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, own: Tensor, teacher: Tensor, other: Tensor, centre: Tensor, share: Tensor
    ) -> Tensor:
        loss = share.new_zeros(())
        by_student, by_own = torch.zeros_like(student), torch.zeros_like(own)
        rows = max(AT_ONCE[student.device.type] // len(own), 1)
        parts = (tensor.split(rows) for tensor in (student, teacher, share, by_student))
        for x, y, part, slope in zip(*parts, strict=True):
            said = torch.log_softmax(x @ own.mT, dim=-1)
            wanted = torch.softmax(torch.addmm(centre, y, other.mT, beta=-1), dim=-1)
            loss -= part @ (wanted * said).sum(-1)
            if any(ctx.needs_input_grad):
                error = said.exp_().sub_(wanted).mul_(part[:, None])
                torch.mm(error, own, out=slope)
                by_own.addmm_(error.mT, x)
        ctx.save_for_backward(by_student, by_own)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slopes = [gradients[0] * slope for slope in ctx.saved_tensors]
        return *slopes, None, None, None, None

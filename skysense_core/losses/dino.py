"""L_CL of the paper: the student should say what the teacher, softened and centred, says (DINO, Caron et al. 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from skysense_core.losses import collectives


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What student and teacher say of the same things, before any temperature."""

    student: Float[Tensor, "n k"]
    teacher: Float[Tensor, "n k"]
    weight: Float[Tensor, "n"]
    """How much a row counts; 0 for what one of the two did not see."""
    centre: Float[Tensor, "k"]
    """Running mean of the teacher's answers to this kind of question."""


def cross_entropy(
    answers: Answers, *, student_temperature: float = 0.1, teacher_temperature: float = 0.04
) -> Float[Tensor, ""]:
    """Mean over all rows of all processes of -sum softmax((teacher - centre) / T) log softmax(student / T').

    Never below the mean entropy of the teacher's side, which it reaches where both sides agree. Computed in float32;
    the gradient goes to the student alone. This process's part; see `collectives.mean`.
    """
    with torch.no_grad():
        wanted = torch.softmax((answers.teacher.float() - answers.centre) / teacher_temperature, dim=-1)
    said = torch.log_softmax(answers.student.float() / student_temperature, dim=-1)
    return collectives.mean(-(wanted * said).sum(-1), answers.weight)


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


@torch.no_grad()
def moved_centre(answers: Answers, momentum: float = 0.9) -> Float[Tensor, "k"]:
    """momentum x centre + (1 - momentum) x the mean of the teacher's answers in all processes.

    Where no row has a weight the centre stays.
    """
    mean, _, count = collectives.moments(answers.teacher, answers.weight)
    return torch.where(count > 0, torch.lerp(mean, answers.centre, momentum), answers.centre)

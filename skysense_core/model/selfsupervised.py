"""Self-supervised learning of a SkySense model: a student, the teacher that follows it, and what they are asked.

    views -> student, teacher -> features of each modality and the fused map -> pixels, objects, images
          -> answers of both -> MGCL;  features of modalities -> alignment;  fused features -> prototypes

METHOD 3 and Eq. 1-14 of the paper. With accumulation, the centres, the prototypes and the negatives of the alignment
are those of one forward pass over all processes.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from skysense_core.data.batch import Series
from skysense_core.losses.alignment import align
from skysense_core.losses.dino import Answers, mgcl, moved_centre
from skysense_core.losses.grains import Pairs, Seen, image_pairs, object_pairs, partners, pixel_pairs, pooled, stacked
from skysense_core.losses.precision import in_float32
from skysense_core.model import monitors
from skysense_core.model.heads import AnswerHead
from skysense_core.model.maps import FUSED, maps_of, maps_of_views
from skysense_core.model.skysense import SkySense
from skysense_core.model.teacher import follow

Level: TypeAlias = Literal["pixel", "object", "image"]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Count: TypeAlias = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodConfig:
    """The `[method]` table. What the paper does not state follows DINO and SwAV [A]."""

    levels: tuple[Level, ...] = ("pixel", "object", "image")
    """What is contrasted; ("image",) is plain DINO."""
    contrast: Annotated[float, Field(ge=0)] = 1.0
    """alpha of Eq. 14."""
    alignment: Annotated[float, Field(ge=0)] = 1.0
    """beta of Eq. 14; 0 leaves cross-modal alignment out."""
    positions: Count = 256
    """Most places per sample and pair of views at the pixel level."""
    clusters: Count = 8
    """Objects per image."""
    student_temperature: Positive = 0.1
    teacher_temperature: tuple[Positive, Positive] = (0.04, 0.07)
    """At the first step, and after `warmup`."""
    warmup: Share = 0.1
    """Share of all steps over which the teacher's temperature rises, linearly."""
    momentum: tuple[Share, Share] | None = None
    """Of the teacher, at the first and at the last step; a cosine between them. Not given: from 0.996 to 1 as in DINO;
    shorter runs begin at 1 - 15 / steps, at least 0.9, for their teacher has less time to follow."""
    centre_momentum: Share = 0.9
    prototype_momentum: Share = 0.9
    """m of Eq. 13."""
    frozen_last: Share = 0.01
    """Share of all steps in which the directions of the heads stay as they are."""
    hidden: Count | None = None
    """Width of the heads; not given: four times the features' channels, at most 2048."""
    bottleneck: Count | None = None
    """Width of the unit vectors that answers are cosines with; not given: a quarter of the channels where modalities
    meet, at most 256. The narrower it is, the further answers lie apart: small models with 256 give none."""
    projection: Count = 256
    """Width of what is aligned across modalities."""
    answers: Count | None = None
    """K; not given: 16 times the channels where modalities meet, at most 8192."""


class SelfSupervised(nn.Module):
    """Student, teacher, heads and centres. Without fusion, the last maps of Swin modalities are what is contrasted."""

    centres: Tensor
    step: Tensor

    def __init__(self, student: SkySense, config: MethodConfig, *, steps: int) -> None:
        super().__init__()
        self.config = config
        self.steps = steps
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        channels = student.spec.sizes.channels
        widths = dict.fromkeys(student.modalities, channels)
        if student.fusion is not None:
            widths[FUSED] = student.fusion.width * (1 if student.prototypes is None else 2)
        answers = config.answers or min(16 * channels, 8192)
        bottleneck = config.bottleneck or max(min(channels // 4, 256), 1)
        self.heads = nn.ModuleDict(
            {
                f"{name}_{level}": AnswerHead(
                    width,
                    hidden=config.hidden or min(4 * width, 2048),
                    bottleneck=bottleneck,
                    answers=answers,
                )
                for name, width in widths.items()
                for level in config.levels
            }
        )
        self.teacher_heads = copy.deepcopy(self.heads).requires_grad_(False)
        self.register_buffer("centres", torch.zeros(len(self.heads), answers))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.projections = nn.ModuleDict()
        if config.alignment and len(student.modalities) > 1:
            for name in student.modalities:
                self.projections[name] = nn.Linear(channels, config.projection)
            self.log_temperature = nn.Parameter(torch.tensor([math.log(0.07)]))
        self.train(self.training)

    def train(self, mode: bool = True) -> "SelfSupervised":
        super().train(mode)
        self.teacher.eval()
        self.teacher_heads.eval()
        return self

    def forward(
        self,
        views: Sequence[Mapping[str, Series]],
        places: Sequence[Int[Tensor, "b _ _"]],
        lonlat: Float[Tensor, "b 2"],
        located: Bool[Tensor, "b"],
        *,
        global_views: int,
    ) -> dict[str, Tensor]:
        """Losses by name, weighted: their sum is Eq. 14. The first `global_views` views are the teacher's too.

        In training, centres and prototypes move on after they were used.
        """
        seen = maps_of_views(self.student, views, lonlat, located)
        with torch.no_grad():
            known = maps_of_views(self.teacher, views[:global_views], lonlat, located)
        answers = self._answers(seen, known, places)
        named = mgcl(
            answers,
            student_temperature=self.config.student_temperature,
            teacher_temperature=self.teacher_temperature(),
        )
        losses = {name: self.config.contrast * value for name, value in named.items()}
        if self.projections:
            parts = [self._align(maps) for maps in seen[:global_views]]
            losses["alignment"] = self.config.alignment * torch.stack(parts).mean()
        if self.training:
            self._learn(seen[:global_views], answers, lonlat, located)
        return losses

    def after_step(self, step: int) -> None:
        """The teacher follows; `step` of `steps` are done."""
        first, last = self.config.momentum or (min(0.996, max(1 - 15 / self.steps, 0.9)), 1.0)
        momentum = last - (last - first) * (1 + math.cos(math.pi * (step - 1) / self.steps)) / 2
        follow(self.teacher, self.student, momentum)
        follow(self.teacher_heads, self.heads, momentum)
        self.step.fill_(step)

    def running_momentum(self) -> float:
        """Of the centres.

        The first steps set them rather than pull them slowly from zero: until they are there, what all answers have in
        common is what would be learnt.
        """
        return min(self.config.centre_momentum, int(self.step) / (int(self.step) + 1))

    def teacher_temperature(self) -> float:
        """Of the step that comes next."""
        first, last = self.config.teacher_temperature
        return first + (last - first) * min(int(self.step) / max(self.config.warmup * self.steps, 1), 1.0)

    @torch.no_grad()
    def inspect(
        self, images: Mapping[str, Series], lonlat: Float[Tensor, "b 2"], located: Bool[Tensor, "b"]
    ) -> dict[str, float]:
        """What collapse would show in, for the teacher's image features of each modality and the fused map.

        `std` and `rank` say how they differ between images, `entropy` and `information` how much its answers tell of
        the image (see `monitors`). With prototypes, `prototypes.R` is the share of those of region R that are in use.
        """
        found: dict[str, float] = {}
        maps = maps_of(self.teacher, images, lonlat, located)
        for name, map in maps.items():
            features, there = pooled(map)
            if not there.any():
                continue
            rows = features[there].float()
            found |= {f"{name}.{what}": value for what, value in monitors.spread(rows).items()}
            key = f"{name}_image"
            if key in self.teacher_heads:
                unit, directions = self.teacher_heads[key](rows)
                said = in_float32(torch.mm)(unit, directions.mT) - self.centres[list(self.heads).index(key)]
                told = monitors.answers(said / self.teacher_temperature())
                found |= {f"{name}.{what}": value for what, value in told.items()}
        if self.teacher.prototypes is not None:
            fused = maps[FUSED]
            tensor = fused.tensor[:, 0, : fused.tensor.shape[2] // 2]
            usage = self.teacher.prototypes.usage(tensor, fused.seen[:, 0], lonlat, located)
            found |= {f"prototypes.{region}": share for region, share in usage.items()}
        return found

    def _answers(
        self,
        seen: Sequence[Mapping[str, Seen]],
        known: Sequence[Mapping[str, Seen]],
        places: Sequence[Int[Tensor, "b _ _"]],
    ) -> dict[str, dict[str, Answers]]:
        """What both say of every thing that a view of the student shares with another view of the teacher."""
        alike: dict[torch.Size, list[tuple[int, int]]] = {}  # which two views, by the size of the student's
        for other, number in product(range(len(seen)), range(len(known))):
            if other != number:
                alike.setdefault(places[other].shape, []).append((other, number))
        pairs: dict[str, list[Pairs]] = {key: [] for key in self.heads}
        for both in alike.values():
            others, numbers = zip(*both, strict=True)
            partner = partners(torch.cat([places[n] for n in others]), torch.cat([places[n] for n in numbers]))
            for name in seen[0]:
                student = stacked([seen[number][name] for number in others])
                teacher = stacked([known[number][name] for number in numbers])
                for level in self.config.levels:
                    pairs[f"{name}_{level}"].append(self._pairs(level, student, teacher, partner))
        found: dict[str, dict[str, Answers]] = {}
        for index, (key, parts) in enumerate(pairs.items()):
            if parts:
                name, _, asked = key.rpartition("_")
                found.setdefault(name, {})[asked] = self._ask(index, key, parts)
        return found

    def _pairs(self, level: Level, student: Seen, teacher: Seen, partner: Int[Tensor, "b n"]) -> Pairs:
        if level == "pixel":
            return pixel_pairs(student, teacher, partner, most=self.config.positions)
        if level == "object":
            return object_pairs(student, teacher, partner, clusters=self.config.clusters)
        return image_pairs(student, teacher)

    def _ask(self, index: int, key: str, parts: Sequence[Pairs]) -> Answers:
        weight = torch.cat([part.weight for part in parts])
        used = weight.nonzero()[:, 0]
        student = torch.cat([part.student for part in parts])[used]
        teacher = torch.cat([part.teacher for part in parts])[used]
        freeze_last = int(self.step) < self.config.frozen_last * self.steps
        if self.training:
            for heads in (self.heads, self.teacher_heads):
                head = heads[key]
                assert isinstance(head, AnswerHead)
                head.observe(teacher, weight[used])
        with torch.no_grad():
            wanted, teacher_directions = self.teacher_heads[key](teacher)
        said, directions = self.heads[key](student, freeze_last=freeze_last)
        return Answers(
            student=said,
            teacher=wanted,
            student_directions=directions,
            teacher_directions=teacher_directions,
            weight=weight[used],
            centre=self.centres[index].clone(),
        )

    def _align(self, maps: Mapping[str, Seen]) -> Float[Tensor, ""]:
        """Of the mean feature of each modality over places and dates."""
        features, present = {}, {}
        for name, projection in self.projections.items():
            if name in maps:
                whole = Seen(
                    tensor=rearrange(maps[name].tensor, "b t d h w -> b 1 d (t h) w"),
                    seen=rearrange(maps[name].seen, "b t h w -> b 1 (t h) w"),
                )
                mean, there = pooled(whole)
                features[name], present[name] = projection(mean[:, 0]), there[:, 0]
        return align(features, present, self.log_temperature.exp().clamp(min=0.01)[0])

    @torch.no_grad()
    def _learn(
        self,
        seen: Sequence[Mapping[str, Seen]],
        answers: Mapping[str, Mapping[str, Answers]],
        lonlat: Float[Tensor, "b 2"],
        located: Bool[Tensor, "b"],
    ) -> None:
        for index, key in enumerate(self.heads):
            name, _, asked = key.rpartition("_")
            if name in answers:
                self.centres[index] = moved_centre(answers[name][asked], self.running_momentum())
        if self.student.prototypes is not None and self.student.fusion is not None:
            width = self.student.fusion.width
            tensor = torch.cat([maps[FUSED].tensor[:, 0, :width] for maps in seen])
            where = torch.cat([maps[FUSED].seen[:, 0] for maps in seen])
            self.student.prototypes.learn(
                *(tensor, where, lonlat.repeat(len(seen), 1), located.repeat(len(seen))),
                momentum=self.config.prototype_momentum,
            )

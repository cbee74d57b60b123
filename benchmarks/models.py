"""A fine-tuned model by place, beside a U-Net and a pixel random forest that learn from the same data.

    pip install segmentation-models-pytorch scikit-learn
    python benchmarks/models.py RUN [RUN ...] [--unet STEPS] [--forest] [--split test]

RUN is a folder of `skysense finetune` for a task of class maps, or a model folder with `--data` that says on what. The
U-Net (ResNet-18, from scratch) sees what the first run's model saw: its samples, windows, augmentation, batch size,
loss weights and optimiser, and as that one it is kept where it validates best. A place is what stands before the colon
in the name of a sample: a scene. Prints one JSON object per model and place.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skysense_core import baselines, checkpoint, config, optim, runtime, sources
from skysense_core.data.batch import Batch
from skysense_core.data.chips import Augment, EvaluationChips, TrainingChips
from skysense_core.data.loader import Part, evaluation_loader, training_loader
from skysense_core.evaluate import run_of
from skysense_core.model.skysense import Normalise
from skysense_core.optim import OptimConfig
from skysense_core.tasks import measure
from skysense_core.types import Split


class Unet(nn.Module):
    """Logits of the one picture of a batch."""

    def __init__(self, found: checkpoint.LoadedModel) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp

        modality = found.modalities[found.reference]
        self.name, self.normalise = found.reference, Normalise(modality)
        self.net = smp.Unet(
            "resnet18", encoder_weights=None, in_channels=len(modality.bands), classes=len(found.classes)
        )

    def forward(self, batch: Batch) -> Tensor:
        series = batch.epochs[0][self.name]
        return self.net(self.normalise(series.pixels, series.valid)[:, 0])


def trained_unet(
    found: checkpoint.LoadedModel, table: dict[str, Any], parts: dict[str, Split], steps: int, device: torch.device
) -> nn.Module:
    """A U-Net after so many steps, at its best on the validation part."""
    runtime.seed_step(0)
    model, batch_size = Unet(found).to(device), table["train"]["batch_size"]
    augment = config.build(Augment, table["augment"], "augment")
    chips = TrainingChips(parts["train"], found.modalities, found.task.encode, augment=augment, seed=0)
    settings = OptimConfig()
    optimizer = optim.build_optimizer(model, settings, depth=lambda _: 0, top=0)
    batches = training_loader(
        chips, batch_size=batch_size, start=0, workers=runtime.choose_workers(table.get("workers"), device)
    )
    best, kept = -1.0, model.state_dict()
    for step, batch in zip(range(steps), batches, strict=False):
        model.train()
        with runtime.autocast(device, "auto"):
            loss = torch.stack(list(found.task.losses(model, batch.to(device)).values())).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optim.set_rates(optimizer, optim.learning_rate(settings, step, steps), settings.weight_decay)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % math.ceil(steps / 10) == 0 or step + 1 == steps:
            scores = measure(found.task, model, batches_of(found, parts["val"]), device, "auto")
            print(f"U-Net, step {step + 1}: loss {float(loss):.3f}, mIoU {scores['miou']:.4f}", flush=True)
            if scores["miou"] > best:
                best, kept = scores["miou"], {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(kept)
    return model


def batches_of(found: checkpoint.LoadedModel, split: Split) -> Iterator[Batch]:
    return evaluation_loader(EvaluationChips(split, found.modalities, found.task.encode), batch_size=8, workers=0)


def places(split: Split) -> dict[str, Part]:
    """The samples of each scene, and all of them."""
    names = [split[index].id.partition(":")[0] for index in range(len(split))]
    whole = {"all": Part(split, range(len(split)))}
    return whole | {name: Part(split, [i for i, own in enumerate(names) if own == name]) for name in sorted({*names})}


def show(name: str, where: dict[str, Part], scored: Callable[[Part], dict[str, Any]]) -> None:
    for place, part in where.items():
        scores = scored(part)
        classes = {
            key: {column: round(value, 3) for column, value in one.items() if value is not None}
            for key, one in scores["classes"].items()
        }
        print(json.dumps({"model": name, "place": place, "miou": round(scores["miou"], 3), **classes}), flush=True)


def judge(path: Path, options: argparse.Namespace, device: torch.device, *, rivals: bool) -> None:
    """Show a model by place, and with `rivals` the others that were asked for."""
    found = checkpoint.load_model(path, device)
    table = config.load_toml(options.data or (run_of(found) or path) / "config.toml")
    _, source = sources.from_table(table["data"])
    where = places(source.open(options.split, found.modalities))

    def measured(model: nn.Module) -> Callable[[Part], dict[str, Any]]:
        return lambda part: measure(found.task, model, batches_of(found, part), device, "auto")

    show(str(path), where, measured(found.model))
    if rivals and options.unet:
        parts: dict[str, Split] = {part: source.open(part, found.modalities) for part in ("train", "val")}
        show("U-Net (ResNet-18)", where, measured(trained_unet(found, table, parts, options.unet, device)))
    if rivals and options.forest:
        train = [*batches_of(found, source.open("train", found.modalities))]
        show(
            "pixel forest",
            where,
            lambda part: baselines.random_forest(train, batches_of(found, part), found.classes),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, help="a TOML with a [data] table, for models that lie in no run")
    parser.add_argument("--unet", type=int, default=0, metavar="STEPS")
    parser.add_argument("--forest", action="store_true")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    for number, path in enumerate(options.runs):
        judge(path, options, runtime.choose_device(), rivals=number == 0)


if __name__ == "__main__":
    main()

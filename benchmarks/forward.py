"""The whole `huge` model once, in bfloat16 on the CPU: hr 512x512, s2 16x16 x 4 dates, s1 16x16 x 2 dates.

    python benchmarks/forward.py [PRESET]

Weights are random and drawn in bfloat16, so that no float32 copy ever exists. Prints one JSON object with seconds and
peak memory; the issue's limit is 16 GB.
"""

import json
import sys
import time

import torch

from skysense_core import modalities
from skysense_core.data.batch import Series
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.runtime import peak_memory

DTYPE = torch.bfloat16


def build(preset: str) -> SkySense:
    """The model with random weights in its final type."""
    known = {name: modalities.load(name) for name in ("hr", "s2", "s1")}
    with torch.device("meta"):
        model = SkySense(ModelSpec(preset=preset, prototypes=True), known)
    model = model.to(DTYPE).to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(1) if tensor.dtype == torch.bool or tensor.ndim == 1 else tensor.normal_(std=0.02)
        for normalise in model.normalise.values():
            normalise.mean.zero_()
            normalise.std.fill_(1)
    return model


def series(name: str, dates: int, side: int) -> Series:
    """Random valid images, one footprint of 16 x 16 S2 pixels."""
    return Series(
        pixels=torch.randn(1, dates, len(modalities.load(name).bands), side, side),
        valid=torch.ones(1, dates, side, side, dtype=torch.bool),
        day_of_year=torch.arange(1, dates + 1)[None] * 30,
        dated=torch.ones(1, dates, dtype=torch.bool),
    )


def main() -> None:
    preset = sys.argv[1] if len(sys.argv) > 1 else "huge"
    start = time.perf_counter()
    model = build(preset)
    built = time.perf_counter()
    images = {"hr": series("hr", 1, 512), "s2": series("s2", 4, 16), "s1": series("s1", 2, 16)}
    with torch.inference_mode():
        features = model(images, torch.tensor([[2.35, 48.86]]), torch.tensor([True]))
    done = time.perf_counter()
    assert features.fused is not None
    assert features.fused.tensor.isfinite().all()
    report = {
        "preset": preset,
        "dtype": str(DTYPE).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "prototypes": sum(buffer.numel() for buffer in model.prototypes.buffers()) if model.prototypes else 0,
        "fused_shape": list(features.fused.tensor.shape),
        "build_s": round(built - start, 1),
        "forward_s": round(done - built, 1),
        "peak_gb": round(peak_memory() / 1e9, 2),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""A model from Python: arrays in, features or classes out, as the command line computes them.

model = skysense_core.load("runs/mine")
features = model.features({"s2": pixels}, bands=names, dates=["2024-05-01", "2024-06-30"])
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, UInt8
from torch import Tensor

from skysense_core import runtime
from skysense_core.checkpoint import load_bare, load_model
from skysense_core.description import load_description
from skysense_core.embed.features import FeatureValues, choose, offered
from skysense_core.embed.job import as_model
from skysense_core.errors import SkysenseError, UsageError, unknown
from skysense_core.geo.array import has_place, placed
from skysense_core.inference import plan_sweep
from skysense_core.modalities import Modality, finest
from skysense_core.model.skysense import SkySense
from skysense_core.predict.arrays import Settings, open_modality, predict_array, predict_plan

Image: TypeAlias = np.ndarray | Tensor | xr.DataArray
"""(bands, rows, columns), or with dates in front. DataArrays may have any order of dimensions."""
PerModality: TypeAlias = Mapping[str, Sequence[Any]] | Sequence[Any]
"""For each modality, or for the only one."""


class Model:
    """A trained model, with or without a task.

    Images are in the units of the modalities (`modalities[name].unit`), NaN where there is no data; their bands are
    put in order by name. An array without a CRS has the pixel size of its modality. A DataArray with a CRS keeps its
    place: the result is then that of `skysense predict` or `skysense embed` on the same pixels.
    """

    def __init__(self, path: Path, device: str = "auto") -> None:
        self._on = runtime.choose_device(device)
        self._described = load_description(path)
        self._task = None if self._described.task_name is None else load_model(path, self._on)
        self._parts = load_bare(path, self._on)[1] if self._task is None else self._task.model

    @property
    def _encoder(self) -> SkySense:
        found = self._parts if isinstance(self._parts, SkySense) else getattr(self._parts, "encoder", None)
        if not isinstance(found, SkySense):
            raise SkysenseError(
                f"{self.name} is an exported model: it makes maps and no features", fix="Load its model folder."
            )
        return found

    @property
    def name(self) -> str:
        """What the model is called."""
        return self._described.name

    @property
    def modalities(self) -> Mapping[str, Modality]:
        """What the model reads, by name: bands, unit, pixel size."""
        return self._described.modalities

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class codes 0..k-1; none without a task."""
        return self._described.classes

    @property
    def levels(self) -> tuple[str, ...]:
        """The feature maps that it offers of all its modalities together."""
        return tuple(offered(self._encoder, self.modalities))

    def features(
        self,
        images: Image | Mapping[str, Image],
        *,
        bands: PerModality | None = None,
        dates: PerModality | None = None,
        lonlat: tuple[float, float] | None = None,
        level: str | None = None,
        window: int | None = None,
        overlap: int | None = None,
    ) -> Float[np.ndarray, "d h w"]:
        """A feature map of any of the model's modalities, float32, NaN where there is no data, north up.

        `level` is one of `levels`; not given, the fused map or the last level of a lone encoder. A cell takes
        `shape of the image / shape of the map` pixels. Raises UsageError for what does not fit the model.
        """
        arrays = self._arrays(images, bands, dates, lonlat)
        given = {name: one for name, one in self.modalities.items() if name in arrays}
        chosen = choose(self._encoder, given, level)
        task = FeatureValues(level=chosen, classes=tuple(map(str, range(chosen.channels))))
        stacks = {name: open_modality(array, given[name], {}) for name, array in arrays.items()}
        plan = plan_sweep(stacks, given, window=window, shared=overlap, cell=chosen.cell)
        settings = Settings(
            wanted=("scores",),
            device=str(self._on),
            batch_size=plan.batch_size(self._on),
            precision="auto",
            readers=min(4, os.cpu_count() or 1),
        )
        return predict_plan(plan, as_model(self._described, self._encoder, given, task), settings)["scores"]

    def predict(
        self,
        images: Image | Mapping[str, Image],
        *,
        bands: PerModality | None = None,
        dates: PerModality | None = None,
        lonlat: tuple[float, float] | None = None,
        probabilities: bool = False,
        window: int | None = None,
        overlap: int | None = None,
    ) -> UInt8[np.ndarray, "h w"] | Float[np.ndarray, "k h w"]:
        """The class code of each pixel of the finest modality, 255 where there is no data, or the probabilities.

        Raises SkysenseError for a model without a task and UsageError for what does not fit the model.
        """
        if self._task is None:
            raise SkysenseError(
                f"{self.name} has no task: it gives features and no classes",
                fix="Train one from it: skysense finetune --init.",
            )
        arrays = self._arrays(images, bands, dates, lonlat)
        made = predict_array(
            arrays,
            self._task,
            probabilities=probabilities,
            window=window,
            overlap=overlap,
            device=str(self._on),
        )
        return (made["probabilities"] if isinstance(made, xr.Dataset) else made).to_numpy()

    def _arrays(
        self,
        images: Image | Mapping[str, Image],
        bands: PerModality | None,
        dates: PerModality | None,
        lonlat: tuple[float, float] | None,
    ) -> dict[str, xr.DataArray]:
        """Every image as a DataArray with named bands, dates and a place."""
        named = self._by_name(images, "image")
        by_band, by_date = (self._by_name(some, what) for some, what in ((bands, "bands"), (dates, "dates")))
        arrays = {
            name: _described(image, self.modalities[name], by_band.get(name), by_date.get(name))
            for name, image in named.items()
        }
        homeless = [name for name, array in arrays.items() if not has_place(array)]
        if not homeless:
            return arrays
        if len(homeless) < len(arrays):
            raise UsageError(f"{', '.join(homeless)} has no CRS and the others have", fix="Give all of them one.")
        if lonlat is None and self._described.spec.get("prototypes"):
            raise UsageError("the model looks at where a place is, and the images do not say", fix="lonlat=(lon, lat)")
        known = {name: self.modalities[name] for name in arrays}
        reference = known[finest(known)]
        rows, columns = arrays[reference.name].shape[-2:]
        extent = rows * reference.gsd, columns * reference.gsd
        return {name: placed(array, extent, lonlat or (0.0, 0.0)) for name, array in arrays.items()}

    def _by_name(self, given: Any, what: str) -> dict[str, Any]:
        if given is None:
            return {}
        if isinstance(given, Mapping):
            for name in given:
                if name not in self.modalities:
                    raise unknown("modality", name, self.modalities)
            return {name: given[name] for name in self.modalities if name in given}
        if len(self.modalities) > 1:
            names = ", ".join(self.modalities)
            raise UsageError(f"of which modality is this {what}? The model reads {names}", fix='{"NAME": ...}')
        return dict.fromkeys(self.modalities, given)


def _described(
    image: Image, modality: Modality, bands: Sequence[Any] | None, dates: Sequence[Any] | None
) -> xr.DataArray:
    """An image as a DataArray whose bands and dates have names. Raises UsageError where they are not known."""
    name, wanted = modality.name, ", ".join(f'"{band}"' for band in modality.band_names)
    if isinstance(image, xr.DataArray):
        array = image
    else:
        pixels = image.detach().to(torch.float32).cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
        if pixels.ndim not in (3, 4):
            raise UsageError(f"{name}: expected (bands, rows, columns) or (dates, bands, ...), got {pixels.shape}")
        if bands is None:
            raise UsageError(f"{name}: which bands are these?", fix=f'bands={{"{name}": [{wanted}]}}')
        array = xr.DataArray(pixels, dims=("time", "band", "y", "x")[4 - pixels.ndim :])
        array.attrs["units"] = modality.unit
    time, band = (next((str(dim) for dim in array.dims if dim == one), None) for one in ("time", "band"))
    for what, names, dim in (("bands", bands, band), ("dates", dates, time)):
        if names is None:
            continue
        if what == "dates" and dim is None and len(names) == 1:
            array = array.expand_dims("time")
            dim = time = "time"
        if dim is None or array.sizes[dim] != len(names):
            found = 1 if dim is None else array.sizes[dim]
            raise UsageError(f"{name}: {len(names)} {what} for an array of {found}", fix="Give one for each, in order.")
        labels = list(names) if what == "bands" else np.array(names, dtype="datetime64[D]").astype("datetime64[ns]")
        array = array.assign_coords({dim: labels})
    if time is not None and time not in array.coords:
        raise UsageError(f"{name}: an array of {array.sizes[time]} dates, and which?", fix='dates=["2024-05-01", ...]')
    return array

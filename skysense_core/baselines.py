"""What any model has to beat on the same split: the most frequent class, and a random forest on pixel values."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from skysense_core.data.batch import Batch, Series
from skysense_core.errors import UsageError
from skysense_core.metrics import ClassMapMetrics, class_scores
from skysense_core.types import IGNORE


def majority(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of the best constant map on the pixels that `scores` were measured on."""
    truth = torch.tensor(scores["confusion"]).sum(dim=1)
    confusion = torch.zeros(len(truth), len(truth), dtype=torch.int64)
    confusion[:, truth.argmax()] = truth
    return class_scores(confusion, tuple(scores["classes"]))


def random_forest(
    train: Iterable[Batch], test: Iterable[Batch], classes: tuple[str, ...], *, pixels: int = 50_000, seed: int = 0
) -> dict[str, Any]:
    """Scores on `test` of 100 trees that learn from at most `pixels` labelled pixels of `train`.

    A pixel's features are the mean and the standard deviation over its valid dates, per band and epoch. Where a label
    is that of a whole sample, so are the features: the means of these over its pixels, and their deviations. Raises
    UsageError where scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError:
        raise UsageError("baselines need scikit-learn", fix="pip install 'skysense[baselines]'") from None

    drawn = [_labelled(batch) for batch in train]
    features, codes = np.concatenate([x for x, _ in drawn]), np.concatenate([y for _, y in drawn])
    some = np.random.default_rng(seed).permutation(len(codes))[:pixels]
    forest = RandomForestClassifier(n_estimators=100, n_jobs=-1, random_state=seed)
    varying = features.std(axis=0) > 0  # single images have no deviation in time: do not draw those features
    forest.fit(features[some][:, varying], codes[some])
    metrics = ClassMapMetrics(classes)
    for batch in test:
        x, y = _labelled(batch)
        if len(y):
            metrics.update_codes(torch.from_numpy(forest.predict(x[:, varying])), torch.from_numpy(y))
    return metrics.compute()


def _labelled(batch: Batch) -> tuple[Float[np.ndarray, "n f"], UInt8[np.ndarray, "n"]]:
    """Features and codes of the pixels, or the samples, of a batch that have a label."""
    assert batch.target is not None
    series = [one for images in batch.epochs for _, one in sorted(images.items())]
    if batch.target.ndim == 1:
        known = batch.target != IGNORE
        return torch.cat([_pooled(one) for one in series], dim=1)[known].numpy(), batch.target[known].numpy()
    maps = [_statistics(one) for one in series]
    h, w = batch.target.shape[-2:]
    stacked = torch.cat([interpolate(maps_, size=(h, w), mode="nearest-exact") for maps_ in maps], dim=1)
    known = batch.target != IGNORE
    return rearrange(stacked, "b c h w -> b h w c")[known].numpy(), batch.target[known].numpy()


def _pooled(series: Series) -> Float[Tensor, "b c"]:
    """Mean and standard deviation over the seen pixels of `_statistics`."""
    maps, seen = _statistics(series), series.valid.any(dim=1)[:, None].float()
    count = seen.sum(dim=(2, 3)).clamp(min=1)
    mean = (maps * seen).sum(dim=(2, 3)) / count
    deviation = ((maps - mean[:, :, None, None]) ** 2 * seen).sum(dim=(2, 3)) / count
    return torch.cat([mean, deviation.sqrt()], dim=1)


def _statistics(series: Series) -> Float[Tensor, "b c h w"]:
    weight = rearrange(series.valid, "b t h w -> b t 1 h w").float()
    count = weight.sum(dim=1).clamp(min=1)
    pixels = series.pixels.nan_to_num(0.0)
    mean = (pixels * weight).sum(dim=1) / count
    deviation = ((pixels - rearrange(mean, "b c h w -> b 1 c h w")) ** 2 * weight).sum(dim=1) / count
    return torch.cat([mean, deviation.sqrt()], dim=1)

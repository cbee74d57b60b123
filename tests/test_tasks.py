"""Segmentation, crop and land cover: which head stands where, what is learnt from, what comes out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import Labels

from skysense_core import config, modalities, registry
from skysense_core.data.batch import Batch, Series, collate
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.model.decoders import Fcn, UperNet
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.tasks import default_colours, measure
from skysense_core.tasks.crop import Crop
from skysense_core.tasks.landcover import Landcover
from skysense_core.tasks.segmentation import DenseModel, Segmentation
from skysense_core.types import IGNORE, ClassMap, Raster, Sample

CLASSES = ("water", "forest", "town")


def raster(bands: int, side: int, dates: int = 1) -> Raster:
    rng = np.random.default_rng(bands)
    return Raster(
        pixels=rng.normal(100, 50, (dates, bands, side, side)).astype(np.float32),
        valid=np.ones((dates, side, side), dtype=bool),
        days=np.arange(dates),
        dated=np.ones(dates, dtype=bool),
    )


def batch_of(*names: str, cells: int = 4, size: int = 2) -> Batch:
    images = {
        "hr": raster(3, 32 * cells),
        "s2": raster(10, cells, dates=3),
        "s1": raster(2, cells, dates=2),
    }
    samples = [Sample(id=str(n), epochs=({name: images[name] for name in names},)) for n in range(size)]
    side = images[names[0]].pixels.shape[-1]
    targets = [np.full((side, side), n % 3, dtype=np.uint8) for n in range(size)]
    return collate(samples, targets)


def encoder_of(*names: str, fusion: bool = True, prototypes: bool = False) -> SkySense:
    wanted = {name: modalities.load(name, {"gsd": 0.3125} if name == "hr" else {}) for name in names}
    torch.manual_seed(0)
    return SkySense(ModelSpec(preset="nano", fusion=fusion, prototypes=prototypes), wanted)


@pytest.mark.parametrize("task", [Segmentation, Crop, Landcover])
@pytest.mark.parametrize("names", [("hr",), ("s2",), ("hr", "s2"), ("s2", "s1"), ("hr", "s2", "s1")])
def test_logits_lie_on_the_grid_of_the_finest_modality(task: type[Segmentation], names: tuple[str, ...]) -> None:
    built = task(classes=CLASSES)
    encoder = encoder_of(*names, fusion=True)
    model = built.build_model(encoder).eval()
    batch = batch_of(*names)
    with torch.no_grad():
        scores = built.scores(model, batch)
    assert scores.shape == (2, 3, *batch.target.shape[-2:])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.sum(dim=1), torch.ones_like(scores[:, 0]))


def test_every_part_that_is_built_learns() -> None:
    for task, names in (
        (Segmentation, ("hr",)),
        (Segmentation, ("hr", "s2")),
        (Crop, ("s2", "s1")),
        (Landcover, ("s2",)),
    ):
        built = task(classes=CLASSES)
        encoder = encoder_of(*names, fusion=built.fuses({name: modalities.load(name) for name in names}))
        model = built.build_model(encoder)
        built.losses(model, batch_of(*names))["cross_entropy"].backward()
        still = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        # With the fused map in its place, the head does not look at the last level; fusion does.
        assert still == []


def test_heads_are_those_of_the_paper() -> None:
    assert isinstance(Crop(classes=CLASSES).build_model(encoder_of("s2")).head, Fcn)
    assert isinstance(Segmentation(classes=CLASSES).build_model(encoder_of("hr", fusion=False)).head, UperNet)
    assert not Segmentation(classes=CLASSES).fuses({"hr": modalities.load("hr")})
    assert Landcover(classes=CLASSES).fuses({"hr": modalities.load("hr"), "s2": modalities.load("s2")})
    assert Segmentation(classes=CLASSES).fuses({"s2": modalities.load("s2")})
    assert not Segmentation(classes=CLASSES).fuses({"s2": modalities.load("s2", {"dates": 1})})


def test_a_lone_static_sentinel_image_of_any_size_is_drawn_on_its_own_pixels() -> None:
    task = Landcover(classes=CLASSES)
    static = {"s2": modalities.load("s2", {"dates": 1})}
    model = task.build_model(SkySense(ModelSpec(preset="nano", fusion=task.fuses(static)), static)).eval()
    for side in (64, 30, 5, 1):
        batch = batch_of("s2", cells=64)
        series = batch.epochs[0]["s2"]
        small = Series(
            pixels=series.pixels[:, :1, :, :side, :side],
            valid=series.valid[:, :1, :side, :side],
            day_of_year=series.day_of_year[:, :1],
            dated=series.dated[:, :1],
        )
        with torch.no_grad():
            logits = model(replace(batch, epochs=({"s2": small},)))
        assert logits.shape[-2:] == (side, side)


def test_pixels_keep_their_place_where_they_are_no_whole_number_of_patches() -> None:
    """Maps of 8 x 8 patches cover 32 px of an image of 30: the logits are cut, not squeezed."""

    class First(torch.nn.Module):
        def forward(self, levels: list[torch.Tensor]) -> torch.Tensor:
            rows = torch.arange(levels[0].shape[-2], dtype=torch.float32)[:, None].expand(levels[0].shape[-2:])
            return rows.expand(2, 3, -1, -1)

    static = {"s2": modalities.load("s2", {"dates": 1})}
    encoder = SkySense(ModelSpec(preset="nano", fusion=False), static)
    model = DenseModel(encoder, First(), fuse=False, levels=True)
    batch = batch_of("s2", cells=30)
    series = batch.epochs[0]["s2"]
    with torch.no_grad():
        logits = model(batch)
    assert series.pixels.shape[-1] == 30
    # Patch r has its centre at row 4 r + 1.5.
    torch.testing.assert_close(logits[0, 0, 5::4, 0], (torch.arange(5, 30, 4) - 1.5) / 4)


def test_prototypes_double_what_the_head_sees() -> None:
    for names in (("s2",), ("hr", "s2")):
        built = Landcover(classes=CLASSES)
        model = built.build_model(encoder_of(*names, prototypes=True))
        assert built.scores(model, batch_of(*names)).shape[1] == 3


def test_settings_that_do_not_fit_the_modalities_are_refused() -> None:
    with pytest.raises(UsageError, match=r"task.features = encoder"):
        Segmentation(classes=CLASSES, features="encoder").fuses(
            {"s2": modalities.load("s2"), "s1": modalities.load("s1")}
        )
    with pytest.raises(UsageError, match=r"task.features = encoder"):
        Segmentation(classes=CLASSES, features="encoder", head="fcn").fuses({"hr": modalities.load("hr")})
    with pytest.raises(UsageError, match=r"task.hed: unknown key"):
        config.build(Crop, {"hed": "fcn"}, "task")
    with pytest.raises(UsageError, match="did you mean crop"):
        registry.load("tasks", "crops")


class Constant(torch.nn.Module):
    """Logits of a fixed value, with a gradient."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.logits


def test_the_loss_is_the_weighted_mean_over_labelled_pixels() -> None:
    logits = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 3, (2, 128, 128), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    target[0, :50] = IGNORE
    weights = (0.5, 1.0, 4.0)
    batch = replace(batch_of("hr"), target=target)
    loss = Segmentation(classes=CLASSES, class_weights=weights).losses(Constant(logits), batch)["cross_entropy"]
    known = target != IGNORE
    log_p = logits.log_softmax(1).movedim(1, -1)[known]
    codes = target[known].long()
    own = torch.tensor(weights)[codes]
    expected = -(own * log_p[torch.arange(len(codes)), codes]).sum() / own.sum()
    torch.testing.assert_close(loss, expected)


def test_a_batch_without_labels_teaches_nothing() -> None:
    batch = replace(batch_of("hr"), target=torch.full((2, 128, 128), IGNORE, dtype=torch.uint8))
    model = Constant(torch.randn(2, 3, 128, 128))
    loss = Segmentation(classes=CLASSES).losses(model, batch)["cross_entropy"]
    loss.backward()
    assert loss.item() == 0.0
    assert float(model.logits.grad.abs().max()) == 0.0


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=8).filter(any))
def test_balanced_weights_average_to_one_and_favour_the_rare(pixels: list[int]) -> None:
    shares = np.array(pixels) / sum(pixels)
    for name in ("none", "sqrt", "inverse"):
        weights = np.array(Segmentation(class_balance=name).weights(shares))  # type: ignore[arg-type]
        assert shares @ weights == pytest.approx(1.0)
        assert np.isfinite(weights).all()
        assert (np.diff(weights[np.argsort(shares, kind="stable")]) <= 1e-9 * weights.max()).all()
    assert Segmentation(class_balance="none").weights(shares) == pytest.approx((1.0,) * len(pixels))


def test_the_data_complete_the_task() -> None:
    task = Crop(width=8).completed(Labels((90, 10, 0), classes=CLASSES, colours=("#000001", "#000002", "#000003")))
    assert (task.classes, task.colours, task.width) == (CLASSES, ("#000001", "#000002", "#000003"), 8)
    assert isinstance(task, Crop)
    assert task.class_weights[1] / task.class_weights[0] == pytest.approx(3.0)
    own = Segmentation(class_weights=(1.0, 2.0, 3.0), colours=("#ff0000",) * 3)
    own = own.completed(Labels((1, 1, 1), classes=CLASSES))
    assert (own.class_weights, own.colours) == ((1.0, 2.0, 3.0), ("#ff0000",) * 3)
    with pytest.raises(UsageError, match="not the classes of the data: water, forest, town"):
        Segmentation(classes=("a", "b")).completed(Labels((1, 1, 1), classes=CLASSES))
    with pytest.raises(SkysenseError, match=r"one class \(town\)"):
        Segmentation().completed(Labels((1,), classes=("town",)))
    with pytest.raises(SkysenseError, match="no labelled pixel"):
        Segmentation().completed(Labels((0, 0, 0), classes=CLASSES))


def test_images_without_a_valid_pixel_change_nothing() -> None:
    built = Segmentation(classes=CLASSES)
    model = built.build_model(encoder_of("hr", fusion=False)).eval()
    batch = batch_of("hr")
    series = batch.epochs[0]["hr"]
    padded = replace(
        series,
        pixels=torch.cat([series.pixels, torch.full_like(series.pixels, 1e6)], dim=1),
        valid=torch.cat([series.valid, torch.zeros_like(series.valid)], dim=1),
        day_of_year=series.day_of_year.repeat(1, 2),
        dated=series.dated.repeat(1, 2),
    )
    with torch.no_grad():
        torch.testing.assert_close(model(replace(batch, epochs=({"hr": padded},))), model(batch))


def test_a_target_is_the_label_on_the_grid_of_the_image() -> None:
    codes = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert (Segmentation().encode(ClassMap(codes=codes), (2, 3)) == codes).all()
    with pytest.raises(SkysenseError, match=r"\(2, 3\) pixels beside an image of \(4, 6\)"):
        Segmentation().encode(ClassMap(codes=codes), (4, 6))


def test_decoding_takes_the_most_probable_class_where_there_is_data() -> None:
    scores = torch.tensor([[[0.2, 0.7, 0.1]], [[0.5, 0.2, 0.1]], [[0.3, 0.1, 0.8]]])
    codes = Segmentation(classes=CLASSES).decode(scores, torch.tensor([[True, True, False]]))
    assert codes.dtype == np.uint8
    assert codes.tolist() == [[1, 0, IGNORE]]


def test_measuring_counts_every_batch() -> None:
    task = Segmentation(classes=CLASSES)
    logits = torch.zeros(2, 3, 128, 128)
    logits[:, 1] = 1.0
    scores = measure(task, Constant(logits), [batch_of("hr")] * 2, torch.device("cpu"), "fp32")
    assert scores["support"] == 2 * 2 * 128 * 128
    assert scores["oa"] == 0.5  # the second sample of each batch is class 1


def test_colours_are_natural_where_the_name_says_it_and_never_twice() -> None:
    colours = default_colours(("Background", "water bodies", "Forests", "farmland", "rice", "lake", "carrot"))
    assert colours[:4] == ("#d9d9d9", "#2b83ba", "#1b7837", "#f6c141")
    assert len(set(colours)) == 7
    many = default_colours(tuple(f"class {number}" for number in range(200)))
    assert len(set(many)) == 200
    assert Segmentation(classes=("a", "b")).output.colours == default_colours(("a", "b"))
    assert Segmentation(classes=("a", "b"), colours=("#000000", "#ffffff")).output.colours == ("#000000", "#ffffff")


def test_a_dense_model_has_an_encoder_and_a_head() -> None:
    model = Landcover(classes=CLASSES).build_model(encoder_of("hr", "s2"))
    assert isinstance(model, DenseModel)
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "head"}


def test_an_auxiliary_head_helps_training_alone() -> None:
    torch.manual_seed(0)
    known = {"hr": modalities.load("hr")}
    encoder = SkySense(ModelSpec(preset="nano", fusion=False), known)
    task = Segmentation(classes=CLASSES, auxiliary=0.4)
    model = task.build_model(encoder)
    batch = batch_of("hr")
    losses = task.losses(model, batch)
    assert losses.keys() == {"cross_entropy", "auxiliary"}
    losses["auxiliary"].backward()
    reached = {name.split(".")[0] for name, one in model.named_parameters() if one.grad is not None}
    assert reached == {"encoder", "auxiliary"}  # not the head
    shape = model(batch).shape
    model.auxiliary = None
    assert model(batch).shape == shape


def test_an_auxiliary_head_needs_levels() -> None:
    encoder = SkySense(ModelSpec(preset="nano"), {"s2": modalities.load("s2")})
    with pytest.raises(UsageError, match="levels of a Swin"):
        Segmentation(classes=CLASSES, auxiliary=0.4).build_model(encoder)

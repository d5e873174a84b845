"""Whose weights a file holds, told by its keys: every known format comes to the released SwAV's names."""

import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.files import load_recipe, save_recipe
from swav_tf.training.build import load_swav, read_pretrained
from swav_tf.weights.convert import export_weights, fit, import_weights
from swav_tf.weights.files import open_weights
from swav_tf.weights.formats import IMAGENET_STD, SWAV_STD, recognise
from swav_tf.weights.layout import Sizes, slots
from swav_tf.weights.tensors import Tensor, WeightsError
from swav_tf.weights.torch_files import write_torch_file
from tests.weights.released import released_keys


def unread():
    raise AssertionError("a tensor was read to tell a format")


def released() -> dict[str, Tensor]:
    """The released ResNet-50, of which only names, shapes and types may be looked at."""
    return {name: Tensor(name, shape, dtype, unread) for name, (shape, dtype) in released_keys().items()}


def backbone() -> dict[str, Tensor]:
    return {name: t for name, t in released().items() if name.startswith(("conv1", "bn1", "layer"))}


def renamed(tensors, prefix):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def some(*names):
    return {name: Tensor(name, (1000, 2048), "float32", unread) for name in names}


def paddle(tensors):
    names = {"running_mean": "_mean", "running_var": "_variance"}
    found = {}
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        if last != "num_batches_tracked":
            tensor = tensor.transposed() if len(tensor.shape) == 2 else tensor
            found[f"{stem}.{names.get(last, last)}"] = tensor
    return found


def sequential(tensors):
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    return {f"{places[name.partition('.')[0]]}.{name.partition('.')[2]}": t for name, t in tensors.items()}


def passl(tensors):
    """The backbone below `encoder.`, the rest beside it."""
    return {
        name if name.startswith(("projection_head", "prototypes")) else f"encoder.{name}": t
        for name, t in paddle(tensors).items()
    }


WHOLE, BACKBONE = (
    len(slots(Sizes("resnet50", head=(2048, 128), prototypes=3000))),
    len(slots(Sizes("resnet50"))),
)
HEADS = some("projector.0.weight", "prototypes.weight_g", "classifier.weight", "classifier.bias")
FORMATS = {
    "released": (renamed(released(), "module."), "SwAV as released", SWAV_STD, 0),
    "released, not distributed": (released(), "SwAV as released", SWAV_STD, 0),
    "training": (
        {"epoch": 400, "state_dict": renamed(released(), "module."), "optimizer": {"state": {}}},
        "SwAV training checkpoint",
        SWAV_STD,
        0,
    ),
    "torchvision": (
        backbone() | some("fc.weight", "fc.bias"),
        "ResNet by torchvision's names",
        IMAGENET_STD,
        2,
    ),
    "timm without fc": (backbone(), "ResNet by torchvision's names", IMAGENET_STD, 0),
    "torchvision, nested": (
        {"model": renamed(backbone(), "module."), "epoch": 1},
        "ResNet by torchvision's names",
        IMAGENET_STD,
        0,
    ),
    "PASSL": (passl(released()), "PASSL, SwAV", SWAV_STD, 0),
    "PASSL, a model's resnet": (renamed(passl(released()), "res_model."), "PASSL, SwAV", SWAV_STD, 0),
    "PaddleClas": (
        paddle(backbone()) | {"StructuredToParameterName@@": {"conv1.weight": "conv2d_0.w_0"}},
        "ResNet by Paddle's names",
        IMAGENET_STD,
        0,
    ),
    "VISSL": (
        {
            "classy_state_dict": {
                "base_model": {
                    "model": {
                        "trunk": renamed(backbone(), "_feature_blocks."),
                        "heads": some("0.clf.0.weight"),
                    }
                }
            },
            "iteration": 5,
        },
        "VISSL, backbone",
        IMAGENET_STD,
        1,
    ),
    "VISSL's trunk": (renamed(backbone(), "_feature_blocks."), "VISSL, backbone", IMAGENET_STD, 0),
    "solo-learn": (
        {"state_dict": renamed(backbone(), "backbone.") | HEADS, "epoch": 3},
        "solo-learn or lightly, backbone",
        IMAGENET_STD,
        4,
    ),
    "solo-learn, old": (
        {"state_dict": renamed(backbone(), "encoder.") | HEADS},
        "solo-learn, an",
        IMAGENET_STD,
        4,
    ),
    "lightly": (
        {
            "state_dict": renamed(sequential(backbone()), "backbone.")
            | some("projection_head.layers.0.weight")
        },
        "lightly, backbone",
        IMAGENET_STD,
        1,
    ),
}


# Bugs caught: a prefix that is not taken off, a head that is left over, dense layers of Paddle the wrong way
# round, an index of a Sequential that leads to another layer, a tensor left out without a word.
@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_told_by_their_keys(name):
    tree, whose, std, left_out = FORMATS[name]
    found = recognise(tree, "x")
    assert found.format.startswith(whose)
    assert found.std == std
    assert len(found.left_out) == left_out
    fitted = fit(found, "x")
    head = "released" in name or name in ("training", "PASSL", "PASSL, a model's resnet")
    assert len(fitted.tensors) == (WHOLE if head else BACKBONE)
    assert fitted.sizes == Sizes(
        "resnet50", head=(2048, 128) if head else None, prototypes=3000 if head else None
    )


# Bug caught: the linear probe's checkpoint taken for a backbone, or refused.
def test_the_linear_probe():
    tree = {
        "state_dict": {"module.linear.weight": Tensor("", (1000, 2048), "float32", unread)},
        "best_acc": 75.3,
    }
    tree["state_dict"]["module.linear.bias"] = Tensor("", (1000,), "float32", unread)
    found = recognise(tree, "x")
    assert found.format == "SwAV's linear probe"
    fitted = fit(found, "x")
    assert fitted.sizes == Sizes(None, classes=1000)
    assert [slot.own for slot in fitted.slots] == ["classifier/kernel", "classifier/bias"]


# Bugs caught: sizes taken from the name or from a constant.
@pytest.mark.parametrize(
    ("network", "width"), [("resnet50", 5), ("resnet34", 1), ("resnet18", 2), ("resnet18_32px", 1)]
)
def test_network_and_width_are_told_by_the_shapes(network, width):
    sizes = Sizes(network, width, (512, 64), 300)
    state = {slot.torch: Tensor(slot.torch, slot.shape, "float32", unread) for slot in slots(sizes)}
    assert fit(recognise(state, "x"), "x").sizes == sizes
    features = {"resnet50": 2048, "resnet34": 512, "resnet18": 512, "resnet18_32px": 512}[network] * width
    assert state["projection_head.0.weight"].shape == (512, features)


# === Files that do not fit ===


def wrong(change) -> str:
    state = released()
    change(state)
    with pytest.raises(WeightsError) as error:
        fit(recognise(state, "x.pth"), "x.pth")
    return str(error.value)


# Bugs caught: only the first of several faults is told; a head or a counter counted among them.
def test_all_that_is_wrong_is_listed():
    def change(state):
        del state["layer3.4.bn2.running_var"]
        del state["bn1.num_batches_tracked"]
        state["layer5.0.conv1.weight"] = Tensor("", (1, 1, 1, 1), "float32", unread)
        state["conv1.weight"] = Tensor("", (64, 3, 3, 3), "float32", unread)
        state["layer1.0.bn1.bias"] = Tensor("", (64,), "int64", unread)
        state["prototypes.weight"] = Tensor("", (3000, 64), "float32", unread)

    lines = wrong(change).splitlines()
    assert (
        lines[0]
        == "x.pth (SwAV as released) does not fit resnet50, 2048 features, head 2048 -> 128, 3000 prototypes:"
    )
    assert lines[1:] == [
        "  misshapen  conv1.weight: must be (64, 3, 7, 7), is (64, 3, 3, 3)",
        "  no floats  layer1.0.bn1.bias is int64",
        "  missing    layer3.4.bn2.running_var (256,)",
        "  left over  layer5.0.conv1.weight (1, 1, 1, 1)",
        "  misshapen  prototypes.weight: must be (3000, 128), is (3000, 64)",
        "To take the backbone alone: --backbone-only.",
    ]


# Bugs caught: a SwAV file without prototypes, or with half a head, that is imported as a backbone without a word.
@pytest.mark.parametrize("name", ["prototypes.weight", "projection_head.0.weight", "projection_head.3.bias"])
def test_a_missing_tensor_of_the_head(name):
    assert f"  missing    {name}" in wrong(lambda state: state.pop(name))


# Bug caught: another network whose names are the same (ResNet-101, a wide one, a ResNeXt).
@pytest.mark.parametrize(
    ("name", "shape", "part"),
    [
        ("layer3.6.conv1.weight", (256, 1024, 1, 1), "left over"),
        ("layer1.0.conv2.weight", (128, 4, 3, 3), "misshapen"),
        ("layer1.0.conv1.weight", (128, 64, 1, 1), "misshapen"),
    ],
)
def test_another_network(name, shape, part):
    assert f"{part}  {name}" in wrong(
        lambda state: state.update({name: Tensor("", shape, "float32", unread)})
    )


def test_a_backbone_that_is_no_resnet_of_ours():
    state = {
        f"layer{i}.blob{j}.weight": Tensor("", (3,), "float32", unread) for i in range(4) for j in range(9)
    }
    with pytest.raises(
        WeightsError, match=r"must be one of resnet50, .* fit none of them: layer0\.blob0\.weight"
    ):
        fit(recognise(state, "x"), "x")


# Bugs caught: --backbone-only that takes a damaged backbone too, or is silent on what it leaves.
def test_backbone_only():
    state = released()
    del state["prototypes.weight"]
    found = recognise(state, "x")
    fitted = fit(found, "x", backbone_only=True)
    assert fitted.sizes == Sizes("resnet50")
    assert "projection_head.1.running_var" in fitted.left_out
    assert len(fitted.left_out) == WHOLE - BACKBONE - 1
    del state["layer4.0.conv1.weight"]
    with pytest.raises(WeightsError, match=r"missing    layer4\.0\.conv1\.weight"):
        fit(recognise(state, "x"), "x", backbone_only=True)
    classifier = recognise(
        some("linear.weight") | {"linear.bias": Tensor("", (1000,), "float32", unread)}, "x"
    )
    with pytest.raises(WeightsError, match="has no backbone"):
        fit(classifier, "x", backbone_only=True)


# === Small files, whole ===

SMALL = Sizes("resnet_small", head=(24, 16), prototypes=12)


@pytest.fixture
def small() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {slot.torch: rng.normal(size=slot.shape).astype(np.float32) for slot in slots(SMALL)}


def arrays_of(run) -> dict[str, np.ndarray]:
    return read_pretrained(run)[0].arrays


# Bugs caught: PASSL's dense layers not turned, its arrays in Fortran's order read as C's, (name, array) pairs.
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_passl_file_is_the_same_model(small, tmp_path, protocol, pairs):
    write_torch_file(small, tmp_path / "x.pth")
    import_weights(tmp_path / "x.pth", tmp_path / "torch")
    names = {"running_mean": "_mean", "running_var": "_variance"}
    tree = {}
    for name, array in small.items():
        stem, _, last = name.rpartition(".")
        prefix = "" if name.startswith(("proj", "proto")) else "encoder."
        value = np.asfortranarray(array.T) if array.ndim == 2 else array
        tree[f"{prefix}{stem}.{names.get(last, last)}"] = (name, value) if pairs else value
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(tree, protocol))
    done = import_weights(tmp_path / "x.pdparams", tmp_path / "paddle")
    assert done.format == "PASSL, SwAV"
    theirs, ours = arrays_of(tmp_path / "torch"), arrays_of(tmp_path / "paddle")
    assert theirs.keys() == ours.keys()
    assert all(np.array_equal(theirs[name], ours[name]) for name in theirs)


# Bug caught: half precision that is refused, or read as another type.
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_become_float32(small, tmp_path, dtype):
    save_file({name: array.astype(dtype) for name, array in small.items()}, tmp_path / "x.safetensors")
    import_weights(tmp_path / "x.safetensors", tmp_path / "run")
    kernel = arrays_of(tmp_path / "run")["prototypes/kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, small["prototypes.weight"].astype(dtype).astype(np.float32).T)


# Bug caught: weights of a run that diverged, imported as if they were some.
def test_numbers_that_are_not_finite_are_listed(small, tmp_path):
    small["conv1.weight"][0, 0, 0, 0] = np.nan
    small["bn1.running_var"][3] = np.inf
    write_torch_file(small, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"not finite in 2 tensors:\n  conv1\.weight\n  bn1\.running_var"):
        import_weights(tmp_path / "x.pth", tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


# Bugs caught: a way between our formats on which numbers, sizes or the images' deviations are lost.
def test_all_ways_round(small, tmp_path):
    write_torch_file({f"module.{name}": array for name, array in small.items()}, tmp_path / "a.pth")
    import_weights(tmp_path / "a.pth", tmp_path / "run", overrides=["augment.std=[0.2, 0.3, 0.4]"])
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    export_weights(checkpoint, tmp_path / "b.safetensors")
    export_weights(tmp_path / "run", tmp_path / "c.safetensors")
    import_weights(tmp_path / "a.pth", tmp_path / "d.safetensors")
    import_weights(tmp_path / "c.safetensors", tmp_path / "again")
    export_weights(tmp_path / "again", tmp_path / "e.safetensors", names="swav")
    export_weights(tmp_path / "e.safetensors", tmp_path / "f.pth")
    assert read_pretrained(tmp_path / "again")[1].augment.std == (0.2, 0.3, 0.4)
    for name in ("run", "b.safetensors", "c.safetensors", "d.safetensors", "again", "e.safetensors", "f.pth"):
        found = open_weights(tmp_path / name).tensors
        assert found.keys() == small.keys()
        assert all(np.array_equal(found[key].read(), array) for key, array in small.items()), name


# Bug caught: an import whose images are normalised otherwise than they were in training, without a word.
def test_an_edited_recipe_of_an_import_is_refused(small, tmp_path):
    write_torch_file(small, tmp_path / "x.pth")
    import_weights(tmp_path / "x.pth", tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    save_recipe(load_recipe(path, ["augment.std=[0.1, 0.2, 0.3]"]), path)
    with pytest.raises(UsageError, match=r"augment\.std: was"):
        read_pretrained(tmp_path / "run")


# Bugs caught: an imported backbone whose random head gives scores; a folder that hides where it is from.
def test_a_backbone_alone(small, tmp_path):
    kept = {name: array for name, array in small.items() if not name.startswith("pro")}
    write_torch_file(kept | {"fc.weight": np.ones((3, 128), np.float32)}, tmp_path / "x.pth")
    done = import_weights(tmp_path / "x.pth", tmp_path / "run")
    assert done.left_out == ("fc.weight",)
    imported = read_pretrained(tmp_path / "run")[0].facts["imported"]
    assert imported["file"] == "x.pth"
    assert imported["parts"] == ["backbone"]
    assert len(imported["sha256"]) == 64
    with pytest.raises(UsageError, match="has no head and no prototypes"):
        load_swav(tmp_path / "run")
    model, recipe = load_swav(tmp_path / "run", backbone_only=True)
    assert recipe.augment.std == IMAGENET_STD
    np.testing.assert_array_equal(
        model.backbone.get_layer("conv1").kernel.numpy(), small["conv1.weight"].transpose(2, 3, 1, 0)
    )


# Bug caught: the checksum of a run that was set aside in the folder, or of an older checkpoint.
def test_the_checksum_is_of_the_newest_checkpoint(small, tmp_path):
    write_torch_file(small, tmp_path / "x.pth")
    import_weights(tmp_path / "x.pth", tmp_path / "run")
    older = tmp_path / "run" / "previous-1" / "checkpoints" / "step-000000009"
    older.mkdir(parents=True)
    (older / "state.safetensors").write_bytes(b"older")
    import_weights(tmp_path / "run", tmp_path / "again")
    first, second = (read_pretrained(tmp_path / name)[0].facts for name in ("run", "again"))
    assert second["imported"]["sha256"] == first["sha256"]


# Bug caught: a run that is overwritten.
def test_nothing_is_overwritten(small, tmp_path):
    write_torch_file(small, tmp_path / "x.pth")
    import_weights(tmp_path / "x.pth", tmp_path / "run")
    for to in ("run", "x.pth"):
        with pytest.raises(UsageError, match="nothing is overwritten"):
            import_weights(tmp_path / "x.pth", tmp_path / to)
    with pytest.raises(UsageError, match="nothing is overwritten"):
        export_weights(tmp_path / "run", tmp_path / "x.pth")


# Bug caught: a recipe whose model is not that of the weights.
def test_the_recipe_follows_the_weights(small, tmp_path):
    write_torch_file(small, tmp_path / "x.pth")
    done = import_weights(tmp_path / "x.pth", tmp_path / "a", config="demo", overrides=["train.epochs=7"])
    assert (done.recipe.train.epochs, done.recipe.model.prototypes) == (7, 12)
    assert done.recipe.data.kind == "digits"
    with pytest.raises(UsageError, match=r"model.prototypes: must be 12, is 50"):
        import_weights(tmp_path / "x.pth", tmp_path / "b", overrides=["model.prototypes=50"])
    with pytest.raises(UsageError, match="A file has no recipe"):
        import_weights(tmp_path / "x.pth", tmp_path / "c.safetensors", overrides=["train.epochs=7"])

"""Known formats are recognized by their names and come to the released SwAV's names."""

import pickle
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.files import load_recipe, save_recipe
from swav_tf.training.build import load_swav, read_pretrained
from swav_tf.weights.convert import describe, export_weights, import_weights
from swav_tf.weights.files import open_weights
from swav_tf.weights.formats import IMAGENET_STD, SWAV_STD, recognize
from swav_tf.weights.layout import Sizes, fit, slots
from swav_tf.weights.safe_pickle import WeightsError
from swav_tf.weights.torch_files import write_torch_file
from tests.weights.released import released_keys


def blank(shape=(1000, 2048), dtype="float32"):
    """An array of any size that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


RELEASED = {name: blank(shape, dtype) for name, (shape, dtype) in released_keys().items()}
BACKBONE = {name: a for name, a in RELEASED.items() if name.startswith(("conv1", "bn1", "layer"))}
FC = {"fc.weight": blank(), "fc.bias": blank((1000,))}
HEADS = {
    name: blank()
    for name in ("projector.0.weight", "prototypes.weight_g", "classifier.weight", "classifier.bias")
}


def prefixed(arrays, prefix):
    return {prefix + name: array for name, array in arrays.items()}


def paddle(arrays):
    """Paddle's names and dense layers; PASSL has the backbone below `encoder.`."""
    names = {"running_mean": "_mean", "running_var": "_variance"}
    found = {}
    for name, array in arrays.items():
        stem, _, last = name.rpartition(".")
        if last != "num_batches_tracked":
            found[f"{stem}.{names.get(last, last)}"] = array.T if array.ndim == 2 else array
    return found


def passl(arrays):
    return {
        f"{'' if name.startswith('pro') else 'encoder.'}{name}": array
        for name, array in paddle(arrays).items()
    }


def sequential(arrays):
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    return {f"{places[name.partition('.')[0]]}.{name.partition('.')[2]}": a for name, a in arrays.items()}


def vissl(arrays):
    model = {"trunk": prefixed(arrays, "_feature_blocks."), "heads": {"0.clf.0.weight": blank()}}
    return {"classy_state_dict": {"base_model": {"model": model}}, "iteration": 5}


SWAV, RESNET, PADDLE = "SwAV as released", "ResNet with torchvision's names", "ResNet with Paddle's names"
# Content, format, standard deviations, number of tensors left out.
FORMATS = [
    (prefixed(RELEASED, "module."), SWAV, SWAV_STD, 0),
    (RELEASED, SWAV, SWAV_STD, 0),
    ({"epoch": 4, "state_dict": prefixed(RELEASED, "module."), "optimizer": {"state": {}}}, "SwAV training", SWAV_STD, 0),
    (BACKBONE | FC, RESNET, IMAGENET_STD, 0),
    (BACKBONE, RESNET, IMAGENET_STD, 0),
    ({"model": prefixed(BACKBONE, "module."), "epoch": 1}, RESNET, IMAGENET_STD, 0),
    (passl(RELEASED), "PASSL, SwAV", SWAV_STD, 0),
    (prefixed(passl(RELEASED), "res_model."), "PASSL, SwAV", SWAV_STD, 0),
    (paddle(BACKBONE) | {"StructuredToParameterName@@": {"conv1.weight": "conv2d_0.w_0"}}, PADDLE, IMAGENET_STD, 0),
    (paddle(BACKBONE | FC), PADDLE, IMAGENET_STD, 0),
    (vissl(BACKBONE), "VISSL, backbone", IMAGENET_STD, 1),
    (prefixed(BACKBONE, "_feature_blocks."), "VISSL, backbone", IMAGENET_STD, 0),
    ({"state_dict": prefixed(BACKBONE | FC, "backbone.") | HEADS}, "solo-learn or lightly, backbone", IMAGENET_STD, 6),
    ({"state_dict": prefixed(BACKBONE, "encoder.") | HEADS}, "solo-learn, an older version", IMAGENET_STD, 4),
    ({"state_dict": prefixed(sequential(BACKBONE), "backbone.") | HEADS}, "lightly, backbone", IMAGENET_STD, 4),
    (sequential(BACKBONE), "lightly, backbone", IMAGENET_STD, 0),
    ({"parameters": sequential(BACKBONE)}, "Sequential ResNet in 'parameters'", IMAGENET_STD, 0),
    (prefixed(BACKBONE, "_orig_mod.module."), RESNET, IMAGENET_STD, 0),
    ({"state_dict": prefixed(BACKBONE | FC, "module.encoder_q.") | prefixed(BACKBONE, "module.encoder_k.")
      | {"queue": blank((128, 65536))}}, "MoCo, query", IMAGENET_STD, 268),
    ({"state_dict": prefixed(BACKBONE, "module.momentum_encoder.") | prefixed(BACKBONE, "module.base_encoder.")
      | {"module.base_encoder.fc.0.weight": blank()}}, "MoCo v3", IMAGENET_STD, 266),
    ({"student": prefixed(BACKBONE, "module.backbone."), "teacher": prefixed(BACKBONE, "backbone.")}, "DINO, teacher",
     IMAGENET_STD, 265),
    ({"state_dict": prefixed(BACKBONE, "target_encoder.net.") | prefixed(BACKBONE, "online_encoder.net.")},
     "ResNet in 'online_encoder.net'", IMAGENET_STD, 265),
]  # fmt: skip


# Bugs caught: a prefix that stays, a head that is left over, dense layers of Paddle not transposed, an index of a
# Sequential that leads to another layer, a tensor left out without a message.
@pytest.mark.parametrize(("tree", "name", "std", "left_out"), FORMATS)
def test_formats_are_recognized(tree, name, std, left_out):
    found = recognize(tree, "x")
    assert found.format.startswith(name)
    assert (found.std, len(found.left_out)) == (std, left_out)
    fitted = fit(found, "x")
    assert fitted.sizes in (
        Sizes("resnet50", head=(2048, 128), prototypes=3000),
        Sizes("resnet50", classes=1000),
        Sizes("resnet50"),
    )
    assert (fitted.sizes.head is not None) == ("SwAV" in name)
    assert (fitted.sizes.classes is not None) == any(key.startswith("fc.") for key in tree)
    assert fitted.arrays.keys() == {slot.torch for slot in fitted.slots}


# Bug caught: the linear probe's checkpoint taken for a backbone, or refused.
def test_the_linear_probe():
    state = {"module.linear.weight": blank(), "module.linear.bias": blank((1000,))}
    found = recognize({"state_dict": state, "best_acc": 75.3}, "x")
    assert found.format == "SwAV's linear probe"
    fitted = fit(found, "x")
    assert fitted.sizes == Sizes(None, classes=1000)
    assert [slot.own for slot in fitted.slots] == ["classifier/kernel", "classifier/bias"]
    with pytest.raises(WeightsError, match="has no backbone"):
        fit(found, "x", backbone_only=True)


# Bugs caught: sizes taken from the name or from a constant.
@pytest.mark.parametrize(
    ("network", "width", "features"),
    [
        ("resnet50", 5, 10240),
        ("resnet152", 1, 2048),
        ("wide_resnet50_2", 1, 2048),
        ("resnet34", 1, 512),
        ("resnet18", 2, 1024),
        ("resnet18_32px", 1, 512),
        ("resnet10_32px", 2, 512),
    ],
)
def test_network_and_width_follow_from_the_shapes(network, width, features):
    sizes = Sizes(network, width, (512, 64), 300)
    state = {slot.torch: blank(slot.shape) for slot in slots(sizes)}
    assert fit(recognize(state, "x"), "x").sizes == sizes
    assert state["projection_head.0.weight"].shape == (512, features)


# === Files that do not fit ===


def problems(changes, removed=(), **options) -> list[str]:
    state = {name: array for name, array in (RELEASED | changes).items() if name not in removed}
    with pytest.raises(WeightsError) as error:
        fit(recognize(state, "x.pth"), "x.pth", **options)
    return str(error.value).splitlines()


# Bugs caught: only the first of several problems is reported; a head or a counter counted among them.
def test_all_problems_are_listed():
    changes = {
        "layer5.0.conv1.weight": blank((1, 1, 1, 1)),
        "conv1.weight": blank((64, 3, 3, 3)),
        "layer1.0.bn1.bias": blank((64,), "int64"),
        "prototypes.weight": blank((3000, 64)),
    }
    assert problems(changes, ["layer3.4.bn2.running_var", "bn1.num_batches_tracked"]) == [
        "x.pth (SwAV as released) does not fit resnet50, 2048 features, head 2048 -> 128, 3000 prototypes:",
        "  misshapen  conv1.weight: must be (64, 3, 7, 7), is (64, 3, 3, 3)",
        "  no floats  layer1.0.bn1.bias is int64",
        "  missing    layer3.4.bn2.running_var (256,)",
        "  left over  layer5.0.conv1.weight (1, 1, 1, 1)",
        "  misshapen  prototypes.weight: must be (3000, 128), is (3000, 64)",
        "To import only the backbone: swav-tf weights import ... --backbone-only.",
    ]


# Bugs caught: a SwAV file without prototypes, or with half a head, imported as a backbone; another network with the
# same names (ResNet-101, a wide one, a ResNeXt).
@pytest.mark.parametrize(
    ("problem", "name", "shape"),
    [
        ("missing  ", "prototypes.weight", None),
        ("missing  ", "projection_head.0.weight", None),
        ("missing  ", "projection_head.3.bias", None),
        ("left over", "layer3.6.conv1.weight", (256, 1024, 1, 1)),
        ("misshapen", "layer1.0.conv2.weight", (128, 4, 3, 3)),
        ("misshapen", "layer1.0.conv1.weight", (128, 64, 1, 1)),
    ],
)
def test_one_problem(problem, name, shape):
    lines = problems({name: blank(shape)}) if shape else problems({}, [name])
    assert any(line.startswith(f"  {problem}  {name}") for line in lines)


def test_a_backbone_that_is_not_one_of_our_resnets():
    state = {"conv1.weight": blank((3,))} | {f"layer{i}.blob.weight": blank((3,)) for i in range(40)}
    with pytest.raises(
        WeightsError, match=r"must be one of resnet50, .* fit none of them: conv1\.weight, layer0"
    ):
        fit(recognize(state, "x"), "x")


# Bug caught: hundreds of lines of tensors for a network that has a name.
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            lambda state: {name.replace("conv1.weight", "conv1.0.weight"): a for name, a in state.items()},
            "deep stem",
        ),
        (lambda state: state | {"layer1.0.se.fc1.weight": blank()}, "squeeze-and-excitation"),
        (
            lambda state: {
                n: blank((a.shape[0], 4, 3, 3)) if ".conv2." in n else a for n, a in state.items()
            },
            "grouped convolutions",
        ),
        (
            lambda state: {n: a for n, a in state.items() if not n.startswith("layer3.5")},
            "3-4-5-3 bottleneck blocks",
        ),
    ],
)
def test_resnets_of_other_kinds_are_named(changed, words):
    with pytest.raises(
        WeightsError, match=rf"This is a ResNet .*{words}.*, which is not supported. Supported: resnet50"
    ):
        fit(recognize(changed(BACKBONE), "x"), "x")


# Bugs caught: a prefix that needs the wrappers of a name, or that matches half a word; a wrong one without advice.
def test_a_prefix_chooses_a_network():
    tree = {
        "teacher": prefixed(BACKBONE, "backbone."),
        "student": {"module.net." + n: a for n, a in SMALL.items()},
    }
    for prefix in ("student.net", "student.module.net.", "student"):
        assert (
            fit(recognize(tree, "x", prefix=prefix), "x", backbone_only=True).sizes.network == "resnet_small"
        )
    with pytest.raises(UsageError, match=r"Received: 'stud'\. Available: teacher, student\."):
        recognize(tree, "x", prefix="stud")


# Bugs caught: the projection of MoCo v1 taken for a classifier; a supervised network that loses its own.
@pytest.mark.parametrize(
    ("prefix", "classes"),
    [("state_dict.encoder_k", None), ("state_dict_ema", 1000), ("model.module", 1000)],
)
def test_a_classifier_below_a_prefix(prefix, classes):
    found = recognize(prefixed(BACKBONE | FC, f"{prefix}."), "x", prefix=prefix)
    assert fit(found, "x").sizes.classes == classes
    assert len(found.left_out) == (0 if classes else 2)


# Bug caught: a dictionary that contains itself, which never ends or is read a million times.
def test_dictionaries_in_circles():
    tree = {"a": SMALL}
    tree |= {f"x{i}": tree for i in range(99)}
    assert fit(recognize(tree, "x"), "x", backbone_only=True).sizes.network == "resnet_small"


# Bugs caught: --backbone-only that accepts a damaged backbone, or does not report what it leaves out.
def test_backbone_only():
    state = {name: array for name, array in RELEASED.items() if name != "prototypes.weight"}
    fitted = fit(recognize(state, "x"), "x", backbone_only=True)
    assert fitted.sizes == Sizes("resnet50")
    assert len(fitted.left_out) == sum("projection" in name and "tracked" not in name for name in state)
    lines = problems(
        {"layer5.0.conv1.weight": blank((1, 1, 1, 1))}, ["layer4.0.conv1.weight"], backbone_only=True
    )
    assert [line[:34] for line in lines[1:]] == [
        "  missing    layer4.0.conv1.weight",
        "  left over  layer5.0.conv1.weight",
    ]


# === Small files ===


def random_arrays(width=1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = Sizes("resnet_small", width, head=(24, 16), prototypes=12)
    return {slot.torch: rng.normal(size=slot.shape).astype(np.float32) for slot in slots(sizes)}


SMALL = random_arrays()


@pytest.fixture
def file(tmp_path):
    """A file with the arrays of SMALL."""
    write_torch_file(SMALL, tmp_path / "x.pth")
    return tmp_path / "x.pth"


def arrays_of(run) -> dict[str, np.ndarray]:
    return read_pretrained(run)[0].arrays


# Bugs caught: PASSL's dense layers not transposed, its arrays in Fortran's order read as C's, (name, array) pairs.
@pytest.mark.parametrize(("protocol", "pairs"), [(2, False), (4, True)])
def test_a_passl_file_is_the_same_model(file, tmp_path, protocol, pairs):
    import_weights(file, tmp_path / "torch")
    tree = {name: np.asfortranarray(array) for name, array in passl(SMALL).items()}
    tree = {name: (name, array) if pairs else array for name, array in tree.items()}
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(tree, protocol))
    assert import_weights(tmp_path / "x.pdparams", tmp_path / "paddle").format == "PASSL, SwAV"
    expected, found = arrays_of(tmp_path / "torch"), arrays_of(tmp_path / "paddle")
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


# Bug caught: half precision that is refused, or read as another type.
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    save_file({name: array.astype(dtype) for name, array in SMALL.items()}, tmp_path / "x.safetensors")
    import_weights(tmp_path / "x.safetensors", tmp_path / "run")
    kernel = arrays_of(tmp_path / "run")["prototypes/kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, SMALL["prototypes.weight"].astype(dtype).astype(np.float32).T)


# Bug caught: bfloat16, which NumPy does not have, that is refused or read as float16.
def test_bfloat16_becomes_float32(tmp_path):
    numbers = np.array([0.1, -3e38, 1.0], np.float32).view(np.uint32) >> 16
    header = b'{"conv1.weight":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}'
    data = struct.pack("<Q", len(header)) + header + numbers.astype("<u2").tobytes()
    (tmp_path / "x.safetensors").write_bytes(data)
    found = open_weights(tmp_path / "x.safetensors").arrays["conv1.weight"]
    np.testing.assert_array_equal(found.view(np.uint32), numbers << 16)


# Bugs caught: weights of a run that diverged, which `show` accepts or `export` writes.
def test_numbers_that_are_not_finite_are_listed(tmp_path):
    arrays = {name: array.copy() for name, array in SMALL.items()}
    arrays["conv1.weight"][0, 0, 0, 0] = np.nan
    arrays["bn1.running_var"][3] = np.inf
    write_torch_file(arrays, tmp_path / "x.pth")
    listed = "not finite bn1.running_var", "not finite conv1.weight"
    assert describe(tmp_path / "x.pth").problems == listed
    own = slots(Sizes("resnet_small"))[0].own
    save_file({own: np.full(3, np.nan, np.float32)}, tmp_path / "own.safetensors")
    for work in (
        lambda: import_weights(tmp_path / "x.pth", tmp_path / "run"),
        lambda: export_weights(tmp_path / "x.pth", tmp_path / "y.pth", names="torchvision"),
    ):
        with pytest.raises(WeightsError, match="\n  ".join(listed)):
            work()
    with pytest.raises(WeightsError, match=f"finite numbers.*\n  {own}"):
        export_weights(tmp_path / "own.safetensors", tmp_path / "y.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.safetensors", "x.pth"]


# Bugs caught: a conversion that loses numbers, sizes or the images' standard deviations.
@pytest.mark.parametrize("width", [1, 2])
def test_all_ways_round(tmp_path, width):
    small = random_arrays(width)
    write_torch_file({f"module.{name}": array for name, array in small.items()}, tmp_path / "a.pth")
    import_weights(tmp_path / "a.pth", tmp_path / "run", overrides=["augment.std=[0.2, 0.3, 0.4]"])
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    export_weights(checkpoint, tmp_path / "b.safetensors")
    export_weights(tmp_path / "run", tmp_path / "c.safetensors")
    import_weights(tmp_path / "a.pth", tmp_path / "d.safetensors")
    import_weights(tmp_path / "c.safetensors", tmp_path / "again")
    export_weights(tmp_path / "again", tmp_path / "e.safetensors", names="swav")
    export_weights(tmp_path / "e.safetensors", tmp_path / "f.pth")
    assert open_weights(tmp_path / "e.safetensors").std == (0.2, 0.3, 0.4)
    recipe = read_pretrained(tmp_path / "again")[1]
    assert (recipe.augment.std, recipe.model.backbone.width) == ((0.2, 0.3, 0.4), width)
    for name in ("run", "b.safetensors", "c.safetensors", "d.safetensors", "again", "e.safetensors", "f.pth"):
        found = open_weights(tmp_path / name).arrays
        assert found.keys() == small.keys()
        assert all(np.array_equal(found[key], array) for key, array in small.items()), name


# Bugs caught: an imported backbone whose random head gives scores; a folder without its origin.
def test_a_backbone_alone(tmp_path):
    kept = {name: array for name, array in SMALL.items() if not name.startswith("pro")}
    write_torch_file(kept | {"fc.weight": np.ones((3, 128), np.float32)}, tmp_path / "x.pth")
    done = import_weights(tmp_path / "x.pth", tmp_path / "run", backbone_only=True)
    assert done.left_out == ("linear.weight",)
    imported = read_pretrained(tmp_path / "run")[0].facts["imported"]
    assert (imported["file"], imported["parts"], len(imported["sha256"])) == ("x.pth", ["backbone"], 64)
    with pytest.raises(UsageError, match="has no head and no prototypes"):
        load_swav(tmp_path / "run")
    model, recipe = load_swav(tmp_path / "run", backbone_only=True)
    assert recipe.augment.std == IMAGENET_STD
    np.testing.assert_array_equal(
        model.backbone.get_layer("conv1").kernel.numpy(), SMALL["conv1.weight"].transpose(2, 3, 1, 0)
    )


# Bugs caught: a run that is overwritten; the checksum of an earlier run in the folder, or of an older checkpoint; an
# import whose images are normalized differently than in training.
def test_an_imported_run(file, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    import_weights(file, run)
    for to in (run, file):
        with pytest.raises(UsageError, match="nothing is overwritten"):
            import_weights(file, to)
    with pytest.raises(UsageError, match="nothing is overwritten"):
        export_weights(run, file)
    older = run / "previous-1" / "checkpoints" / "step-000000009"
    older.mkdir(parents=True)
    (older / "state.safetensors").write_bytes(b"older")
    import_weights(run, again)
    first, second = (read_pretrained(folder)[0].facts for folder in (run, again))
    assert second["imported"]["sha256"] == first["sha256"]
    save_recipe(load_recipe(run / "config.yaml", ["augment.std=[0.1, 0.2, 0.3]"]), run / "config.yaml")
    with pytest.raises(UsageError, match=r"augment\.std: was"):
        read_pretrained(run)


# Bug caught: a recipe whose model is not that of the weights.
def test_the_recipe_follows_the_weights(file, tmp_path):
    done = import_weights(file, tmp_path / "a", config="demo", overrides=["train.epochs=7"])
    assert (done.recipe.train.epochs, done.recipe.model.prototypes) == (7, 12)
    assert done.recipe.data.kind == "digits"
    with pytest.raises(UsageError, match=r"model.prototypes: must be 12, is 50"):
        import_weights(file, tmp_path / "b", overrides=["model.prototypes=50"])
    with pytest.raises(UsageError, match="A file has no recipe"):
        import_weights(file, tmp_path / "c.safetensors", overrides=["train.epochs=7"])

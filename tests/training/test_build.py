import numpy as np
import pytest

from swav_tf.plumbing.errors import UsageError
from swav_tf.runs.folder import RunFolder
from swav_tf.training.build import build_swav, init_from, load_swav, read_pretrained
from swav_tf.weights.convert import import_weights
from tests.swav_models import SMALL, tiny_recipe
from tests.tiny_run import tiny_run


# Bugs caught: a backbone alone whose missing head comes from somewhere; weights that are loaded in part; the record of
# weights that a run was to start from and did not.
def test_initial_weights_fit_or_nothing_is_loaded(tmp_path, logged):
    backbone = tmp_path / "backbone"
    import_weights(tiny_run(), backbone, backbone_only=True)
    source = read_pretrained(tiny_run())[0].arrays
    model = build_swav(tiny_recipe(model__backbone=SMALL, model__prototypes=30))
    head = model.head.get_weights()
    before = [variable.numpy() for variable in model.weights]
    with RunFolder(tmp_path / "run") as folder:
        record = folder.path / "started_from.json"
        with pytest.raises(UsageError, match=r"prototypes/kernel: must be \(16, 30\), is \(16, 12\)"):
            init_from(model, tiny_run(), folder, resumed=False)
        assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.weights, strict=True))
        init_from(model, backbone, folder, resumed=False)
        assert logged[-1] == ("INFO", f"Initialized backbone from {backbone}; head and prototypes at random.")
        assert record.exists()
        init_from(model, None, folder, resumed=True)
        assert record.exists()
        init_from(model, None, folder, resumed=False)
        assert not record.exists()
    conv1 = model.backbone.get_layer("conv1").kernel.numpy()
    np.testing.assert_array_equal(conv1, source["backbone/conv1/kernel"])
    assert all(np.array_equal(a, b) for a, b in zip(head, model.head.get_weights(), strict=True))

    with pytest.raises(UsageError, match="has no head and no prototypes"):
        load_swav(backbone)
    loaded, _ = load_swav(backbone, backbone_only=True)
    np.testing.assert_array_equal(loaded.backbone.get_layer("conv1").kernel.numpy(), conv1)

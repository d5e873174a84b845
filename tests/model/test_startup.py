"""A user's settings of Keras and TensorFlow change nothing, and TensorFlow starts in silence."""

import json
import os
import subprocess
import sys

import pytest

CODE = """
import swav_tf
recipe = swav_tf.load_recipe("demo", ["model.prototypes=4"])
model = swav_tf.build_swav(recipe)
import keras, numpy as np, tensorflow as tf
images = tf.cast(np.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3) % 251, tf.uint8)
print(keras.config.floatx(), keras.config.image_data_format(), model.features(images).numpy().tobytes().hex()[:64])
"""


def run(**environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("KERAS", "TF_CPP"))}
    process = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env={**clean, **environment}
    )
    assert process.returncode == 0, process.stderr
    return process


# Bugs caught: CUDA's, oneDNN's or absl's messages; other features, silently, or Keras' own error far from its cause.
@pytest.mark.multiprocess
def test_a_users_settings_change_nothing(tmp_path):
    expected = run(KERAS_HOME=str(tmp_path))
    assert expected.stderr == ""
    assert expected.stdout.startswith("float32 channels_last ")
    settings = {"image_data_format": "channels_first", "floatx": "float16", "backend": "torch"}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    found = run(KERAS_HOME=str(tmp_path), KERAS_BACKEND="jax", TF_CPP_MIN_LOG_LEVEL="2")
    assert found.stdout == expected.stdout
    assert "cuda" not in found.stderr
    assert "absl" not in found.stderr


# Bug caught: an error inside the first layer.
@pytest.mark.multiprocess
def test_keras_with_another_backend_is_refused(tmp_path):
    code = """
import sys, types
keras = types.ModuleType("keras")
keras.backend = types.SimpleNamespace(backend=lambda: "jax")
sys.modules |= {"keras": keras, "tensorflow": types.ModuleType("tensorflow")}
import swav_tf
try:
    swav_tf.build_swav
except Exception as error:
    print(error)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Import swav_tf before Keras" in process.stdout, process.stderr

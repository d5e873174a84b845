"""SwAV self-supervised pretraining in TensorFlow/Keras 3."""

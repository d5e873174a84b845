"""SwAV self-supervised pretraining in TensorFlow: recipes, images, model, method, training."""

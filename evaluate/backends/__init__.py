"""Inference backends: Keras, ONNX Runtime and TensorRT behind one protocol."""

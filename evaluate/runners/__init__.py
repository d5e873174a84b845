"""Models that are ready to run: Keras, ONNX Runtime, TensorRT, behind one small protocol."""

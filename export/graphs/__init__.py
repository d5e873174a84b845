"""ONNX graphs: simplified, folded, in half precision and in int8, and the files that hold them."""

"""TensorRT engines: built from exported files, proven, cached, refitted."""

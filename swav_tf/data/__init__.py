"""Images in, crops out: sources, decoding, augmentation, order and the input pipeline."""

"""The network: backbone, projection head and prototypes."""

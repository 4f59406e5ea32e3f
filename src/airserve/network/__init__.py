"""The 5G network: bytes over cells, slices and links; never requests or models."""

"""The PyTorch file that exports carry; never imported by this package."""

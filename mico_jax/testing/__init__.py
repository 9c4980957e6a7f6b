"""Helpers of tests: tiny configs, fake batches, contracts, golden cases."""

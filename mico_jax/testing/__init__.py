"""What tests use: tiny configs, fake batches, contracts, golden cases."""

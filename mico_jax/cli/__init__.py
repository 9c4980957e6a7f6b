"""The `mico-jax` command: one file per subcommand; parse, call, print."""

"""Names and layouts of other worlds: the released MiCo, safetensors."""

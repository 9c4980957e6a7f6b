"""Names and layouts of other worlds: the official MiCo, safetensors."""

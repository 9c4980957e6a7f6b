"""Commands beside training: embed, evaluate, describe, trace, doctor."""

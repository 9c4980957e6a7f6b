"""Data: sources, order of samples, decoding and batches, without any JAX call.

From a file to a batch:

- `sources/` gives random access to the samples of a data set as `records`,
  read through `remote`, `references`, `tar` and `packed`.
- `order` says which samples a step reads, `samples` loads one of them
  (`language` chooses its texts, `tokenizer` encodes them, `cache` keeps decoded
  media), `batches` puts samples into arrays.
- `pipeline` makes the batches of training and `gallery` those of evaluation.
- `faults`, `guard`, `stalled` and `bad_samples` handle samples that are broken
  or do not return.

Names are imported from their modules (`mico_jax.data.pipeline.Pipeline`); this
file imports nothing, so that `import mico_jax` is fast.
"""

"""The text tower as folders of transformers: an encoder and a decoder.

The folder itself embeds texts: `AutoModel` is bidirectional, `AutoTokenizer`
gives our token ids. `decoder/` is the same tower with cross-attention, which
transformers has in decoders only: attention there is causal, as in our
captions. For bidirectional attention with a context, as in matching, pass a
mask per query ([B, 1, L, L]).

Source: transformers 5 (`modeling_bert.py`), by its names of parameters.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mico_jax.aliases import Params
from mico_jax.config import Config
from mico_jax.inference.prepare import Preparer
from mico_jax.inference.self_check import SelfCheck, on_cpu
from mico_jax.interop.exporting import export, transformers_tokenizer
from mico_jax.interop.exporting.export import ExportReport, OpenedCheckpoint
from mico_jax.interop.files.tensors import Item
from mico_jax.interop.names import mico, weight_map
from mico_jax.models.mico import Context

DECODER = "decoder"
CROSS = ".crossattention."
# Texts for the comparison of the two tokenizers.
TEXTS = (
  "a red cube and a small ball",
  "",
  "  Zwölf Boxkämpfer:  \u00c0\u0301 \u65e5\u672c\u8a9e \U0001f642 [SEP] 3.5",
  "word " * 600,
)


def items(
  params: Params, config: Config, *, decoder: bool, prefix: str = ""
) -> Iterator[Item]:
  """The tower's tensors as BertForMaskedLM (BertLMHeadModel) names them.

  Args:
    params: of the model.
    config: of the run.
    decoder: whether to include cross-attention.
    prefix: of every name.
  """
  table = mico.entries(config.model, ["text"])
  for one in weight_map.items(params, table, patch_size=1):
    name = one.name.removeprefix(mico.BERT)
    if decoder or CROSS not in name:
      yield Item(prefix + name, one.shape, one.dtype, one.read)


def model_config(
  config: Config, pad: int, *, decoder: bool
) -> Mapping[str, Any]:
  """The config.json of transformers."""
  text = config.model.text
  return {
    "architectures": ["BertLMHeadModel" if decoder else "BertForMaskedLM"],
    "model_type": "bert",
    "vocab_size": text.vocab_size,
    "hidden_size": text.width,
    "num_hidden_layers": text.depth,
    "num_attention_heads": text.num_heads,
    "intermediate_size": text.mlp_dim,
    "max_position_embeddings": text.max_positions,
    "type_vocab_size": text.type_vocab_size,
    "layer_norm_eps": text.norm_eps,
    "hidden_act": "gelu",
    "hidden_dropout_prob": text.dropout,
    "attention_probs_dropout_prob": text.dropout,
    "pad_token_id": pad,
    "is_decoder": decoder,
    "add_cross_attention": decoder,
    "tie_word_embeddings": True,
  }


def text_length(source: OpenedCheckpoint) -> int:
  """Tokens to which `embed` pads and cuts a text."""
  return Preparer(source.config, source.tokenizer).max_length("text")


def write_tokenizer(
  source: OpenedCheckpoint,
  folder: pathlib.Path,
  report: ExportReport,
  prefix: str = "",
) -> None:
  """Writes the files of AutoTokenizer, with the text length of `embed`."""
  length = text_length(source)
  files, notes = transformers_tokenizer.files(source.tokenizer, length)
  export.write_files(folder, files)
  for name in files:
    report.add_file("tokenizer", folder / name, prefix + name)
  report.notes += [one for one in notes if one not in report.notes]


def write(
  source: OpenedCheckpoint,
  folder: pathlib.Path,
  report: ExportReport,
  options: export.Options = export.DEFAULTS,
) -> None:
  """Writes the encoder and, in `decoder/`, the decoder.

  Args:
    source: the checkpoint.
    folder: an existing folder.
    report: gets the files and tensors.
    options: of the export.
  """
  for decoder in (False, True):
    part = DECODER if decoder else "encoder"
    place = folder / DECODER if decoder else folder
    prefix = f"{DECODER}/" if decoder else ""
    place.mkdir(exist_ok=True)
    tensors = items(source.params, source.config, decoder=decoder)
    export.write_tensors(report, part, place, tensors, options, prefix=prefix)
    pad = source.tokenizer.info.pad
    config = model_config(source.config, pad, decoder=decoder)
    export.write_document(report, part, place, "config.json", config, prefix)
    write_tokenizer(source, place, report, prefix)
  report.notes += [
    "an embedding is the first token of last_hidden_state, through the "
    "contrastive head t, of unit norm; that head and the matching head are no "
    "part of a BERT: --to openclip writes the former, --to torch both",
    "there is no pooler: transformers makes a random one, with a warning, "
    "unless AutoModel.from_pretrained gets add_pooling_layer=False",
    f"{DECODER}/ is the same tower with cross-attention, for captions (causal);"
    " for matching give it a mask per query [B, 1, L, L]",
  ]


def ids_of(
  tokenizer: Any, texts: Sequence[str], length: int
) -> Int[np.ndarray, "B L"]:
  """Token ids of texts by a tokenizer of transformers."""
  options = {"padding": "max_length", "truncation": True, "max_length": length}
  return np.asarray(tokenizer(list(texts), **options)["input_ids"], np.int32)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Silences the progress bars and warnings of transformers."""
  from transformers.utils import logging

  level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
  logging.set_verbosity_error()
  logging.disable_progress_bar()
  try:
    yield
  finally:
    logging.set_verbosity(level)
    if bars:
      logging.enable_progress_bar()


def compare(source: OpenedCheckpoint, folder: pathlib.Path) -> dict[str, float]:
  """Opens both folders with transformers and runs them.

  Returns:
    Largest absolute difference of token ids, of the hidden states of a text
    alone and beside a random context (read in both directions, as matching
    does, and causally, as captions are written), of the logits of captions and
    of the embedding.

  Raises:
    ImportError: without transformers or PyTorch.
  """
  import torch
  from transformers import AutoModel, AutoTokenizer, BertLMHeadModel

  check = SelfCheck(source.config, source.tokenizer)
  length, info = check.preparer.max_length("text"), source.tokenizer.info
  ids = np.stack([source.tokenizer.encode(x, length) for x in TEXTS])
  width = source.config.model.text.width
  rng = np.random.default_rng(0)
  shape = (len(TEXTS), 5, width)
  values = rng.standard_normal(shape).astype(np.float32)
  want = _ours(check, source.params, ids, values)
  gaps = {}
  with quiet():
    if (folder / transformers_tokenizer.FILE).is_file():
      theirs = ids_of(AutoTokenizer.from_pretrained(folder), TEXTS, length)
      gaps["ids"] = float(np.abs(theirs - ids).max())
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    decoder = BertLMHeadModel.from_pretrained(folder / DECODER).eval()
  tensors = torch.from_numpy(ids).long()
  mask = tensors != info.pad
  context = {"encoder_hidden_states": torch.from_numpy(values)}
  both = mask[:, None, None, :].expand(-1, 1, length, -1)
  with torch.no_grad():
    alone = encoder(tensors, attention_mask=mask.long())
    read = decoder.bert(tensors, attention_mask=both, **context)
    written = decoder(tensors, attention_mask=mask.long(), **context)
  got = {
    "hidden": alone.last_hidden_state,
    "hidden/matching": read.last_hidden_state,
    "logits/caption": written.logits,
  }
  rows = mask.numpy()  # Outputs at padding are not used.
  for name, value in got.items():
    gap = np.abs(value.numpy().astype("f8") - want[name])[rows]
    gaps[name] = float(gap.max())
  return gaps


def _ours(
  check: SelfCheck,
  params: Params,
  ids: Int[np.ndarray, "B L"],
  values: Float[np.ndarray, "B S W"],
) -> dict[str, np.ndarray]:
  """Our outputs for the same arrays, in float32 on CPU."""
  model = check.model

  @jax.jit
  def run(params: Any, ids: jax.Array, values: jax.Array) -> dict[str, Any]:
    context = model.project_context(params, Context(values))
    # Causal attention, padding masked.
    mask = ids != check.preparer.tokenizer.info.pad
    hidden = model.text(
      params, ids, attention="causal", mask=mask, context=context
    )
    return {
      "hidden": model.text(params, ids),
      "hidden/matching": model.text(params, ids, context=context),
      "logits/caption": model.lm_logits(params, hidden),
    }

  with on_cpu():
    flat = jax.tree.map(jnp.asarray, {"text": params["text"]})
    return jax.device_get(run(flat, jnp.asarray(ids), jnp.asarray(values)))

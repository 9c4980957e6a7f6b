"""Molecules out of SMILES, by the package `rdkit` (extra `molecules`).

Hydrogens are counted at their atoms, unless they are written as atoms that
RDKit keeps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from mico_jax.modalities.base import DecodeError
from mico_jax.modalities.graphs_file import Graph

ELEMENTS = (
  *("H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Se", "Br", "I"),
)
# Names of the features of an atom; those of an element's name are 1 for it.
ATOM = (
  *ELEMENTS,
  *("other", "number / 100", "degree / 4", "charge", "hydrogens / 4"),
  *("radicals", "aromatic", "ring", "sp", "sp2", "sp3", "left", "right"),
)
BOND = (
  *("single", "double", "triple", "aromatic", "other"),
  *("conjugated", "ring", "E", "Z"),
)


def read_smiles(raw: Any) -> Graph:
  """The graph of a molecule, atoms in canonical order.

  Args:
    raw: SMILES, a text or its bytes.

  Raises:
    DecodeError: for anything else, and for SMILES that are none.
    ImportError: without rdkit.
  """
  from rdkit import Chem, rdBase

  if isinstance(raw, bytes):
    raw = raw.decode("utf-8", "replace")
  if not isinstance(raw, str):
    raise DecodeError(f"expected SMILES, got {type(raw).__name__}.")
  text = raw.strip()
  with rdBase.BlockLogs():
    molecule = Chem.MolFromSmiles(text) if text.isprintable() else None
  if molecule is None:
    raise DecodeError(f"invalid SMILES {text[:80]!r}.")
  order = np.argsort(list(Chem.CanonicalRankAtoms(molecule)), kind="stable")
  if len(order):
    molecule = Chem.RenumberAtoms(molecule, order.tolist())
  atoms = [_atom(atom) for atom in molecule.GetAtoms()]
  # From the lower atom to the higher, in their order.
  bonds = sorted(
    (*sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())), b.GetIdx())
    for b in molecule.GetBonds()
  )
  rows = [_bond(molecule.GetBondWithIdx(i)) for _, _, i in bonds]
  edges = np.array([pair[:2] for pair in bonds], np.int64).reshape(-1, 2).T
  return Graph(
    np.array(atoms, np.float64).reshape(-1, len(ATOM)),
    edges,
    np.array(rows, np.float64).reshape(-1, len(BOND)),
    np.ones(len(rows)),
  )


def _atom(atom: Any) -> Float[np.ndarray, " F"]:
  symbol = atom.GetSymbol()
  kinds = {str(atom.GetHybridization()), str(atom.GetChiralTag())}
  told = {
    symbol if symbol in ELEMENTS else "other": 1,
    "number / 100": atom.GetAtomicNum() / 100,
    "degree / 4": atom.GetDegree() / 4,
    "charge": atom.GetFormalCharge(),
    "hydrogens / 4": atom.GetTotalNumHs() / 4,
    "radicals": atom.GetNumRadicalElectrons(),
    "aromatic": atom.GetIsAromatic(),
    "ring": atom.IsInRing(),
    "sp": "SP" in kinds,
    "sp2": "SP2" in kinds,
    "sp3": "SP3" in kinds,
    "left": "CHI_TETRAHEDRAL_CCW" in kinds,
    "right": "CHI_TETRAHEDRAL_CW" in kinds,
  }
  return np.array([told.get(name, 0) for name in ATOM], np.float64)


def _bond(bond: Any) -> Float[np.ndarray, " G"]:
  kind = str(bond.GetBondType()).lower()
  turned = str(bond.GetStereo())
  told = {
    kind if kind in BOND else "other": 1,
    "conjugated": bond.GetIsConjugated(),
    "ring": bond.IsInRing(),
    "E": turned in ("STEREOE", "STEREOTRANS"),
    "Z": turned in ("STEREOZ", "STEREOCIS"),
  }
  return np.array([told.get(name, 0) for name in BOND], np.float64)

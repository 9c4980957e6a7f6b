"""Data sets whose official files become a manifest: the one place that lists them.

To add one, write `mico_jax/data/build/sets/<name>.py` with a subclass of
`OfficialSet` and add its line here; `mico-jax data build --protocol NAME` then
builds it. Sets with a protocol in `mico_jax.evaluation.protocols` need no such
file: their official files are read as they are.
"""  # noqa: E501

from __future__ import annotations

from mico_jax.data.build.sets.base import Copy, OfficialSet
from mico_jax.data.build.sets.credit_card_fraud import CreditCardFraud
from mico_jax.data.build.sets.ego4d_imu import Ego4DImu
from mico_jax.data.build.sets.global_temperature import GlobalTemperature
from mico_jax.data.build.sets.indian_pines import IndianPines
from mico_jax.data.build.sets.pcqm4mv2 import Pcqm4Mv2
from mico_jax.data.build.sets.regdb import RegDB
from mico_jax.data.build.sets.sysu_mm01 import SysuMM01

SETS: dict[str, type[OfficialSet]] = {
  "sysu_mm01": SysuMM01,
  "regdb": RegDB,
  "ego4d_imu": Ego4DImu,
  "pcqm4mv2": Pcqm4Mv2,
  "global_temperature": GlobalTemperature,
  "indian_pines": IndianPines,
  "credit_card_fraud": CreditCardFraud,
}

__all__ = ["SETS", "Copy", "OfficialSet"]

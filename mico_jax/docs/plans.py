"""Writes `plans.md`: packaged configs on TPUs and GPUs, compiled ahead of time.

    python -m mico_jax.docs.plans [--only mico_b16] [--on v5e:16x16]

Needs libtpu (extra `aot`), the extra `cuda` for GPUs, and some minutes per
program; programs that have not changed come from a cache (see
`mico_jax.plan.compiled`). Plans that are not selected stay unchanged in
`plans.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mico_jax import config as config_lib
from mico_jax.docs.markdown import HEAD, markdown_table

CONFIGS = ("mico_b16", "mico_l14", "mico_g14")
TOPOLOGIES = ("v5e:16x16", "v5p:4x4x4", "v6e:16x16", "h100:8", "h200:8")
TASKS = ("vast27m",)  # the largest batch and most steps
FOLDER = pathlib.Path(__file__).parent
GIB = 2**30


def committed() -> dict[str, dict[str, Any]]:
  """The plans of `plans.json`, by config and topology."""
  path = FOLDER / "plans.json"
  if not path.is_file():
    return {}
  return json.loads(path.read_text(encoding="utf-8"))


def _cells(plan: Mapping[str, Any]) -> Iterable[list[str]]:
  """Table rows of a plan, one per task."""
  number = lambda x, form: "-" if x is None else format(x, form)
  mesh = " ".join(f"{a} {n}" for a, n in plan["mesh"].items() if n > 1)
  for task in plan["tasks"]:
    moved = sum(c["bytes"] for c in task["collectives"])
    time = task["time"]
    visible = time["collectives"] - time["hidden"] if time else None
    flops = sum(task["flops"].values())
    state = [task["parts"][part] for part in ("parameters", "optimizer")]
    yield [
      plan["config"],
      plan["topology"],
      f"{plan['rules']}: {mesh}",
      f"{plan['remat']}, {plan['micro_batches']}",
      task["name"],
      f"{task['batch']:,}",
      "yes" if task["fits"] else "**no**",
      f"{task['needed'] / GIB:.2f} of {task['limit'] / GIB:.2f}",
      f"{sum(state) / GIB:.2f}",
      f"{task['parts']['temporaries'] / GIB:.2f}",
      f"{flops / 1e15:.2f}",
      f"{moved / GIB:.2f}",
      number(task["seconds"], ".3f"),
      number(visible, ".3f"),
      number(task["mfu"], ".1%"),
      number(task["images_per_second"], ",.0f"),
      number(plan["days"], ".1f"),
      number(plan["chip_hours"], ",.0f"),
    ]


def page(plans: Sequence[Mapping[str, Any]]) -> str:
  """The page about plans, which are given in JSON types."""
  header = (
    "config",
    "devices",
    "mesh",
    "remat, micro-batches",
    "task",
    "batch",
    "fits",
    "GiB of a device",
    "parameters, optimizer",
    "temporaries",
    "model PFLOP",
    "GiB received",
    "step, s",
    "of it visible collectives",
    "of peak",
    "images/s",
    "days of the recipe",
    "chip-hours",
  )
  head = HEAD.replace("docs.tables", "docs.plans")
  text = f"{head}\n# Plans\n\n`mico-jax plan --config NAME:@DEVICES --topology "
  text += "DEVICES`. Memory is exact; times are not measured. The length of "
  text += "the recipe counts tasks that are not listed by their FLOPs.\n\n"
  text += markdown_table(header, (r for p in plans for r in _cells(p)))
  for method in dict.fromkeys(p["method"] for p in plans):
    names = dict.fromkeys(p["topology"] for p in plans if p["method"] == method)
    text += f"\nTimes of {', '.join(names)}: {method}.\n"
  return text


def main(argv: Sequence[str] | None = None) -> int:
  """Makes the selected plans and writes the page."""
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  from mico_jax.plan.planner import make_plan

  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", default="", help="one config")
  parser.add_argument("--on", default="", help="one topology")
  args = parser.parse_args(argv)
  plans = committed()
  known = [(name, where) for name in CONFIGS for where in TOPOLOGIES]
  for name, where in known:
    if args.only not in ("", name) or args.on not in ("", where):
      continue
    plan = make_plan(
      config_lib.load(name, arg=f"@{where}"),
      where,
      tasks=TASKS,
      others=False,
      count_rest=True,
      say=lambda text: print(text, file=sys.stderr),
    )
    plans[f"{name} {where}"] = plan.as_dict()
    names = [f"{n} {w}" for n, w in known if f"{n} {w}" in plans]
    plans = {name: plans[name] for name in names}
    text = json.dumps(plans, indent=1) + "\n"
    (FOLDER / "plans.json").write_text(text, encoding="utf-8")
    text = page(list(plans.values()))
    (FOLDER / "plans.md").write_text(text, encoding="utf-8")
  return 0


if __name__ == "__main__":
  sys.exit(main())

"""A training process that starts again with large pages."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mico_jax.cli import huge_pages


@pytest.fixture
def linux(monkeypatch, tmp_path):
  kernel = tmp_path / "enabled"
  kernel.write_text("always [madvise] never\n")
  monkeypatch.setattr(huge_pages, "_KERNEL", kernel)
  monkeypatch.setattr(huge_pages.sys, "platform", "linux")
  monkeypatch.setattr(
    huge_pages.platform, "libc_ver", lambda: ("glibc", "2.36")
  )
  monkeypatch.delenv(huge_pages.VARIABLE, raising=False)
  return kernel


def test_wanted_where_it_helps(linux, monkeypatch):
  assert huge_pages.wanted("pretrain")
  assert not huge_pages.wanted("embed")
  assert not huge_pages.wanted(None)
  linux.write_text("always madvise [never]\n")
  assert not huge_pages.wanted("pretrain")
  linux.write_text("always [madvise] never\n")
  monkeypatch.setenv(huge_pages.VARIABLE, "glibc.malloc.hugetlb=0")
  assert not huge_pages.wanted("pretrain")


def test_restarts_once_with_the_same_arguments(linux, monkeypatch):
  calls = []
  monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
  monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "mico_jax", "x"])
  monkeypatch.setenv(huge_pages.VARIABLE, "glibc.malloc.check=0")
  huge_pages.restart_with_huge_pages("pretrain")
  assert calls == [(sys.executable, [sys.executable, "-m", "mico_jax", "x"])]
  assert os.environ[huge_pages.VARIABLE] == (
    "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
  )
  huge_pages.restart_with_huge_pages("pretrain")
  assert len(calls) == 1


def test_the_command_still_runs():
  command = [sys.executable, "-m", "mico_jax", "pretrain", "--help"]
  out = subprocess.run(command, capture_output=True, text=True, check=True)
  assert "--workdir" in out.stdout

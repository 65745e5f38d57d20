"""Environments that make libraries take the kernels of another processor, and what each of them changes here."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

Environment = Mapping[str, str]

DECLINED = {"MKL_CBWR": "AUTO"}
"""MKL without the strict mode that dlm asks for."""

SETTINGS: dict[str, Environment] = {
    "no strict mode": DECLINED,
    **{f"MKL {isa}": {"MKL_ENABLE_INSTRUCTIONS": isa} for isa in ("SSE4_2", "AVX2", "AVX512")},
    **{
        f"MKL {isa}, no strict mode": {"MKL_ENABLE_INSTRUCTIONS": isa, **DECLINED}
        for isa in ("SSE4_2", "AVX2", "AVX512")
    },
    **{f"oneDNN {isa}": {"ONEDNN_MAX_CPU_ISA": isa} for isa in ("SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_BF16")},
    **{f"ATen {level}": {"ATEN_CPU_CAPABILITY": level} for level in ("default", "avx2")},
}
"""By name."""

INTEL_CHECK = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"
"""In place of MKL's question whether the processor is Intel's, so that another make computes with Intel's kernels."""


def settings(folder: Path) -> dict[str, Environment]:
    """Those that can be tried here; `folder` holds what has to be compiled."""
    found = dict(SETTINGS)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler and platform.machine() == "x86_64" and "GenuineIntel" not in Path("/proc/cpuinfo").read_text():
        source, library = folder / "intel.c", folder / "intel.so"
        source.write_text(INTEL_CHECK)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        preload = {"LD_PRELOAD": str(library)}
        for isa in ("", "AVX2", "SSE4_2"):
            chosen = {**preload, **({"MKL_ENABLE_INSTRUCTIONS": isa} if isa else {})}
            name = f"MKL as on Intel's{' ' * bool(isa)}{isa}"
            found |= {name: chosen, f"{name}, no strict mode": {**chosen, **DECLINED}}
    return found


def environment(chosen: Environment) -> dict[str, str]:
    """The variables of a process that is to compute so."""
    cleared = {name: value for name, value in os.environ.items() if not name.startswith(("MKL_", "ONEDNN_", "ATEN_"))}
    return {**cleared, "OMP_WAIT_POLICY": "PASSIVE", **chosen}


def digests(chosen: Environment) -> dict[str, str]:
    """Digests of products and reductions in a process that computes so, by what they are of."""
    run = [sys.executable, "-m", "tests.processors.digest"]
    done = subprocess.run(run, env=environment(chosen), capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def changed(chosen: Environment, plain: Mapping[str, str]) -> list[str]:
    """What has other bits than in a process that computes as the machine does."""
    return [name for name, digest in digests(chosen).items() if digest != plain[name]]

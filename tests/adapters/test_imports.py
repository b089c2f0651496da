"""Importing the library costs little more than importing torch."""

import subprocess
import sys

HEAVY = ("torch._dynamo", "torch._inductor", "diffusers", "timm", "transformers")

SCRIPT = f"""
import sys, torch
by_torch = set(sys.modules)
import catome_core, catome_adapters
print(*[name for name in {HEAVY} if name in sys.modules and name not in by_torch])
"""


def test_import_leaves_the_compiler_and_the_hosts_for_later():
    paths = {"PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=paths, check=True)
    assert result.stdout.split() == []

"""The printed report: the arrangement in force, what each check covered, and whether the guarantee holds."""

from __future__ import annotations

import sys

import torch

from dlm.bench.machine.processor import processor
from dlm.models.arrangement import Arrangement
from dlm.models.io.loading import Checkpoint
from dlm.selfcheck.checks import CheckResult, Cost


class SelfCheckReport:
    """Prints results as they arrive, and at the end whether all hold."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self._dtype = ""
        print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")

    def begin(self, checkpoint: Checkpoint) -> None:
        """Print the header of a model's results."""
        backbone = checkpoint.backbone
        self._dtype = str(backbone.dtype).removeprefix("torch.")
        millions = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
        print(f"\n{checkpoint.family.name}, {millions:.1f}M parameters, {self._dtype}", flush=True)

    def add(self, result: Arrangement | CheckResult | Cost) -> None:
        match result:
            case Arrangement():
                print(f"  arrangement  {result}")
                for product, counts in result.counts.items():
                    print(f"               {product.outputs} x {product.inputs}: {counts}")
            case Cost():
                ratios = ", ".join(f"{ratio:.2f} with {size} at once" for size, ratio in result.ratios.items())
                print(f"  cost         time relative to a decoder whose bits may depend on the batch: {ratios}")
            case CheckResult():
                verdict = "equal" if result.holds else f"{result.different} differ, first: {result.first}"
                verdict = verdict if result.compared else "nothing was compared"
                print(f"  {result.name:<12} {result.covered}: {result.compared} comparisons, {verdict}")
                if not result.holds:
                    self.failed.append(f"{self._dtype} {result.name}")
        sys.stdout.flush()

    def conclude(self) -> int:
        """Print whether the guarantee holds; returns the exit code."""
        if self.failed:
            print(
                f"\nFAILED: {', '.join(self.failed)}: on this machine answers depend on what they are batched with. "
                "Until this is fixed, decode with decoder.max_num_seqs=1; please report the output above.",
                flush=True,
            )
            return 1
        print("\nholds: every comparison has equal bits")
        return 0

"""Every backend gives what the definition gives, on fresh windows, arena ranges, grouped queries and causal masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.errors import MissingExtraError
from dlm.models.attention import (
    NaiveAttention,
    PackedAttention,
    SdpaAttention,
    Segment,
    SeparateAttention,
    VarlenAttention,
    choose_backend,
    equal_runs,
    kernels,
)
from dlm.models.attention.kernels import FlashKernel, TorchKernel
from dlm.models.attention.segments import Retain, packing_order
from tests.models.attention.stand_in_kernel import KernelByDefinition
from tests.rounding import of_products
from tests.threads import threads

SEGMENTS = [
    Segment(0, 8),
    Segment(8, 8, slot=0),
    Segment(16, 7, slot=20),
    Segment(23, 4, slot=42, key_start=40, num_keys=9),
    Segment(27, 4, slot=53, key_start=50, num_keys=9),
    Segment(31, 4, slot=61, key_start=60, num_keys=9),
    Segment(35, 3, slot=70, key_start=70, num_keys=6),
    Segment(38, 3, slot=80, key_start=80, num_keys=6),
]
CAUSAL = [
    Segment(0, 5),
    Segment(5, 7, slot=30, retain=Retain(2, 5, 3, 3, True)),
    Segment(12, 6, slot=40, retain=Retain(0, 2, 2, 1, False)),
    Segment(18, 3, slot=52, key_start=50, num_keys=9),
    Segment(21, 4, slot=62, key_start=60, num_keys=8),
    Segment(25, 5, slot=70, key_start=70, num_keys=5, causal=True),
    Segment(30, 2, slot=77, key_start=75, num_keys=4, causal=True),
]


KERNELS = [KernelByDefinition(takes_used=used) for used in (False, True)]


@pytest.fixture(params=KERNELS, ids=["gathering", "in_place"])
def stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> KernelByDefinition:
    kernel: KernelByDefinition = request.param
    monkeypatch.setattr(kernels, "varlen_kernel", lambda: kernel)
    kernel.calls.clear()
    return kernel


@pytest.mark.parametrize("segments", [SEGMENTS, CAUSAL], ids=["plain", "causal"])
@pytest.mark.parametrize("backend", [SdpaAttention, SeparateAttention, VarlenAttention])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("stand_in")
def test_a_backend_equals_the_definition(
    backend: type[PackedAttention], kv_heads: int, dtype: torch.dtype, segments: list[Segment]
) -> None:
    """Twice, as layers do: what a first layer prepared must serve the next."""
    torch.manual_seed(0)
    tokens = segments[-1].row + segments[-1].rows
    rows = tokens + 3
    query = torch.randn(rows, 4, 8, dtype=dtype)
    key, value = (torch.randn(rows, kv_heads, 8, dtype=dtype) for _ in range(2))
    arenas = [torch.randn(2, 90, kv_heads, 8, dtype=dtype) for _ in range(2)]
    results = []
    for kind in (backend, NaiveAttention):
        keys, values = (arena.clone() for arena in arenas)
        subject = kind(segments, keys, values)
        output = subject(1, query, key, value)  # type: ignore[operator]  # the base class only stores
        assert torch.isfinite(output).all()
        assert torch.equal(keys[0], arenas[0][0])
        assert torch.equal(keys[1, 52:55] if segments is CAUSAL else keys[1, 42:45], key[segments[3].row :][:3])
        again = subject(0, query.flip(0), key.flip(0), value.flip(0))  # type: ignore[operator]  # as above
        results.append((output[:tokens], again[:tokens], keys, values))
    rounding = of_products(dtype, 8, rows, rows) * float(torch.cat([value, arenas[1].flatten(0, 1)]).abs().max())
    for mine, naive in zip(*results, strict=True):
        torch.testing.assert_close(mine, naive, atol=rounding, rtol=0.0)


def test_causal_rows_see_the_keys_up_to_the_lower_right() -> None:
    """Written out for two rows and four keys: the first sees three, the last all."""
    query, key = torch.zeros(2, 1, 4), torch.zeros(2, 1, 4)
    arena = torch.zeros(1, 4, 1, 4), torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 1, 4).clone()
    value = torch.tensor([2.0, 3.0]).view(2, 1, 1).expand(2, 1, 4)
    for backend in (SdpaAttention, SeparateAttention, NaiveAttention):
        output = backend([Segment(0, 2, slot=2, key_start=0, num_keys=4, causal=True)], *arena)(0, query, key, value)
        assert output[:, 0, 0].tolist() == [1.0, 1.5]


@pytest.mark.parametrize("names", ["window_size", "is_causal", "window_size, enable_gqa", "is_causal, enable_gqa"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("takes_used", [False, True])
def test_torchs_kernel_is_called_as_its_version_wants(
    names: str, causal: bool, kv_heads: int, takes_used: bool
) -> None:
    """Causality and grouped heads have other names between versions; where groups have none, keys are repeated."""
    seen: dict[str, Any] = {}
    definition = KernelByDefinition()

    def run(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.update(options, heads=k.shape[1])
        is_causal = options.get("is_causal", False) or options.get("window_size", (-1, -1)) == (-1, 0)
        return definition(q, k, v, *rest, causal=is_causal, used=options.get("seqused_k"))

    scope: dict[str, Any] = {"run": run}
    names += ", seqused_k" if takes_used else ""
    given = ", ".join(f"{name}=None" for name in names.split(", "))
    passed = ", ".join(f"'{name}': {name}" for name in names.split(", "))
    exec(  # a function whose parameters have those names
        f"def varlen_attn(q, k, v, cq, ck, mq, mk, *, {given}):\n"
        f"    options = {{n: x for n, x in {{{passed}}}.items() if x is not None}}\n"
        "    return run(q, k, v, cq, ck, mq, mk, **options)",
        scope,
    )
    torch.manual_seed(1)
    query, key, value = torch.randn(6, 4, 8), torch.randn(9, kv_heads, 8), torch.randn(9, kv_heads, 8)
    lengths = torch.tensor([0, 2, 6], dtype=torch.int32), torch.tensor([0, 4, 9], dtype=torch.int32)
    kernel = TorchKernel(scope["varlen_attn"])
    assert kernel.takes_used == takes_used
    used = torch.tensor([3, 4], dtype=torch.int32) if takes_used else None
    mine = kernel(query, key, value, *lengths, 4, 5, causal=causal, used=used)
    expected = definition(query, key, value, *lengths, 4, 5, causal=causal, used=used)
    rounding = of_products(torch.float32, 8, len(key), len(key)) * float(value.abs().max())
    torch.testing.assert_close(mine, expected, atol=rounding, rtol=0.0)
    assert seen["heads"] == (kv_heads if "enable_gqa" in names else 4)
    assert seen.get("enable_gqa") == (True if "enable_gqa" in names and kv_heads == 2 else None)
    assert ("window_size" in seen or "is_causal" in seen) == causal


def test_the_kernel_of_flash_attn_takes_no_used_lengths() -> None:
    kernel = FlashKernel(lambda *given, causal: given[0] * (2 if causal else 1))
    one, ends = torch.ones(1, 1, 8), torch.tensor([0, 1], dtype=torch.int32)
    assert float(kernel(one, one, one, ends, ends, 1, 1, causal=True).sum()) == 16
    with pytest.raises(RuntimeError, match="used lengths"):
        kernel(one, one, one, ends, ends, 1, 1, causal=False, used=ends)


def refuses_used(*given: Any, causal: bool, used: Tensor | None = None) -> Tensor:
    if used is not None:
        raise RuntimeError("not supported with the cuDNN backend")
    return KernelByDefinition()(*given, causal=causal)


def test_keys_are_read_in_place_where_the_kernel_was_seen_to() -> None:
    """One that takes no lengths, one that refuses them and one that reads other places: gathered."""
    refuses_used.takes_used = True  # type: ignore[attr-defined]  # a kernel has this property
    device = torch.device("cpu")
    assert kernels.reads_in_place(KernelByDefinition(), device, torch.float32)
    assert not kernels.reads_in_place(KernelByDefinition(takes_used=False), device, torch.float32)
    assert not kernels.reads_in_place(KernelByDefinition(in_order=True), device, torch.float32)
    assert not kernels.reads_in_place(refuses_used, device, torch.float32)


def test_varlen_groups_what_attends_alike(stand_in: KernelByDefinition) -> None:
    """One kernel call each for windows on themselves, on the arena, and causal ones; nothing gathered needlessly."""
    arena = [torch.zeros(1, 80, 2, 8) for _ in range(2)]
    subject = VarlenAttention(CAUSAL, *arena)
    query, key, value = (torch.randn(32, 2, 8) for _ in range(3))
    subject(0, query, key, value)
    stand_in.calls.clear()
    subject(0, query, key, value)
    assert stand_in.calls == [3, 2, 2]
    assert subject.groups is not None
    assert [group.gather is None for group in subject.groups] == [True, stand_in.takes_used, stand_in.takes_used]


def test_varlen_without_a_kernel_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "varlen_kernel", lambda: None)
    with pytest.raises(MissingExtraError, match="flash"):
        VarlenAttention([Segment(0, 4)])


def test_packing_order_puts_what_attends_alike_together() -> None:
    shuffled = [CAUSAL[index] for index in (5, 0, 3, 6, 1, 4, 2)]
    mixed = sorted(shuffled, key=packing_order)
    kinds = [(segment.key_start is not None, segment.causal) for segment in mixed]
    assert kinds == sorted(kinds)


def test_equal_neighbours_share_a_call() -> None:
    runs = equal_runs(SEGMENTS)
    assert [(run.count, run.stride) for run in runs] == [(2, 0), (1, 0), (3, 10), (2, 10)]


@pytest.mark.bits
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("heads", [(4, 4), (10, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_neighbours_do_not_change_a_window(dtype: torch.dtype, heads: tuple[int, int], count: int) -> None:
    with threads(count):
        for rows in (*range(1, 34), 64, 70) if count == 2 else (1, 3, 4, 17, 33, 64):
            assert_neighbours_do_not_matter(rows, dtype, *heads)


def assert_neighbours_do_not_matter(rows: int, dtype: torch.dtype, heads: int, kv_heads: int) -> None:
    """Bitwise: four windows of one shape together, and each of them alone."""
    generator = torch.Generator().manual_seed(rows)
    for num_keys in (rows + 8, rows + 90):
        query = torch.randn(4 * rows, heads, 16, generator=generator).to(dtype)
        key, value = torch.randn(2, 4 * rows, kv_heads, 16, generator=generator).to(dtype)
        arena = [torch.randn(1, 1000, kv_heads, 16, generator=generator).to(dtype) for _ in range(2)]
        segments = [Segment(i * rows, rows, 250 * i, 250 * i, num_keys) for i in range(4)]
        together = SeparateAttention(segments, *(part.clone() for part in arena))(0, query, key, value)
        for segment in segments:
            mine = slice(segment.row, segment.row + rows)
            alone = Segment(0, rows, segment.slot, segment.key_start, num_keys)
            packed = SeparateAttention([alone], *(part.clone() for part in arena))
            assert torch.equal(packed(0, query[mine].clone(), key[mine].clone(), value[mine].clone()), together[mine])


def test_the_backend_follows_device_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend(torch.device("cpu"), torch.bfloat16) is SeparateAttention
    assert choose_backend(torch.device("cuda"), torch.float32) is SdpaAttention
    monkeypatch.setattr(kernels, "varlen_kernel", KernelByDefinition)
    assert choose_backend(torch.device("cuda"), torch.bfloat16) is VarlenAttention
    monkeypatch.setattr(kernels, "varlen_kernel", lambda: None)
    assert choose_backend(torch.device("cuda"), torch.bfloat16) is SdpaAttention

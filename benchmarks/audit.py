"""Audit an adapter of Mistral-7B's shapes (224 modules, r = 64): time, peak memory, and two other ways to do it.

    python benchmarks/audit.py [--dtype bf16|fp32] [--out FILE.json] [--no-dense]

Values are random, which costs what real ones cost. Every way runs in its own process with one thread: two gain nothing
on matrices this small, and cost tenfold when another process wants a core. Seconds (wall, and CPU in case the machine
is busy) are those of the audit, after imports; peak memory is the growth of the process's resident set over what it was
after imports, pages of the adapter file mapped into it included. `gram` takes the eigenvalues of the products of Gram
matrices, read through the same reader. `dense` forms BA and takes its singular values, for one k_proj and one q_proj;
the total counts every larger module as a q_proj, so it is a lower bound. Ratios are of CPU seconds. The error is the
worst relative one of any singular value of a spectrum that falls from 1 to 1e-12, where float64 can give some four
digits of the smallest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS = 1
LAYERS, HIDDEN, KV, INTERMEDIATE, RANK = 32, 4096, 1024, 14336, 64
PROJECTIONS = {  # {module: (in, out)}
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KV),
    "self_attn.v_proj": (HIDDEN, KV),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INTERMEDIATE),
    "mlp.up_proj": (HIDDEN, INTERMEDIATE),
    "mlp.down_proj": (INTERMEDIATE, HIDDEN),
}


def write_adapter(directory: Path, dtype: str) -> int:
    """Write the random adapter; its size in bytes."""
    import torch
    from safetensors.torch import save_file

    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(LAYERS):
        for name, (n_in, n_out) in PROJECTIONS.items():
            stem = f"base_model.model.model.layers.{layer}.{name}.lora_"
            tensors[f"{stem}A.weight"] = torch.randn(RANK, n_in, generator=generator).to(kind)
            tensors[f"{stem}B.weight"] = torch.randn(n_out, RANK, generator=generator).to(kind)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 32,
        "target_modules": [n.split(".")[1] for n in PROJECTIONS],
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return (directory / "adapter_model.safetensors").stat().st_size


def gram_singular_values(a: Any, b: Any) -> Any:
    """σ of BA as √eig((AAᵀ)^½ BᵀB (AAᵀ)^½), float64."""
    import torch

    a, b = a.double(), b.double()
    values, vectors = torch.linalg.eigh(a @ a.mT)
    root = (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT
    return torch.linalg.eigvalsh(root @ (b.mT @ b) @ root).clamp(min=0).sqrt().flip(-1)


def run_audit(directory: Path) -> dict[str, Any]:
    from nullarm.protocols.rank_mechanism.audit import audit_adapter

    audit = audit_adapter(directory)
    return {"modules": len(audit.modules)}


def run_gram(directory: Path) -> dict[str, Any]:
    from nullarm.protocols.rank_mechanism.adapter import open_adapter

    adapter = open_adapter(directory)
    spectra = [sigma for _, a, b in adapter.batches(4 * 2**20) for sigma in gram_singular_values(a, b).tolist()]
    return {"modules": len(spectra)}


def run_dense(directory: Path) -> dict[str, Any]:
    import torch

    from nullarm.protocols.rank_mechanism.adapter import open_adapter

    adapter = open_adapter(directory)
    module_of = {name: next(m for m in adapter.modules if m.name.endswith(name)) for name in ("k_proj", "q_proj")}
    each = {}
    for name, module in module_of.items():
        start = time.process_time()
        a, b = adapter.read([module.a_key, module.b_key])
        torch.linalg.svdvals(b.double() @ a.double())
        each[name] = time.process_time() - start
    small = sum(module.out_features == KV for module in adapter.modules)
    at_least = small * each["k_proj"] + (len(adapter.modules) - small) * each["q_proj"]
    return {"modules": len(each), "cpu_seconds_each": each, "cpu_seconds_all_at_least": at_least}


ROLES: dict[str, Callable[[Path], dict[str, Any]]] = {"audit": run_audit, "gram": run_gram, "dense": run_dense}


def measure(role: str, directory: Path) -> dict[str, Any]:
    """Run one way in this process; seconds and peak growth of the resident set in bytes."""
    import torch

    import nullarm.protocols.rank_mechanism.audit  # noqa: F401  imports are not part of the measurement

    torch.set_num_threads(THREADS)
    torch.linalg.svdvals(torch.linalg.qr(torch.randn(64, 8, dtype=torch.float64), mode="r").R)  # load LAPACK
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _resident("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    result = ROLES[role](directory)
    return {
        **result,
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": _resident("VmHWM") - before,
        "imports_bytes": before,
    }


def accuracy() -> dict[str, float]:
    """Worst relative error of any singular value on a spectrum from 1 down to 1e-12."""
    import torch

    from nullarm.protocols.rank_mechanism.audit import singular_values

    generator = torch.Generator().manual_seed(0)

    def orthonormal(rows: int) -> Any:
        return torch.linalg.qr(torch.randn(rows, RANK, generator=generator, dtype=torch.float64)).Q

    exact = torch.logspace(0, -12, RANK, dtype=torch.float64)
    mix = orthonormal(RANK)  # without it the factors' columns would be scaled, which eigenvalue methods see through
    a, b = (orthonormal(HIDDEN) @ mix.mT).mT[None], (orthonormal(HIDDEN) * exact @ mix.mT)[None]
    ways = {"audit": singular_values, "gram": gram_singular_values}
    return {way: float(((function(a, b)[0] - exact).abs() / exact).max()) for way, function in ways.items()}


def in_fresh_process(role: str, directory: Path) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    command = [sys.executable, __file__, "--role", role, "--adapter", str(directory)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def print_table(results: dict[str, Any]) -> None:
    size = results["adapter_bytes"]
    print(f"adapter: {LAYERS * len(PROJECTIONS)} modules, r = {RANK}, {results['dtype']}, {size / 2**20:.0f} MiB")
    print(
        f"{'way':<8}{'wall s':>8}{'CPU s':>10}{'× audit':>9}{'peak MiB':>10}{'× adapter':>11}"
        f"{'process MiB':>13}{'worst error':>13}"
    )
    for way, row in results["ways"].items():
        bound = row.get("cpu_seconds_all_at_least")
        cpu = f"≥{bound:.0f}" if bound else f"{row['cpu_seconds']:.2f}"
        wall = "—" if bound else f"{row['seconds']:.2f}"
        error = results["accuracy"].get(way)
        print(
            f"{way:<8}{wall:>8}{cpu:>10}{row['cpu_over_audit']:>9.1f}"
            f"{row['peak_bytes'] / 2**20:>10.0f}{row['peak_over_adapter']:>11.2f}"
            f"{(row['peak_bytes'] + row['imports_bytes']) / 2**20:>13.0f}"
            f"{format(error, '.1e') if error is not None else '—':>13}"
        )
    if "dense" in results["ways"]:
        each = ", ".join(f"{k} {v:.1f} s" for k, v in results["ways"]["dense"]["cpu_seconds_each"].items())
        print(f"≥ dense: measured one module of two shapes ({each}), the larger ones counted as q_proj")


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="type the adapter is stored in")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--no-dense", action="store_true", help="leave out the dense SVD (minutes)")
    parser.add_argument("--role", choices=tuple(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--adapter", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    if arguments.role:
        print(json.dumps(measure(arguments.role, arguments.adapter)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        size = write_adapter(directory, arguments.dtype)
        roles = [role for role in ROLES if role != "dense" or not arguments.no_dense]
        ways = {role: in_fresh_process(role, directory) for role in roles}
    for row in ways.values():
        cpu = row.get("cpu_seconds_all_at_least", row["cpu_seconds"])
        row["cpu_over_audit"] = cpu / ways["audit"]["cpu_seconds"]
        row["peak_over_adapter"] = row["peak_bytes"] / size
    results = {
        "dtype": arguments.dtype,
        "adapter_bytes": size,
        "threads": THREADS,
        "ways": ways,
        "accuracy": accuracy(),
    }
    print_table(results)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

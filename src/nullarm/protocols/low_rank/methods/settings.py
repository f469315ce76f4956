"""Methods as data: how matrices are made smaller. No torch; `methods.decompose` and `methods.rounding` do the work."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nullarm.study.spec import Strict

Needs = Literal["nothing", "scales", "gram"]
"""What a method has to know of a matrix's inputs: nothing, a number per channel, or which of them go together."""


class Grc(Strict):
    """A basis that several matrices share, from their weights alone (HyperTensor, Paper B).

    P is the top-k eigenvectors of K = Σ_i W_iᵀW_i/‖W_i‖_F², and W̃_i = W_i Pᵀ. P has orthonormal rows.
    """

    kind: Literal["grc"] = "grc"
    """Name of the method."""
    normalised: bool = True
    """Divide each matrix's part of K by its squared norm; without, this is the truncated SVD of the stack."""

    shared: ClassVar[bool] = True
    needs: ClassVar[Needs] = "nothing"


class Svd(Strict):
    """Truncated SVD of each matrix: the least ‖W − W'‖_F at its rank (Eckart and Young 1936)."""

    kind: Literal["svd"] = "svd"
    """Name of the method."""

    shared: ClassVar[bool] = False
    needs: ClassVar[Needs] = "nothing"


class Asvd(Strict):
    """Truncated SVD of W S, then S undone, with S = diag((mean |x|)^α) (ASVD, 2312.05821)."""

    kind: Literal["asvd"] = "asvd"
    """Name of the method."""
    alpha: float = Field(default=0.5, ge=0, le=2)
    """α; at 0 this is plain SVD."""

    shared: ClassVar[bool] = False
    needs: ClassVar[Needs] = "scales"


class SvdLlm(Strict):
    """Truncation-aware whitening: the least ‖(W − W')X‖_F at its rank (SVD-LLM, 2403.07378)."""

    kind: Literal["svd_llm"] = "svd_llm"
    """Name of the method."""
    ridge: float = Field(default=1e-4, gt=0, le=1)
    """What is added to the diagonal of XXᵀ before its Cholesky factor is taken, × the diagonal's mean."""

    shared: ClassVar[bool] = False
    needs: ClassVar[Needs] = "gram"


class WhitenedGrc(Strict):
    """A basis that several matrices share, as `svd_llm` finds it for the matrices stacked."""

    kind: Literal["whitened_grc"] = "whitened_grc"
    """Name of the method."""
    ridge: float = Field(default=1e-4, gt=0, le=1)
    """As in `svd_llm`."""

    shared: ClassVar[bool] = True
    needs: ClassVar[Needs] = "gram"


class RoundToNearest(Strict):
    """Whole numbers with a scale per block of a row: what the same bytes buy without low rank.

    scale = max |w| / (2^(bits − 1) − 1), rounded up to fp16, codes round(w / scale).
    """

    kind: Literal["round_to_nearest"] = "round_to_nearest"
    """Name of the method."""
    bits: Literal[8, 4] = 8
    """Bits of a code."""
    block: int = Field(default=64, ge=2)
    """Numbers of a block; the last one of a row may be shorter."""

    shared: ClassVar[bool] = False
    needs: ClassVar[Needs] = "nothing"

    def bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of a rounded matrix: its codes, each row in whole bytes, and two for the scale of each block."""
        return out_features * (-(-in_features * self.bits // 8) + 2 * -(-in_features // self.block))


LowRank = Grc | Svd | Asvd | SvdLlm | WhitenedGrc
"""Methods that have a rank."""
Method = Annotated[LowRank | RoundToNearest, Field(discriminator="kind")]

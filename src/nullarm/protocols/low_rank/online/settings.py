"""How shared bases are adapted on a stream. No torch: a plan reads it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nullarm.study.spec import Strict


class OnlineSettings(Strict):
    """Block Oja on the inputs' drift: the compressed model's − the original's, at the same tokens."""

    direction: Literal["difference", "random", "frozen", "offline_refit"] = "difference"
    """Where the basis is turned to: the drift; or, as controls, random directions of the same norm per block, nowhere
    (the factors stay as they are, to the bit), and at once to the subspace that Oja would converge to."""
    c: float = Field(default=1.0, gt=0)
    """η = c / t in block t, relative to the mean eigenvalue of the drift's second moment so far."""
    block_tokens: int = Field(default=1024, ge=1)
    """Tokens of a block, in whole windows, one at least."""
    blocks: int = Field(default=16, ge=1)
    """Blocks of the stream."""

"""Caches, fusion and answers on a GPU are those of the CPU; a message may be written on one and read on the other."""

from __future__ import annotations

import pytest
import torch

from nullarm.models.load import load_causal_lm
from nullarm.protocols.kv_communication.communication.answer import choice_log_likelihoods
from nullarm.protocols.kv_communication.communication.exchange import Heard
from nullarm.protocols.kv_communication.communication.fuse import Contribution, source_index, together
from nullarm.protocols.kv_communication.communication.prefill import prefill
from nullarm.protocols.kv_communication.communication.transmission import messages_of, received
from nullarm.protocols.kv_communication.fuser import C2CProjector, Fuser
from nullarm.protocols.kv_communication.geometry import Geometry
from nullarm.protocols.kv_communication.wire.codec import Codec, Raw, Rotated
from nullarm.protocols.kv_communication.wire.message import decode_many, encode_many

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
CHOICES = [[[20], [21]], [[22, 23], [24]]]


def answers(device: str, codec: Codec) -> torch.Tensor:
    """Log-likelihoods of the choices through a fuser with open gates."""
    receiver, _ = load_causal_lm("random:tiny-qwen3", device=device)
    sharer, _ = load_causal_lm("random:tiny-llama@1", device=device)
    torch.manual_seed(0)
    fuser = Fuser.create(Geometry.of(sharer.config), Geometry.of(receiver.config), hidden_dim=8, intermediate_dim=8)
    for projector in fuser.projectors:
        assert isinstance(projector, C2CProjector)
        for half in ("key", "value"):
            projector.gate_logit(half).data.fill_(1.0)
    fuser.to(device).eval()
    heard = [Heard(ids, [*range(len(ids) - 1), -1]) for ids in PROMPTS]
    own, sent = prefill(receiver, [ids[:-1] for ids in PROMPTS]), prefill(sharer, PROMPTS)
    blobs = encode_many(messages_of(sent, fuser.streams(), [h.wanted for h in heard]), codec)
    like = sent.kv[0][0]
    got = received(decode_many(blobs, device=device), sent.mask.shape[1], like)
    with torch.no_grad():
        fused = together(own, [Contribution(fuser, got, source_index(heard, sent.mask))])
    return torch.tensor(choice_log_likelihoods(receiver, fused, [ids[-1] for ids in PROMPTS], CHOICES))


@pytest.mark.parametrize("codec", [Raw(dtype="float32"), Rotated(bits=4, group=8)])
def test_answers_are_those_of_the_cpu(codec: Codec) -> None:
    torch.testing.assert_close(answers("cuda", codec), answers("cpu", codec), rtol=1e-2, atol=2e-2)

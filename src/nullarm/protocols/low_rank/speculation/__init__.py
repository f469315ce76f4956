"""Speculative decoding: a compressed model drafts, the original verifies, and what is written is the original's.

Read `rejection` (which drafted tokens stay), `decoder` (rounds, caches), `result` (what was counted, the speed-up that
it predicts), `subject` (the same for a bench), `session` (what the runs of a timing session counted).
"""

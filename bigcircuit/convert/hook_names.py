"""Names of TransformerLens for the places that masks act at, after `blocks.<layer>.`."""

HEADS, NEURONS = "attn.hook_z", "mlp.hook_post"
"""Outputs of the heads, [batch, tokens, heads, head width], and MLP neurons, [batch, tokens, neurons]."""
ALIASES = {"attn.o.hook_in": HEADS, "mlp.out.hook_in": NEURONS}
"""Names of the bridge of TransformerLens 4 -> older spelling, which the bridge knows too."""

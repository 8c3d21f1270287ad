"""Models with a planted circuit: ground truth for methods that look for circuits.

A small working model is widened with heads and MLP neurons that are as active as its own and of which it is proven that it
does not need them. What is the truth then, and why should anybody believe it?

**Definition.** A circuit is *exact* if its logits are the model's on every prompt. The truth is the smallest exact circuit.

**Nothing else is needed (a proof).** Decoys read as some original node does, so their activations are as large, as varied and
as different between clean and corrupted prompts. They are of four kinds:

 - `silent`: their columns of the output projection are zero. Whatever their masks are, nothing changes.
 - `unread`: they write along the vector of ones alone, as strongly as originals write. Where every reader of the residual
   stream is a LayerNorm, which subtracts the mean and divides by a deviation that does not see it, nothing changes whatever
   their masks are. Not for models with RMSNorm.
 - `opposed`: pairs that read alike and write opposite vectors of the size of the originals'. On every prompt, in both streams,
   they add up to zero, so the circuit without both is exact; either one alone is not.
 - `inner` (heads): a head whose neurons are such pairs. As a head it writes zero; its neurons are opposed.

**All of the truth is needed (a measurement).** Closing any single node of it, everything else open, changes the output: `base.py`
makes models that work and in which each one costs at least a given KL, by cutting what costs less and training on until all do;
a test measures it again in the widened model. No method under test takes part in this.

**Copies.** An original may be `shared`: two nodes that read alike and write s and 1 - s times what it wrote. Both are in the
truth: without either one the model has lost a part of that output. Copies of which one alone would do are not planted. Outputs are
added up, so of two that matter, both open give twice what one gives; only a reader that is saturated on every prompt would not
notice, and this kind of backup has no single truth anyway: with either one the smallest exact circuit is as small, and recall
would be a matter of taste. The redundant copies here are therefore `shared`, which read alike and are needed together, and
`opposed`, which read alike and undo each other.

Truth holds for heads and for neurons. Where nodes sit among each other is random. An attention neuron within an original head that
the base does not need writes zero (`silent`).
"""

from bigcircuit.planted.base import Base, make_base
from bigcircuit.planted.plant import Planted, plant
from bigcircuit.planted.recovery import Recovery, recovery

__all__ = ["Base", "Planted", "Recovery", "make_base", "plant", "recovery"]

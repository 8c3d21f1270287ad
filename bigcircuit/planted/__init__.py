"""Models with a planted circuit: ground truth for methods that find circuits. Used by tests and benchmarks only.

A small working model is widened with heads and MLP neurons, called decoys, that are as active as its own and that it provably
does not need. What the truth is, and why:

**Definition.** A circuit is *exact* if its logits are the model's on every prompt. The truth is the smallest exact circuit.

**Nothing else is needed (a proof).** Decoys have the input weights of some original node, so their activations are as large, as
varied and as different between clean and corrupted prompts. They are of four kinds:

 - `silent`: their columns of the output projection are zero. Whatever their masks are, nothing changes.
 - `unread`: they write along the vector of ones alone, as strongly as originals write. Where every reader of the residual
   stream is a LayerNorm, which subtracts the mean and divides by a deviation that does not see it, nothing changes whatever
   their masks are. Not for models with RMSNorm.
 - `opposed`: pairs with the same input weights that write opposite vectors of the size of the originals'. On every prompt, in
   both streams, their sum is zero, so the circuit without both is exact; the circuit without only one of them is not.
 - `inner` (heads): a head whose neurons are such pairs. As a head it writes zero; its neurons are opposed.

**All of the truth is needed (a measurement).** Closing any single node of the truth, everything else open, changes the output:
`base.py` makes models that solve their task and in which each node costs at least a given KL, by removing the nodes that cost less
and training further until all do; a test measures this again in the widened model. No method under test takes part.

**Copies.** An original may be `shared`: two nodes with its input weights that write s and 1 - s times what it wrote. Both are in
the truth: without either, the model loses a part of that output. Copies of which either is enough are not planted. Outputs are
added up, so two open copies give twice what one gives; only a reader that is saturated on every prompt would not change, and this
kind of backup has no single truth anyway: with either copy the smallest exact circuit has the same size, and recall would be
arbitrary. The redundant copies here are therefore `shared`, which are needed together, and `opposed`, which cancel each other.

**Mixtures.** `mixture.py` plants experts in the same way: all experts come in two halves with one router row, which a token gets
together and with equal weights. Halves of needed experts are `shared`, the others write `opposed` matrices.

Truth holds for heads and for neurons. The order of nodes within a layer is random. An attention neuron within an original head
that the base does not need writes zero (`silent`).
"""

from bigcircuit.planted.base import Base, make_base
from bigcircuit.planted.mixture import make_mixture, plant_mixture
from bigcircuit.planted.plant import Planted, plant
from bigcircuit.planted.recovery import Recovery, recovery

__all__ = ["Base", "Planted", "Recovery", "make_base", "make_mixture", "plant", "plant_mixture", "recovery"]

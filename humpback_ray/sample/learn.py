"""Next-token training for the toy's Llama, cheap on few cores.

It computes the same function as transformers (a test compares loss and gradients), only faster. On one core of an AMD
EPYC, a step of 1,024 tokens with half a million parameters takes 34 ms of CPU time; transformers' forward pass with
torch's optimizers takes 61.

- Matrices of equal shape are stacked, so a step takes few, large operations; Muon orthogonalizes a whole stack at once.
- Attention is two products and a softmax: 1 ms for the rows of a layer; torch's fused kernel takes 8 ms.
- The gradient of the output layer, a third of the arithmetic, comes from a formula, without a second pass over all
  logits.
- float32 products may use oneDNN (`single_threaded`), which is twice as fast as MKL here.
- Two threads process half of the rows each and synchronize once per step. They wait without spinning: a step takes
  25 ms instead of 37 with two free cores, 37 with one, and two thirds of its time next to four busy processes.

Given up: features that the toy does not need, such as dropout, biases and grouped heads.

Letters in names of tensors: B rows, T tokens of a row, N = B x T, H heads, D size of a head, W width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration, run for `STEPS` steps: Jordan et al. 2024, as in `torch.optim.Muon`."""
STEPS = 5
KEPT_BYTES = 31 << 20
"""Just below the largest block that raises the threshold of glibc's malloc: 32 MiB, DEFAULT_MMAP_THRESHOLD_MAX."""


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run operations on a single thread, and multiply float32 matrices with oneDNN if torch has it.

    Both settings are restored afterwards. OpenMP threads make a step of this size little faster, and much slower next
    to other work: they spin while they wait for each other, including for a thread that has lost its core. "medium"
    permits bfloat16 inside products. oneDNN uses it only on processors with AMX; others multiply in float32.
    """
    import torch

    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    torch.empty(KEPT_BYTES, dtype=torch.uint8)  # freed at once; from then on malloc keeps the memory that steps free
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


class Learner:
    """Trains a Llama: call `step` for each batch, then `finish` to write the weights back into the model.

    Args:
        model: a LlamaForCausalLM with tied embeddings, as many key heads as heads, and no bias.
        row_tokens: length of every row.
        matrix_learning_rate: Muon's peak.
        learning_rate: AdamW's peak, for embeddings and gains.
        weight_decay: AdamW's.
    """

    def __init__(
        self,
        model: "LlamaForCausalLM",
        row_tokens: int,
        matrix_learning_rate: float,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        import torch

        config, body = model.config, model.model
        layers = cast("list[LlamaDecoderLayer]", list(body.layers))
        attention, mlp = [layer.self_attn for layer in layers], [layer.mlp for layer in layers]
        self.pad, self.eps, self.heads = config.pad_token_id, config.rms_norm_eps, config.num_attention_heads
        self.embedding_VW, self.last_gain = body.embed_tokens.weight, body.norm.weight
        self.gains = [(layer.input_layernorm.weight, layer.post_attention_layernorm.weight) for layer in layers]
        self.weights = (
            [(a.q_proj.weight, a.k_proj.weight, a.v_proj.weight) for a in attention],
            [(a.o_proj.weight,) for a in attention],
            [(m.gate_proj.weight, m.up_proj.weight) for m in mlp],
            [(m.down_proj.weight,) for m in mlp],
        )
        self.stacks = [stack(weights) for weights in self.weights]
        self.momenta = [torch.zeros_like(stacked) for stacked in self.stacks]
        self.others = [self.embedding_VW, self.last_gain, *(gain for pair in self.gains for gain in pair)]
        self.matrix_learning_rate, self.learning_rate = matrix_learning_rate, learning_rate
        self.adam = torch.optim.AdamW(self.others, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
        self.cos_TD, sin_TD = (
            table[0] for table in body.rotary_emb(self.embedding_VW, torch.arange(row_tokens).unsqueeze(0))
        )
        half = sin_TD.shape[1] // 2
        self.sin_TD = torch.cat((-sin_TD[:, :half], sin_TD[:, half:]), dim=1)
        self.future_TT = torch.full((row_tokens, row_tokens), float("-inf")).triu(1)
        self.threads = ThreadPoolExecutor(2, "learn", torch.set_num_threads, (1,))

    def step(self, ids_BT: "Tensor", share: float) -> float:
        """Train on rows at a share of the peak learning rates; return the mean loss per token before the update."""
        import torch

        loss = self.backward(ids_BT)
        torch.nn.utils.clip_grad_norm_([*self.stacks, *self.others], 1.0)
        self.adam.param_groups[0]["lr"] = self.learning_rate * share
        self.adam.step()
        for weights, momentum in zip(self.stacks, self.momenta, strict=True):
            muon_(weights, momentum, self.matrix_learning_rate * share)
        for weights in (*self.stacks, *self.others):
            weights.grad = None
        return loss

    def backward(self, ids_BT: "Tensor") -> float:
        """Compute the gradients of the mean loss over all predicted tokens except padding; return the loss."""
        import torch

        next_BT = torch.nn.functional.pad(ids_BT[:, 1:], (0, 1), value=self.pad)
        share_BT = (next_BT != self.pad).to(self.embedding_VW.dtype)
        share_BT /= share_BT.sum()
        halves = (tensor.chunk(2) for tensor in (ids_BT, next_BT, share_BT))
        losses, gradients = zip(*self.threads.map(self.gradients, *halves), strict=True)
        for leaf, *parts in zip((*self.stacks, *self.others), *gradients, strict=True):
            leaf.grad = sum(parts)
        return sum(losses)

    def gradients(self, ids_BT: "Tensor", next_BT: "Tensor", share_BT: "Tensor") -> "tuple[float, Sequence[Tensor]]":
        """Return the rows' share of the loss, and their gradients for the stacks, then for the other weights.

        Args:
            ids_BT: the rows.
            next_BT: the token that follows each.
            share_BT: weight of each next token in the mean; 0 for padding.
        """
        import torch

        hidden_NW = self.hidden(ids_BT)
        loss, hidden_grad, embedding_grad = next_token_loss(
            hidden_NW.detach(), self.embedding_VW.detach(), next_BT.reshape(-1, 1), share_BT.reshape(-1, 1)
        )
        found = torch.autograd.grad(hidden_NW, (*self.stacks, *self.others), hidden_grad)
        found[len(self.stacks)].add_(embedding_grad)
        return loss, found

    def hidden(self, ids_BT: "Tensor") -> "Tensor":
        """Return the last hidden states, [N, W]."""
        from torch.nn.functional import embedding, silu

        x_NW = embedding(ids_BT, self.embedding_VW).flatten(0, 1)
        layers = zip(*(stacked.unbind() for stacked in self.stacks), self.gains, strict=True)
        for qkv, out, gate_up, down, (gain, second_gain) in layers:
            x_NW = x_NW + self.attend(self.normed(x_NW, gain) @ qkv.flatten(0, 1).T, len(ids_BT)) @ out[0].T
            gate, up = (self.normed(x_NW, second_gain) @ gate_up.flatten(0, 1).T).chunk(2, dim=1)
            x_NW = x_NW + (silu(gate) * up) @ down[0].T
        return self.normed(x_NW, self.last_gain)

    def attend(self, qkv_N3W: "Tensor", rows: int) -> "Tensor":
        """Return the causal attention output of every token within its row, [N, W]."""
        import torch

        tokens, size = self.cos_TD.shape
        qkv = qkv_N3W.view(rows, tokens, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        qk, value = qkv.split((2, 1))
        qk = qk * self.cos_TD + qk.roll(size // 2, -1) * self.sin_TD
        query, key = qk.reshape(2, rows * self.heads, tokens, size)
        scores = torch.baddbmm(self.future_TT, query, key.mT, alpha=size**-0.5)
        read = scores.softmax(dim=-1) @ value.reshape(rows * self.heads, tokens, size)
        return read.view(rows, self.heads, tokens, size).transpose(1, 2).flatten(0, 1).flatten(1)

    def normed(self, x_NW: "Tensor", gain: "Tensor") -> "Tensor":
        """Scale every token to a mean square of 1, then by the gain."""
        return x_NW * (x_NW.square().mean(dim=1, keepdim=True) + self.eps).rsqrt() * gain

    def finish(self) -> None:
        """Write the stacks back into the model and stop the threads."""
        self.threads.shutdown()
        for stacked, weights in zip(self.stacks, self.weights, strict=True):
            for matrices, targets in zip(stacked.detach(), weights, strict=True):
                for matrix, target in zip(matrices, targets, strict=True):
                    target.detach().copy_(matrix)


def stack(weights: "Sequence[Sequence[Tensor]]") -> "Tensor":
    """Return copies of the matrices of every layer as one leaf: [layers, matrices of a layer, rows, columns]."""
    import torch

    return torch.stack([torch.stack([w.detach() for w in layer]) for layer in weights]).requires_grad_()


def next_token_loss(
    hidden_NW: "Tensor", embedding_VW: "Tensor", next_N1: "Tensor", share_N1: "Tensor"
) -> "tuple[float, Tensor, Tensor]":
    """Return the cross-entropy of the next tokens and its gradients for hidden states and embeddings.

    Args:
        hidden_NW: last hidden states.
        embedding_VW: the output layer.
        next_N1: the token that follows each.
        share_N1: weight of each next token; 0 for padding.
    """
    p_NV = (hidden_NW @ embedding_VW.T).softmax(dim=1)
    loss = -(p_NV.gather(1, next_N1).log() * share_N1).sum().item()
    grad_NV = p_NV.scatter_add_(1, next_N1, share_N1.new_full((), -1).expand_as(share_N1)).mul_(share_N1)
    return loss, grad_NV @ embedding_VW, grad_NV.T @ hidden_NW


def muon_(weights: "Tensor", momentum: "Tensor", learning_rate: float) -> None:
    """Take one step of Muon on a stack of matrices, the same as `torch.optim.Muon` on each."""
    gradient = weights.grad
    assert gradient is not None
    update = gradient.lerp(momentum.lerp_(gradient, 1 - MOMENTUM), MOMENTUM)
    rows, columns = update.shape[-2:]
    weights.detach().sub_(orthogonal(update), alpha=learning_rate * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrices: "Tensor") -> "Tensor":
    """Return matrices with the same singular vectors and singular values near 1, by Newton-Schulz iteration."""
    import torch

    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).flatten(0, 1).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float().reshape(matrices.shape)

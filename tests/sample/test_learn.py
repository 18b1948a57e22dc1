from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from humpback_ray.sample.learn import Learner, muon_, single_threaded

PAD, ROWS, TOKENS = 2, 3, 16


def llama() -> Any:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=3,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def rows() -> Any:
    ids = torch.randint(3, 50, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))
    ids[0, 10:] = PAD
    return ids


def learner(model: Any) -> Learner:
    return Learner(model, TOKENS, matrix_learning_rate=1e-2, learning_rate=1e-2, weight_decay=0.1)


def test_loss_and_gradients_are_those_of_transformers() -> None:
    ids, model, other = rows(), llama(), llama()
    expected = model(input_ids=ids, labels=ids.masked_fill(ids == PAD, -100)).loss
    expected.backward()
    with single_threaded():
        learned = learner(other)
        assert learned.backward(ids) == pytest.approx(expected.item(), rel=1e-5)
    for stacked in learned.stacks:
        assert stacked.grad is not None
        stacked.data = stacked.grad
    learned.finish()  # into the weights, so each gradient is in the place of its matrix
    for (name, mine), (_, theirs) in zip(other.named_parameters(), model.named_parameters(), strict=True):
        found = mine.grad if mine.grad is not None else mine
        torch.testing.assert_close(found, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_what_was_learned_is_in_the_model_afterwards() -> None:
    ids, model = rows(), llama()
    with single_threaded():
        learned = learner(model)
        losses = [learned.step(ids, 1.0) for _ in range(5)]
        after = learned.backward(ids)
        learned.finish()
        assert model(input_ids=ids, labels=ids.masked_fill(ids == PAD, -100)).loss.item() == pytest.approx(after, 1e-5)
    assert after < losses[0] - 0.5


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (8, 8)])
def test_muon_on_a_stack_is_muon_on_each_matrix(shape: tuple[int, int]) -> None:
    torch.manual_seed(2)
    stacked = torch.randn(3, 2, *shape, requires_grad=True)
    each = [matrix.detach().clone().requires_grad_() for matrix in stacked.flatten(0, 1)]
    muon, momentum = torch.optim.Muon(each, lr=0.02, weight_decay=0.0), torch.zeros_like(stacked)
    for _ in range(3):
        stacked.grad = torch.randn_like(stacked)
        for matrix, gradient in zip(each, stacked.grad.flatten(0, 1), strict=True):
            matrix.grad = gradient.clone()
        muon_(stacked, momentum, 0.02)
        muon.step()
    torch.testing.assert_close(stacked.flatten(0, 1), torch.stack(each), rtol=0, atol=1e-3)


def test_the_single_thread_setting_is_undone_afterwards() -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(2)
    try:
        with single_threaded():
            assert torch.get_num_threads() == 1
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, before[1])
    finally:
        torch.set_num_threads(before[0])

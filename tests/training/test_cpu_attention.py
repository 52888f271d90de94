"""Attention under autocast on a CPU: in fp32 where few tokens attend."""

import pytest
import torch
import torch.nn.functional as F

import models_mimae
from util.training.cpu_attention import FEW
from util.training.precision import Precision

CPU = torch.device("cpu")


def qkv(tokens: int, dtype: torch.dtype = torch.bfloat16, shape=(2, 3)) -> list[torch.Tensor]:
    drawn = torch.randn(3, *shape, tokens, 16, generator=torch.Generator().manual_seed(tokens))
    return [x.to(dtype).requires_grad_() for x in drawn]


def attended(given: list[torch.Tensor], **options) -> list[torch.Tensor]:
    """The output, and the gradients of what is given, the output's square summed."""
    out = F.scaled_dot_product_attention(*given, **options)
    return [out.detach(), *torch.autograd.grad(out.double().square().sum(), given)]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 1.0}, {"is_causal": True}, {"attn_mask": torch.ones(17, 17).tril().bool()}],
    ids=str,
)
def test_output_and_gradients_are_float64s_rounded(amp, options):
    precision = Precision(amp, CPU)
    given = qkv(17, precision.dtype)
    exact = attended([x.detach().double().requires_grad_() for x in given], **options)
    with precision.autocast():
        found = attended(given, **options)
    assert {x.dtype for x in found} == {precision.dtype}
    half_a_digit = torch.finfo(precision.dtype).eps / 2
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1.01 * half_a_digit, atol=1e-6)
    for ours, wanted in zip(found[1:], exact[1:], strict=True):
        assert (ours.double() - wanted).norm() < 2 * half_a_digit * wanted.norm()


def test_a_bias_is_in_fp32_too_and_gets_its_gradient():
    bias = torch.randn(3, 17, 17, requires_grad=True)
    given = qkv(17)
    q, k, v = (x.detach().double() for x in given)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.double())
    with Precision("bf16", CPU).autocast():
        out = F.scaled_dot_product_attention(*given, attn_mask=bias)
    torch.testing.assert_close(out.double(), wanted, rtol=2**-8 * 1.01, atol=1e-6)
    found, exact = (
        torch.autograd.grad(x.double().sum(), bias, retain_graph=True)[0] for x in (out, wanted)
    )
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


def test_many_tokens_attend_as_pytorch_lets_them():
    given = qkv(FEW, shape=(1, 1))
    expected = attended(given)
    with Precision("bf16", CPU).autocast():
        found = attended(given)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_float64_and_what_is_outside_autocast_stay_as_they_are():
    precision = Precision("bf16", CPU)
    given = qkv(17, torch.float64)
    with precision.autocast():
        assert F.scaled_dot_product_attention(*given).dtype == torch.float64
        assert F.scaled_dot_product_attention(*qkv(17, torch.float32)).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert F.scaled_dot_product_attention(*qkv(17, torch.float32)).dtype == torch.float32
    assert F.scaled_dot_product_attention(*qkv(17, torch.float32)).dtype == torch.float32


def test_a_checkpointed_block_attends_alike_when_it_is_computed_again():
    def gradients(checkpointed: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = models_mimae.MODELS["mimae_vit_nano_patch2"](
            img_size=8, in_chans=1, depth=1, decoder_depth=1, grad_checkpointing=checkpointed
        )
        draw = torch.Generator().manual_seed(0)
        imgs, noise = torch.randn(4, 1, 8, 8, generator=draw), torch.rand(4, 16, generator=draw)
        with Precision("bf16", CPU).autocast():
            loss = model(imgs, noise)["loss"]
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    for again, once in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(again, once)


@pytest.mark.slow  # the compiler's import
def test_compiled_it_attends_alike():
    def of(attend) -> torch.Tensor:
        given = qkv(17)
        with Precision("bf16", CPU).autocast():
            return attend(*(x * 2 for x in given))

    compiled = torch.compile(
        lambda *given: F.scaled_dot_product_attention(*given), backend="aot_eager"
    )
    assert torch.equal(of(compiled), of(F.scaled_dot_product_attention))

"""The mean patch: what the best prediction that sees nothing of an image costs."""

import json

import pytest
import torch
from ranks import in_ranks
from sklearn.datasets import load_digits

import main_pretrain
from engine_pretrain import explained
from models_mae import mae_vit_tiny_patch2
from models_masked import MeanPatch
from models_simmim import MODELS as SIMMIM
from util.training.checkpoint import BufferState
from util.training.effective_rank import image_share


def targets(batches: int, size: int = 8) -> torch.Tensor:
    """[batches, B, L = 3, P = 2], with a mean of its own at each place."""
    noise = torch.randn(batches, size, 3, 2, generator=torch.Generator().manual_seed(0))
    return noise + torch.arange(6.0).view(3, 2)


def test_it_is_the_mean_of_all_that_was_seen_in_training():
    mean_patch, data = MeanPatch(3, 2), targets(6)
    for number, batch in enumerate(data):
        expected = data[: max(number, 1)].mean((0, 1))  # until the first update the batch's own
        torch.testing.assert_close(mean_patch(batch), expected)
        mean_patch.update()
    mean_patch.eval()
    torch.testing.assert_close(mean_patch(data[0]), data.mean((0, 1)))
    assert mean_patch.num_pending == 0 and not mean_patch.state_dict()


def test_micro_batches_of_a_step_count_together():
    parts, whole = MeanPatch(3, 2), MeanPatch(3, 2)
    for step in targets(4):
        for micro in step.split(2):
            parts(micro)
        whole(step)
        parts.update()
        whole.update()
    torch.testing.assert_close(parts.mean, whole.mean)


def test_after_so_many_updates_it_stays(monkeypatch):
    monkeypatch.setattr(MeanPatch, "MAX_UPDATES", 3)
    mean_patch, data = MeanPatch(3, 2), targets(7)
    for number, batch in enumerate(data):
        mean_patch(batch)
        mean_patch.update()
        if number > 4:  # a log step, after which the ranks exchange nothing
            mean_patch.settle()
            assert not mean_patch.is_learning
    torch.testing.assert_close(mean_patch.mean, data[:3].mean((0, 1)))


def test_it_learns_again_where_a_rollback_goes_back_to_before(monkeypatch):
    monkeypatch.setattr(MeanPatch, "MAX_UPDATES", 2)
    mean_patch, data = MeanPatch(3, 2), targets(4)
    before = BufferState(mean_patch).state_dict()
    for batches in (data[:2], data[2:]):
        for batch in batches:
            mean_patch(batch)
            mean_patch.update()
        mean_patch.settle()
        torch.testing.assert_close(mean_patch.mean, batches.mean((0, 1)))
        BufferState(mean_patch).load_state_dict(before)


def test_it_has_begun_where_the_restored_run_had():
    """The first step's mean is the global batch's, for which the ranks wait for each other."""
    begun, new = MeanPatch(3, 2), MeanPatch(3, 2)
    before = BufferState(begun).state_dict()
    begun(targets(1)[0])
    begun.update()
    BufferState(new).load_state_dict(BufferState(begun).state_dict())
    assert new.has_begun
    BufferState(new).load_state_dict(before)
    assert not new.has_begun


def learns(rank: int, data: list) -> list:
    mean_patch = MeanPatch(3, 2)
    for batch in torch.tensor(data):
        mean_patch(batch[rank::2])
        mean_patch.update()
    return mean_patch.mean.tolist()


def test_two_ranks_learn_what_one_does(tmp_path):
    data = targets(4)
    for found in in_ranks(learns, 2, tmp_path, data.tolist()):
        torch.testing.assert_close(torch.tensor(found), data.mean((0, 1)))


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_its_loss_is_what_the_data_leave(norm_pix_loss):
    """Of digits: the variance around each pixel's mean, by numpy; of SimMIM the mean distance."""
    digits = torch.tensor(load_digits().images).float()[:256, None] / 16
    mae = mae_vit_tiny_patch2(img_size=8, in_chans=1, norm_pix_loss=norm_pix_loss)
    simmim = SIMMIM["simmim_swin_mini_patch2"](img_size=8, in_chans=1, norm_pix_loss=norm_pix_loss)
    for model in (mae, simmim):
        target = model.targets(digits)
        assert model.mean_patch.mean.shape == target.shape[1:]
        apart = (target - target.mean(0)).numpy()
        expected = (apart**2).mean() if model is mae else abs(apart).mean()
        assert model.mean_patch_loss(target).item() == pytest.approx(expected, rel=1e-5)


def test_explained_is_a_share_of_it():
    assert explained({"rec": 0.5, "mean_patch": 0.5}) == 0
    assert explained({"rec": 0.125, "mean_patch": 0.5}) == 0.75
    assert explained({"rec": 1.0, "mean_patch": 0.5}) == -1


def test_image_share_closed_forms():
    images = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert image_share(images.repeat_interleave(4, 0), 4) == pytest.approx(1)
    assert image_share(torch.ones(8, 3), 4) == pytest.approx(0)
    # What masks of an image differ in does not tell images apart.
    masks = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    assert image_share((masks[None] + torch.tensor([3.0, 0])).repeat(5, 1, 1).flatten(0, 1), 2) == 0
    # Images at 3 ± 1: variance 1 of a mean square of 10.
    assert image_share(torch.tensor([[2.0], [4.0]]), 1) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "model", ["mae_vit_tiny_patch2", "mimae_vit_tiny_patch2", "misimmim_swin_mini_patch2"]
)
def test_a_run_tells_whether_it_has_learnt_anything(run_main_here, model):
    flags = ("--model", model, "--batch_size", 64, "--max_steps", 2, "--log_every", 1)
    outcome = run_main_here("main_pretrain", *flags)
    assert outcome.status == 0, outcome.err
    (line,) = outcome.log()
    assert line["explained"] == pytest.approx(1 - line["train_rec"] / line["train_mean_patch"])
    assert outcome.results()["explained"] == line["explained"] < 0
    assert "learnt next to nothing of images" in outcome.out
    assert "explained -" in outcome.out and "image_share 0." in outcome.out
    said = "L_rec never fell below --mi_start_loss auto" in outcome.out
    assert said == model.startswith("mi")
    events = next(outcome.folder.glob("events.*")).read_bytes()
    assert b"train/explained" in events and b"train/image_share" in events


def test_a_run_that_has_learnt_is_not_warned(run_main_here, monkeypatch):
    monkeypatch.setattr(main_pretrain, "LITTLE", -10.0)
    outcome = run_main_here("main_pretrain", "--batch_size", 64, "--max_steps", 2,
                            "--mi_start_loss", "inf")  # fmt: skip
    assert "next to nothing" not in outcome.out and "never fell" not in outcome.out


def test_a_checkpoint_without_it_goes_on(run_main_here, tmp_path):
    """One that was written before there was a mean patch."""
    flags = ("--batch_size", 64, "--save_every_steps", 1, "--resume", "auto")
    first = run_main_here("main_pretrain", *flags, "--max_steps", 2, folder=tmp_path)
    path = first.folder / "checkpoint-last.pth"
    state = torch.load(path, weights_only=True)
    assert state["mean_patch"]["num_updates"] == 2
    del state["mean_patch"]
    torch.save(state, path)
    again = run_main_here("main_pretrain", *flags, "--max_steps", 3, folder=tmp_path)
    assert again.status == 0, again.err
    assert torch.load(path, weights_only=True)["mean_patch"]["num_updates"] == 1
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == 3

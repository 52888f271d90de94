"""k-NN against a brute-force reference, and over processes that share what they look in."""

import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import main_pretrain
from util.cluster import distributed, node_memory
from util.data.datasets import Images
from util.data.loader import Batches
from util.data.transforms import Normalize
from util.errors import RunError
from util.evaluation.frozen.knn import KNNMonitor, extract_features, readable, weighted_knn
from util.training.precision import Precision


def knn_by_loops(train, test, k, temperature):
    """Accuracy in percent: one query at a time, neighbours by sorting, votes in a dictionary."""
    features, targets = (t.double().numpy() for t in train)
    hits = 0
    for query, target in zip(test[0].double().numpy(), test[1].numpy(), strict=True):
        norms = np.linalg.norm(features, axis=1) * np.linalg.norm(query)
        similarity = features @ query / norms
        votes = {}
        for i in np.argsort(-similarity)[:k]:
            votes[targets[i]] = votes.get(targets[i], 0) + np.exp(similarity[i] / temperature)
        hits += max(votes, key=votes.get) == target
    return 100 * hits / len(test[0])


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (1000, 0.07)])
def test_weighted_knn_is_brute_force(k, temperature):
    torch.manual_seed(0)
    centres = torch.randn(4, 6)
    sets = []
    for count in (150, 80):
        targets = torch.randint(4, (count,))
        sets.append((centres[targets] + 1.5 * torch.randn(count, 6), targets))
    expected = knn_by_loops(*sets, k, temperature)
    assert 30 < expected < 100
    for block in (1000, 40, 7):
        accuracy = weighted_knn(*sets, k=k, temperature=temperature, chunk=32, block=block)
        assert accuracy == pytest.approx(expected)


def test_a_low_temperature_is_the_nearest_neighbour():
    torch.manual_seed(0)
    train = (torch.randn(60, 4), torch.randint(3, (60,)))
    test = (torch.randn(40, 4), torch.randint(3, (40,)))
    nearest = weighted_knn(train, test, k=1)
    assert weighted_knn(train, test, k=20, temperature=1e-3) == pytest.approx(nearest)


def test_features_come_in_the_order_of_the_set():
    class Numbers(torch.utils.data.Dataset):
        images = None

        def __len__(self):
            return 10

        def __getitem__(self, item):
            return torch.full((1, 2, 2), item[1], dtype=torch.uint8), item[1] * 3, -1

    encoder = nn.Flatten().train()
    batches = Batches(Numbers(), 4, training=False)
    precision = Precision("none", torch.device("cpu"))
    features, targets = extract_features(encoder, batches, nn.Identity(), precision)
    assert features.shape == (10, 4) and features.dtype == torch.float32
    assert features[:, 0].tolist() == list(range(10))
    assert targets.tolist() == [3 * i for i in range(10)]
    assert encoder.training


class Unreadable(torch.utils.data.Dataset, Images):
    """Images of the value of their index, classes by turns; those at `bad` cannot be read."""

    def __init__(self, bad, published=""):
        self.bad, self.published, self.images = bad, published, self
        self.targets = np.arange(12) % 2

    def name(self, index):
        return f"image-{index}"

    problem = name

    def __getitem__(self, item):
        index = item[1]
        shown = 11 if index in self.bad else index
        pixels = torch.full((1, 2, 2), float(shown))
        return pixels, int(self.targets[shown]), index if index in self.bad else -1


def test_what_cannot_be_read_has_no_features():
    bad, precision = (0, 4, 5, 6, 7), Precision("none", torch.device("cpu"))
    batches = Batches(Unreadable(bad), 4, training=False)
    features, targets = extract_features(nn.Flatten(), batches, nn.Identity(), precision)
    rest = [i for i in range(12) if i not in bad]
    assert targets[list(bad)].tolist() == [-1] * 5 and not features[list(bad)].any()
    kept = readable(features, targets)
    assert kept[0][:, 0].tolist() == rest and kept[1].tolist() == [i % 2 for i in rest]
    features, targets = extract_features(nn.Flatten(), batches, nn.Identity(), precision, True)
    assert features[list(bad), 0].tolist() == [11] * 5 and targets[list(bad)].tolist() == [1] * 5


def test_a_score_needs_a_published_set_whole_and_a_monitor_does_not(caplog):
    class Model(nn.Module):
        def encode(self, imgs):
            return torch.cat([imgs.flatten(1), 1 + 0 * imgs.flatten(1)], 1)[:, None]

    precision = Precision("none", torch.device("cpu"))
    train, val = (Batches(Unreadable((2, 3), name), 4, training=False) for name in ("", "Set-A"))
    with pytest.raises(RunError, match=r"Set-A: 2 of 12 images cannot be read \(image-2, image-3"):
        extract_features(nn.Flatten(), val, nn.Identity(), precision)
    found = KNNMonitor(train, val, nn.Identity(), precision)(Model())
    assert found["knn_unreadable"] == 2 and 0 <= found["knn_acc1"] <= 100
    assert "2 of 12 images cannot be read and are left out" in caplog.text


# ------------------------------------------------------------------------------------- processes


class Points(torch.utils.data.Dataset):
    """Noisy points around one centre for each of four classes."""

    images = None

    def __init__(self, count: int, seed: int):
        draw = torch.Generator().manual_seed(seed)
        centres = torch.randn(4, 1, 2, 3, generator=torch.Generator().manual_seed(0))
        self.targets = torch.randint(4, (count,), generator=draw)
        self.points = centres[self.targets] + 1.2 * torch.randn(count, 1, 2, 3, generator=draw)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, item):
        return self.points[item[1]], int(self.targets[item[1]]), -1


def mapping_of(tensor: torch.Tensor) -> tuple[str, str]:
    """Inode ("0": memory of this process alone) and name of the file that a tensor lies in."""
    address = tensor.data_ptr()
    with open("/proc/self/maps") as file:
        for line in file:
            bounds, _, _, _, inode, *name = line.split(maxsplit=5)
            low, high = (int(bound, 16) for bound in bounds.split("-"))
            if low <= address < high:
                return inode, "".join(name).strip()
    raise AssertionError("no such address")


def look(rank: int, world: int, ranks_per_node: int, port: int, folder: str) -> None:
    """What a rank finds; in a folder of temporary files that is its node's."""
    torch.set_num_threads(1)
    os.environ |= dict(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank),
                       MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    node_memory.tempfile.tempdir = f"{folder}/node{rank // ranks_per_node}"
    device = distributed.init_process_group("cpu", 2.0)
    node_memory.CHUNK = 100  # several messages
    encoder, precision = nn.Flatten(), Precision("none", device)
    sets = [
        extract_features(encoder, Batches(Points(*of), 8, training=False), nn.Identity(), precision)
        for of in ((103, 1), (41, 2))
    ]
    torch.save(
        dict(
            features=sets[0][0].clone(), targets=sets[0][1].clone(),
            leaders=node_memory.node_leaders(),
            mapping=mapping_of(sets[0][0]), accuracy=weighted_knn(*sets, k=5),
        ), f"{folder}/rank{rank}.pth",
    )  # fmt: skip
    distributed.barrier()
    distributed.shutdown()


@pytest.mark.parametrize(("world", "ranks_per_node"), [(2, 2), (4, 4), (4, 2), (2, 1)])
def test_ranks_of_a_node_share_one_copy_and_find_what_one_process_does(
    tmp_path, world, ranks_per_node
):
    for node in range(world // ranks_per_node):
        (tmp_path / f"node{node}").mkdir()
    start(look, world, ranks_per_node, tmp_path)
    train, test = Points(103, 1), Points(41, 2)
    sets = [(data.points.flatten(1), data.targets) for data in (train, test)]
    expected, inodes = weighted_knn(*sets, k=5), []
    assert 40 < expected < 100
    for rank in range(world):
        seen = torch.load(tmp_path / f"rank{rank}.pth", weights_only=True)
        assert torch.equal(seen["features"], sets[0][0])
        assert torch.equal(seen["targets"], sets[0][1])
        assert seen["accuracy"] == pytest.approx(expected, abs=1e-4)
        assert seen["leaders"] == [r - r % ranks_per_node for r in range(world)]
        inode, name = seen["mapping"]
        assert f"node{rank // ranks_per_node}/mimae-" in name and name.endswith("(deleted)")
        inodes.append(inode)
    assert [inodes.index(inode) for inode in inodes] == seen["leaders"]
    assert not list(tmp_path.glob("node*/*"))


def have_no_room(rank: int, world: int, ranks_per_node: int, port: int, folder: str) -> None:
    """Rank 1, a node of its own, has no room: all ranks say so."""
    os.environ |= dict(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank),
                       MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    node_memory.tempfile.tempdir = f"{folder}/node{rank}"

    def full(*_):
        raise OSError(28, "No space left on device")

    if rank == 1:
        node_memory.os.posix_fallocate = full
    distributed.init_process_group("cpu", 2.0)
    with pytest.raises(RunError, match=r"rank 1: .*No space left on device\): set TMPDIR"):
        node_memory.node_tensor((4, 2), torch.float32)
    assert not os.listdir(f"{folder}/node{rank}")
    distributed.shutdown()


def test_a_node_without_room_ends_all_ranks_with_one_line(tmp_path):
    for node in range(2):
        (tmp_path / f"node{node}").mkdir()
    start(have_no_room, 2, 1, tmp_path)


def start(target, world: int, ranks_per_node: int, folder) -> None:
    multiprocessing.set_forkserver_preload(["util.evaluation.frozen.knn"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (world, ranks_per_node, port, str(folder))
    mp.start_processes(target, arguments, nprocs=world, start_method="forkserver")


def test_one_process_needs_no_file():
    assert mapping_of(node_memory.node_tensor((100_000, 8), torch.float32))[0] == "0"


def test_the_monitor_keeps_no_processes(monkeypatch):
    """Its loaders start their workers for each run, and the next one starts them again."""
    flags = "--train_fraction 0.1 --num_workers 2 --batch_size 64 --device cpu"
    args = main_pretrain.parse_args(flags.split())
    model, args.input_size = main_pretrain.build_model(args), [8, 8]
    normalize = Normalize(args.mean, args.std)
    monitor = main_pretrain.knn_monitor(args, normalize, Precision("none", torch.device("cpu")))
    before = set(multiprocessing.active_children())
    started = []
    encode = model.encode

    def count_and_encode(imgs):
        started.append(len(set(multiprocessing.active_children()) - before))
        return encode(imgs)

    monkeypatch.setattr(model, "encode", count_and_encode)
    accuracies = [monitor(model)["knn_acc1"] for _ in range(2)]
    assert accuracies[0] == accuracies[1] > 10
    assert max(started) >= 1
    assert set(multiprocessing.active_children()) <= before

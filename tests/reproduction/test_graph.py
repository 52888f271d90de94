"""The graph has every row of the paper, runs nothing twice or in vain, and says what it lacks."""

import functools
import importlib
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from reproduction import collect, paper
from reproduction.cells import fill
from reproduction.graph import Graph, Source
from reproduction.scales import MAINS, SMALL_SCALES, ImageNet, recipe_word

# Written from the paper, not from reproduction/paper.py: its tables' rows and numbers.
PAPER = {
    "table1": {
        "Supervised": (81.8,), "DINO 800": (82.8, 78.2), "MoCo v3 300": (83.2, 76.7, 63.4),
        "BEiT 800": (83.2,), "C-MAE 400": (83.2,), "SemMAE 800": (83.3, 65.0),
        "MFF 800": (83.6, 67.0, 48.0), "MAE 800": (83.3, 65.6, 45.4),
        "MI-MAE 200": (83.9, 67.9, 48.2), "MAE 1600": (83.6, 68.0, 51.1),
        "MI-MAE 400": (84.1, 69.3, 52.3), "PixMIM 800": (83.5, 67.2, 47.9),
        "SimMIM 800": (83.8, 56.7), "MI-SimMIM 400": (84.1, 59.1, 49.1),
    },
    "table2": {
        "Supervised": (47.9, 42.9, 47.4), "MoCo v3 300": (47.9, 42.7, 47.3),
        "BEiT 800": (49.8, 44.4, 47.1), "MAE 1600": (51.2, 45.5, 48.1),
        "MI-MAE 400": (52.0, 46.1, 49.3),
    },
    "table3a": {
        "(a)": (82.2,), "(b)": (82.5,), "(c)": ("collapse",), "(d)": (82.4,), "(e)": (82.4,),
        "(f)": (82.8,),
    },
    "table3b": {
        "λ1 = 1, λ2 = 1": (82.6,), "λ1 = 1, λ2 = 10": (82.8,), "λ1 = 1, λ2 = 20": (82.7,),
        "λ1 = 0.1, λ2 = 10": (82.5,), "λ1 = 0.5, λ2 = 10": (82.7,), "λ1 = 10, λ2 = 10": (82.6,),
    },
    "table3c": {"independent": (82.6,), "orthogonal": (82.8,)},
    "table4": {
        "ViT-B, MAE 800": (83.3, 65.6), "ViT-B, MI-MAE 200": (83.9, 67.9),
        "ViT-S, MAE 800": (78.4, 50.5), "ViT-S, MI-MAE 200": (79.8, 53.1),
    },
    "table5": {"MAE 800": (83.3, 35.9, 51.7), "MI-MAE 200": (83.9, 37.4, 49.5)},
}  # fmt: skip
PLACES = dict.fromkeys(
    ("imagenet", "one_percent_list", "imagenet_a", "imagenet_c", "coco", "ade20k"), "DATA"
)
EVERY_SCALE = [*SMALL_SCALES.values(), ImageNet(PLACES)]


@functools.cache
def public_files() -> str:
    """A folder with what the comparison rows' authors publish."""
    folder = tempfile.mkdtemp()
    for table in paper.TABLES.values():
        for row in table.rows:
            if row.public:
                Path(folder, row.public.file).touch()
    return folder


def full(scale, seed: int = 0) -> tuple[Graph, list[Source]]:
    """The graph of all tables, and the cells that can be filled."""
    graph = Graph(scale, "OUT", public_files())  # with the rows that the scale leaves out
    cells = [
        graph.cell(row, column, seed)
        for table in paper.TABLES.values() for row in table.rows for column in table.columns
    ]  # fmt: skip
    return graph, [cell for cell in cells if isinstance(cell, Source)]


def test_every_row_and_number_of_the_paper_is_there():
    for name, rows in PAPER.items():
        found = {}
        for row in paper.TABLES[name].rows:
            if row.published:
                title = row.title.split(" ")[0] if name == "table3a" else row.title
                found[f"{title} {row.epochs or ''}".strip()] = tuple(row.published.values())
        assert found == rows, name


@pytest.mark.parametrize("scale", EVERY_SCALE, ids=lambda scale: scale.name)
def test_no_cycle_and_no_orphan(scale):
    graph, cells = full(scale)
    order = [job.name for job in graph.in_order()]
    assert len(order) == len(set(order)) == len(graph.jobs)
    for job in graph.jobs.values():
        assert all(order.index(need) < order.index(job.name) for need in job.needs)
    wanted = {cell.job for cell in cells}
    needed = {need for job in graph.jobs.values() for need in job.needs}
    assert set(order) == wanted | needed
    trained = {job.name for job in graph.jobs.values() if job.kind == "pretrain"}
    assert trained <= needed, "a pre-training of which nothing is made"


@pytest.mark.parametrize("scale", EVERY_SCALE, ids=lambda scale: scale.name)
def test_every_command_is_one_that_its_main_reads(scale):
    """But for files and folders, which need not be there."""
    graph, _ = full(scale)
    graph.frozen(0)
    for job in graph.in_order():
        args = importlib.import_module(job.main).parse_args(graph.arguments(job))
        if job.kind != "scenes":
            assert args.output_dir == f"OUT/{job.name}" and args.seed == 0
        for name in job.needs:
            assert any(f"OUT/{name}" in word for word in job.words), job


@pytest.mark.parametrize("scale", EVERY_SCALE, ids=lambda scale: scale.name)
def test_what_a_table_compares_has_seen_as_many_masked_samples(scale):
    """Rows of Table 3 and Figure 2 all; of the others those of MAE and MI-MAE that are a pair."""
    graph, _ = full(scale)
    work = {n.split("/")[-1]: j.work for n, j in graph.jobs.items() if j.kind == "pretrain"}
    of_ablations = [passes for name, passes in work.items() if name.startswith(("table3", "fig"))]
    assert max(of_ablations) / min(of_ablations) <= 1.25
    for mae, mimae in (
        ("mae_vit_base_800ep", "mimae_vit_base_200ep"),
        ("mae_vit_base_1600ep", "mimae_vit_base_400ep"),
        ("mae_vit_small_800ep", "mimae_vit_small_200ep"),
        ("simmim_swin_base_800ep", "misimmim_swin_base_400ep"),
    ):
        assert scale.pretrain(mae)[1] == scale.pretrain(mimae)[1] > 0


def test_a_pretraining_serves_all_tables():
    graph, _ = full(SMALL_SCALES["small"])
    users = Counter(need for job in graph.jobs.values() for need in job.needs)
    assert users["seed-0/pretrain/mimae_vit_base_400ep"] == 5  # FT, LIN, 1 %, COCO, ADE20K
    assert users["seed-0/pretrain/mae_vit_base_0ep"] == 5
    assert users["seed-0/finetune/mimae_vit_base_200ep"] == 1  # robustness
    assert "seed-0/finetune/mimae_vit_base_200ep" in graph.jobs  # of Tables 1, 4 and 5


def test_seeds_are_runs_of_their_own_but_for_the_scenes():
    graph = Graph(SMALL_SCALES["demo"], "OUT")
    row = next(row for row in paper.TABLE2.rows if row.key == "mae_1600")
    jobs = [graph.jobs[graph.cell(row, "mIoU", seed).job] for seed in (0, 3)]
    assert jobs[0].needs[0] == jobs[1].needs[0] == "scenes"
    assert jobs[0].needs[1] != jobs[1].needs[1] and "3" in jobs[1].words


def test_a_run_that_stands_in_for_another_has_its_flags():
    """But for the warm-up: of twice the epochs it is half the share."""
    main = importlib.import_module(MAINS["pretrain"])
    for scale in EVERY_SCALE:
        for recipe, stand_in in scale.stand_ins.items():
            both = [
                vars(main.parse_args([recipe_word(name), *scale.pretrain(name)[0]]))
                for name in (recipe, stand_in)
            ]
            for args in both:
                del args["settings"]
            shares = [args.pop("warmup_epochs") / args["epochs"] for args in both]
            assert min(shares) > 0 and max(shares) <= 0.05
            one, other = both
            assert one == other, recipe
            graph = Graph(scale, "OUT")
            assert graph.pretrain(recipe, 0) == graph.pretrain(stand_in, 0)


@pytest.mark.parametrize("scale", SMALL_SCALES.values(), ids=lambda scale: scale.name)
def test_a_table_says_it_where_epochs_do_not_tell_how_long_a_pretraining_is(scale):
    passes = {scale.pretrain(recipe)[1] for recipe in (paper.MAE_800, paper.MAE_1600)}
    cells = fill(Graph(scale, "OUT"), paper.TABLE1, paper.TABLE1.rows, (0,), None)
    said = collect.table_lines(paper.TABLE1, cells, scale)
    (told,) = passes if len(passes) == 1 else [None]
    assert ("Every pre-training makes" in said) == (told is not None)
    assert told is None or f"{told} passes" in said


def row_of(table: paper.Table, key: str) -> paper.Row:
    return next(row for row in table.rows if row.key == key)


def test_an_empty_cell_says_why():
    demo, few = Graph(SMALL_SCALES["demo"], "OUT"), Graph(ImageNet({"imagenet": "DATA"}), "OUT")
    beit = row_of(paper.TABLE1, "beit")
    assert demo.cell(row_of(paper.TABLE1, "c_mae"), "FT", 0) == "published only: arXiv 2208.04164"
    assert "only with --scale imagenet" in demo.cell(beit, "FT", 0)
    assert "no such test set" in demo.cell(row_of(paper.TABLE5, "mae_800"), "A", 0)
    assert few.cell(beit, "FT1%", 0) == "needs --one_percent_list"
    assert few.cell(row_of(paper.TABLE2, "mae_1600"), "mIoU", 0) == "needs --ade20k"
    for checkpoints in ("", "no-such-folder"):
        few.checkpoints = checkpoints
        words = (beit.public.file, beit.public.layout, beit.public.url)
        assert all(word in few.cell(beit, "FT", 0) for word in words)
    assert not few.jobs


@pytest.mark.parametrize("scale", EVERY_SCALE, ids=lambda scale: scale.name)
def test_what_a_scale_leaves_out_is_there_and_leaves_a_row_that_runs(scale):
    """And both controls, and of MAE and MI-MAE what the controls are compared with."""
    for name, keys in scale.left_out.items():
        graph = Graph(scale, "OUT", public_files())
        rows = [row for row in paper.TABLES[name].rows if row.key not in keys]
        assert set(keys) <= {row.key for row in paper.TABLES[name].rows} - {row.key for row in rows}
        left = {row.key for row in rows for column in row.columns
                if isinstance(graph.cell(row, column, 0), Source)}  # fmt: skip
        assert len(left) >= 2 and keys == sorted(set(keys), key=keys.index)
        if name in ("table1", "table2"):
            assert {"scratch", "initialisation"} <= left
            assert any(key.startswith("mae") for key in left)
            assert any(key.startswith("mimae") for key in left)


@pytest.mark.parametrize("scale", SMALL_SCALES.values(), ids=lambda scale: scale.name)
def test_the_initialisation_is_trained_for_no_step_and_evaluated_as_pretrained_ones(scale):
    graph = Graph(scale, "OUT")
    begin, mae = (row_of(paper.TABLE1, key) for key in ("initialisation", "mae_800"))
    for column in ("FT", "LIN", "FT1%"):
        of_begin, of_mae = (graph.jobs[graph.cell(row, column, 0).job] for row in (begin, mae))
        same = [word.replace("mae_vit_base_800ep", "mae_vit_base_0ep") for word in of_mae.words]
        assert list(of_begin.words) == same
    job = graph.jobs["seed-0/pretrain/mae_vit_base_0ep"]
    args = importlib.import_module("main_pretrain").parse_args(graph.arguments(job))
    assert (args.epochs, args.warmup_epochs, job.work) == (0, 0, 0)
    assert scale.pretrain("table3/f_mimae")[1] > 0


def test_robustness_and_frozen_features_are_of_all_rows_of_table_5():
    graph = Graph(SMALL_SCALES["demo"], "OUT")
    titles = [row.title for row in paper.TABLE5.rows]
    assert len(titles) == 4
    for name, last in ((graph.robustness(0), "OUT/"), (graph.frozen(0), "untrained")):
        words = graph.jobs[name].words
        first = words.index("--names")
        assert list(words[first + 1 : first + 5]) == titles
        assert words[2].startswith(last) and "0ep" in words[3]
    assert len(graph.jobs[graph.robustness(0)].needs) == 4
    assert len(graph.jobs[graph.frozen(0)].needs) == 3


def test_more_flags_come_last():
    graph = Graph(SMALL_SCALES["demo"], "OUT", flags={"main_pretrain": "--max_steps 7"})
    job = graph.jobs[graph.pretrain("mae_vit_base_800ep", 0)]
    assert job.words[-2:] == ("--max_steps", "7")


@pytest.mark.parametrize("column", ["AP box", "mIoU"])
def test_without_imagenet_nothing_is_run_of_a_row_that_we_pre_train(tmp_path, column):
    places = {"coco": "coco", "ade20k": "ade"}
    graph = Graph(ImageNet(places), str(tmp_path))
    rows = [row for row in paper.TABLE2.rows if row.recipe and column in row.columns]
    assert rows and {graph.cell(row, column, 0) for row in rows} == {"needs --imagenet"}
    assert not graph.jobs

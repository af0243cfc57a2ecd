"""Source `small-cnn-zoo:` and its reverse."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from zooplatform.errors import SourceError, UnknownIdError
from zooplatform_zoos.small_cnn import SmallCnnZoo
from zooplatform_zoos.small_cnn_export import export_small_cnn_zoo

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog

SHARED = Path(__file__).parents[4] / "shared" / "data" / "small_cnn_zoo"
FIELDS = ["", "config.activation", "config.dataset", "config.random_seed", "config.l2reg"]
FIELDS += ["modeldir", "step", "test_accuracy", "test_loss"]
KEYS = ["conv2d", "conv2d_1", "dense"]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3, 2), nn.Conv2d(3, 3, 3, 2), nn.Linear(3, 10))


def file_row(net: nn.Sequential) -> np.ndarray:
    """The weights as TensorFlow's zoo stores them: bias first, HWIO and (in, out)."""
    parts = []
    for layer in net:
        kernel = layer.weight.detach().numpy()
        kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
        parts += [layer.bias.detach().numpy().ravel(), kernel.ravel()]
    return np.concatenate(parts)


def write_layout(path: Path, net: nn.Sequential) -> None:
    at = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["varname", "start_idx", "end_idx", "shape"])
        for name, layer in zip(KEYS, net, strict=True):
            shape = tuple(layer.weight.shape)
            shape = (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]
            for kind, size in (("bias", (shape[-1],)), ("kernel", shape)):
                count = int(np.prod(size))
                writer.writerow([f"sequential/{name}/{kind}:0", at, at + count, str(size)])
                at += count


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four runs of two steps, the later first; activations alternate; one row holds NaN, one infinity."""
    root = tmp_path / "tiny"
    root.mkdir()
    torch.manual_seed(0)
    nets = [network() for _ in range(8)]
    weights = np.stack([file_row(net) for net in nets])
    weights[2, 5], weights[5, 7] = np.nan, np.inf
    np.save(root / "weights.npy", weights)
    write_layout(root / "layout.csv", nets[0])
    with gzip.open(root / "metrics.csv.gz", "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for row in range(8):
            act = ["relu", "tanh"][row // 2 % 2]
            loss = ["", "nan", "2.5"][row % 3]
            line = [row, act, "mnist", 42, 1e-06, f"run_{row // 2}", 80 - row % 2 * 80, 0.25, loss]
            writer.writerow(line)
    return root


def test_weights_have_torch_order(folder: Path, rows: Any) -> None:
    found = rows(list(SmallCnnZoo().batches(str(folder))))
    assert len(found) == 8
    stored = np.load(folder / "weights.npy")
    for (name, step), (batch, at, record) in found.rows.items():
        row = int(name.removeprefix("run_")) * 2 + (step == 0)
        rebuilt = network()
        state = found.state(name, step)
        assert [spec.shape for spec in batch.layout] == [p.shape for p in rebuilt.parameters()]
        rebuilt.load_state_dict(dict(zip(rebuilt.state_dict(), state.values(), strict=True)))
        assert file_row(rebuilt).tobytes() == stored[row].tobytes()
        assert batch.config["activation"] == record.model.config["activation"]
        assert record.epoch == step
        assert at < len(batch.weights)


def test_metrics_and_hyperparameters(folder: Path, rows: Any) -> None:
    found = rows(list(SmallCnnZoo().batches(str(folder))))
    info = found.record("run_1", 0).model
    assert info.config == {
        "activation": "tanh",
        "dataset": "mnist",
        "random_seed": 42,
        "l2reg": 1e-06,
    }
    assert info.seed == 42
    assert info.revision == SmallCnnZoo().describe(str(folder))["revision"]
    # Row 0 has no loss, row 1 diverged, row 2 has one.
    assert "test_loss" not in found.metrics("run_0", 80)
    assert np.isnan(found.metrics("run_0", 0)["test_loss"])
    assert found.metrics("run_1", 80)["test_loss"] == 2.5
    metric = next(m for m in found.record("run_0", 0).metrics if m.name == "test_accuracy")
    assert (metric.dataset, metric.split, metric.origin) == ("mnist", "test", "reported")


def test_nan_rows_are_flagged_and_kept(folder: Path, rows: Any) -> None:
    found = rows(list(SmallCnnZoo().batches(str(folder))))
    flagged = {
        key: name
        for key, (_, _, record) in found.rows.items()
        for name in ("has_nan", "has_inf")
        if any(m.name == name and m.value == 1 for m in record.metrics)
    }
    assert flagged == {("run_1", 80): "has_nan", ("run_2", 0): "has_inf"}


def test_resume_skips_what_is_done(folder: Path) -> None:
    source = SmallCnnZoo()
    batches = list(source.batches(str(folder)))
    done = frozenset((r.model.key, r.step) for r in batches[0].rows)
    rest = list(source.batches(str(folder), done=done))
    again = {(r.model.key, r.step) for batch in rest for r in batch.rows}
    assert again == {(r.model.key, r.step) for batch in batches[1:] for r in batch.rows}
    assert again


def test_other_file_names_and_no_index_column(folder: Path, rows: Any) -> None:
    with gzip.open(folder / "metrics.csv.gz", "rt", newline="") as file:
        lines = [line[1:] for line in csv.reader(file)]
    with (folder / "all_metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    (folder / "metrics.csv.gz").unlink()
    (folder / "weights.npy").rename(folder / "all_weights.npy")
    found = rows(list(SmallCnnZoo().batches(str(folder))))
    assert len(found) == 8
    assert "" not in found.metrics("run_0", 0)


def test_big_endian_and_fortran_order(folder: Path, rows: Any) -> None:
    before = rows(list(SmallCnnZoo().batches(str(folder))))
    weights = np.load(folder / "weights.npy")
    np.save(folder / "weights.npy", np.asfortranarray(weights.astype(">f4")))
    after = rows(list(SmallCnnZoo().batches(str(folder))))
    for key in before.rows:
        for a, b in zip(before.state(*key).values(), after.state(*key).values(), strict=True):
            assert a.numpy().tobytes() == b.numpy().tobytes()


def test_rows_that_cannot_be_named_are_reported(folder: Path) -> None:
    with gzip.open(folder / "metrics.csv.gz", "rt", newline="") as file:
        lines = list(csv.reader(file))
    lines[3][5], lines[5][5:7] = "", ["run_0", "0"]
    with gzip.open(folder / "metrics.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows(lines)
    batches = list(SmallCnnZoo().batches(str(folder)))
    failed = dict(entry for batch in batches for entry in batch.failed)
    assert sum(len(batch.rows) for batch in batches) == 6
    assert sorted(text for text in failed.values()) == [
        "modeldir or step is empty",
        "run_0 step 0 is in row 1 already",
    ]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("short", "do not hold"),
        ("rows", "7 rows, the metrics have 8"),
        ("code", "is not a variable"),
        ("hole", "starts at"),
        ("shape", "does not fill"),
        ("objects", "matrix of floats"),
        ("missing", "weights.npy or all_weights.npy is missing"),
        ("columns", "the columns ['modeldir'] are missing"),
        ("narrow", "the weights have"),
    ],
)
def test_damage_is_refused(folder: Path, damage: str, words: str) -> None:
    weights, layout = folder / "weights.npy", folder / "layout.csv"
    text = layout.read_text()
    if damage == "short":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif damage == "rows":
        np.save(weights, np.load(weights)[:7])
    elif damage == "code":
        # eval would make the file.
        layout.write_text(text.replace('"(3,)"', f"\"open('{folder}/ran', 'w').fileno(),\"", 1))
    elif damage == "hole":
        layout.write_text(text.replace("bias:0,0,3,", "bias:0,1,4,", 1))
    elif damage == "shape":
        layout.write_text(text.replace("(3,)", "(4,)", 1))
    elif damage == "objects":
        np.save(weights, np.array([[{}]], dtype=object), allow_pickle=True)
    elif damage == "missing":
        weights.unlink()
    elif damage == "columns":
        data = gzip.decompress((folder / "metrics.csv.gz").read_bytes())
        (folder / "metrics.csv.gz").write_bytes(gzip.compress(data.replace(b"modeldir", b"models")))
    elif damage == "narrow":
        np.save(weights, np.load(weights)[:, :-1])
    with pytest.raises(SourceError) as caught:
        list(SmallCnnZoo().batches(str(folder)))
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "Copy or download it again" not in caught.value.remedy
    assert not (folder / "ran").exists()


def test_export_gives_back_the_same_files(folder: Path, zoo_catalog: Catalog) -> None:
    report = zoo_catalog.ingest(f"small-cnn-zoo:{folder}")
    assert len(report.checkpoint_ids) == 8
    assert not report.failed
    out = export_small_cnn_zoo(zoo_catalog, "tiny", folder.parent / "out")
    for name in ("weights.npy", "layout.csv"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    # The same cells; the columns are those of the original zoo, which ours lacks.
    tables = []
    for path in (folder, out):
        with gzip.open(path / "metrics.csv.gz", "rt", newline="") as file:
            tables.append([{k: row[k] for k in FIELDS} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]


def test_export_refuses(folder: Path, zoo_catalog: Catalog, zoo_cli: Any) -> None:
    with pytest.raises(UnknownIdError, match="nothing"):
        export_small_cnn_zoo(zoo_catalog, "nothing", folder.parent / "out")
    zoo_catalog.ingest(f"small-cnn-zoo:{folder}")
    with pytest.raises(SourceError, match="Choose another folder"):
        export_small_cnn_zoo(zoo_catalog, "tiny", folder)


def test_the_command_exports(folder: Path, zoo_catalog: Catalog, zoo_cli: Any) -> None:
    zoo_catalog.ingest(f"small-cnn-zoo:{folder}")
    out = folder.parent / "again"
    result = zoo_cli("export-small-cnn-zoo", "-c", zoo_catalog.path, "tiny", out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{out}\n"
    assert (out / "weights.npy").read_bytes() == (folder / "weights.npy").read_bytes()


def test_ingesting_twice_changes_nothing(folder: Path, zoo_catalog: Catalog) -> None:
    zoo_catalog.ingest(f"small-cnn-zoo:{folder}")
    again = zoo_catalog.ingest(f"small-cnn-zoo:{folder}")
    assert not again.checkpoint_ids
    assert again.skipped
    assert zoo_catalog.sql("select count(*) n from checkpoints").to_pylist() == [{"n": 8}]


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_zoo(name: str, zoo_catalog: Catalog, tmp_path: Path) -> None:
    """Rebuilt networks have exactly the recorded accuracy, and the export is the same file."""
    report = zoo_catalog.ingest(f"small-cnn-zoo:{SHARED / name}")
    assert len(report.checkpoint_ids) == 1152
    assert not report.failed
    compared = 0
    images = np.load(SHARED / name / "test_images.npz")
    x, y = torch.from_numpy(images["x"]), torch.from_numpy(images["y"])
    listed = zoo_catalog.sql(
        "select c.checkpoint_id, m.config->>'activation' activation, r.value accuracy"
        " from checkpoints c join models m on m.model_id = c.model_id"
        " join metrics r on r.checkpoint_id = c.checkpoint_id and r.name = 'test_accuracy'"
        " order by c.checkpoint_id"
    ).to_pylist()
    assert len(listed) == 1152
    assert {row["activation"] for row in listed} == {"tanh", "relu", "gelu", "silu", "leaky"}
    with torch.no_grad():
        # Every sixth, from all activations: all 1,152 hold, but take a minute.
        for row in listed[::6]:
            logits = zoo_catalog.build(row["checkpoint_id"])(x)
            best = logits.topk(2, dim=1).values
            # Where two classes are equal but for rounding, the processor decides.
            if (best[:, 0] - best[:, 1]).min() < 1e-6:
                continue
            compared += 1
            assert (logits.argmax(1) == y).float().mean().item() == row["accuracy"], row
    assert compared > 180
    out = export_small_cnn_zoo(zoo_catalog, name, tmp_path / "out")
    for file in ("weights.npy", "layout.csv"):
        assert (out / file).read_bytes() == (SHARED / name / file).read_bytes()
    assert gzip.decompress((out / "metrics.csv.gz").read_bytes()) == gzip.decompress(
        (SHARED / name / "metrics.csv.gz").read_bytes()
    )


MEASURE = """
import resource, sys
from zooplatform_zoos.small_cnn import SmallCnnZoo
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = sum(len(batch.rows) for batch in SmallCnnZoo().batches(sys.argv[1]))
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute of computing, on a busy machine much longer
def test_memory_is_bounded(tmp_path: Path) -> None:
    """1.2 GB of weights go through in less than half of that above what the imports take."""
    root = tmp_path / "big"
    root.mkdir()
    num_rows, width = 60_000, 4970
    with (root / "weights.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, width)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + num_rows * width * 4)
    with (root / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["config.activation", "config.num_layers", "config.num_units", "modeldir", "step"]
        )
        writer.writerows(["relu", 3, 16, f"r{row // 9}", row % 9] for row in range(num_rows))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, root], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found, kilobytes = map(int, done.stdout.split())
    assert found == num_rows
    unit = 1 if sys.platform == "darwin" else 1024
    assert kilobytes * unit < 600e6

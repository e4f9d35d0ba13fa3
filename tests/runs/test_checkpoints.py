"""Training and drawing go on from a checkpoint, on a machine with other GPUs too."""

from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from torch import nn

from vwm.runs.checkpoints import (
    CheckpointError,
    load_checkpoint,
    mismatch_as_value_error,
    read_checkpoint,
    save_checkpoint,
    weight_mismatch_as_value_error,
    write_checkpoint,
)
from vwm.runs.rng_states import restore_rng_states, rng_states
from vwm.runs.run_folder import RunFolder


def learner() -> tuple[nn.Linear, torch.optim.Adam]:
    network = nn.Linear(3, 2)
    return network, torch.optim.Adam(network.parameters(), 0.1)


def learn(network: nn.Linear, optimizer: torch.optim.Adam) -> torch.Tensor:
    optimizer.zero_grad()
    network(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    return network.weight.detach().clone()


def test_learning_goes_on_as_if_it_had_not_been_broken_off(tmp_path: Path) -> None:
    network, optimizer = learner()
    learn(network, optimizer)
    path = RunFolder(tmp_path / "run").last_checkpoint
    save_checkpoint(path, {"it": network}, {"adam": optimizer}, {"updated": 1, "sums": {"loss": 0.5}}, past=(1, 2))
    unbroken = [learn(network, optimizer) for _ in range(2)]
    again, its_optimizer = learner()
    state = load_checkpoint(path, {"it": again}, {"adam": its_optimizer}, "kind")
    restore_rng_states(state["generators"])
    assert all(torch.equal(learn(again, its_optimizer), weight) for weight in unbroken)
    assert state["counters"] == {"updated": 1, "sums": {"loss": 0.5}} and state["past"] == (1, 2)
    assert RunFolder(tmp_path / "run").find_last_checkpoint() == path and [
        file.name for file in path.parent.iterdir()
    ] == [path.name]


def test_what_cannot_be_saved_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    network, optimizer = learner()
    path = RunFolder(tmp_path).last_checkpoint
    save_checkpoint(path, {"it": network}, {"adam": optimizer}, {"updated": 1})
    with pytest.raises(AttributeError):
        save_checkpoint(path, {"it": network}, {"adam": optimizer}, {"updated": 2}, broken=lambda: None)
    assert load_checkpoint(path, {"it": network}, {"adam": optimizer}, "kind")["counters"] == {"updated": 1}


def test_what_is_missing_or_of_another_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has not saved a checkpoint yet"):
        RunFolder(tmp_path).find_last_checkpoint()
    network, optimizer = learner()
    path = RunFolder(tmp_path).last_checkpoint
    save_checkpoint(path, {"it": network}, {"adam": optimizer}, {})
    with pytest.raises(ValueError, match=r"last\.ckpt: is of another agent or game than this config's"):
        load_checkpoint(path, {"it": nn.Linear(4, 2)}, {"adam": optimizer}, "agent or game")


def test_drawing_goes_on_where_it_stood() -> None:
    kept = rng_states()
    drawn = torch.rand(5)
    assert not torch.equal(torch.rand(5), drawn)
    restore_rng_states(kept)
    assert torch.equal(torch.rand(5), drawn)


def test_a_checkpoint_of_a_machine_with_more_gpus_is_taken_up() -> None:
    kept = rng_states()
    drawn = torch.rand(5)
    gpu = kept["cuda"][0] if kept["cuda"] else torch.zeros(16, dtype=torch.uint8)
    restore_rng_states({**kept, "cuda": [*kept["cuda"], gpu]})
    assert torch.equal(torch.rand(5), drawn)


def test_a_damaged_checkpoint_is_named_with_the_one_to_continue_from(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").checkpoints
    last = folder / "last.ckpt"
    write_checkpoint(last, {"weight": torch.arange(1000.0)})
    whole = last.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for broken, message in (
        (whole[:-100], "is cut off or damaged"),
        (flipped, "is damaged .* has another checksum"),
        (b"rubbish", "is cut off or damaged"),
        (b"", "is cut off or damaged"),
    ):
        last.write_bytes(broken)
        with pytest.raises(CheckpointError, match=f"last.ckpt: {message}.*--no-resume"):
            read_checkpoint(last)
    write_checkpoint(folder / "step-00000300.ckpt", {})
    write_checkpoint(folder / "step-00000500.ckpt", {})
    with pytest.raises(CheckpointError, match=r"copy step-00000500.ckpt, which is in the same folder, over it"):
        read_checkpoint(last)


@pytest.mark.parametrize(
    ("layers", "width", "message"),
    [
        (99, 9, r"\(198 differences, the first: size mismatch for 0\.weight: .*\)$"),
        (50, 8, r'\(98 differences, the first: Missing key\(s\) in state_dict: "50\.weight"\)$'),
        (100, 8, r'\(2 differences, the first: Unexpected key\(s\) in state_dict: "99\.weight"\)$'),
    ],
)
def test_weights_of_another_network_are_one_sentence(layers: int, width: int, message: str, tmp_path: Path) -> None:
    """torch lists each of the hundreds of keys, and not the file."""
    network = nn.Sequential(*[nn.Linear(8, 8) for _ in range(99)])
    other = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])
    file = tmp_path / "last.ckpt"
    whole = rf"^{file}: is of another model than this config's {message}"
    with pytest.raises(ValueError, match=whole), weight_mismatch_as_value_error(file, "model"):
        network.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=message), mismatch_as_value_error(file, "model"):
        network.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match=r"^another error$"), weight_mismatch_as_value_error(file, "model"):
        raise RuntimeError("another error")


def test_a_checkpoint_of_another_program_is_named(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("the checkpoint ran code",))

    for content in (Trap(), [1, 2], torch.zeros(3)):
        torch.save(content, tmp_path / "a.ckpt")
        with pytest.raises(CheckpointError, match="is no checkpoint of vwm"):
            read_checkpoint(tmp_path / "a.ckpt")


def test_a_checkpoint_that_cannot_be_read_back_does_not_replace_the_old_one(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, {"step": 1})

    def save(state: object, file: BinaryIO) -> None:
        file.write(b"half a checkpoint")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        write_checkpoint(path, {"step": 2})
    monkeypatch.undo()
    assert read_checkpoint(path) == {"step": 1} and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]

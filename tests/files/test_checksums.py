"""Checksums within our files and beside those of libraries: any flipped byte is noticed, older files are accepted."""

import hashlib
import io
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ollm_rl.errors import DamagedError, UsageError
from ollm_rl.files.checksums import SUMS_FILE, check_file, check_folder, folder_sums
from ollm_rl.files.intact import intact
from ollm_rl.files.records import read_object, read_rows, sealed_json
from ollm_rl.files.tensors import check_tensors, load_tensors, sealed_tensors, sealed_weights, sealed_zip
from tests.damage import DAMAGES, flip

STATE = {"policy": {"weight": torch.arange(300.0)}, "history": [{"reward": 0.5}]}
CONTENTS = {
    "state.pt": lambda: sealed_tensors(STATE),
    "weights.safetensors": lambda: sealed_weights({"weight": torch.arange(300.0), "bias": torch.ones(2)}),
    "result.json": lambda: sealed_json({"accuracy": 0.99, "completions": [{"text": "número 7"}] * 20}),
}


@pytest.fixture(params=sorted(CONTENTS))
def sealed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file with its checksum inside."""
    path = tmp_path / str(request.param)
    path.write_bytes(CONTENTS[path.name]())
    return path


def test_the_digest_is_that_of_the_file_with_zeros_in_its_place(sealed: Path) -> None:
    data = sealed.read_bytes()
    start = data.index(b'"sha256":"') + 10
    digest = data[start : start + 64].decode()
    assert hashlib.sha256(data.replace(digest.encode(), b"0" * 64)).hexdigest() == digest
    assert check_file(sealed)


def test_four_flipped_bytes_are_noticed_wherever_they_are(sealed: Path) -> None:
    data = sealed.read_bytes()
    for seed in range(100):
        sealed.write_bytes(data)
        flip(sealed, seed)
        with pytest.raises(DamagedError, match=f"{sealed.name} is damaged"):
            check_tensors(sealed) if sealed.suffix == ".pt" else check_file(sealed)


def test_usual_readers_read_files_with_a_checksum(tmp_path: Path) -> None:
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content())
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(state["policy"]["weight"], torch.arange(300.0)) and state["history"] == [{"reward": 0.5}]
    assert torch.equal(load_file(tmp_path / "weights.safetensors")["weight"], torch.arange(300.0))
    content = json.loads((tmp_path / "result.json").read_text())
    assert content.pop("sha256") and content == read_object(tmp_path / "result.json")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data", "seven")
    with zipfile.ZipFile(io.BytesIO(sealed_zip(buffer.getvalue()))) as archive:
        assert archive.read("data") == b"seven" and archive.testzip() is None


def test_files_from_before_checksums_are_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "state.pt")
    save_file({"weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    (tmp_path / "result.json").write_text('{"accuracy": 1.0}')
    assert torch.equal(load_tensors(tmp_path / "state.pt", "policy")["policy"]["weight"], torch.arange(300.0))
    assert not check_file(tmp_path / "weights.safetensors") and not check_folder(tmp_path)
    assert read_object(tmp_path / "result.json", {"accuracy": float}) == {"accuracy": 1.0}


def test_a_checkpoint_from_before_checksums_is_checked_by_those_of_its_zip(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save(STATE, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.tensor([7.0]).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="state.pt is damaged: the checksum of .* differs"):
        check_tensors(path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tensors_get_one_line(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(CONTENTS["state.pt"]())
    damage(path)
    with pytest.raises(DamagedError, match=f"^{path} .*; give another checkpoint, or train again$"):
        load_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [({"optimizer": 1}, "it has no 'policy'"), ([1, 2], "it holds no entries"), ({"policy": Path("x")}, "more than")],
)
def test_a_file_of_other_things_than_tensors_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(UsageError, match=f"state.pt .*{message}") as raised:
        load_tensors(tmp_path / "state.pt", "policy")
    assert "\n" not in str(raised.value)


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    for name in ("model.safetensors", "optimizer.pt"):
        (folder / name).write_bytes(name.encode() * 50)
    (folder / "config.json").write_text("{}")
    (folder / SUMS_FILE).write_text(folder_sums(folder, leave_out=("config.json",)))
    return folder


def test_sha256sum_reads_the_checksums_of_a_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    done = subprocess.run(["sha256sum", "-c", SUMS_FILE], cwd=folder, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["model.safetensors: OK", "optimizer.pt: OK"]
    assert check_folder(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", SUMS_FILE])
@pytest.mark.parametrize("damage", [*DAMAGES, Path.unlink])
def test_damage_in_a_folder_is_noticed(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    folder = folder_of(tmp_path)
    damage(folder / name)
    if (folder / SUMS_FILE).exists():
        with pytest.raises(DamagedError, match="is damaged"):
            check_folder(folder)
    else:
        assert not check_folder(folder)


def test_damaged_checkpoints_are_named_and_moved_and_the_next_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{number}.pt" for number in (3, 2, 1)]
    for path in paths:
        path.write_bytes(sealed_tensors(STATE))
    flip(paths[0])
    assert list(intact(tmp_path, paths, check_tensors)) == paths[1:]
    (line,) = capsys.readouterr().err.splitlines()
    moved = tmp_path / "damaged" / "3.pt"
    assert line.startswith(f"{paths[0]} is damaged: its checksum differs; it is now {moved}") and moved.exists()
    for path in paths[1:]:
        path.write_bytes(b"")
    for _ in range(2):  # also when they were set aside earlier
        with pytest.raises(
            DamagedError, match=f"^{tmp_path} holds only damaged checkpoints .*; train again in another"
        ):
            list(intact(tmp_path, [path for path in paths if path.exists()], check_tensors))
    assert list(intact(tmp_path / "new", [], check_tensors)) == []


def test_a_file_that_may_not_be_read_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "3.pt"
    path.write_bytes(sealed_tensors(STATE))

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match=r"3.pt cannot be read \(Permission denied\)"):
        list(intact(tmp_path, [path], check_tensors))
    assert path.exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" ", "Expecting value"),
        ('{"a": 1, "b"', "Expecting ':' delimiter"),
        ("[1]", "it is no object"),
        ("{}", "it has no 'a'"),
        ('{"a": "x"}', "'a' of it is 'x'"),
        ('{"a": 1, "rows": [{}]}', "row 1 has no 'text'"),
        ('{"a": 1, "rows": {}}', "it holds no list"),
        ('{"a": 1, "rows": [], "one": {}}', "'one' has no 'b'"),
        ("[" * 100_000, "nested too deeply"),
        ('{"b": "' + 80 * "x" + '", "a": ' + 5000 * "1" + "}", "Exceeds the limit"),
        ("\ud800", "can't decode byte"),
    ],
)
def test_broken_json_gets_one_line_with_file_reason_and_remedy(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(DamagedError) as raised:
        read_object(path, {"a": float, "rows": [{"text": str}], "one": {"b": str}}, remedy="copy it again")
    message = str(raised.value)
    assert message.startswith(f"{path} cannot be read (") and reason in message and message.endswith("; copy it again")
    assert "\n" not in message


def test_a_broken_line_of_json_lines_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "000000.jsonl"
    path.write_text('{"text": "a"}\n{"text": 1}\n')
    with pytest.raises(DamagedError, match=r"000000.jsonl cannot be read \('text' of row 2 is '1'\)"):
        read_rows(path, {"text": str})
    with pytest.raises(DamagedError, match="000001.jsonl cannot be read .*No such file"):
        read_rows(tmp_path / "000001.jsonl", {"text": str})

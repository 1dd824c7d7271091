"""Where a source is: a path, a dataset that ships with the package, a Minari id, or the Hugging Face hub."""

from pathlib import Path

from envs.datasets.hub import SCHEME, find_on_hub
from envs.errors import DataError
from envs.reading.flat_files import is_flat
from envs.reading.readers import PACKAGED, check_is_file, minari_root
from envs.spaces import reason


def locate(source: str, download: bool = False) -> tuple[Path, str]:
    """The file or folder of a source, and, of one on the Hugging Face hub, its name with the commit, else "".

    A source that is nowhere raises `DataError`. download: as in `load`.
    """
    path, pinned = find_on_hub(source, download) if source.startswith(SCHEME) else (find(source, download), "")
    if path.name == "main_data.hdf5":  # Minari's own; its metadata is in the same folder
        path = path.parent
    return path, pinned


def find(source: str, download: bool = False) -> Path:
    """The file or folder that a user means by a path or a Minari id; one that is nowhere raises `DataError`."""
    if not source:
        raise DataError("no dataset named")
    path = Path(source)
    if path.exists():
        if not path.is_dir():
            check_is_file(path)  # a pipe or a device may never end
        return path
    dataset_id = _minari_id(source)
    if is_flat(path) or path.is_absolute() or ".." in path.parts or source.startswith("~"):
        raise DataError(f"{source}: no such file or folder")
    shipped = PACKAGED / f"{source.replace('/', '-')}.npz"
    if shipped.exists():
        return shipped
    root = minari_root()
    if not (root / dataset_id / "data").is_dir() and download:
        _download(source)
    if not (root / dataset_id / "data").is_dir():
        raise DataError(
            f"{source}: no such file or folder, and no dataset of that id in {root} (--download fetches it)"
        )
    return root / dataset_id


def _minari_id(source: str) -> str:
    """The id of a Minari dataset, without the remote that a full one begins with: hf://farama-minari/D4RL/door/human-v2."""
    remote, sign, rest = source.partition("://")
    if not sign:
        return source
    dataset_id = rest.partition("/")[2]
    if remote not in ("hf", "gcp") or not dataset_id:
        raise DataError(
            f"{source[:80]}: not read from there; hf://datasets/USER/NAME is a dataset on the hub, "
            "hf://farama-minari/ID one of Minari's"
        )
    return dataset_id


def _download(dataset_id: str) -> None:
    import minari

    try:
        minari.download_dataset(dataset_id)
    except Exception as error:  # the hub's clients raise errors of many kinds
        raise DataError(f"{dataset_id}: cannot be downloaded ({reason(error)})") from None

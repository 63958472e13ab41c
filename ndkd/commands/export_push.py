"""Takes an export to the Hugging Face Hub."""

import shlex
from pathlib import Path

from ndkd.errors import NdkdError
from ndkd.models.checkpoint_files import LOG_IN, hub_client, hub_words

LICENSE = "unknown"  # weights have that of their images and their teacher, which ndkd does not know


def check_push(push: str | None, private: bool, license: str | None, out: Path) -> None:
    """Raise ``NdkdError`` for what can be told to fail before anything is exported.

    Args:
        push: the repository, ``NAME`` or ``NAMESPACE/NAME``.
        private: that nobody else may see it.
        license: of the weights.
        out: the file to export, whose folder will be uploaded.
    """
    for option, value in {"--private": private, "--license": license}.items():
        if value and push is None:
            raise NdkdError(f"{option} has no effect without --push REPO: add it, or leave {option} out")
    if push is None:
        return
    client = hub_client()
    try:
        client.utils.validate_repo_id(push)
    except client.errors.HFValidationError as error:
        raise NdkdError(f"push {push!r}: wanted NAME or NAMESPACE/NAME; {hub_words(error)}") from error
    if out.parent.is_dir() and (there := sorted(file.name for file in out.parent.iterdir())):
        raise NdkdError(f"push: the folder of --out is uploaded, and {out.parent} holds {there[0]}: name a new folder")


def front_matter(format: str, license: str | None) -> str:
    """What the Hub reads at the top of a model card."""
    data = hub_client().ModelCardData(
        license=license or LICENSE,
        library_name="ndkd",
        pipeline_tag="image-classification",
        tags=["knowledge-distillation", "onnx" if format == "onnx" else "pytorch"],
        metrics=["accuracy"],
    )
    return f"---\n{data}\n---\n\n"


def upload(push: str, private: bool, folder: Path) -> str:
    """Upload a folder into a repository, which is made if need be; its address.

    Raises:
        NdkdError: not logged in, no network, no right to write there, or a repository that others see although it
            should be private. The folder is as it was.
    """
    client = hub_client()
    try:
        if client.get_token() is None:
            raise NdkdError(f"you are not logged in: {LOG_IN}")
        hub = client.HfApi()
        repository = hub.create_repo(push, private=private or None, exist_ok=True)
        if private and not hub.repo_info(repository.repo_id).private:
            raise NdkdError("it is there and public: make it private on its page, or leave --private out")
        hub.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="Export of ndkd")
    except Exception as error:  # of whatever kind the client's own client raises
        why = str(error) if isinstance(error, NdkdError) else hub_words(error)
        later = shlex.join(["hf", "upload", *["--private"] * private, push, str(folder)])
        raise NdkdError(f"{folder} is written but not uploaded to {push}: {why}; then {later}") from error
    return str(repository)

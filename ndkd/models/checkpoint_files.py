"""Where a checkpoint's file is: on this machine, or on the Hugging Face Hub, whose client keeps what it has fetched."""

import functools
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ndkd.errors import NdkdError, shortened, suggestion, words_of

SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".tar", ".safetensors")
USUAL = "model.safetensors"  # what timm, Transformers and ndkd export call it
LOG_IN = "log in with hf auth login, or set HF_TOKEN"
# one slash is left of a name that has been a Path
NAME = re.compile(r"hf://?(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>refs/pr/\d+|[^/@]+))?(/(?P<file>[^/].*[^/]))?")


class HubFile(NamedTuple):
    """A file of a model's repository on the Hub.

    Args:
        repo: ``NAMESPACE/NAME``.
        revision: a branch, a tag or a commit; by default the main branch.
        file: its path in the repository; by default ``model.safetensors``, else the only file of weights that there is.
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repo}{f'@{self.revision}' if self.revision else ''}{f'/{self.file}' if self.file else ''}"


def hub_file(name: str | Path) -> HubFile | None:
    """What ``hf://REPO/FILE`` or ``hf://REPO@REVISION/FILE`` names, None of a path on this machine.

    Raises:
        NdkdError: it begins like one and is none.

    Examples:
        >>> hub_file("hf://timm/resnet18.a1_in1k@main/model.safetensors")
        HubFile(repo='timm/resnet18.a1_in1k', revision='main', file='model.safetensors')
        >>> hub_file("runs/digits/teacher/checkpoints/last.ckpt") is None
        True
    """
    if not re.match("hf:/", str(name)):
        return None
    found = NAME.fullmatch(str(name))
    if found is None or not {".", ".."}.isdisjoint((found["file"] or "").split("/")):
        raise NdkdError(f"checkpoint {name}: wanted hf://NAMESPACE/NAME/FILE or hf://NAMESPACE/NAME@REVISION/FILE")
    return HubFile(found["repo"], found["revision"], found["file"])


def checkpoint_file(name: str | Path) -> Path:
    """The file on this machine, which need not exist unless it is the Hub's: that is fetched if its cache lacks it.

    Raises:
        NdkdError: no such file, revision or repository on the Hub, no network, no right to read it, or no client.
    """
    wanted = hub_file(name)
    return Path(name) if wanted is None else _fetched(wanted)


def existing_file(name: str | Path) -> Path | None:
    """The file on this machine, None if it is gone or cannot be fetched."""
    try:
        path = checkpoint_file(name)
    except NdkdError:
        return None
    return path if path.is_file() else None


def hub_client() -> ModuleType:
    """The package ``huggingface_hub``; ``NdkdError`` if it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils  # the package loads its modules only where they are imported
    except ImportError as error:
        raise NdkdError("the Hugging Face Hub needs a package: python -m pip install 'ndkd[hub]'") from error
    return huggingface_hub


def hub_words(error: Exception) -> str:
    """What an error of the Hub's client means, and what to do; one of the disk here is raised again."""
    errors = hub_client().errors
    if isinstance(error, OSError) and error.filename:
        raise error
    if isinstance(error, errors.HFValidationError):
        return f"no repository can be called that: {words_of(error)}"
    known = {  # the first that it is
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE keeps its client from the network: unset it",
        errors.LocalEntryNotFoundError: "the Hub cannot be reached, and its cache here lacks it: see the network, and "
        "HF_HUB_OFFLINE",
        errors.GatedRepoError: f"the repository is gated: ask for access on its page, and {LOG_IN}",
        errors.RevisionNotFoundError: "the repository has no such revision; correct what is behind the @",
        errors.RepositoryNotFoundError: f"there is no such repository, or it is private: correct its name, or {LOG_IN}",
    }
    if said := next((words for kind, words in known.items() if isinstance(error, kind)), None):
        return said
    if not isinstance(error, errors.HfHubHTTPError):
        return f"the Hub cannot be reached ({words_of(error)})"
    answers = {
        401: f"the Hub does not know who you are: {LOG_IN}",
        403: "there is no such namespace, or you may not write there: correct it, or log in as another",
    }
    return answers.get(error.response.status_code, f"the Hub refuses: {words_of(error)}")


@functools.cache  # in one process a branch is read once: what is built and what is recorded of it are the same weights
def _fetched(wanted: HubFile) -> Path:
    client, where = hub_client(), f"checkpoint {wanted}"
    try:
        try:
            found = client.hf_hub_download(wanted.repo, wanted.file or USUAL, revision=wanted.revision)
        except client.errors.EntryNotFoundError as error:
            if isinstance(error, client.errors.LocalEntryNotFoundError):
                raise
            files = client.HfApi().list_repo_files(wanted.repo, revision=wanted.revision)
            found = client.hf_hub_download(wanted.repo, _chosen(wanted, files), revision=wanted.revision)
    except NdkdError:
        raise
    except Exception as error:  # of whatever kind the client's own client raises
        raise NdkdError(f"{where}: {hub_words(error)}") from error
    return Path(found)


def _chosen(wanted: HubFile, files: list[str]) -> str:
    """The only file of weights that a repository has, safetensors before others, where none is asked for."""
    weights = [file for file in files if file.endswith(SUFFIXES)]
    safe = [file for file in weights if file.endswith(".safetensors")]
    if wanted.file is not None:
        raise NdkdError(f"checkpoint {wanted}: the repository has no such file; {suggestion(wanted.file, weights)}")
    if len(one := safe or weights) == 1:
        return one[0]
    if not one:
        raise NdkdError(f"checkpoint {wanted}: the repository has no file of weights; name another repository")
    raise NdkdError(f"checkpoint {wanted}: the repository has {shortened(one)}; add the name of one of them")
